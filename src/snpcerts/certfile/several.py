# SPDX-License-Identifier: Apache-2.0
"""Update several certificate files around one firmware command.

A host may serve one table to some guests and another to others. A command that
changes the key makes all of them wrong at once, so all must be locked and empty
before it and none may be filled in before it is over. That is one file's update
nested in another's: where file *i* would change the firmware, file *i+1* is
locked instead, and only behind the last lock the firmware changes::

    lock 1, empty 1
      lock 2, empty 2
        firmware; choose every table
      publish 2, unlock 2
    publish 1, unlock 1

Locks are taken in the order of the files' real paths, whatever order they were
named in, so that two agents with the same files cannot wait for each other.
Each file's part is :func:`snpcerts.certfile.writer.update`, step by step: what
holds for one file after a crash holds for each of several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from snpcerts.abi.cert_table import EMPTY
from snpcerts.certfile import step, system, writer
from snpcerts.certfile.holders import holders_of
from snpcerts.certfile.step import Performer, Steps
from snpcerts.errors import SnpCertsError, UsageError

# A command covers the files of one host. Each holds a lock while the next is waited for.
MAX_FILES = 64


@dataclass(frozen=True, slots=True)
class Target:
    """One certificate file, how its lock is come by, and the table there that is known wrong."""

    path: str
    strategy: writer.Strategy = writer.Strategy.SWAP
    condemned: bytes | None = None


@dataclass(frozen=True, slots=True)
class SeveralUpdate:
    """How an update of several files went; times in seconds.

    ``waited`` is until all were locked, ``held`` the longest any was locked.
    ``sizes`` are the bytes of each new table, in the order of the targets, and
    ``problems`` what kept a file empty after the firmware had changed.
    """

    waited: float
    held: float
    sizes: tuple[int, ...]
    problems: tuple[tuple[str, SnpCertsError | OSError], ...] = ()


@dataclass(slots=True)
class _Course:
    """What is known so far; everything is in the order of locking."""

    targets: Sequence[Target]
    lock_wait: float
    change: Callable[[], Sequence[bytes]]
    unchanged: Callable[[], Sequence[bytes]]
    start: float = 0.0
    locked: float = 0.0
    changed: bool = False
    tables: Sequence[bytes] = ()
    refused: SnpCertsError | OSError | None = None  # why the firmware was left alone
    updates: dict[int, writer.Update] = field(default_factory=dict)
    problems: list[tuple[str, SnpCertsError | OSError]] = field(default_factory=list)


def update(
    targets: Sequence[Target],
    change: Callable[[], Sequence[bytes]],
    unchanged: Callable[[], Sequence[bytes]],
    *,
    lock_wait: float = writer.DEFAULT_LOCK_WAIT,
) -> Steps[SeveralUpdate]:
    """Run ``change`` while every target is locked and empty, then publish what it returns.

    ``change`` returns one table for each target, in their order. ``unchanged``
    does the same for firmware that was left alone: it is asked when a lock was
    not had, so that the files already emptied get back what is right. Should
    ``unchanged`` raise, they stay empty.

    ``lock_wait`` (seconds) bounds the wait for all locks together. Raises what
    :func:`snpcerts.certfile.writer.update` raises, in which case the firmware
    has not been touched, and what ``change`` raises, in which case every file
    stays empty. A file that cannot be written *after* the change stays empty
    and is listed in ``problems``; the others are published.
    """
    if not 1 <= len(targets) <= MAX_FILES:
        raise UsageError(f"{len(targets)} certificate files, expected 1 to {MAX_FILES}")
    paths: list[str] = []
    for target in targets:
        real: str = yield step.Resolve(target.path)
        paths.append(real)
    if len(set(paths)) != len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UsageError(f"{twice}: is listed twice", hint="list each certificate file once")
    order = sorted(range(len(targets)), key=paths.__getitem__)

    def in_order(choose: Callable[[], Sequence[bytes]]) -> Callable[[], Sequence[bytes]]:
        def call() -> Sequence[bytes]:
            tables = choose()
            return [tables[index] for index in order]

        return call

    course = _Course(
        [targets[index] for index in order], lock_wait, in_order(change), in_order(unchanged)
    )
    course.start = yield step.Now()
    yield from _from(course, 0)
    if course.refused is not None:
        raise course.refused
    sizes = {index: course.updates[place].size for place, index in enumerate(order)}
    return SeveralUpdate(
        waited=course.locked - course.start,
        held=max(each.held for each in course.updates.values()),
        sizes=tuple(sizes[index] for index in range(len(targets))),
        problems=tuple(course.problems),
    )


def perform(
    targets: Sequence[Target],
    change: Callable[[], Sequence[bytes]],
    unchanged: Callable[[], Sequence[bytes]],
    *,
    lock_wait: float = writer.DEFAULT_LOCK_WAIT,
    performer: Performer = system.perform,
) -> SeveralUpdate:
    """:func:`update` as system calls; a lock not had names who holds it."""
    try:
        result: SeveralUpdate = performer(update(targets, change, unchanged, lock_wait=lock_wait))
    except writer.LockHeldError as error:
        holders = tuple(str(holder) for holder in holders_of(error.path))
        raise error.named(holders) from None
    return result


def _from(course: _Course, place: int) -> Steps[None]:
    """The update of the file at ``place`` around those of the files after it."""
    target = course.targets[place]
    now: float = yield step.Now()
    left = max(0.0, course.start + course.lock_wait - now)
    # What stands for the change is never called: its step is taken out below.
    steps = writer.update(
        target.path,
        bytes,
        strategy=target.strategy,
        lock_wait=left,
        condemned=target.condemned,
    )
    try:
        action = next(steps)
        while True:
            try:
                if isinstance(action, step.Change):
                    result = yield from _inside(course, place)
                else:
                    result = yield action
            except BaseException as error:
                action = steps.throw(error)
            else:
                action = steps.send(result)
    except StopIteration as end:
        course.updates[place] = end.value
    except (SnpCertsError, OSError) as error:
        if not course.tables:
            raise
        # It is known what is right, and here it cannot be written: this file
        # stays empty, the others get their tables.
        course.problems.append((target.path, error))
        course.updates[place] = writer.Update(0.0, 0.0, len(EMPTY))


def _inside(course: _Course, place: int) -> Steps[bytes]:
    """With the files up to ``place`` locked and empty: do the rest, return this file's table."""
    if place + 1 == len(course.targets):
        course.locked = yield step.Now()
        course.changed = True
        course.tables = yield step.Change(course.change)  # type: ignore[arg-type]  # several tables
        return course.tables[place]
    try:
        yield from _from(course, place + 1)
    except (SnpCertsError, OSError) as error:
        if course.changed:
            raise
        course.refused = error
        course.tables = yield step.Change(course.unchanged)  # type: ignore[arg-type]  # as above
    return course.tables[place]
