# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.conformance.rounds LOG``: judge the VMMs of vmm.c again and again.

A round judges each VMM by its own checks: a wrong one by those that it fails, a right one by those
that tell the styles apart. In each round, a different one of the right VMMs is judged by every
check. Load must not change a verdict, so run this on a busy machine.

LOG has a JSON line for each run. Started again with the same LOG, the command goes on with the
runs that the LOG lacks. ``--shard K/N`` runs a part: start N of them, each with its own LOG. For a
run whose verdict is unexpected, LOG.kept holds what ``--keep`` saved. ``--say`` prints the figures
of the LOGs and runs nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snpcerts.conformance.vmm_check import BY_ID

from ..forked_commands import Commands
from ..run_log import append, interruptible, lines, shard
from .table import ADVICE, EXPECTED, PRIVILEGED, RIGHT, STYLE_CHECKS, compile_vmm, only

ROUNDS = 50
MODULES = ("snpcerts.cli.conformance", "snpcerts.conformance.suite")


@dataclass(frozen=True)
class Judging:
    """One VMM in one round."""

    round: int
    vmm: str

    @property
    def name(self) -> str:
        return f"{self.round} {self.vmm}"

    @property
    def checks(self) -> list[str]:
        if self.vmm in EXPECTED:
            return sorted(EXPECTED[self.vmm])
        if list(RIGHT)[self.round % len(RIGHT)] == self.vmm:
            return list(BY_ID)
        return list(STYLE_CHECKS)

    def unexpected(self, report: dict[str, Any]) -> dict[str, str]:
        """Return the checks whose verdict differs from the table, and what each of them said."""
        found = {}
        for check in report["checks"]:
            if check["id"] not in PRIVILEGED and check["state"] not in self._states(check["id"]):
                found[check["id"]] = f"{check['state']}: {check['detail']}"
        return found

    def _states(self, check: str) -> set[str]:
        if self.vmm in EXPECTED:
            return {"failed", "advice"}
        if check in RIGHT[self.vmm]:
            return {"skipped"}
        return {"passed", "advice"} if check in ADVICE else {"passed"}


def every_judging(rounds: int) -> Iterator[Judging]:
    """Yield the judgings of all rounds. Each round has the VMMs in a different order."""
    for number in range(rounds):
        vmms = [*EXPECTED, *RIGHT]
        random.Random(number).shuffle(vmms)
        for vmm in vmms:
            yield Judging(number, vmm)


def judge(commands: Commands, judging: Judging, program: Path, kept: Path) -> dict[str, Any]:
    began = time.monotonic()
    argv = ["conformance", "--json", "--keep", str(kept)]
    argv += [*only(*judging.checks), "--", str(program), "{certs}", "2"]
    running = commands.start(*argv)
    code = running.wait(600)
    if code in (0, 1):
        unexpected = judging.unexpected(json.loads(running.out.read_text()))
    else:
        unexpected = {"": f"exit code {code}: {running.said()}"}
    return {
        "run": judging.name,
        "checks": len(judging.checks),
        "unexpected": unexpected,
        "seconds": round(time.monotonic() - began, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def run(log: Path, judgings: list[Judging]) -> None:
    done = {line["run"] for line in lines(log)}
    with tempfile.TemporaryDirectory(prefix="rounds-") as folder, log.open("a") as file:
        programs = Path(folder) / "vmms"
        programs.mkdir()
        commands = Commands(Path(folder) / "commands", MODULES)
        with contextlib.closing(commands):
            commands.ready()
            for judging in judgings:
                if judging.name in done:
                    continue
                kept = Path(folder) / "kept"
                program = compile_vmm(judging.vmm, programs)
                result = judge(commands, judging, program, kept)
                if result["unexpected"] and kept.exists():
                    saved = log.with_suffix(".kept") / judging.name.replace(" ", "-")
                    shutil.copytree(kept, saved, dirs_exist_ok=True)
                shutil.rmtree(kept, ignore_errors=True)
                append(file, result)


def say(logs: list[Path], rounds: int) -> int:
    """Print what the logs say; return how many runs were unexpected."""
    found = [line for log in logs for line in lines(log)]
    bad = [line for line in found if line["unexpected"]]
    loads = sorted(line["load"] for line in found) or [0.0]
    print(
        f"{len(found)} of {len(list(every_judging(rounds)))} runs ({rounds} rounds), "
        f"{sum(line['checks'] for line in found)} verdicts, {len(bad)} runs unexpected, "
        f"{sum(line['seconds'] for line in found):.0f} s, "
        f"load {loads[0]} to {loads[-1]}, median {loads[len(loads) // 2]}"
    )
    for line in bad:
        print(f"{line['run']} (load {line['load']}): {line['unexpected']}")
    return len(bad)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.rounds")
    parser.add_argument("log", type=Path, nargs="+", metavar="LOG")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--shard", default="0/1", metavar="K/N")
    parser.add_argument("--say", action="store_true")
    options = parser.parse_args()
    if not options.say:
        (log,) = options.log
        judgings = shard(list(every_judging(options.rounds)), options.shard)
        with interruptible():
            run(log, judgings)
    return int(bool(say(options.log, options.rounds)))


if __name__ == "__main__":
    sys.exit(main())
