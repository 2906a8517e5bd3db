# SPDX-License-Identifier: Apache-2.0
"""Tells the open file descriptions of other processes apart. Several descriptors may share one.

A lock belongs to the description. A VMM may lock through one descriptor and keep another: a
duplicate, or a descriptor that a helper process sent over a socket. So each locked description gets
a mark: the signal number of F_SETSIG (fcntl(2)). The number belongs to the description, and has no
meaning for a regular file. Every descriptor of the description then shows the mark.

Numbers: Linux ``asm-generic/fcntl.h``, ``linux/pidfd.h`` and ``asm/unistd_64.h``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Iterable, Iterator
from typing import Final

from snpcerts.certfile.holders import locks_through

_F_SETSIG: Final = 10
_F_GETSIG: Final = 11
_MARKS: Final = 64  # the highest signal number
_SYS_PIDFD_GETFD: Final = 438
_PIDFD_THREAD: Final = os.O_EXCL  # linux/pidfd.h
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def borrowed(process: int, number: int, *, thread: int | None = None) -> Iterator[int]:
    """Yield this process's duplicate of the descriptor ``number`` of ``process``, and close it
    afterwards. ``thread`` names a thread of the process that may have descriptors of its own
    (unshare(2) with CLONE_FILES); before Linux 6.9, such descriptors cannot be duplicated.

    Raises ``OSError`` if the process has ended or may not be inspected.
    """
    handle = _handle(process, thread)
    try:
        descriptor = _libc.syscall(_SYS_PIDFD_GETFD, handle, number, 0)
        if descriptor < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(handle)
    try:
        yield int(descriptor)
    finally:
        os.close(descriptor)


def _handle(process: int, thread: int | None) -> int:
    if thread is not None:
        try:
            return os.pidfd_open(thread, _PIDFD_THREAD)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return os.pidfd_open(process)


class Marks:
    """Marks open file descriptions, so that :func:`holding` can tell them apart.

    After 64 descriptions the numbers repeat, so old descriptions must be closed by then.
    """

    def __init__(self) -> None:
        self._last = 0

    def of(self, process: int, number: int, thread: int) -> int | None:
        """Return the mark of the open file description behind a thread's descriptor, after marking
        it if needed.

        Returns None if that fails.
        """
        try:
            with borrowed(process, number, thread=thread) as descriptor:
                known = fcntl.fcntl(descriptor, _F_GETSIG)
                if known:
                    return known
                self._last = self._last % _MARKS + 1
                fcntl.fcntl(descriptor, _F_SETSIG, self._last)
                return self._last
        except OSError:
            return None


def holding(processes: Iterable[int], identity: tuple[int, int]) -> set[int]:
    """Return the marks of the open file descriptions, among those of ``processes``, that hold a
    lock on the file.

    ``identity`` is the file's device and inode. The mark 0 stands for unmarked descriptions.
    """
    found: set[int] = set()
    for process in processes:
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{process}/fd"):
                if any(locks_through(process, number, identity)):
                    found.add(_mark(process, int(number)))
    return found


def _mark(process: int, number: int) -> int:
    try:
        with borrowed(process, number) as descriptor:
            return fcntl.fcntl(descriptor, _F_GETSIG)
    except OSError:
        return 0
