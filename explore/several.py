# SPDX-License-Identifier: Apache-2.0
"""Two certificate files around one firmware command: the shipped update of several files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from explore.model import PATH, SECOND, table
from snpcerts.certfile import several, step, writer
from snpcerts.certfile.step import Steps, relayed


class Wanted(NamedTuple):
    """A table that the model shall choose, for the firmware's next key or for the present one."""

    path: str
    changes: bool


def tables_for(key: int, wanted: Sequence[Any]) -> tuple[bytes, ...]:
    """The tables for a key, in the order in which the agent wants them."""
    return tuple(table(key, each.path) for each in wanted)


def update(strategy: writer.Strategy) -> Steps[Any]:
    """Update both files, which the agent names in another order than the one that it locks in."""
    targets = [several.Target(path, strategy) for path in (SECOND, PATH)]
    return timed(several.update(targets, change, unchanged))  # type: ignore[arg-type]  # Wanted


def change() -> Sequence[Wanted]:
    """Change the firmware, and choose the tables; the model does both."""
    return [Wanted(SECOND, True), Wanted(PATH, True)]


def unchanged() -> Sequence[Wanted]:
    """Choose the tables for the firmware's actual state."""
    return [Wanted(SECOND, False), Wanted(PATH, False)]


def timed(protocol: Steps[Any]) -> Steps[Any]:
    """Let the model choose "too late" only while the protocol waits for a lock.

    The model takes each reading of the clock by itself: a nested update whose beginning it took
    for late would wait for ever.
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
