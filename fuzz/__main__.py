# SPDX-License-Identifier: Apache-2.0
"""``python -m fuzz``: run the fuzz targets on mutated inputs from the corpus.

Each process stops a target at its first finding: an exception other than a SnpCertsError, a broken
promise, or an input that takes more than a second of processor time. The input is written to a
file, and the file's name and the reason are printed; ``--replay FILE --target NAME`` runs it again.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from fuzz.run import Outcome, run
from fuzz.target import CORPUS, TARGETS

_KEPT = 12  # inputs that a run may add to a target's corpus
_KEPT_SIZE = 2048


def main() -> int:
    """Run all targets, or those named. Return 1 if there is a finding."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--executions", type=int, default=100_000, help="number of executions")
    parser.add_argument("--target", action="append", choices=[each.name for each in TARGETS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--keep", action="store_true", help="add inputs with new outcomes to the corpus"
    )
    parser.add_argument("--findings", type=Path, default=Path("findings"))
    parser.add_argument("--replay", type=Path, help="run the named target on this file")
    options = parser.parse_args()
    chosen = [each for each in TARGETS if not options.target or each.name in options.target]
    if options.replay is not None:
        print(chosen[0].outcome(options.replay.read_bytes()))
        return 0
    shares = sum(each.share for each in chosen)
    tasks = [
        (each.name, options.executions * each.share // shares // options.jobs, options.seed + job)
        for job in range(options.jobs)
        for each in chosen
    ]
    started, total, found = time.monotonic(), 0, False
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as workers:
        for future in as_completed([workers.submit(run, *task) for task in tasks]):
            done = future.result()
            total += done.executions
            print(
                f"{done.target:<12} {done.executions:>9} executions, "
                f"{len(done.outcomes):>5} outcomes, slowest {done.slowest * 1e3:.1f} ms",
                flush=True,
            )
            if done.finding is not None:
                found = True
                _save_finding(options.findings, done)
            if options.keep:
                _keep(done)
    print(f"{total} executions in {time.monotonic() - started:.0f} s")
    return int(found)


def _save_finding(folder: Path, done: Outcome) -> None:
    if done.finding is None:
        return
    data, text = done.finding
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{done.target}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    print(f"FINDING {path}\n{text}", file=sys.stderr)


def _keep(done: Outcome) -> None:
    """Add the smallest inputs that had a new outcome to the corpus, up to a bound."""
    folder = CORPUS / done.target
    room = _KEPT - sum(1 for _ in folder.glob("kept-*"))
    small = sorted((data for data in done.new.values() if len(data) <= _KEPT_SIZE), key=len)
    for data in small[: max(room, 0)]:
        (folder / f"kept-{hashlib.sha256(data).hexdigest()[:12]}").write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
