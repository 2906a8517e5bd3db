# SPDX-License-Identifier: Apache-2.0
"""Firmware commands: what is planned, what is done, and what stays after a refusal."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest

from snpcerts.abi.cert_table import EMPTY
from snpcerts.abi.psp import Command, SnpConfig
from snpcerts.abi.tcb import TcbVersion
from snpcerts.certfile import step
from snpcerts.certfile.hold import hold
from snpcerts.certfile.reader import Busy
from snpcerts.certfile.relay import relay
from snpcerts.certfile.step import Steps
from snpcerts.certfile.writer import LockHeldError, Strategy
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import InputError, RefusedError, RetryLaterError, SnpCertsError
from snpcerts.host import plan as plans
from snpcerts.host.agent import Agent
from snpcerts.host.expected_content import Key, NoKey
from snpcerts.host.plan import Plan, carry_out, follow_up
from snpcerts.host.sev import SevError

from .rig import Rig, served


def lower(rig: Rig, agent: Agent, microcode: int = 1) -> Plan:
    target = rig.lower(microcode)
    return plans.set_config(agent, tcb=lambda _: target)


def do(agent: Agent, plan: Plan, *, allow_empty: bool = False) -> SnpCertsError | None:
    return follow_up(agent, carry_out(agent, plan, allow_empty=allow_empty))


@pytest.fixture
def agent(rig: Rig) -> Agent:
    """An agent of a host that is in step."""
    assert rig.agent().sync().problem is None
    return rig.agent()


def test_the_key_and_the_file_change_as_one(rig: Rig, agent: Agent) -> None:
    target = rig.lower()
    assert do(agent, lower(rig, agent)) is None
    assert rig.reported() == target
    assert rig.seen_by_guest() == "right"
    assert do(agent, plans.commit(agent)) is None
    assert rig.reported() == rig.firmware.state.current
    assert rig.seen_by_guest() == "right"


def test_while_the_firmware_changes_every_file_is_locked_and_empty(rig: Rig) -> None:
    second = rig.with_file("second.bin", strategy=Strategy.IN_PLACE)
    agent = rig.agent()
    agent.sync()
    during: list[object] = []
    command = rig.device.snp_set_config

    def watched(config: SnpConfig) -> None:
        for path in (rig.file, second):
            during.append(path.read_bytes())
            during.append(type(served(path)))
        command(config)

    rig.device.snp_set_config = watched  # type: ignore[method-assign]
    assert do(agent, lower(rig, agent)) is None
    assert during == [EMPTY, Busy, EMPTY, Busy]
    assert [rig.seen_by_guest(path) for path in (rig.file, second)] == ["right", "right"]


def test_nothing_is_fetched_with_a_lock_held(rig: Rig, agent: Agent) -> None:
    seen: list[type] = []
    make = rig.server.lie

    def lie(tcb: TcbVersion) -> Any:
        seen.append(type(served(rig.file)))
        rig.server.lie = make
        return rig.server.vcek(rig.firmware.product, rig.firmware.chip.hwid, tcb)

    rig.server.lie = lie
    assert do(agent, lower(rig, agent)) is None
    assert Busy not in seen
    assert seen


def test_without_the_certificate_nothing_is_touched(rig: Rig, agent: Agent) -> None:
    rig.server.down = True
    before = rig.reported()
    plan = lower(rig, agent)
    with pytest.raises(RetryLaterError, match="nothing has been changed") as caught:
        carry_out(agent, plan, allow_empty=False)
    assert "--allow-empty" in str(caught.value)
    assert rig.reported() == before
    assert rig.seen_by_guest() == "right"


def test_with_the_option_to_continue_without_it_the_file_is_empty(rig: Rig, agent: Agent) -> None:
    rig.server.down = True
    problem = do(agent, lower(rig, agent), allow_empty=True)
    assert problem is not None
    assert problem.exit_code == 3
    assert rig.reported() != rig.firmware.state.current
    assert rig.file.read_bytes() == EMPTY
    rig.server.down = False
    assert rig.agent().sync().problem is None
    assert rig.seen_by_guest() == "right"


def test_a_refusal_of_the_firmware_puts_the_old_table_back(rig: Rig, agent: Agent) -> None:
    plan = lower(rig, agent)
    old = rig.file.read_bytes()

    def refuse(config: SnpConfig) -> None:
        raise SevError(Command.SNP_SET_CONFIG, 5, 0x16)

    rig.device.snp_set_config = refuse  # type: ignore[method-assign]
    problem = do(agent, plan)
    assert isinstance(problem, SevError)
    assert rig.file.read_bytes() == old
    assert rig.seen_by_guest() == "right"


def test_a_command_that_failed_and_yet_changed_the_key_is_believed_by_its_status(
    rig: Rig, agent: Agent
) -> None:
    plan = lower(rig, agent)
    command = rig.device.snp_set_config

    def half(config: SnpConfig) -> None:
        command(config)
        raise SevError(Command.SNP_SET_CONFIG, 110, 0)

    rig.device.snp_set_config = half  # type: ignore[method-assign]
    assert isinstance(do(agent, plan), SevError)
    assert rig.seen_by_guest() == "right"


def test_firmware_that_stops_answering_leaves_the_files_empty(rig: Rig, agent: Agent) -> None:
    plan = lower(rig, agent)
    command = rig.device.snp_set_config

    def last(config: SnpConfig) -> None:
        command(config)
        rig.device.broken = True

    rig.device.snp_set_config = last  # type: ignore[method-assign]
    assert isinstance(do(agent, plan), SevError)
    assert rig.file.read_bytes() == EMPTY


def test_a_plan_made_for_other_firmware_is_not_carried_out(rig: Rig, agent: Agent) -> None:
    plan = plans.commit(agent)
    rig.device.snp_set_config(SnpConfig(reported_tcb=rig.lower(3).pack()))
    now = rig.reported()
    problem = do(agent, plan)
    assert isinstance(problem, RetryLaterError)
    assert "has changed since" in str(problem)
    assert rig.reported() == now


def test_if_a_lock_is_not_granted_every_file_stays_as_it_was(rig: Rig) -> None:
    second = rig.with_file("second.bin")
    agent = rig.agent()
    agent.sync()
    before = rig.reported()
    for held in (rig.file, second):
        plan = lower(rig, agent)
        with hold(str(held), shared=True), pytest.raises(LockHeldError):
            carry_out(agent, plan, allow_empty=False)
        assert rig.reported() == before
        assert [rig.seen_by_guest(path) for path in (rig.file, second)] == ["right", "right"]


def test_a_file_that_cannot_be_written_after_the_change_does_not_keep_the_others(rig: Rig) -> None:
    second = rig.with_file("second.bin")
    agent = rig.agent()
    agent.sync()
    plan = lower(rig, agent)
    changed: list[bool] = []

    def through(action: Any) -> Steps[Any]:
        if isinstance(action, step.Write) and changed and action.offset:
            changed.clear()
            raise OSError(28, "No space left on device")
        result = yield action
        if isinstance(action, step.Change):
            changed.append(True)
        return result

    rig.performer = relay(through)
    limited = rig.agent()
    limited.read_files()
    result = carry_out(
        limited, replace(plan, fetch=(Key(VekKind.VCEK, rig.lower()),)), allow_empty=False
    ).result
    assert sorted(rig.seen_by_guest(path) for path in (rig.file, second)) == ["empty", "right"]
    assert [bool(each.problem) for each in result.files].count(True) == 1
    assert not result.in_step


def test_a_vlek_moves_every_file_at_once(rig: Rig) -> None:
    vlek = rig.with_file("vlek.bin", kind=VekKind.VLEK, without_vlek=VekKind.VCEK)
    agent = rig.agent()
    agent.sync()
    assert [rig.seen_by_guest(path) for path in (rig.file, vlek)] == ["right", "right"]
    stick, leaf = rig.vlek()
    plan = plans.load_vlek(agent, stick, leaf)
    assert any("empty table" in note for note in plan.notes)
    assert do(agent, plan) is None
    assert [rig.seen_by_guest(path) for path in (rig.file, vlek)] == ["empty", "right"]
    assert rig.table(vlek).entries[0].name == "vlek"
    # A new agent, as after a restart, finds the VLEK's certificate where the first one kept it.
    vlek.write_bytes(EMPTY)
    assert rig.agent().sync().problem is None
    assert rig.seen_by_guest(vlek) == "right"
    # Setting another TCB drops the VLEK: the plan says so, and the file gets a VCEK again.
    agent = rig.agent()
    dropping = lower(rig, agent)
    assert any("drops the loaded VLEK" in note for note in dropping.notes)
    assert do(agent, dropping) is None
    assert [rig.seen_by_guest(path) for path in (rig.file, vlek)] == ["right", "right"]
    assert rig.table(vlek).entries[0].name == "vcek"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda stick, leaf: (stick[:-1], leaf), InputError, "432 bytes"),
        (lambda _, leaf: (bytes(432), leaf), InputError, "found only zeros"),
        (lambda stick, leaf: (stick[:12] + b"x" + stick[13:], leaf), InputError, "reserved"),
        (lambda stick, _: (stick, b"no certificate"), InputError, "VLEK certificate"),
    ],
)
def test_a_bad_hashstick_or_certificate_is_refused_before_anything_is_touched(
    rig: Rig, agent: Agent, change: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plans.load_vlek(agent, *change(*rig.vlek()))
    assert rig.seen_by_guest() == "right"


def test_a_vlek_for_another_tcb_or_with_another_certificate_is_refused(
    rig: Rig, agent: Agent
) -> None:
    stick, leaf = rig.vlek(rig.lower())
    with pytest.raises(RefusedError, match="set-config"):
        plans.load_vlek(agent, stick, leaf)
    with pytest.raises(RefusedError, match="do not certify it"):
        plans.load_vlek(agent, rig.vlek()[0], leaf)


def test_a_hashstick_the_chip_refuses_puts_everything_back(rig: Rig, agent: Agent) -> None:
    stick, leaf = rig.vlek()
    damaged = stick[:100] + bytes(byte ^ 1 for byte in stick[100:101]) + stick[101:]
    assert isinstance(do(agent, plans.load_vlek(agent, damaged, leaf)), SevError)
    assert rig.seen_by_guest() == "right"


def test_a_tcb_above_the_current_one_is_refused(rig: Rig, agent: Agent) -> None:
    with pytest.raises(RefusedError, match="above the current TCB"):
        lower(rig, agent, microcode=-1)
    with pytest.raises(RefusedError, match="--reset"):
        plans.set_config(agent, tcb=lambda _: TcbVersion(0, 0, 0, 0))


def test_a_mask_alone_leaves_the_tcb_where_it_is(rig: Rig, agent: Agent) -> None:
    assert do(agent, lower(rig, agent)) is None
    now = rig.reported()
    agent = rig.agent()
    plan = plans.set_config(agent, tcb=lambda tcb: tcb, mask_chip_key=True)
    assert all(isinstance(each.after, NoKey) for each in plan.files)
    assert do(agent, plan) is None
    assert rig.reported() == now
    assert rig.file.read_bytes() == EMPTY
    agent = rig.agent()
    assert do(agent, plans.set_config(agent, tcb=lambda tcb: tcb, mask_chip_key=False)) is None
    assert rig.seen_by_guest() == "right"


def test_a_reset_to_an_unpredictable_tcb_is_repaired_at_once(rig: Rig, agent: Agent) -> None:
    """The plan assumes that the committed TCB, which a reset reports, is the current TCB.

    It is lower, so the file is empty at first.
    """
    assert do(agent, lower(rig, agent)) is None
    current = rig.firmware.state.current
    rig.firmware.update(replace(current, microcode=current.components()["microcode"] + 1))
    agent = rig.agent()
    plan = plans.set_config(agent, tcb=None)
    assert any("no host interface shows" in note for note in plan.notes)
    changed = carry_out(agent, plan, allow_empty=False)
    assert rig.file.read_bytes() == EMPTY
    assert not changed.result.in_step
    assert follow_up(agent, changed) is None
    assert rig.seen_by_guest() == "right"


def test_the_plan_can_be_read_by_people_and_programs(rig: Rig, agent: Agent) -> None:
    plan = lower(rig, agent)
    text = "\n".join(plan.lines())
    assert "SNP_SET_CONFIG" in text
    assert str(rig.file) in text
    assert str(rig.lower()) in text
    assert plan.to_json()["fetch"] == [{"kind": "vcek", "tcb": rig.lower().components()}]
    assert rig.seen_by_guest() == "right", "a plan must change nothing"


def test_two_agents_at_once_take_turns(rig: Rig, agent: Agent) -> None:
    """A second agent runs during the first one's command: it waits for the lock, then gives up."""
    plan = lower(rig, agent)
    problems: list[SnpCertsError | None] = []
    command = rig.device.snp_set_config

    def slow(config: SnpConfig) -> None:
        problems.append(rig.agent().sync().problem)
        with contextlib.suppress(SnpCertsError):
            carry_out(rig.agent(), plan, allow_empty=False)
        command(config)

    rig.device.snp_set_config = slow  # type: ignore[method-assign]
    assert do(agent, plan) is None
    assert isinstance(problems[0], LockHeldError)
    assert rig.seen_by_guest() == "right"
