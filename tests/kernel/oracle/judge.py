# SPDX-License-Identifier: Apache-2.0
"""Compares a part of a release with the emulator, and judges the differences."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .build import PARTS, build
from .difference import EXPLAINED

ROOT: Final = Path(__file__).parents[3]
_BATCH: Final = 2500  # sequences of one child
CHILD_SECONDS: Final = 600


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop at the first difference. ``early`` are likely to show one, and run first.

    A child that needs more than ``seconds`` of processor time is killed.
    """

    seconds: int
    early: Sequence[int] = ()


@dataclass(slots=True)
class Outcome:
    """The results of the sequences of one part of one release."""

    part: str
    release: str
    sequences: int = 0
    reached: Counter[str] = field(default_factory=Counter)
    differences: dict[str, dict[str, Any]] = field(default_factory=dict)
    died: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        """Children that died, unexplained differences, and explanations without a difference."""
        mine = [each for each in EXPLAINED if each.of(self.part, self.release)]
        found = list(self.died)
        for key, what in self.differences.items():
            if not any(each.covers(self.part, self.release, key) for each in mine):
                story = "\n    ".join(line[:300] for line in what["story"])
                found.append(
                    f"{what['count']} × {key} (sequence {what['number']}, kernel and emulator: "
                    f"{what['values']})\n    {story}"
                )
        for each in mine:
            if not any(each.covers(self.part, self.release, key) for key in self.differences):
                found.append(f"explanation matches no difference: {each.pattern} ({each.reason})")
        return found

    def add(self, said: dict[str, Any]) -> None:
        """Add the results that a child has printed."""
        self.sequences += said["sequences"]
        self.reached.update(said["reached"])
        for key, what in said["differences"].items():
            known = self.differences.setdefault(key, {**what, "count": 0})
            known["count"] += what["count"]


def judge(
    part: str,
    release: str,
    sequences: int,
    *,
    seed: int = 1,
    jobs: int = 2,
    library: Path | None = None,
    product: Path | None = None,
    stop: Stop | None = None,
) -> Outcome:
    """Run ``sequences`` sequences of a part of a release; return the outcome.

    ``library`` is another build of the part, such as a mutant. ``product`` is a directory with
    a changed ``snpcerts`` package. With ``stop``, each child ends at its first difference.
    """
    environment = dict(os.environ)
    if product is not None:
        environment["PYTHONPATH"] = str(product)
        # Two mutants of a file may have the same size and be written in the same second. Python
        # would then run the cached bytecode of one in place of the other.
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    path = library or build(PARTS[part], release)
    outcome = Outcome(part, release)

    def run(first: int) -> None:
        end = min(first + batch, sequences)
        argv = [sys.executable, "-m", "tests.kernel.oracle.child", part, str(path), str(seed)]
        argv += [str(first), str(end)]
        if stop is not None:
            argv += ["--stop", str(stop.seconds), ",".join(map(str, stop.early))]
        try:
            done = subprocess.run(
                argv,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=CHILD_SECONDS,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            outcome.died.append(f"sequences {first} to {end} took over {CHILD_SECONDS} s")
            return
        if done.returncode:
            outcome.died.append(
                f"sequences {first} to {end} ended with {done.returncode}: {done.stderr[-2000:]}"
            )
            return
        outcome.add(json.loads(done.stdout))

    batch = max(min(_BATCH, -(-sequences // jobs)), 1)
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, range(0, sequences, batch)))
    return outcome
