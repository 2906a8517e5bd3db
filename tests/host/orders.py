# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.host.orders LOG``: every order of the operations, under every firmware.

Each order runs twice, without SIGKILL and with it. Which of the orders have been run, and what they
found, is in LOG, a JSON line each; started again with the same LOG, it goes on with the others.
``--shard K/N`` runs a part: start N of them, each with its own LOG. The orders come shuffled, the
same way each time, so that a part that was run is a sample of the whole. ``--say`` prints the
figures of the LOGs and runs nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
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
from .scenario import OPERATIONS, Course
from .site import key_server

VICTIMS = ("", "command", "agent")
FIGURES = ("reports", "empty", "killed", "refused", "proofs")


@dataclass(frozen=True)
class Order:
    """One order of the operations under one firmware, and what is killed at each."""

    firmware: str
    operations: tuple[str, ...]
    kills: bool

    @property
    def name(self) -> str:
        return f"{self.firmware}: {' '.join(self.operations)}{', SIGKILL' * self.kills}"

    def victims(self) -> list[str]:
        """At least one of them is killed, if any are."""
        if not self.kills:
            return [""] * len(self.operations)
        chance = random.Random(self.name)
        while not any(victims := [chance.choice(VICTIMS) for _ in self.operations]):
            pass
        return victims

    def run(self, course: Course) -> None:
        course.settle()
        for operation, victim in zip(self.operations, self.victims(), strict=True):
            course.perform(operation, victim)
        course.prove_all()


def every_order() -> list[Order]:
    orders = [
        Order(firmware, operations, kills)
        for firmware in NAMES
        for operations in itertools.permutations(OPERATIONS)
        for kills in (False, True)
    ]
    random.Random(0).shuffle(orders)
    return orders


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


def lines(log: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that was cut off counts for nothing."""
    found = []
    for line in log.read_text().splitlines() if log.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def run_one(hosts: Hosts, order: Order) -> dict[str, Any]:
    began = time.monotonic()
    course = hosts.of(order.firmware)
    before = {name: getattr(course, name) for name in FIGURES}
    found = ""
    try:
        order.run(course)
    except Exception:
        found = traceback.format_exc()
    figures = {name: getattr(course, name) - before[name] for name in FIGURES}
    if found:
        hosts.discard(order.firmware)
    seconds = round(time.monotonic() - began, 1)
    return {"order": order.name, "found": found, "seconds": seconds, **figures}


def run(log: Path, orders: list[Order]) -> None:
    """Run those that the log does not have."""
    done = {line["order"] for line in lines(log)}
    with tempfile.TemporaryDirectory(prefix="orders-") as folder, log.open("a") as file:
        os.environ.setdefault(keys.FOLDER, folder)
        with contextlib.closing(Hosts(Path(folder))) as hosts:
            for order in orders:
                if order.name not in done:
                    file.write("\n" + json.dumps(run_one(hosts, order)))
                    file.flush()


def say(logs: list[Path]) -> int:
    """Print what the logs say; return how many of the orders found something."""
    found = [line for log in logs for line in lines(log)]
    total: Counter[str] = Counter()
    for line in found:
        total.update({name: line[name] for name in ("seconds", *FIGURES)})
    print(f"{len(found)} of {len(every_order())} orders: {dict(total)}")
    bad = [line for line in found if line["found"]]
    for line in bad:
        print(f"{line['order']}\n{line['found']}")
    return len(bad)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.host.orders")
    parser.add_argument("log", type=Path, nargs="+", metavar="LOG")
    parser.add_argument("--shard", default="0/1", metavar="K/N")
    parser.add_argument("--limit", type=int, metavar="ORDERS")
    parser.add_argument("--say", action="store_true")
    options = parser.parse_args()
    if options.say:
        return int(bool(say(options.log)))
    (log,) = options.log
    number, of = map(int, options.shard.split("/"))
    orders = every_order()[number::of][: options.limit]
    with contextlib.suppress(KeyboardInterrupt):
        run(log, orders)
    findings = say([log])
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{spent.ru_utime + spent.ru_stime:.0f} s of a processor, without the emulated machine")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
