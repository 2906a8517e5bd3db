# SPDX-License-Identifier: Apache-2.0
"""Updates several certificate files around one firmware command.

A host may serve one table to some guests and another to others. A command that changes the key
makes all tables wrong at once, so all files must be locked and empty before the command, and stay
empty until it has ended. The updates are nested: at the point where the update of file *i* would
change the firmware, it runs the update of file *i+1* instead; the innermost one changes the
firmware::

    lock 1, empty 1
      lock 2, empty 2
        firmware; choose every table
      publish 2, unlock 2
    publish 1, unlock 1

Locks are taken in the order of the files' real paths, not in the order given, so that two agents
with the same files cannot deadlock. Each file goes through the steps of
:func:`snpcerts.certfile.writer.update`, so a crash leaves each file in a state in which
the update of a single file could leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from snpcerts.abi.cert_table import EMPTY
from snpcerts.certfile import step, system, writer
from snpcerts.certfile.holders import blockers_of
from snpcerts.certfile.step import Performer, Steps, relayed
from snpcerts.errors import RefusedError, SnpCertsError, UsageError

# There is a limit because each file stays locked while the update waits for the next file's lock.
MAX_FILES = 64


@dataclass(frozen=True, slots=True)
class Target:
    """A certificate file and the locking strategy to use for it."""

    path: str
    strategy: writer.Strategy = writer.DEFAULT_STRATEGY
    wrong_table: bytes | None = None  # the file's current table, if that is known to be wrong


@dataclass(frozen=True, slots=True)
class SeveralUpdate:
    """The outcome of an update of several files. Times are in seconds.

    ``waited`` is the time until all files were locked; ``held`` is the longest time for which any
    file was locked. ``sizes`` are the new tables' sizes in bytes, in the order of the targets.
    ``problems`` say why files stayed empty after the firmware had changed.
    """

    waited: float
    held: float
    sizes: tuple[int, ...]
    problems: tuple[Problem, ...] = ()


Problem = tuple[str, SnpCertsError | OSError]


class LeftEmptyError(RefusedError):
    """The firmware was not changed, and a file that had been emptied could not be filled again.

    ``refused`` says why the firmware was not changed. ``problems`` lists the files that stay
    empty, each with its error.
    """

    code = "left-empty"

    def __init__(self, refused: SnpCertsError | OSError, problems: Sequence[Problem]) -> None:
        left = "; ".join(f"{path} stays empty: {error}" for path, error in problems)
        super().__init__(
            f"{refused}. The firmware was not changed, but {left}",
            hint="run the update again when the file is writable",
        )
        self.refused = refused
        self.problems = tuple(problems)


@dataclass(slots=True)
class _Progress:
    """The state of one update. All sequences are in locking order."""

    targets: Sequence[Target]
    lock_wait: float
    change: Callable[[], Sequence[bytes]]
    unchanged: Callable[[], Sequence[bytes]]
    start: float = 0.0
    locked: float = 0.0
    changed: bool = False
    tables: Sequence[bytes] = ()
    refused: SnpCertsError | OSError | None = None  # why the firmware was not changed
    updates: dict[int, writer.Update] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def update(
    targets: Sequence[Target],
    change: Callable[[], Sequence[bytes]],
    unchanged: Callable[[], Sequence[bytes]],
    *,
    lock_wait: float = writer.DEFAULT_LOCK_WAIT,
) -> Steps[SeveralUpdate]:
    """Run ``change`` while every target is locked and empty, then publish what it returns.

    ``change`` returns one table for each target, in the same order. ``unchanged`` returns the
    tables for unchanged firmware. It is called if a lock does not become free in time, so that the
    files already emptied get the right tables back. If ``unchanged`` raises, those files stay
    empty.

    ``lock_wait`` (seconds) limits the total wait for all locks. Raises the errors of
    :func:`snpcerts.certfile.writer.update`; the firmware has then not changed. Raises
    :class:`LeftEmptyError` if, in addition, an emptied file cannot be filled again. Raises what
    ``change`` raises; every file then stays empty. A file that cannot be written *after* the change
    stays empty and is listed in ``problems``; the others are published.
    """
    if not 1 <= len(targets) <= MAX_FILES:
        raise UsageError(f"expected 1 to {MAX_FILES} certificate files, found {len(targets)}")
    paths: list[str] = []
    for target in targets:
        real: str = yield step.Resolve(target.path)
        paths.append(real)
    if len(set(paths)) != len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UsageError(
            f"{twice}: the certificate file is listed twice", hint="list each certificate file once"
        )
    order = sorted(range(len(targets)), key=paths.__getitem__)

    def in_order(choose: Callable[[], Sequence[bytes]]) -> Callable[[], Sequence[bytes]]:
        def call() -> Sequence[bytes]:
            tables = choose()
            return [tables[index] for index in order]

        return call

    state = _Progress(
        [targets[index] for index in order], lock_wait, in_order(change), in_order(unchanged)
    )
    state.start = yield step.Now()
    yield from _update_from(state, 0)
    if state.refused is not None:
        if state.problems:
            raise LeftEmptyError(state.refused, state.problems) from state.refused
        raise state.refused
    sizes = {index: state.updates[place].size for place, index in enumerate(order)}
    return SeveralUpdate(
        waited=state.locked - state.start,
        held=max(each.held for each in state.updates.values()),
        sizes=tuple(sizes[index] for index in range(len(targets))),
        problems=tuple(state.problems),
    )


def perform(
    targets: Sequence[Target],
    change: Callable[[], Sequence[bytes]],
    unchanged: Callable[[], Sequence[bytes]],
    *,
    lock_wait: float = writer.DEFAULT_LOCK_WAIT,
    performer: Performer = system.perform,
) -> SeveralUpdate:
    """Run :func:`update` with real system calls. If it raises :class:`LockHeldError`, the error
    names the lock's holders.
    """
    try:
        result: SeveralUpdate = performer(update(targets, change, unchanged, lock_wait=lock_wait))
    except writer.LockHeldError as error:
        raise error.with_holders(blockers_of(error.path)) from None
    except LeftEmptyError as error:
        if not isinstance(error.refused, writer.LockHeldError):
            raise
        held = error.refused.with_holders(blockers_of(error.refused.path))
        raise LeftEmptyError(held, error.problems) from None
    return result


def _update_from(state: _Progress, place: int) -> Steps[None]:
    """Update the file with index ``place``, and the files after it while this file is locked."""
    target = state.targets[place]
    now: float = yield step.Now()
    left = max(0.0, state.start + state.lock_wait - now)
    # ``bytes`` is a placeholder. The Change step is intercepted below and never performed.
    steps = writer.update(
        target.path,
        bytes,
        strategy=target.strategy,
        lock_wait=left,
        wrong_table=target.wrong_table,
    )

    def through(action: Any) -> Steps[Any]:
        if isinstance(action, step.Change):
            return (yield from _nested(state, place))
        return (yield action)

    try:
        state.updates[place] = yield from relayed(steps, through)
    except (SnpCertsError, OSError) as error:
        if not state.tables:
            raise
        # The right table is known but cannot be written here. This file stays empty; the others get
        # their tables.
        state.problems.append((target.path, error))
        state.updates[place] = writer.Update(0.0, 0.0, len(EMPTY))


def _nested(state: _Progress, place: int) -> Steps[bytes]:
    """Update the files after ``place`` while the files up to ``place`` are locked and empty.

    Returns the new table of the file at ``place``.
    """
    if place + 1 == len(state.targets):
        state.locked = yield step.Now()
        state.changed = True
        state.tables = yield step.Change(state.change)  # type: ignore[arg-type]  # several tables
        return state.tables[place]
    try:
        yield from _update_from(state, place + 1)
    except (SnpCertsError, OSError) as error:
        if state.changed:
            raise
        state.refused = error
        state.tables = yield step.Change(state.unchanged)  # type: ignore[arg-type]  # as above
    return state.tables[place]
