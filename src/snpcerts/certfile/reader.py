# SPDX-License-Identifier: Apache-2.0
"""The reader's side of the protocol: what a VMM does for one certificate request.

Source: Linux ``Documentation/virt/kvm/x86/amd-memory-encryption.rst``, section
KVM_SEV_SNP_ENABLE_REQ_CERTS. It requires a lock from before the file is read until the firmware has
the request. In detail:

1. open the path again for each request, so that each has its own open file
   description and another vCPU's unlock cannot drop its lock;
2. try to get a shared OFD lock; after the time limit, the answer is "busy";
3. compare the locked file's device and inode with those of the path, and start
   again if they differ: a lock on a replaced file protects nothing;
4. read, deliver, re-enter KVM_RUN with ``immediate_exit``;
5. close the file after any outcome, which drops the lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from snpcerts.abi.cert_table import EMPTY, MAX_SIZE
from snpcerts.certfile import step
from snpcerts.certfile.step import Steps

T = TypeVar("T")

DEFAULT_LOCK_WAIT = 0.1
# Pauses between tries for the lock. Updates take milliseconds.
_FIRST_PAUSE = 0.0005
_LONGEST_PAUSE = 0.005


NOT_REGULAR = "not a regular file"
SHRANK = "the file shrank during the read: another program writes to it without the lock"


def too_large(size: int, limit: int) -> str:
    """Return the message for a file that is too large to serve."""
    return f"the file has {size} bytes; the limit is {limit}"


@dataclass(frozen=True, slots=True)
class Table:
    """The file contains a table, and the reader holds the shared lock on the file."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Empty:
    """The file contains the empty table, so there are no certificates to deliver."""


@dataclass(frozen=True, slots=True)
class Busy:
    """Another process held the lock for the whole wait, because an update is in progress."""

    waited: float  # seconds


@dataclass(frozen=True, slots=True)
class Unreadable:
    """No table can be read from the path, and waiting will not change that."""

    problem: str


Found = Table | Empty | Busy | Unreadable


def serve(
    path: str,
    *,
    deliver: Callable[[Found], None],
    handshake: Callable[[], T],
    lock_wait: float = DEFAULT_LOCK_WAIT,
    size_limit: int = MAX_SIZE,
) -> Steps[T]:
    """Serve one certificate request from the file at ``path``; return the result of ``handshake``.

    Calls ``deliver`` once with the outcome. If that is a :class:`Table`, the lock is held from
    before the first byte is read until ``handshake`` returns or raises. ``lock_wait`` is in
    seconds, ``size_limit`` in bytes. Raises only what the two callables raise.
    """
    fd, found = yield from _find(path, lock_wait, size_limit)
    try:
        yield step.Deliver(deliver, found)
        result: T = yield step.Handshake(handshake, fd)
    finally:
        if fd is not None:
            yield from step.closed(fd)
    return result


def _find(path: str, lock_wait: float, size_limit: int) -> Steps[tuple[int | None, Found]]:
    """Lock and read the file. Its descriptor stays open only if the file contains a table."""
    start: float | None = None
    pause = _FIRST_PAUSE
    while True:
        try:
            fd: int = yield step.OpenRead(path)
        except (OSError, ValueError) as error:
            return None, Unreadable(_problem(error))
        keep = False
        try:
            found = yield from _locked_content(path, fd, size_limit)
            keep = isinstance(found, Table)
        finally:
            if not keep:
                yield from step.closed(fd)
        if found is not None:
            return (fd if keep else None), found
        now: float = yield step.Now()
        if start is None:
            start = now
        left = start + lock_wait - now
        if left <= 0:
            return None, Busy(now - start)
        yield step.Pause(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE)


def _locked_content(path: str, fd: int, size_limit: int) -> Steps[Found | None]:
    """Read the open file under the lock. Return None if the caller must try again."""
    try:
        if not (yield step.LockShared(fd)):
            return None
        mine: step.FileStat = yield step.Stat(fd)
        there: step.FileStat = yield step.StatPath(path)
        if mine.identity != there.identity:
            return None
        if not mine.regular:
            return Unreadable(NOT_REGULAR)
        if mine.size > size_limit:
            return Unreadable(too_large(mine.size, size_limit))
        data: bytes = yield step.Read(fd, mine.size)
    except OSError as error:
        return Unreadable(_problem(error))
    if len(data) != mine.size:
        return Unreadable(SHRANK)
    # A leading terminator ends the table, whatever follows it. An update may have been interrupted
    # between writing the table's body and its first entry.
    if not data.startswith(EMPTY) and data:
        return Table(data)
    return Empty()


def _problem(error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return str(error)
