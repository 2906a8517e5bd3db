# SPDX-License-Identifier: Apache-2.0
"""The agent killed at each of its system calls: what it leaves, and what the next run does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from snpcerts.abi.psp import SnpConfig
from snpcerts.abi.tcb import TcbVersion
from snpcerts.certfile.writer import Strategy
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.amd.certificates import Issued, vcek_of
from snpcerts.emulator.machine.home import PlatformHome
from snpcerts.endorsement.vek import VekKind
from snpcerts.host import plan as plans
from snpcerts.host.agent import Agent
from snpcerts.host.plan import Plan, carry_out

from ..certfile.tracing import can_trace, killed_at
from ..sizes import sized
from .rig import FirmwareDevice, Rig

EACH = sized(30, 1)  # of so many places to kill the agent at, one is tried

pytestmark = pytest.mark.skipif(not can_trace(), reason="ptrace is not allowed on this machine")


class Scene:
    """A host with files, and firmware whose state outlives the process that changes it."""

    def __init__(
        self, folder: Path, authority: EmulatedAuthority, strategy: Strategy, files: int = 2
    ) -> None:
        self.home = PlatformHome(folder / "platform")
        self.home.path.mkdir()
        self.folder = folder / "certs"
        self.folder.mkdir()
        rig = Rig.make(self.folder, authority, strategy=strategy)
        rig.config = replace(rig.config, lock_wait=5.0)
        if files > 1:
            rig.with_file("second.bin", kind=VekKind.VLEK, without_vlek=VekKind.VCEK)
        self.home.save(rig.firmware)
        self.rig = rig
        # Certificates are issued beforehand, so that kills hit the update, not the authority.
        tcbs = [rig.reported(), rig.lower()]
        self._issued = {tcb: vcek_of(authority, rig.firmware.chip, tcb) for tcb in tcbs}
        rig.server.lie = self._issue
        rig.server.issue_list()
        self.tcbs = tcbs
        self.vleks = {tcb: rig.vlek(tcb) for tcb in tcbs}

    def _issue(self, tcb: TcbVersion) -> Issued:
        return self._issued[tcb]

    def wake(self) -> Rig:
        """Start the host again, with the firmware as it was last saved."""
        self.rig.device = FirmwareDevice(self.home.firmware(), self.home)
        return self.rig

    def truths(self) -> list[str]:
        rig = self.wake()
        return [rig.seen_by_guest(Path(file.path)) for file in rig.config.files]

    def repair(self) -> None:
        """Run the agent again; after that, every file must be in step."""
        rig = self.wake()
        done = rig.agent().sync()
        assert done.problem is None
        assert all(file_state.in_step for file_state in rig.agent().read_files())

    def report(self, tcb: TcbVersion) -> None:
        """Set the reported TCB without taking the lock, as another program might."""
        self.wake().device.snp_set_config(SnpConfig(reported_tcb=tcb.pack()))

    def other(self) -> TcbVersion:
        """Return the TCB that is not reported now."""
        return next(tcb for tcb in self.tcbs if tcb != self.wake().reported())


def set_config(agent: Agent, scene: Scene) -> Plan:
    target = scene.other()
    return plans.set_config(agent, tcb=lambda _: target)


def commit(agent: Agent, scene: Scene) -> Plan:
    del scene
    return plans.commit(agent)


def load_vlek(agent: Agent, scene: Scene) -> Plan:
    return plans.load_vlek(agent, *scene.vleks[scene.wake().reported()])


STRATEGIES = pytest.mark.parametrize("strategy", Strategy, ids=lambda each: each.value)


@pytest.mark.slow
@STRATEGIES
@pytest.mark.parametrize("make", [set_config, commit, load_vlek], ids=lambda make: make.__name__)
def test_a_command_killed_anywhere_leaves_no_file_wrong_and_the_next_run_completes(
    tmp_path: Path,
    authority: EmulatedAuthority,
    make: Callable[[Agent, Scene], Plan],
    strategy: Strategy,
) -> None:
    scene = Scene(tmp_path, authority, strategy)
    places: list[str] = []
    seen: set[str] = set()
    while True:
        if make is commit:
            scene.report(scene.tcbs[1])  # so that the key moves each time
        scene.repair()
        agent = scene.wake().agent()
        plan = make(agent, scene)
        agent.fetch(plan.fetch)  # as a command does, before any lock
        before = scene.home.firmware().state

        def work(agent: Agent = agent, plan: Plan = plan) -> None:
            carry_out(agent, plan, allow_empty=False)

        place = killed_at(EACH * len(places), work)
        if place is None:
            break
        places.append(place)
        truths = scene.truths()
        assert "wrong" not in truths, (len(places), place, truths)
        seen.update(truths)
        seen.add("moved" if scene.home.firmware().state != before else "not moved")
    assert scene.truths().count("wrong") == 0
    assert seen == {"empty", "right", "moved", "not moved"}
    assert len(places) > 2 * 60 // EACH, "must reach over 60 such places for each of the two files"


@pytest.mark.slow
@STRATEGIES
def test_a_repair_killed_anywhere_never_makes_a_file_wrong_again(
    tmp_path: Path, authority: EmulatedAuthority, strategy: Strategy
) -> None:
    """The later the kill, the better the file that is left: wrong, then empty, then right."""
    scene = Scene(tmp_path, authority, strategy, files=1)
    scene.repair()
    courses: list[list[str]] = []
    while True:
        scene.report(scene.other())
        agent = scene.wake().agent()

        def work(agent: Agent = agent) -> None:
            assert agent.sync().problem is None

        place = killed_at(EACH * len(courses), work)
        courses.append(scene.truths())
        scene.repair()
        if place is None:
            break
    order = ["wrong", "empty", "right"]
    for course in zip(*courses, strict=True):
        ranks = [order.index(seen_by_guest) for seen_by_guest in course]
        assert ranks == sorted(ranks), course
        assert set(ranks) == {0, 1, 2}
