# SPDX-License-Identifier: Apache-2.0
"""The writers: the shipped strategies, and a program of another project."""

from __future__ import annotations

from collections.abc import Callable

from explore import several
from explore.model import PATH, table
from snpcerts.certfile import step, writer
from snpcerts.certfile.step import Steps


def change() -> bytes:
    """Stand in for the firmware command. The model changes the key."""
    return b""


def swap() -> Steps[writer.Update]:
    """The shipped swap strategy: the new file stays at the path."""
    return writer.update(PATH, change, strategy=writer.Strategy.SWAP)


def swap_wrong() -> Steps[writer.Update]:
    """The swap strategy, used by an agent that knows that the table of key 0 is wrong."""
    return writer.update(PATH, change, strategy=writer.Strategy.SWAP, wrong_table=table(0))


def in_place_wrong() -> Steps[writer.Update]:
    """The in-place strategy, used by an agent that knows that the table of key 0 is wrong."""
    return writer.update(PATH, change, strategy=writer.Strategy.IN_PLACE, wrong_table=table(0))


def in_place() -> Steps[writer.Update]:
    """The shipped in-place strategy, for files that are mount points."""
    return writer.update(PATH, change, strategy=writer.Strategy.IN_PLACE)


def there_and_back() -> Steps[writer.Update]:
    """The shipped there-and-back strategy, which is the default."""
    return writer.update(PATH, change, strategy=writer.Strategy.THERE_AND_BACK)


def there_and_back_wrong() -> Steps[writer.Update]:
    """The default strategy, used by an agent that knows that the table of key 0 is wrong."""
    return writer.update(
        PATH, change, strategy=writer.Strategy.THERE_AND_BACK, wrong_table=table(0)
    )


def several_there_and_back() -> Steps[object]:
    """An update of two files, both with the default strategy."""
    return several.update(writer.Strategy.THERE_AND_BACK)


def several_swap() -> Steps[object]:
    """An update of two files, both with the swap strategy."""
    return several.update(writer.Strategy.SWAP)


def several_in_place() -> Steps[object]:
    """An update of two files, both with the in-place strategy."""
    return several.update(writer.Strategy.IN_PLACE)


def stranger() -> Steps[int]:
    """Another project's writer: takes the lock that the kernel recommends, but does not wait
    for its turn and does not compare inodes.
    """
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
    "there-and-back-wrong": there_and_back_wrong,
    "several-there-and-back": several_there_and_back,
    "several-swap": several_swap,
    "several-in-place": several_in_place,
    "stranger": stranger,
}
