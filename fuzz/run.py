# SPDX-License-Identifier: Apache-2.0
"""Run one target many times, and mutate inputs with new outcomes further."""

from __future__ import annotations

import random
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field

from fuzz.mutation import mutated
from fuzz.target import TARGETS, Target

# When the pool has this many inputs, it stops growing: otherwise, seeds would be chosen too rarely.
_POOL = 400
SLOW = 1.0  # seconds of processor time


@dataclass
class Outcome:
    """The result of running one target in one process."""

    target: str
    executions: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    new: dict[str, bytes] = field(default_factory=dict)
    slowest: float = 0.0
    finding: tuple[bytes, str] | None = None


def run(name: str, executions: int, seed: int) -> Outcome:
    """Execute a target ``executions`` times, or until its first finding."""
    target = next(each for each in TARGETS if each.name == name)
    rng = random.Random(f"{name} {seed}")
    pool = target.seeds()
    done = Outcome(name)
    for data in pool:
        done.outcomes[target.outcome(data)] += 1
    while done.executions < executions:
        data = mutated(rng, rng.choice(pool), pool)
        _execute(target, data, done)
        if done.finding is not None:
            return done
        if done.new and len(pool) < _POOL:
            pool += [each for each in done.new.values() if each not in pool]
    return done


def _execute(target: Target, data: bytes, done: Outcome) -> None:
    start = time.process_time()
    try:
        said = target.outcome(data)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        done.finding = (data, "".join(traceback.format_exception(error)))
        return
    finally:
        done.executions += 1
    took = time.process_time() - start
    done.slowest = max(done.slowest, took)
    if took > SLOW:
        done.finding = (data, f"took {took:.1f} s of processor time")
    done.outcomes[said] += 1
    if done.outcomes[said] == 1 and len(done.new) < _POOL:
        done.new[said] = data
