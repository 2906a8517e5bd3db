# SPDX-License-Identifier: Apache-2.0
"""Writers: the shipped strategies, and others for comparison."""

from __future__ import annotations

from collections.abc import Callable

from explore.model import PATH, table
from snpcerts.certfile import step, writer
from snpcerts.certfile.step import Steps


def change() -> bytes:
    """Change the firmware; the model does it."""
    return b""


def swap() -> Steps[writer.Update]:
    """The shipped default."""
    return writer.update(PATH, change, strategy=writer.Strategy.SWAP)


def swap_wrong() -> Steps[writer.Update]:
    """Swap, by an agent that knows that the table of key 0 is wrong."""
    return writer.update(PATH, change, strategy=writer.Strategy.SWAP, wrong_table=table(0))


def in_place_wrong() -> Steps[writer.Update]:
    """In-place, by an agent that knows that the table of key 0 is wrong."""
    return writer.update(PATH, change, strategy=writer.Strategy.IN_PLACE, wrong_table=table(0))


def in_place() -> Steps[writer.Update]:
    """Shipped, for files that are seen through bind mounts."""
    return writer.update(PATH, change, strategy=writer.Strategy.IN_PLACE)


def there_and_back() -> Steps[int]:
    """Not shipped: a temporary file takes the path while the old file is updated.

    Works as *swap* until the old file is empty. Then it writes the table to the
    old file and renames that back. The same rename undoes an interrupted update.
    """
    names = writer._Names.of(PATH)
    turn: int = yield step.OpenOrCreate(names.turn, 0o600)
    fds = [turn]
    try:
        deadline = yield from _locked(turn)
        yield step.Unlink(names.new)
        try:  # noqa: SIM105 (where a context manager keeps its place cannot be compared)
            yield step.Rename(names.old, names.path)
        except FileNotFoundError:
            pass
        yield step.SyncDirectory(names.path)
        yield step.Unlink(names.old)  # at most a second name of the file at the path
        old: int = yield step.OpenWrite(names.path)
        fds.append(old)
        new: int = yield step.Create(names.new, 0o600)
        fds.append(new)
        yield from writer._prepare(names, new, old)
        yield step.Link(names.path, names.old)
        yield step.Rename(names.new, names.path)
        yield step.SyncDirectory(names.path)
        try:
            if not (yield from writer._lock_until(old, deadline)):
                raise writer.LockHeldError(names.path, 0)
            yield from writer._empty(old)
            table: bytes = yield step.Change(change)
            yield from writer._fill(old, table)
        finally:
            yield step.Rename(names.old, names.path)
            yield step.SyncDirectory(names.path)
        return len(table)
    finally:
        while fds:
            yield step.Close(fds.pop())


def stranger() -> Steps[int]:
    """Another program's writer: takes the kernel's recommended lock, no turn, compares nothing."""
    fd: int = yield step.OpenWrite(PATH)
    try:
        yield from _locked(fd)
        yield from writer._empty(fd)
        table: bytes = yield step.Change(change)
        yield from writer._fill(fd, table)
        return len(table)
    finally:
        yield step.Close(fd)


def _locked(fd: int) -> Steps[float]:
    start: float = yield step.Now()
    if not (yield from writer._lock_until(fd, start + 1)):
        raise writer.LockHeldError(PATH, 0)
    return start + 1


STRATEGIES: dict[str, Callable[[], Steps[object]]] = {
    "swap": swap,
    "in-place": in_place,
    "swap-wrong": swap_wrong,
    "in-place-wrong": in_place_wrong,
    "there-and-back": there_and_back,
    "stranger": stranger,
}
