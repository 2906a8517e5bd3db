# SPDX-License-Identifier: Apache-2.0
"""Two vCPUs wait for a lock that an update holds. Their waits must not add up."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from functools import partial

from snpcerts.conformance.journal import CertsRequest
from snpcerts.conformance.processor_time import delay_time
from snpcerts.conformance.scenarios.locking import RELEASE_LIMIT, WAIT_MIN, busy_answer
from snpcerts.conformance.trial import TABLE_SIZE, Scenario, Script, Trial, TrialVcpu
from snpcerts.emulator.guest.program import WaitUntil

CHECK = "busy"
ROUNDS = 2  # that say the same
ROUNDS_MAX = 8  # on a busy machine, the two requests may not come together
APART_MAX = 0.2  # of a wait: the second request came so much later at most
AGAIN = 0.1  # of the first vCPU's tries: so many after them are more than the end of one wait
AGAIN_SHARED = 0.35  # the same, if it is not known for which vCPU the VMM tries
TRIES_FEW = 3  # a VMM with so few tries waits in the kernel
WAITED_AGAIN = 0.6  # of the first vCPU's wait; for a VMM that waits in the kernel


@dataclass(slots=True)
class _Meeting:
    """Where both vCPUs are, and what was seen in their rounds."""

    arrived: list[int] = field(default_factory=lambda: [0, 0])
    answered: list[int] = field(default_factory=lambda: [0, 0])
    requests: list[tuple[CertsRequest, float]] = field(default_factory=list)  # and the delay
    judged: int = 0
    seen: list[bool] = field(default_factory=list)  # whether the waits added up
    over: bool = False


def _scenario() -> Scenario:
    current: list[_Meeting] = []

    def script(trial: Trial, vcpu: TrialVcpu) -> Script:
        if trial.vcpus < 2:
            trial.skip(CHECK, "the VM has one vCPU")
            return
        meeting = _Meeting()
        trial.served.replace(trial.served.table(TABLE_SIZE))
        yield from vcpu.ask(2)
        if not (yield from trial.wait_for(trial.served.lock, RELEASE_LIMIT)):
            trial.skip(CHECK, f"an update can never take the lock: {trial.served.kinds()}")
            return
        trial.at_answer = lambda request: meeting.requests.append(
            (request, delay_time(trial.processes()))
        )
        current[:] = [meeting]
        yield from _rounds(trial, vcpu, meeting)

    def second(trial: Trial, vcpu: TrialVcpu) -> Script:
        yield WaitUntil(lambda: bool(current))
        yield from _rounds(trial, vcpu, current[0])

    return Scenario(checks=(CHECK,), script=script, second=second)


def _rounds(trial: Trial, vcpu: TrialVcpu, meeting: _Meeting) -> Script:
    """Let both vCPUs ask at the same time until the rounds say the same."""
    mine, other = vcpu.cpu.index, 1 - vcpu.cpu.index
    for number in range(1, ROUNDS_MAX + 1):
        meeting.arrived[mine] = number
        yield WaitUntil(partial(_reached, meeting.arrived, other, number))
        before = delay_time(trial.processes())
        answer = yield from vcpu.ask(2)
        delay = delay_time(trial.processes()) - before
        if answer.request is None or answer.request.ret != errno.EAGAIN:
            meeting.over = True  # another scenario judges this
        elif (wrong := busy_answer(trial, answer, delay)) is not None:
            trial.judge(CHECK, f"while another vCPU waits, too: {wrong}")
            meeting.over = True
        meeting.answered[mine] = number
        yield WaitUntil(partial(_reached, meeting.answered, other, number))
        if meeting.judged < number:
            meeting.judged = number
            _judge_round(trial, meeting)
        if meeting.over:
            break
    trial.judge(CHECK, None)


def _reached(places: list[int], vcpu: int, number: int) -> bool:
    return places[vcpu] >= number


def _judge_round(trial: Trial, meeting: _Meeting) -> None:
    requests, meeting.requests = meeting.requests, []
    added = None if meeting.over or len(requests) != 2 else _adds_up(*requests)
    if added is None:
        return
    meeting.seen.append(added)
    if meeting.seen.count(added) < ROUNDS:
        return
    meeting.over = True
    if added:
        first, last = sorted(1000 * (each.waited or 0.0) for each, _ in requests)
        trial.advise(
            CHECK,
            "two vCPUs that wait for the lock at the same time wait one after the other, found "
            f"{first:.0f} ms and {last:.0f} ms: the last vCPU of a guest with N of them waits N "
            "times as long",
        )


def _adds_up(one: tuple[CertsRequest, float], two: tuple[CertsRequest, float]) -> bool | None:
    """Whether the second vCPU waited its whole time after the first; None if that is unclear.

    On a busy machine every wait may be long. So what counts is which vCPU tried to take the lock
    and when, not how long it took.
    """
    if not one[0].lock_tries or not two[0].lock_tries:
        return False
    (first, early), (second, late) = sorted((one, two), key=lambda each: each[0].lock_tries[-1])
    waited = first.waited or 0.0
    if waited < WAIT_MIN:
        return False
    apart = abs(second.asked_at - first.asked_at) / waited
    if apart > APART_MAX:
        return None
    tries, ends = len(first.lock_tries), first.lock_tries[-1]
    if tries > TRIES_FEW:
        meanwhile = sum(at <= ends for at in second.lock_tries)
        after = len(second.lock_tries) - meanwhile
        if {*first.lock_tries} & {*second.lock_tries}:  # another thread tries for both
            return after >= AGAIN_SHARED * tries
        return not meanwhile and after >= max(TRIES_FEW, (AGAIN + 2 * apart) * tries)
    began = second.lock_tries[0]
    waited_again = (second.answered_at or began) - began - abs(late - early)
    return min(began - first.lock_tries[0], waited_again) >= WAITED_AGAIN * waited


SCENARIOS = (_scenario(),)
