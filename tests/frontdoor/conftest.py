# SPDX-License-Identifier: Apache-2.0
"""A probe that prints what it sees, and fixtures to run it behind a door."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from snpcerts.emulator.frontdoor import seccomp, ways
from snpcerts.emulator.frontdoor.door import Door
from snpcerts.emulator.frontdoor.spawn import Program, spawn
from snpcerts.emulator.frontdoor.supervisor import Supervisor
from snpcerts.emulator.frontdoor.ways import Way
from snpcerts.errors import SnpCertsError

from ..sizes import sized
from .toys import Toys

Said = TypeVar("Said")

LIMIT = 60.0  # seconds that anything here may take at most


@pytest.fixture(scope="session", autouse=True)
def _kernel() -> None:
    try:
        seccomp.check()
    except seccomp.FrontDoorUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=sized(["auto"], ["namespace", "trap"]))
def door_way(request: pytest.FixtureRequest) -> Way:
    """How the door is implemented; a full run uses each way in turn."""
    named = ways.wanted(None if request.param == "auto" else request.param)
    try:
        return ways.choose(named)[0]
    except SnpCertsError as error:
        pytest.skip(str(error))


def build(directory: Path, name: str, *flags: str) -> Path:
    """Compile a C file of this directory; skip without a compiler."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc on this machine to build the programs with")
    source = Path(__file__).with_name(name)
    program = directory / source.stem
    command = ["gcc", "-O1", "-pthread", *flags, "-o", str(program), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode and "-static" in flags:
        pytest.skip("this machine has no static C library")
    assert built.returncode == 0, built.stderr
    return program


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The probe, dynamically linked."""
    return build(tmp_path_factory.mktemp("dynamic"), "probe.c")


@pytest.fixture(scope="session")
def static_probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The probe, statically linked."""
    return build(tmp_path_factory.mktemp("static"), "probe.c", "-static")


@dataclass
class Stage:
    """A supervisor with toys behind its door."""

    probe: Path
    supervisor: Supervisor
    way: Way
    toys: Toys = field(default_factory=Toys)

    def start(
        self,
        *steps: object,
        program: Path | None = None,
        door: Door | None = None,
        stdin: int = subprocess.PIPE,
        way: Way | None = None,
    ) -> Program:
        """Start the probe with those steps; its streams are pipes."""
        return spawn(
            [str(program or self.probe), *map(str, steps)],
            self.supervisor,
            door or self.toys.door(),
            stdin=stdin,
            stdout=subprocess.PIPE,
            way=way or self.way,
        )

    def serve(self, until: Callable[[], bool]) -> None:
        """Serve until the condition holds."""
        end = time.monotonic() + LIMIT
        while not until():
            assert time.monotonic() < end, "the condition did not hold in time"
            self.supervisor.step(1.0)

    def finish(self, running: Program) -> list[str]:
        """Serve until the program ends; return the words it printed."""
        self.serve(lambda: running.exit_code is not None)
        said, _ = running.process.communicate()
        return said.decode().split()

    def printed(
        self,
        *steps: object,
        program: Path | None = None,
        door: Door | None = None,
        way: Way | None = None,
    ) -> list[str]:
        """Start and serve; return what was printed."""
        return self.finish(self.start(*steps, program=program, door=door, way=way))

    def by_way(self, trap: Said, namespace: Said) -> Said:
        """Return the value for this way."""
        return trap if self.way is Way.TRAP else namespace

    def tell(self, running: Program) -> None:
        """Let a waiting probe continue."""
        assert running.process.stdin is not None
        running.process.stdin.write(b".")
        running.process.stdin.flush()


@pytest.fixture
def stage(probe: Path, door_way: Way) -> Iterator[Stage]:
    """A new supervisor with toys."""
    with Supervisor() as supervisor:
        yield Stage(probe, supervisor, door_way)
