# SPDX-License-Identifier: Apache-2.0
"""Holds the certificate file's lock without reading or changing the file."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager

from snpcerts.abi.lock import EXCLUSIVE, F_OFD_SETLK, SHARED
from snpcerts.certfile.holders import blockers_of
from snpcerts.certfile.writer import LockHeldError
from snpcerts.errors import InputError

_PAUSE = 0.005  # seconds between two tries


class HeldLock:
    """A lock that is held on an open file, with the file's identity and the time at which the lock
    was granted.
    """

    def __init__(self, status: os.stat_result) -> None:
        self._start = time.monotonic()
        self._file = (status.st_dev, status.st_ino)

    def is_at(self, path: str) -> bool:
        """Return whether ``path`` still names the locked file."""
        try:
            there = os.stat(path)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == self._file

    def ticks(self, limit: float | None) -> Iterator[int]:
        """Count the seconds since the lock was granted: yield 1, 2, ... Stop after ``limit``
        seconds, or never if ``limit`` is None.
        """
        second = 0
        while True:
            second += 1
            if limit is not None and second > limit:
                time.sleep(max(0.0, self._start + limit - time.monotonic()))
                return
            time.sleep(max(0.0, self._start + second - time.monotonic()))
            yield second


@contextmanager
def hold(path: str, *, shared: bool) -> Iterator[HeldLock]:
    """Hold a lock on the whole file at ``path`` during the block. Do not wait for the lock.

    Raises :class:`LockHeldError`, which names the holders, if a conflicting lock is held, and
    :class:`InputError` if ``path`` is not a regular file that can be opened.
    """
    flags = os.O_RDONLY if shared else os.O_RDWR
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{path}: {reason}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(
                f"{path}: not a regular file", hint="use the path of the certificate file"
            )
        try:
            fcntl.fcntl(fd, F_OFD_SETLK, SHARED if shared else EXCLUSIVE)
        except BlockingIOError:
            raise LockHeldError(path, 0, blockers_of(path)) from None
        yield HeldLock(status)
    finally:
        os.close(fd)


@contextmanager
def hold_in_place(path: str, wait: float) -> Iterator[None]:
    """Hold a shared lock on the file at ``path`` during the block. Wait up to ``wait`` seconds for
    it.

    Unlike the lock of a request, this lock is kept even if the file is empty. While it is held, no
    program that follows the protocol changes the firmware's key. Raises :class:`LockHeldError`,
    which names the holders, or :class:`InputError`.
    """
    deadline = time.monotonic() + wait
    while True:
        try:
            with hold(path, shared=True) as held:
                if held.is_at(path):
                    yield
                    return
        except LockHeldError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE)
