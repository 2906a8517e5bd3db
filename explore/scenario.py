# SPDX-License-Identifier: Apache-2.0
"""The readers and writers of an exploration, and what may go wrong during it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from explore.model import MOUNT, PATH, SECOND, SECOND_TURN, TURN, Budget, File, World, table
from explore.process import Process, Program
from explore.readers import KINDS
from explore.strategies import STRATEGIES
from explore.transition import Settings
from snpcerts.certfile.step import Steps

NOTHING = Budget()
USUAL = Settings()


@dataclass(frozen=True, slots=True)
class Scenario:
    """Readers, which serve requests forever, and writers, each with a number of updates to make."""

    readers: tuple[str, ...] = ("R1",)
    writers: tuple[tuple[str, int], ...] = (("swap", 1),)  # strategy, updates
    budget: Budget = NOTHING
    settings: Settings = USUAL
    missing: bool = False  # the file does not exist at first
    wrong: bool = False  # the firmware's key has changed without the lock

    @property
    def name(self) -> str:
        readers = " ".join(self.readers) or "no reader"
        writers = " ".join(f"{strategy} x{updates}" for strategy, updates in self.writers)
        wrong = [
            f"{count} {what}"
            for count, what in zip(
                self.budget, ("killed", "power failure", "failing step"), strict=True
            )
            if count
        ]
        if self.settings.firmware_fails:
            wrong.append("firmware fails")
        if self.missing:
            wrong.append("no file yet")
        if self.wrong:
            wrong.append("already wrong")
        if not self.settings.reduce:
            wrong.append("every step interleaved")
        return " | ".join([readers, writers, ", ".join(wrong) or "no crash"])

    def world(
        self,
        *,
        reader: Callable[[Steps[Any]], Steps[Any]] | None = None,
        writer: Callable[[Steps[Any]], Steps[Any]] | None = None,
        readers: dict[str, Callable[[], Steps[Any]]] | None = None,
        writers: dict[str, Callable[[], Steps[Any]]] | None = None,
        one_vmm: bool = False,
    ) -> World:
        """Return the initial state.

        ``reader`` and ``writer`` may alter the steps of the programs. ``readers`` and ``writers``
        replace programs, by name.
        """
        world = World()
        world.budget = self.budget
        turn = world.new_file()
        world.names[TURN] = turn
        if not self.missing:
            file = world.new_file()
            data = table(0)
            world.files[file] = File(data, data if world.keeps_content else b"", ())
            world.names[PATH] = file
            if self.wrong:
                world.key, world.wrong = 1, data
            if "R4" in self.readers:
                world.names[MOUNT] = file
        if any(strategy.startswith("several") for strategy, _ in self.writers):
            world.names[SECOND_TURN] = world.new_file()
            second = world.names[SECOND] = world.new_file()
            data = table(0, SECOND)
            world.files[second] = File(data, data if world.keeps_content else b"", ())
        if self.budget.power:
            world.disk = {name: number for name, number in world.names.items() if name != MOUNT}
        kinds = KINDS | (readers or {})
        strategies = STRATEGIES | (writers or {})
        programs: dict[str, Program] = {}
        for number, kind in enumerate(self.readers, 1):
            if kind not in programs:
                programs[kind] = Program(kind, _altered(kinds[kind], reader))
            world.processes.append(
                _process(f"reader {number} ({kind})", programs[kind], vmm="vmm" if one_vmm else "")
            )
        for number, (strategy, updates) in enumerate(self.writers, 1):
            if strategy not in programs:
                programs[strategy] = Program(strategy, _altered(strategies[strategy], writer))
            world.processes.append(
                _process(f"writer {number} ({strategy})", programs[strategy], updates)
            )
        return world

    def add(self, world: World, name: str, start: Callable[[], Steps[Any]]) -> None:
        """Add a process that runs ``start`` once and does not count as a writer."""
        process = _process(name, Program(name, start), 1)
        world.processes.append(process._replace(writer=False))


def _process(name: str, program: Program, updates: int = -1, vmm: str = "") -> Process:
    return Process(name, program.first, (), updates, None, (), updates >= 0, vmm)


def _altered(
    start: Callable[[], Steps[Any]], alter: Callable[[Steps[Any]], Steps[Any]] | None
) -> Callable[[], Steps[Any]]:
    return start if alter is None else lambda: alter(start())
