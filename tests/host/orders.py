# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.host.orders LOG``: every order of the operations, under every firmware.

Each of the 720 orders occurs somewhere in one walk of 873 operations, which is far shorter
than the 720 orders one after another. A host goes through the walk in stretches, which overlap so
that no order is cut; a stretch begins with a settled host and ends with a proof of each key. Each
stretch runs twice, without SIGKILL and with it. LOG gets a JSON line for each stretch that has been
run, with its findings; started again with the same LOG, the command goes on with the others.
``--shard K/N`` runs a part: start N of them, each with its own LOG. The stretches are shuffled in
the same way each time, so that those already run are a sample of the whole. ``--say`` prints the
figures in the LOGs and runs nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snpcerts.abi.product import Product
from snpcerts.emulator.psp.choices import NAMES, choices_of

from .. import keys
from ..emulated import Emulated
from ..run_log import append, lines, shard
from .scenario import OPERATIONS, Course
from .site import key_server

VICTIMS = ("", "command", "agent")
LENGTH = 36  # operations of a stretch
FIGURES = ("reports", "empty", "killed", "refused", "proofs")


@dataclass(frozen=True)
class Stretch:
    """A sequence of operations under one firmware. ``kills`` says whether SIGKILL is used."""

    firmware: str
    operations: tuple[str, ...]
    kills: bool

    @property
    def name(self) -> str:
        return f"{self.firmware}: {' '.join(self.operations)}{', SIGKILL' * self.kills}"

    def victims(self) -> list[str]:
        """Return what to kill during each operation; with ``kills``, there is at least one kill."""
        if not self.kills:
            return [""] * len(self.operations)
        chance = random.Random(self.name)
        while not any(victims := [chance.choice(VICTIMS) for _ in self.operations]):
            pass
        return victims

    def orders(self) -> set[tuple[str, ...]]:
        """Return every order of all operations that occurs in the stretch."""
        return set(orders_in(self.operations, len(OPERATIONS)))

    def run(self, course: Course) -> None:
        course.settle()
        for operation, victim in zip(self.operations, self.victims(), strict=True):
            course.perform(operation, victim)
        course.prove_all()


def walk(operations: tuple[str, ...]) -> tuple[str, ...]:
    """Return a short sequence in which every order of the operations occurs.

    Take the walk without the last operation. Each order in it becomes that order, the last
    operation, and the order again. If the end of one piece is the beginning of the next, the
    two overlap.
    """
    *others, last = operations
    if not others:
        return operations
    found: list[str] = []
    for order in dict.fromkeys(orders_in(walk(tuple(others)), len(others))):
        piece = [*order, last, *order]
        shared = max(n for n in range(len(order) + 1) if n == 0 or found[-n:] == piece[:n])
        found += piece[shared:]
    return tuple(found)


def orders_in(operations: tuple[str, ...], size: int) -> list[tuple[str, ...]]:
    """Return the windows of that size in which no operation occurs twice."""
    windows = (operations[at : at + size] for at in range(len(operations) - size + 1))
    return [each for each in windows if len(set(each)) == size]


def every_stretch() -> list[Stretch]:
    whole = walk(OPERATIONS)
    step = LENGTH - len(OPERATIONS) + 1
    stretches = [
        Stretch(firmware, whole[at : at + LENGTH], kills)
        for firmware in NAMES
        for at in range(0, len(whole) - len(OPERATIONS) + 1, step)
        for kills in (False, True)
    ]
    random.Random(0).shuffle(stretches)
    return stretches


@contextlib.contextmanager
def host_in_use(folder: Path, firmware: str) -> Iterator[Course]:
    """A new platform with that firmware, with a key server and an agent's folder."""
    emulated = Emulated(folder / "platform", folder / "certs")
    keys.prepare_platform(emulated.directory, Product.GENOA, choices_of(firmware))
    emulated.issue_certificates()
    (folder / "site").mkdir()
    with key_server(emulated) as url:
        course = Course(emulated, folder / "site", url, random.Random(firmware))
        with contextlib.closing(course):
            yield course


class Hosts:
    """One host for each firmware; after a finding, a new one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, tuple[contextlib.ExitStack, Course]] = {}
        self._made = itertools.count()

    def of(self, firmware: str) -> Course:
        if firmware not in self._open:
            folder = self._folder / str(next(self._made))
            folder.mkdir()
            stack = contextlib.ExitStack()
            self._open[firmware] = stack, stack.enter_context(host_in_use(folder, firmware))
        return self._open[firmware][1]

    def discard(self, firmware: str) -> None:
        stack, _ = self._open.pop(firmware)
        stack.close()

    def close(self) -> None:
        for firmware in list(self._open):
            self.discard(firmware)


def run_one(hosts: Hosts, stretch: Stretch) -> dict[str, Any]:
    began = time.monotonic()
    course = hosts.of(stretch.firmware)
    before = {name: getattr(course, name) for name in FIGURES}
    found = ""
    try:
        stretch.run(course)
    except Exception:
        found = traceback.format_exc()
    figures = {name: getattr(course, name) - before[name] for name in FIGURES}
    if found:
        hosts.discard(stretch.firmware)
    else:
        course.rest()
    seconds = round(time.monotonic() - began, 1)
    return {
        "stretch": stretch.name,
        "orders": len(stretch.orders()),
        "operations": len(stretch.operations),
        "found": found,
        "seconds": seconds,
        **figures,
    }


def run(log: Path, stretches: list[Stretch]) -> None:
    """Run the stretches that the log does not have."""
    done = {line["stretch"] for line in lines(log)}
    with tempfile.TemporaryDirectory(prefix="orders-") as folder, log.open("a") as file:
        os.environ.setdefault(keys.FOLDER, folder)
        with contextlib.closing(Hosts(Path(folder))) as hosts:
            for stretch in stretches:
                if stretch.name not in done:
                    append(file, run_one(hosts, stretch))


def say(logs: list[Path]) -> int:
    """Print the figures and findings in the logs; return the number of stretches with findings."""
    found = [line for log in logs for line in lines(log)]
    total: Counter[str] = Counter()
    for line in found:
        total.update({name: line[name] for name in ("orders", "operations", "seconds", *FIGURES)})
    print(f"{len(found)} of {len(every_stretch())} stretches: {dict(total)}")
    bad = [line for line in found if line["found"]]
    for line in bad:
        print(f"{line['stretch']}\n{line['found']}")
    return len(bad)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.host.orders")
    parser.add_argument("log", type=Path, nargs="+", metavar="LOG")
    parser.add_argument("--shard", default="0/1", metavar="K/N")
    parser.add_argument("--limit", type=int, metavar="STRETCHES")
    parser.add_argument("--say", action="store_true")
    options = parser.parse_args()
    if options.say:
        return int(bool(say(options.log)))
    (log,) = options.log
    stretches = shard(every_stretch(), options.shard)[: options.limit]
    with contextlib.suppress(KeyboardInterrupt):
        run(log, stretches)
    findings = say([log])
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{spent.ru_utime + spent.ru_stime:.0f} s of CPU time, not counting the emulated machine")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
