# SPDX-License-Identifier: Apache-2.0
"""The writer's side of the protocol: change the firmware's key and the table as one.

Order of events, whatever the strategy: exclusive lock; *empty* table, durable;
firmware change; new table, durable, its first entry last; unlock. A crash at
any point leaves the empty table or the right one. The caller fetches what the
new key will need before it starts, so the lock is held for the firmware's own
time and no longer.

Two strategies for getting the lock while readers keep coming (OFD locks are not
fair: a writer that waits for a moment without readers may wait for ever):

**swap** puts a new, empty, exclusively locked file in the path's place. Readers
that come now wait for that one; those on the old file finish. Once the old file
can be locked it is emptied, for the sake of readers that keep it open, and the
new one is filled in. Needs a directory that can be written to.

**in-place** waits for a gap between readers and keeps the inode. For paths that
others see through a bind mount of the file itself.
"""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from snpcerts.abi.cert_table import EMPTY
from snpcerts.certfile import step
from snpcerts.certfile.step import Steps
from snpcerts.errors import InputError, RefusedError, RetryLaterError, SnpCertsError

DEFAULT_LOCK_WAIT = 5.0
EMPTY_SIZE = len(EMPTY)
_PAUSE = 0.001
# A table is for the VMMs that serve it, and for nobody to change but its owner.
_MODE = 0o640
_PRIVATE = 0o600
_WRONG_PATH = (errno.EISDIR, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class Strategy(enum.Enum):
    """How the writer gets past the readers."""

    SWAP = "swap"
    IN_PLACE = "in-place"


@dataclass(frozen=True, slots=True)
class Update:
    """How an update went; times in seconds."""

    waited: float  # for the exclusive lock, readers being served meanwhile
    held: float  # from having the lock to the last byte
    size: int  # bytes of the new table


class LockHeldError(RetryLaterError):
    """Someone else holds the lock for longer than the caller would wait."""

    code = "lock-held"

    def __init__(
        self, path: str, waited: float, holders: tuple[str, ...] = (), *, emptied: bool = False
    ) -> None:
        by = "; ".join(holders) or "someone this user may not look at"
        wrong = ". The file was emptied, since its table was wrong" if emptied else ""
        super().__init__(
            f"{path}: the lock was not had within {waited:.3g} s, it is held by {by}{wrong}",
            hint="try again when they are done",
        )
        self.path = path
        self.waited = waited
        self.emptied = emptied  # the one thing that was changed

    def named(self, holders: tuple[str, ...]) -> LockHeldError:
        """The same, with who holds the lock."""
        return LockHeldError(self.path, self.waited, holders, emptied=self.emptied)


def update(
    path: str,
    change: Callable[[], bytes],
    *,
    strategy: Strategy = Strategy.SWAP,
    lock_wait: float = DEFAULT_LOCK_WAIT,
    condemned: bytes | None = None,
) -> Steps[Update]:
    """Run ``change`` under the exclusive lock and publish the table it returns.

    While ``change`` runs nobody is served a table and no request is on its way
    to the firmware with one. When it raises, the empty table stays: what the
    firmware's key is then, only the caller can find out. A missing file is
    created. Raises :class:`LockHeldError` when the lock is not had in time, in
    which case nothing has changed, and :class:`InputError` when the path is not
    a regular file.

    ``condemned`` is a table that was found at the path and is known to be wrong.
    Giving up does not hand that one back: where the file still holds it, it is
    emptied in spite of the lock, and the error says so.
    """
    path = yield step.Resolve(path)
    names = _Names.of(path)
    start: float = yield step.Now()
    deadline = start + lock_wait
    try:
        # Only writers open this one, so readers cannot be in its way.
        turn: int = yield step.OpenOrCreate(names.turn, _PRIVATE)
    except OSError as error:
        raise _refused(names.turn, error) from None
    try:
        try:
            if not (yield from _lock_until(turn, deadline)):
                raise LockHeldError(names.turn, lock_wait)
            yield step.Unlink(names.new)
            yield from _finish_old(names, deadline, lock_wait, condemned)
            acquire = _in_place if strategy is Strategy.IN_PLACE else _swap
            fd: int = yield from acquire(names, deadline, lock_wait, condemned)
        except OSError as error:
            raise _refused(path, error) from None
        try:
            locked: float = yield step.Now()
            yield from _require_in_place(path, fd)
            table: bytes = yield step.Change(change)
            try:
                yield from _fill(fd, table)
            except OSError as error:
                yield from _give_room_back(fd)
                raise _refused(path, error) from None
            yield from _require_in_place(path, fd)
            done: float = yield step.Now()
        finally:
            yield from step.closed(fd)
    finally:
        yield from step.closed(turn)
    return Update(waited=locked - start, held=done - locked, size=len(table))


def turn_of(path: str) -> str:
    """The file whose lock is the writers' turn at ``path``, a real path. Once made, it stays."""
    return _Names.of(path).turn


@dataclass(frozen=True, slots=True)
class _Names:
    path: str
    turn: str  # whose exclusive lock is the writers' turn
    new: str  # the file that will take the path's place
    old: str  # the file that had it, until its readers are done

    @classmethod
    def of(cls, path: str) -> _Names:
        folder, name = os.path.split(path)
        hidden = os.path.join(folder, f".{name}")
        return cls(path, f"{hidden}.turn", f"{hidden}.new", f"{hidden}.old")


def _finish_old(
    names: _Names, deadline: float, lock_wait: float, condemned: bytes | None
) -> Steps[None]:
    """Do for the file that an update cut off has left aside what that update had still to do.

    Requests may be on their way with its table, and readers may keep it open.
    """
    try:
        old: int = yield step.OpenWrite(names.old)
    except FileNotFoundError:
        return
    try:
        mine: step.FileStat = yield step.Stat(old)
        if not mine.regular:
            raise InputError(f"{names.old}: is not a regular file", hint="remove it")
        try:
            there: step.FileStat | None = yield step.StatPath(names.path)
        except FileNotFoundError:
            there = None
        # Cut off before the rename, it is the path's own file still.
        if there is None or mine.identity != there.identity:
            _require_one_name(names.old, mine)
            if not (yield from _lock_until(old, deadline)):
                yield from _withdraw(old, condemned)
                emptied = yield from _withdraw_at(names.path, condemned)
                raise LockHeldError(names.old, lock_wait, emptied=emptied)
            yield from _empty(old)
        yield step.Unlink(names.old)
    finally:
        yield from step.closed(old)


def _swap(names: _Names, deadline: float, lock_wait: float, condemned: bytes | None) -> Steps[int]:
    """Put an empty, locked file at the path and wait for the old one's readers."""
    try:
        old: int | None = yield step.OpenWrite(names.path)
    except FileNotFoundError:
        old = None
    try:
        if old is not None:
            yield from _require_regular(names.path, old)
        new: int = yield step.Create(names.new, _PRIVATE if old is not None else _MODE)
        keep = False
        try:
            yield from _prepare(names, new, old)
            if old is not None:
                yield step.Link(names.path, names.old)
            yield step.Rename(names.new, names.path)
            yield step.SyncDirectory(names.path)
            if old is not None and not (yield from _lock_until(old, deadline)):
                # Readers on the old file will not end: give the path back to them.
                emptied = yield from _withdraw(old, condemned)
                yield step.Rename(names.old, names.path)
                yield step.SyncDirectory(names.path)
                raise LockHeldError(names.path, lock_wait, emptied=emptied)
            if old is not None:
                yield from _empty(old)
                yield step.Unlink(names.old)
            keep = True
        finally:
            if not keep:
                try:
                    yield step.Unlink(names.new)
                finally:
                    # It may be at the path by now, and its lock keep every reader out.
                    yield from step.closed(new)
    finally:
        if old is not None:
            yield from step.closed(old)
    return new


def _prepare(names: _Names, new: int, old: int | None) -> Steps[None]:
    """Make the new file an empty table, locked, and like the old one to everyone else."""
    if not (yield step.LockExclusive(new)):
        raise InputError(
            f"{names.new}: someone locked a file that only this update should know",
            hint="see who works in this directory",
        )
    if old is not None:
        yield step.CopyAttributes(old, new)
    yield step.Write(new, EMPTY, 0)
    yield step.Sync(new)


def _in_place(
    names: _Names, deadline: float, lock_wait: float, condemned: bytes | None
) -> Steps[int]:
    """Lock the file that is there, in a gap between readers, and empty it."""
    while True:
        try:
            fd: int = yield step.OpenWrite(names.path)
        except FileNotFoundError:
            return (yield from _swap(names, deadline, lock_wait, condemned))
        keep = False
        try:
            yield from _require_regular(names.path, fd)
            # A rename of an update cut off may not be on disk yet, and this is what it named.
            yield step.SyncDirectory(names.path)
            if not (yield from _lock_until(fd, deadline)):
                emptied = yield from _withdraw(fd, condemned)
                raise LockHeldError(names.path, lock_wait, emptied=emptied)
            mine: step.FileStat = yield step.Stat(fd)
            there: step.FileStat = yield step.StatPath(names.path)
            if mine.identity == there.identity:
                yield from _empty(fd)
                keep = True
                return fd
        finally:
            if not keep:
                yield from step.closed(fd)


def _withdraw(fd: int, condemned: bytes | None) -> Steps[bool]:
    """Empty a file that holds the ``condemned`` table, against its readers' locks.

    They are there for a right table's sake. Of a wrong one a reader can only get
    less by this: what it has read stays with it, what it reads now is empty.
    The size stays, so that none of them reads past the end.
    """
    if condemned is None:
        return False
    found: bytes = yield step.Read(fd, len(condemned) + 1)
    if found == condemned:
        yield step.Write(fd, EMPTY, 0)
    elif not found.startswith(EMPTY):
        return False
    # Found empty, it may have been emptied by an update cut off before its sync.
    yield step.Sync(fd)
    return found == condemned


def _withdraw_at(path: str, condemned: bytes | None) -> Steps[bool]:
    """As :func:`_withdraw`, for what is at the path."""
    if condemned is None:
        return False
    try:
        fd: int = yield step.OpenWrite(path)
    except FileNotFoundError:
        return False
    try:
        return (yield from _withdraw(fd, condemned))
    finally:
        yield from step.closed(fd)


def _refused(path: str, error: OSError) -> SnpCertsError:
    """The error for a system call that failed; who called is told what to look at."""
    text = f"{path}: cannot update: {os.strerror(error.errno) if error.errno else error}"
    if error.errno in _WRONG_PATH:
        return InputError(text, hint="name a file in an existing directory")
    if error.errno in (errno.EBUSY, errno.EXDEV):
        return RefusedError(text, hint="a file that is a mount point needs the in-place strategy")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RefusedError(text, hint="the file and its directory must be writable")
    return RefusedError(text)


def _require_regular(path: str, fd: int) -> Steps[None]:
    status: step.FileStat = yield step.Stat(fd)
    if not status.regular:
        raise InputError(f"{path}: is not a regular file", hint="name the certificate file")
    _require_one_name(path, status)


def _require_one_name(path: str, status: step.FileStat) -> None:
    """A file that is known elsewhere by another name is not the certificate file alone."""
    if status.links > 1:
        raise RefusedError(
            f"{path}: has {status.links} names (hard links); what is written here would be "
            "written there",
            hint="see who made them (find -samefile), and remove those that are not yours",
        )


def _require_in_place(path: str, fd: int) -> Steps[None]:
    """Someone who replaces the file behind our back is noticed, if not prevented."""
    mine: step.FileStat = yield step.Stat(fd)
    try:
        there: step.FileStat = yield step.StatPath(path)
    except OSError as error:
        raise _refused(path, error) from None
    if mine.identity != there.identity:
        raise RefusedError(
            f"{path}: another program replaced the file during the update",
            hint="find out which, and update again: what guests get now is that program's",
        )


def _lock_until(fd: int, deadline: float) -> Steps[bool]:
    """Try for the exclusive lock until ``deadline``."""
    while not (yield step.LockExclusive(fd)):
        now: float = yield step.Now()
        if now >= deadline:
            return False
        yield step.Pause(min(_PAUSE, deadline - now))
    return True


def _empty(fd: int) -> Steps[None]:
    """Make the file the empty table, durably; its first 24 bytes decide."""
    yield step.Write(fd, EMPTY, 0)
    yield step.Sync(fd)
    yield step.Truncate(fd, len(EMPTY))


def _fill(fd: int, table: bytes) -> Steps[None]:
    """Write a table over the empty one, durably, its first entry last."""
    first, rest = table[: len(EMPTY)], table[len(EMPTY) :]
    if rest:
        yield step.Write(fd, rest, len(EMPTY))
        yield step.Sync(fd)
    yield step.Write(fd, first, 0)
    yield step.Sync(fd)


def _give_room_back(fd: int) -> Steps[None]:
    """Empty a table that could not be written whole, so that the next one has room."""
    try:
        yield from _empty(fd)
    except OSError:
        # What is there is the empty table already, unless the disk is broken.
        return
