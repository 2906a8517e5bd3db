# SPDX-License-Identifier: Apache-2.0
"""The steps that the certificate file's protocol is made of.

The protocol is written once, as generators that yield steps and receive the results
(:mod:`snpcerts.certfile.reader`, :mod:`snpcerts.certfile.writer`). :mod:`snpcerts.certfile.system`
performs the steps as system calls; the explorer performs them on a model. A failing step throws
``OSError`` into the generator.
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
    links: int = 1  # number of names in directories

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode. An inode number identifies a file only within its file system."""
        return self.device, self.inode


class Now(NamedTuple):
    """Monotonic seconds -> float."""


class Pause(NamedTuple):
    """Wait a moment -> None."""

    seconds: float


class Resolve(NamedTuple):
    """Follow every symbolic link of root or this user -> the real path, str."""

    path: str


class OpenRead(NamedTuple):
    """Open for reading -> descriptor. Never blocks, whatever is at the path."""

    path: str


class OpenWrite(NamedTuple):
    """Open an existing file, not through a symbolic link, for reading and writing -> descriptor."""

    path: str


class Create(NamedTuple):
    """Open for reading and writing a file that must not exist yet -> descriptor."""

    path: str
    mode: int


class OpenOrCreate(NamedTuple):
    """Open for reading and writing, creating the file if needed -> descriptor."""

    path: str
    mode: int


class Close(NamedTuple):
    """Close -> None. Closing the last descriptor of an open file description drops its locks."""

    fd: int


class LockShared(NamedTuple):
    """Try for a shared OFD lock on the whole file -> whether it was granted."""

    fd: int


class LockExclusive(NamedTuple):
    """Try for an exclusive OFD lock on the whole file -> whether it was granted."""

    fd: int


class Stat(NamedTuple):
    """Stat the open file -> FileStat."""

    fd: int


class StatPath(NamedTuple):
    """Stat the file that the path names now -> FileStat."""

    path: str


class Read(NamedTuple):
    """Read up to ``size`` bytes from offset 0 -> bytes; fewer only at the end of the file."""

    fd: int
    size: int


class Write(NamedTuple):
    """Write all of ``data`` at ``offset`` -> None."""

    fd: int
    data: bytes
    offset: int


class Truncate(NamedTuple):
    """Set the file's size -> None."""

    fd: int
    size: int


class Sync(NamedTuple):
    """Make the file's content durable -> None."""

    fd: int


class SyncDirectory(NamedTuple):
    """Make the entries of the directory that contains ``path`` durable -> None."""

    path: str


class CopyAttributes(NamedTuple):
    """Give one open file the owner, mode and extended attributes of another -> None."""

    source: int
    target: int


class Link(NamedTuple):
    """Give the file at ``path`` another name -> None."""

    path: str
    second: str


class Rename(NamedTuple):
    """Rename ``source`` to ``target``, replacing any file there -> None."""

    source: str
    target: str


class Unlink(NamedTuple):
    """Remove a name if it exists -> None."""

    path: str


class Change(NamedTuple):
    """Change the firmware, under the exclusive lock, and return the new table -> bytes."""

    call: Callable[[], bytes]


class Deliver(NamedTuple):
    """Copy the outcome to the guest's buffer and set the answer -> None."""

    call: Callable[[Any], None]
    found: object


class Handshake(NamedTuple):
    """Re-enter KVM_RUN so that the firmware gets the request -> the result of ``call``."""

    call: Callable[[], Any]
    fd: int | None  # the descriptor whose lock is held meanwhile, if any


Steps = Generator[Any, Any, T]
Performer = Callable[[Steps[Any]], Any]


def relayed(steps: Steps[T], through: Callable[[Any], Steps[Any]]) -> Steps[T]:
    """Return the protocol, with every step passed to ``through``, a generator.

    Steps that ``through(action)`` yields are yielded in place of the action. Its return value
    becomes the action's result. An exception that it raises is thrown into the protocol. ``return
    (yield action)`` changes nothing.
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

    Data that must last has been synced. If this raised an error, other descriptors would stay open,
    with their locks.
    """
    try:
        yield Close(fd)
    except OSError:
        return
