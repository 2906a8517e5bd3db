# SPDX-License-Identifier: Apache-2.0
"""The steps that the certificate file's protocol is made of.

The protocol is written once, as generators that yield steps and receive the results
(:mod:`snpcerts.certfile.reader`, :mod:`snpcerts.certfile.writer`). :mod:`snpcerts.certfile.system`
runs the steps as real system calls; the explorer (``explore``) runs them on a model. A step
that fails throws ``OSError`` into the generator.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class FileStat(NamedTuple):
    """The fields of ``stat`` that the protocol needs."""

    device: int
    inode: int
    size: int
    regular: bool
    links: int = 1  # number of hard links

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode. An inode number identifies a file only within its file system."""
        return self.device, self.inode


class Now(NamedTuple):
    """Read the monotonic clock. The result is seconds, as a float."""


class Pause(NamedTuple):
    """Wait ``seconds``."""

    seconds: float


class Resolve(NamedTuple):
    """Follow every symbolic link that root or this user owns. The result is the real path."""

    path: str


class OpenRead(NamedTuple):
    """Open the file for reading. The result is its descriptor. Never blocks, even on a FIFO."""

    path: str


class OpenWrite(NamedTuple):
    """Open an existing file for reading and writing, but not through a symbolic link. The result is
    its descriptor.
    """

    path: str


class Create(NamedTuple):
    """Create a file for reading and writing. Fails if the file exists. The result is its
    descriptor.
    """

    path: str
    mode: int


class OpenOrCreate(NamedTuple):
    """Open the file for reading and writing. Create it if needed. The result is its descriptor."""

    path: str
    mode: int


class Close(NamedTuple):
    """Close a descriptor. The last close of an open file description drops its locks."""

    fd: int


class LockShared(NamedTuple):
    """Try to get a shared OFD lock on the whole file. The result is whether it was granted."""

    fd: int


class LockExclusive(NamedTuple):
    """Try to get an exclusive OFD lock on the whole file. The result is whether it was granted."""

    fd: int


class Stat(NamedTuple):
    """Stat the open file. The result is a :class:`FileStat`."""

    fd: int


class StatPath(NamedTuple):
    """Stat the file that is now at the path. The result is a :class:`FileStat`."""

    path: str


class Read(NamedTuple):
    """Read the file's first ``size`` bytes. The result is shorter only if the file is."""

    fd: int
    size: int


class Write(NamedTuple):
    """Write all of ``data`` to the open file, from byte ``offset`` on."""

    fd: int
    data: bytes
    offset: int


class Truncate(NamedTuple):
    """Set the size of the open file to ``size`` bytes."""

    fd: int
    size: int


class Sync(NamedTuple):
    """Make the open file's content durable, as fsync(2) does."""

    fd: int


class SyncDirectory(NamedTuple):
    """Make the entries of the directory that contains ``path`` durable."""

    path: str


class CopyAttributes(NamedTuple):
    """Copy the owner, mode and extended attributes of one open file to another."""

    source: int
    target: int


class Link(NamedTuple):
    """Give the file at ``path`` a second name (a hard link)."""

    path: str
    second: str


class Rename(NamedTuple):
    """Rename ``source`` to ``target``, replacing any file at ``target``."""

    source: str
    target: str


class Unlink(NamedTuple):
    """Remove the name ``path`` if it exists."""

    path: str


class Change(NamedTuple):
    """Change the firmware's state under the exclusive lock. The result is the new table's bytes."""

    call: Callable[[], bytes]


class Deliver(NamedTuple):
    """Call ``call(found)``, which copies the table, if there is one, to the guest and sets the
    VMM's answer.
    """

    call: Callable[[Any], None]
    found: object


class Handshake(NamedTuple):
    """Re-enter KVM_RUN so that the firmware gets the request. The result is that of ``call``."""

    call: Callable[[], Any]
    fd: int | None  # the descriptor whose lock is held meanwhile, if any


Steps = Generator[Any, Any, T]
Performer = Callable[[Steps[Any]], Any]


def relayed(steps: Steps[T], through: Callable[[Any], Steps[Any]]) -> Steps[T]:
    """Return a protocol whose every step is first passed to ``through``, a generator function.

    The steps that ``through(action)`` yields replace the step ``action``. The value that
    ``through`` returns becomes that step's result; an exception that ``through`` raises is thrown
    into the protocol. To leave a step as it is, ``through`` does ``return (yield action)``.
    """
    try:
        action = next(steps)
        while True:
            try:
                result = yield from through(action)
            except BaseException as error:
                action = steps.throw(error)
            else:
                action = steps.send(result)
            result = None  # the result must not stay alive until the next step
    except StopIteration as end:
        value: T = end.value
        return value


def closed(fd: int) -> Steps[None]:
    """Close a descriptor and ignore errors: Linux closes it in any case.

    Data that must last has already been synced. If this step raised an error, other descriptors
    would stay open, with their locks.
    """
    try:
        yield Close(fd)
    except OSError:
        return
