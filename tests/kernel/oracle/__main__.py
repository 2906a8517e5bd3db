# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.kernel.oracle``: compare released kernels' code with the emulator."""

from __future__ import annotations

import argparse
import sys
import time

from .build import PARTS, releases
from .judge import judge


def main() -> int:
    """Run the sequences. Return 1 if there is any fault, 2 if no kernel source was fetched."""
    parser = argparse.ArgumentParser(prog="python -m tests.kernel.oracle", description=__doc__)
    parser.add_argument("--sequences", type=int, default=20_000, help="for each part and release")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--release", help="the start of a version, such as 7.3")
    options = parser.parse_args()
    found = [each for each in releases() if each.startswith(options.release or "")]
    if not found:
        print("no kernel source: run tests/kernel/fetch.sh", file=sys.stderr)
        return 2
    faulty = False
    for release in found:
        for part in options.part or PARTS:
            began = time.monotonic()
            outcome = judge(part, release, options.sequences, seed=options.seed, jobs=options.jobs)
            took = time.monotonic() - began
            reached = ", ".join(f"{name} {count}" for name, count in outcome.reached.most_common())
            print(f"{release} {part}: {outcome.sequences} sequences in {took:.0f} s; {reached}")
            for fault in outcome.faults():
                faulty = True
                print(f"  {fault}")
    return int(faulty)


if __name__ == "__main__":
    sys.exit(main())
