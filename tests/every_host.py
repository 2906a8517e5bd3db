# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.every_host LOG``: other people's programs on every kernel and firmware.

A run is one of :data:`SUITES` on one emulated host: the tests of snphost, snpguest, go-sev-guest
and of each QEMU that take a host, and the checks for VMMs. LOG gets a JSON line for each run.
Started again with the same LOG, the command does the runs that have no line or failed.
``--shard K/N`` does one part of the runs: start N of them, each with its own LOG. ``--say`` prints
the results in the LOGs and runs nothing. A run in which no test passed counts as failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .emulated_hosts import EVERY_HOST, name
from .run_log import append, interruptible, lines, shard

ROOT: Final = Path(__file__).parents[1]
LIMIT: Final = 3600  # seconds for a run on a busy machine

# For each suite: the file with its tests, and the part of a test id that precedes the host's name.
SUITES: Final = {
    "snphost": ("tests/clients/test_snphost.py", ""),
    "snpguest": ("tests/clients/test_snpguest.py", ""),
    "go-sev-guest": ("tests/clients/test_go_sev_guest.py", ""),
    "qemu-10": ("tests/qemu/test_emulated.py", "10-"),
    "qemu-11": ("tests/qemu/test_emulated.py", "11-"),
    "conformance": ("tests/conformance/test_vmms.py", ""),
}


@dataclass(frozen=True)
class Run:
    """One suite on one host."""

    suite: str
    host: str

    @property
    def name(self) -> str:
        return f"{self.suite} {self.host}"

    @property
    def command(self) -> list[str]:
        """The command that runs the suite's tests on this host."""
        file, before = SUITES[self.suite]
        return [sys.executable, "-m", "pytest", "-q", file, "-k", f"{before}{self.host}"]


def every_run(suites: Sequence[str] = tuple(SUITES)) -> list[Run]:
    """Each suite on each host, the default host first."""
    return [Run(suite, name(host)) for suite in suites for host in EVERY_HOST]


def go_through(run: Run) -> dict[str, Any]:
    """Run it; return its line of the log."""
    began = time.monotonic()
    asked = ("EVERY_HOST", "CLIENTS", "QEMU_TESTS")
    environment = {**os.environ, **{f"SNPCERTS_{each}": "1" for each in asked}}
    with tempfile.TemporaryDirectory(prefix="every-host-") as folder:
        results = Path(folder) / "results.xml"
        argv = [*run.command, f"--junitxml={results}", f"--basetemp={folder}/tests"]
        done = subprocess.run(
            argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT
        )
        counts, failed = tally(results) if results.exists() else (Counter(), {})
    if not counts["passed"] or (done.returncode and not failed):
        failed[""] = f"exit code {done.returncode}: {(done.stdout + done.stderr)[-1000:]}"
    return {
        "run": run.name,
        **{each: counts[each] for each in ("passed", "refused", "skipped")},
        "failed": failed,
        "seconds": round(time.monotonic() - began, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def tally(results: Path) -> tuple[Counter[str], dict[str, str]]:
    """Return how many tests passed, were refused or skipped, and the messages of the others.

    ``results`` is pytest's JUnit file. A test counts as refused if it expects the program to refuse
    this firmware's reports.
    """
    counts: Counter[str] = Counter()
    failed: dict[str, str] = {}
    tree = xml.etree.ElementTree.parse(results)  # noqa: S314 - pytest has just written it
    for case in tree.iter("testcase"):
        fault = next((each for each in case if each.tag in ("failure", "error")), None)
        skipped = case.find("skipped")
        if fault is not None:
            failed[case.get("name", "")] = fault.get("message", "")[:500]
        elif skipped is None:
            counts["passed"] += 1
        else:
            expected = skipped.get("type") == "pytest.xfail"
            counts["refused" if expected else "skipped"] += 1
    return counts, failed


def go_on(log: Path, runs: Sequence[Run]) -> None:
    """Do the runs that have no line in the log, and those that failed."""
    done = {line["run"] for line in lines(log) if not line["failed"]}
    with log.open("a") as file:
        for run in runs:
            if run.name not in done:
                line = go_through(run)
                append(file, line)
                print(written(line), flush=True)


def written(line: dict[str, Any]) -> str:
    """Return a line of the log as text for people."""
    counts = ", ".join(f"{line[each]} {each}" for each in ("passed", "refused", "skipped"))
    said = f"{line['run']}: {counts}, {len(line['failed'])} failed, {line['seconds']:.0f} s"
    return "\n  ".join([said, *(f"{test}: {why}" for test, why in line["failed"].items())])


def say(logs: Sequence[Path], runs: Sequence[Run]) -> int:
    """Print the last line of each run; return how many failed or are missing."""
    found = {line["run"]: line for log in logs for line in lines(log)}
    for run in runs:
        print(written(found[run.name]) if run.name in found else f"{run.name}: not run yet")
    good = sum(run.name in found and not found[run.name]["failed"] for run in runs)
    print(f"{good} of {len(runs)} runs without a failure")
    return len(runs) - good


def main() -> int:
    """Run what is asked for; return 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.every_host", description=__doc__)
    parser.add_argument("log", type=Path, nargs="+", metavar="LOG")
    parser.add_argument("--suite", choices=SUITES, action="append", help="only this suite")
    parser.add_argument("--shard", default="0/1", metavar="K/N")
    parser.add_argument("--say", action="store_true", help="print the LOGs' results")
    options = parser.parse_args()
    runs = shard(every_run(options.suite or tuple(SUITES)), options.shard)
    if not options.say:
        (log,) = options.log
        with interruptible():
            go_on(log, runs)
    return int(bool(say(options.log, runs)))


if __name__ == "__main__":
    sys.exit(main())
