# SPDX-License-Identifier: Apache-2.0
"""Runs sequences in a process of its own, so that a kernel's BUG() ends no other process.

``python -m tests.kernel.oracle.child PART OBJECT SEED FIRST END`` prints one JSON object.
With ``--stop SECONDS EARLY``, it first runs the sequences EARLY ("1,2,3" or ""), and it ends at
the first difference, or after SECONDS of processor time.
"""

from __future__ import annotations

import importlib
import json
import logging
import resource
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

# In bytes: more than unchanged code needs. A mutant may allocate memory without end.
MEMORY: Final = 4 << 30


def main(arguments: list[str]) -> int:
    """Run the sequences and print the results."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    part, path, seed, first, end, *stop = arguments
    numbers: Iterable[int] = range(int(first), int(end))
    if stop:
        seconds = int(stop[1])
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        early = [int(each) for each in stop[2].split(",") if each]
        numbers = dict.fromkeys([*early, *numbers])
    logging.disable(logging.CRITICAL)
    module = importlib.import_module(f"tests.kernel.oracle.{part}_sequences")
    seen: Counter[str] = Counter()
    differences: dict[str, dict[str, object]] = {}
    done = 0
    lives = module.lives(Path(path), int(seed), numbers)
    for number, reached, found in lives:
        done += 1
        seen.update(reached)
        if found is not None:
            known = differences.setdefault(
                found.key,
                {"count": 0, "number": number, "values": found.values, "story": found.story},
            )
            known["count"] = int(str(known["count"])) + 1
            if stop:
                break
    print(json.dumps({"sequences": done, "reached": seen, "differences": differences}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
