# SPDX-License-Identifier: Apache-2.0
"""The shipped update of several files: two certificate files around one firmware command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from explore.model import PATH, SECOND, table
from snpcerts.certfile import several, step, writer
from snpcerts.certfile.step import Steps, relayed


class Wanted(NamedTuple):
    """A request to the model to choose the table of ``path``, for the firmware's next or current
    key.
    """

    path: str
    changes: bool


def tables_for(key: int, wanted: Sequence[Any]) -> tuple[bytes, ...]:
    """Return the tables for a key, in the order of ``wanted``."""
    return tuple(table(key, each.path) for each in wanted)


def update(strategy: writer.Strategy) -> Steps[Any]:
    """Update both files. The agent lists the files in an order other than the locking order."""
    targets = [several.Target(path, strategy) for path in (SECOND, PATH)]
    return timed(several.update(targets, change, unchanged))  # type: ignore[arg-type]  # Wanted


def change() -> Sequence[Wanted]:
    """Stand in for changing the firmware and choosing the tables. The model does both."""
    return [Wanted(SECOND, True), Wanted(PATH, True)]


def unchanged() -> Sequence[Wanted]:
    """Stand in for choosing the tables if the firmware was not changed. The model chooses."""
    return [Wanted(SECOND, False), Wanted(PATH, False)]


def timed(protocol: Steps[Any]) -> Steps[Any]:
    """Let the model choose "too late" only while the protocol waits for a lock.

    The model decides each reading of the clock separately. If it decided "too late" at the
    beginning of a nested update, that update would wait forever.
    """
    memory: dict[str, bool] = {}

    def through(action: Any) -> Steps[Any]:
        if isinstance(action, step.Now) and memory.get("begun") and not memory.get("waits"):
            return 0.0
        result = yield action
        memory["waits"] = isinstance(action, step.LockExclusive) and not result
        memory["begun"] = True
        return result

    return relayed(protocol, through)
