# SPDX-License-Identifier: Apache-2.0
"""The writer's side of the protocol: how an update changes the firmware's key and the table
together.

All strategies follow the same order: take the exclusive lock; write and sync the *empty* table;
change the firmware; write and sync the new table, its first entry last; unlock. A crash at any
point leaves the empty table or the right one. Before the update, the caller fetches the
certificates for the new key, so the lock is held only as long as the firmware command takes.

OFD locks are not fair: a writer that only waits until there is no reader may wait forever. Three
strategies get the lock:

**there-and-back** puts a stand-in at the path: a new, empty, exclusively locked file. New readers
wait for the stand-in's lock; readers of the certificate file finish, so the writer gets that file's
lock. Then the certificate file returns to the path. It keeps its inode, so readers that keep it
open or see it through a bind mount get the new table too. The writer needs write access to the
directory.

**swap** begins in the same way, but the new file stays at the path. Readers that keep the old file
find it empty from then on.

**in-place** waits until no reader holds a lock. Use it if the path is a mount point or the
directory cannot be written to.
"""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from snpcerts.abi.cert_table import EMPTY
from snpcerts.certfile import step
from snpcerts.certfile.step import Steps
from snpcerts.errors import InputError, RefusedError, RetryLaterError, SnpCertsError

DEFAULT_LOCK_WAIT = 5.0
EMPTY_SIZE = len(EMPTY)
_PAUSE = 0.001
# The VMMs (the file's group) may read a table. Only its owner may change it.
_MODE = 0o640
_PRIVATE = 0o600
_WRONG_PATH = (errno.EISDIR, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class Strategy(enum.Enum):
    """How the writer gets exclusive access while readers are active."""

    THERE_AND_BACK = "there-and-back"
    SWAP = "swap"
    IN_PLACE = "in-place"


DEFAULT_STRATEGY: Final = Strategy.THERE_AND_BACK


@dataclass(frozen=True, slots=True)
class Update:
    """The outcome of an update. Times are in seconds."""

    waited: float  # until the exclusive lock was granted; readers are served meanwhile
    held: float  # from taking the lock to writing the last byte
    size: int  # bytes of the new table


class LockHeldError(RetryLaterError):
    """Another process held the lock for longer than the caller was willing to wait."""

    code = "lock-held"

    def __init__(
        self, path: str, waited: float, holders: tuple[str, ...] = (), *, emptied: bool = False
    ) -> None:
        by = "; ".join(holders) or "a process that this user cannot inspect"
        waiting = f"timed out after {waited:.3g} s waiting for the lock, held" if waited else ""
        wrong = ". The certificate file was emptied, because its table was wrong" if emptied else ""
        super().__init__(
            f"{path}: {waiting or 'already locked'} by {by}{wrong}",
            hint="try again when the lock is released",
        )
        self.path = path
        self.waited = waited
        self.emptied = emptied  # whether the wrong table was removed; nothing else has changed

    def with_holders(self, holders: tuple[str, ...]) -> LockHeldError:
        """Return the same error with the holders of the lock added."""
        return LockHeldError(self.path, self.waited, holders, emptied=self.emptied)


def update(
    path: str,
    change: Callable[[], bytes],
    *,
    strategy: Strategy = DEFAULT_STRATEGY,
    lock_wait: float = DEFAULT_LOCK_WAIT,
    wrong_table: bytes | None = None,
) -> Steps[Update]:
    """Run ``change`` under the exclusive lock and publish the table it returns.

    While ``change`` runs, no guest gets a table, and no request with a table is on its way to the
    firmware. If ``change`` raises, the file stays empty, because only the caller can find out which
    key the firmware then has. A missing file is created. Raises :class:`LockHeldError` if the lock
    does not become free in time; the firmware has then not changed. Raises :class:`InputError` if
    the path does not lead to a regular file, and :class:`RefusedError` if a system call fails for
    another reason or another program replaces the file.

    ``wrong_table`` is a table that was found at the path and is known to be wrong. If the lock does
    not become free in time and the file still holds that table, the update empties the file despite
    the lock, and the error says so. In all other cases, an update that does not get the lock leaves
    the file's content as it was.
    """
    path = yield step.Resolve(path)
    names = _Names.of(path)
    start: float = yield step.Now()
    deadline = start + lock_wait
    try:
        # Only writers open this file, so no reader can block this lock.
        turn: int = yield step.OpenOrCreate(names.turn, _PRIVATE)
    except OSError as error:
        raise _refused(names.turn, error) from None
    try:
        try:
            if not (yield from _lock_until(turn, deadline)):
                raise LockHeldError(names.turn, lock_wait)
            yield step.Unlink(names.new)
            yield from _finish_old(names, deadline, lock_wait, wrong_table)
            fd: int = yield from _ACQUIRE[strategy](names, deadline, lock_wait, wrong_table)
        except OSError as error:
            raise _refused(path, error) from None
        try:
            locked: float = yield step.Now()
            yield from _require_not_replaced(path, fd)
            table: bytes = yield step.Change(change)
            try:
                yield from _fill(fd, table)
            except OSError as error:
                yield from _free_space(fd)
                raise _refused(path, error) from None
            yield from _require_not_replaced(path, fd)
            done: float = yield step.Now()
        finally:
            yield from step.closed(fd)
    finally:
        yield from step.closed(turn)
    return Update(waited=locked - start, held=done - locked, size=len(table))


def turn_of(path: str) -> str:
    """Return the path of the turn file, which writers of ``path`` lock to exclude each other.

    ``path`` is a real path. The turn file is never removed.
    """
    return _Names.of(path).turn


def old_of(path: str) -> str:
    """Return the path at which an update of ``path`` keeps the old file until its readers are done.

    ``path`` is a real path.
    """
    return _Names.of(path).old


@dataclass(frozen=True, slots=True)
class _Names:
    path: str
    turn: str  # its exclusive lock admits one writer at a time
    new: str  # the file that will be renamed to the path
    old: str  # the file that was at the path, until its readers are done

    @classmethod
    def of(cls, path: str) -> _Names:
        folder, name = os.path.split(path)
        hidden = os.path.join(folder, f".{name}")
        return cls(path, f"{hidden}.turn", f"{hidden}.new", f"{hidden}.old")


def _finish_old(
    names: _Names, deadline: float, lock_wait: float, wrong_table: bytes | None
) -> Steps[None]:
    """Finish an interrupted update: wait for the readers of the file that the update set aside,
    then empty that file.

    Requests with that file's table may be on their way to the firmware, and readers may keep the
    file open. It must be emptied, because the firmware may have changed since its table was
    written. Unless the path already has a file with certificates, the emptied file returns to the
    path, because some readers may see it through a bind mount.
    """
    try:
        old: int = yield step.OpenWrite(names.old)
    except FileNotFoundError:
        return
    try:
        mine: step.FileStat = yield step.Stat(old)
        if not mine.regular:
            raise InputError(
                f"{names.old}: not a regular file", hint="remove the file and run the update again"
            )
        try:
            there: step.FileStat | None = yield step.StatPath(names.path)
        except FileNotFoundError:
            there = None
        # If an update was interrupted before its rename, the file at the path has two names.
        if there is None or mine.identity != there.identity:
            _require_one_name(names.old, mine)
            if not (yield from _lock_until(old, deadline)):
                yield from _withdraw(old, wrong_table)
                emptied = yield from _withdraw_at(names.path, wrong_table)
                raise LockHeldError(names.old, lock_wait, emptied=emptied)
            yield from _empty(old)
            if there is None or (there.regular and (yield from _is_empty(names.path))):
                yield from _put_back(names)
                return
        yield step.Unlink(names.old)
    finally:
        yield from step.closed(old)


def _is_empty(path: str) -> Steps[bool]:
    """Return whether the file at the path is empty or begins with the empty table."""
    fd: int = yield step.OpenRead(path)
    try:
        data: bytes = yield step.Read(fd, EMPTY_SIZE)
    finally:
        yield from step.closed(fd)
    return not data or data.startswith(EMPTY)


def _there_and_back(
    names: _Names, deadline: float, lock_wait: float, wrong_table: bytes | None
) -> Steps[int]:
    """Move the existing file aside, lock and empty it while a stand-in is at its path, and move it
    back. Return its descriptor.
    """
    try:
        fd: int = yield step.OpenWrite(names.path)
    except FileNotFoundError:
        return (yield from _swap(names, deadline, lock_wait, wrong_table))
    keep = False
    try:
        stand_in = yield from _set_aside(names, fd, deadline, lock_wait, wrong_table)
        try:
            yield from _require_not_replaced(names.path, stand_in)
            # The table may already be wrong, so empty the file before it returns to the path.
            yield from _empty(fd)
            yield from _put_back(names)
        finally:
            yield from step.closed(stand_in)
        keep = True
    finally:
        if not keep:
            yield from step.closed(fd)
    return fd


def _swap(
    names: _Names, deadline: float, lock_wait: float, wrong_table: bytes | None
) -> Steps[int]:
    """Put an empty, locked file at the path permanently, and empty the old one."""
    try:
        old: int | None = yield step.OpenWrite(names.path)
    except FileNotFoundError:
        old = None
    try:
        new = yield from _set_aside(names, old, deadline, lock_wait, wrong_table)
        keep = False
        try:
            if old is not None:
                yield from _empty(old)
                yield step.Unlink(names.old)
            keep = True
        finally:
            if not keep:
                yield from step.closed(new)
    finally:
        if old is not None:
            yield from step.closed(old)
    return new


def _set_aside(
    names: _Names,
    old: int | None,
    deadline: float,
    lock_wait: float,
    wrong_table: bytes | None,
) -> Steps[int]:
    """Put a new, empty, locked file at the path, and lock ``old``, the previous one.

    Returns the new file's descriptor. The old file is then at ``names.old``. If a reader does not
    release the old file in time, that file is put back and :class:`LockHeldError` is raised.
    """
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
            emptied = yield from _withdraw(old, wrong_table)
            yield from _put_back(names)
            raise LockHeldError(names.path, lock_wait, emptied=emptied)
        keep = True
    finally:
        if not keep:
            try:
                yield step.Unlink(names.new)
            finally:
                # Close it even so: the new file may already have been renamed to the served path,
                # and until it is closed, its lock excludes every reader.
                yield from step.closed(new)
    return new


def _put_back(names: _Names) -> Steps[None]:
    """Move the file that was set aside back to the path, and sync the rename to disk."""
    yield step.Rename(names.old, names.path)
    yield step.SyncDirectory(names.path)


def _prepare(names: _Names, new: int, old: int | None) -> Steps[None]:
    """Lock the new file, copy the old file's owner, mode and attributes to it, and write the empty
    table.
    """
    if not (yield step.LockExclusive(new)):
        raise InputError(
            f"{names.new}: another process locked a file that only this update should open",
            hint="find out which other program uses this directory, and stop it",
        )
    if old is not None:
        yield step.CopyAttributes(old, new)
    yield step.Write(new, EMPTY, 0)
    yield step.Sync(new)


def _in_place(
    names: _Names, deadline: float, lock_wait: float, wrong_table: bytes | None
) -> Steps[int]:
    """Lock the existing file as soon as no reader has it locked, empty it, and return its
    descriptor.
    """
    while True:
        try:
            fd: int = yield step.OpenWrite(names.path)
        except FileNotFoundError:
            return (yield from _swap(names, deadline, lock_wait, wrong_table))
        keep = False
        try:
            yield from _require_regular(names.path, fd)
            # An interrupted update may have renamed this file to the path, and that rename may not
            # be on disk yet.
            yield step.SyncDirectory(names.path)
            if not (yield from _lock_until(fd, deadline)):
                emptied = yield from _withdraw(fd, wrong_table)
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


_ACQUIRE: Final = {
    Strategy.THERE_AND_BACK: _there_and_back,
    Strategy.SWAP: _swap,
    Strategy.IN_PLACE: _in_place,
}


def _withdraw(fd: int, wrong_table: bytes | None) -> Steps[bool]:
    """Empty a file that contains ``wrong_table``, even if readers hold locks. Return whether the
    file was emptied.

    The locks protect readers of a right table. This table is wrong, so readers lose nothing: they
    keep what they have already read, and read the empty table from now on. The file's size does not
    change, so no reader reads past the end.
    """
    if wrong_table is None:
        return False
    found: bytes = yield step.Read(fd, len(wrong_table) + 1)
    if found != wrong_table and not found.startswith(EMPTY):
        return False
    # An earlier update may have emptied the file, but failed to sync it. After a failed sync, Linux
    # considers the pages written, and only another write makes the next sync write them.
    yield step.Write(fd, EMPTY, 0)
    yield step.Sync(fd)
    return found == wrong_table


def _withdraw_at(path: str, wrong_table: bytes | None) -> Steps[bool]:
    """Empty the file at the path as :func:`_withdraw` does; False if there is no file."""
    if wrong_table is None:
        return False
    try:
        fd: int = yield step.OpenWrite(path)
    except FileNotFoundError:
        return False
    try:
        return (yield from _withdraw(fd, wrong_table))
    finally:
        yield from step.closed(fd)


def _refused(path: str, error: OSError) -> SnpCertsError:
    """Return the error for a failed system call of an update, with a hint if one is known."""
    text = f"cannot update {path}: {os.strerror(error.errno) if error.errno else error}"
    if error.errno in _WRONG_PATH:
        return InputError(text, hint="pass the path of a file in an existing directory")
    if error.errno in (errno.EBUSY, errno.EXDEV):
        return RefusedError(text, hint="if the file is a mount point, use the in-place strategy")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RefusedError(text, hint="make the file and its directory writable for this user")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RefusedError(
            text, hint="free some space on the file's file system, then run the update again"
        )
    return RefusedError(text)


def _require_regular(path: str, fd: int) -> Steps[None]:
    status: step.FileStat = yield step.Stat(fd)
    if not status.regular:
        raise InputError(f"{path}: not a regular file", hint="use the path of the certificate file")
    _require_one_name(path, status)


def _require_one_name(path: str, status: step.FileStat) -> None:
    """Refuse a file with several hard links, because an update would change it under each name."""
    if status.links > 1:
        raise RefusedError(
            f"{path}: the file has {status.links} hard links, and an update would change it "
            "under all of these names",
            hint="list the links with 'find -samefile', and remove those that you do not need",
        )


def _require_not_replaced(path: str, fd: int) -> Steps[None]:
    """Raise :class:`RefusedError` if a program has replaced the file without taking its lock. An
    update can detect this, but not prevent it.
    """
    mine: step.FileStat = yield step.Stat(fd)
    try:
        there: step.FileStat = yield step.StatPath(path)
    except OSError as error:
        raise _refused(path, error) from None
    if mine.identity != there.identity:
        raise RefusedError(
            f"{path}: another program replaced the file during the update",
            hint=(
                "guests now get that program's file: find out which program it was, stop it, and "
                "run the update again"
            ),
        )


def _lock_until(fd: int, deadline: float) -> Steps[bool]:
    """Try to get the exclusive lock until ``deadline``. Return whether it was granted."""
    while not (yield step.LockExclusive(fd)):
        now: float = yield step.Now()
        if now >= deadline:
            return False
        yield step.Pause(min(_PAUSE, deadline - now))
    return True


def _empty(fd: int) -> Steps[None]:
    """Write and sync the empty table. The first 24 bytes decide what a reader sees."""
    yield step.Write(fd, EMPTY, 0)
    yield step.Sync(fd)
    yield step.Truncate(fd, len(EMPTY))


def _fill(fd: int, table: bytes) -> Steps[None]:
    """Write a table over the empty one, its first entry last. Sync each part."""
    first, rest = table[: len(EMPTY)], table[len(EMPTY) :]
    if rest:
        yield step.Write(fd, rest, len(EMPTY))
        yield step.Sync(fd)
    yield step.Write(fd, first, 0)
    yield step.Sync(fd)


def _free_space(fd: int) -> Steps[None]:
    """Free space for the next table: empty a file whose table could not be written completely."""
    try:
        yield from _empty(fd)
    except OSError:
        # The file already begins with the empty table, unless the disk is broken.
        return
