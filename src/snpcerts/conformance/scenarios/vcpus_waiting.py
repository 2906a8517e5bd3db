# SPDX-License-Identifier: Apache-2.0
"""A scenario in which two vCPUs wait for a lock that an update holds; their waits must not add
up.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from functools import partial

from snpcerts.abi.ghcb import PAGE_SIZE
from snpcerts.conformance.journal import CertsRequest
from snpcerts.conformance.processor_time import delay_time
from snpcerts.conformance.scenarios.locking import RELEASE_LIMIT, WAIT_MIN
from snpcerts.conformance.trial import TABLE_SIZE, Scenario, Script, Trial, TrialVcpu
from snpcerts.emulator.guest.program import WaitUntil

CHECK = "busy"
FIELD = 4 * PAGE_SIZE  # bytes around a buffer: checking more would cost time between two requests
ADDED = 3  # rounds in which the waits add up, enough for a verdict
NOT_ADDED = 8  # rounds in which they do not; on a busy machine, a few such rounds prove nothing
ROUNDS_MAX = 20
APART_MAX = 0.2  # fraction of the first wait: the second request comes at most this much later
LATER = 1.5  # factor for the tries that a vCPU has left because it asked later; tries are irregular
TRIES_FEW = 3  # a VMM with so few tries waits in the kernel
AGAIN = 0.6  # fraction of the first wait that a second wait in the kernel lasts at least


@dataclass(slots=True)
class _Meeting:
    """The round that each vCPU has reached, and what was seen in the rounds so far."""

    arrived: list[int] = field(default_factory=lambda: [0, 0])
    done: list[int] = field(default_factory=lambda: [0, 0])
    requests: list[CertsRequest] = field(default_factory=list)  # all that were answered
    delay: float = 0.0  # seconds for which the VMM could not run in this round
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
        trial.at_answer = meeting.requests.append
        current[:] = [meeting]
        yield from _rounds(trial, vcpu, meeting)

    def second(trial: Trial, vcpu: TrialVcpu) -> Script:
        yield WaitUntil(lambda: bool(current))
        yield from _rounds(trial, vcpu, current[0])

    return Scenario(checks=(CHECK,), script=script, second=second)


def _rounds(trial: Trial, vcpu: TrialVcpu, meeting: _Meeting) -> Script:
    """Let both vCPUs make requests at the same time, until enough rounds have the same result."""
    mine, other = vcpu.cpu.index, 1 - vcpu.cpu.index
    for number in range(1, ROUNDS_MAX + 1):
        before = delay_time(trial.processes())
        answer = yield from vcpu.ask(
            2,
            field=(vcpu.pages.data, FIELD),
            when=partial(_meet, meeting.arrived, mine, number),
            until=partial(_answered, meeting, number),
        )
        meeting.delay = delay_time(trial.processes()) - before
        if answer.request is None or answer.request.ret != errno.EAGAIN:
            meeting.over = True  # another scenario judges this
        meeting.done[mine] = number
        yield WaitUntil(partial(_reached, meeting.done, other, number))
        if meeting.judged < number:
            meeting.judged = number
            _judge_round(trial, meeting)
        if meeting.over:
            break
    trial.judge(CHECK, None)


def _meet(places: list[int], mine: int, number: int) -> bool:
    places[mine] = number
    return min(places) >= number


def _answered(meeting: _Meeting, number: int) -> bool:
    return len(meeting.requests) >= 2 * number


def _reached(places: list[int], vcpu: int, number: int) -> bool:
    return places[vcpu] >= number


def _judge_round(trial: Trial, meeting: _Meeting) -> None:
    first, second = sorted(meeting.requests[-2:], key=lambda each: each.lock_tries[-1:])
    meeting.over = meeting.over or _together(first, second)
    added = None if meeting.over else _adds_up(first, second, meeting.delay)
    if added is None:
        return
    meeting.seen.append(added)
    meeting.over = meeting.seen.count(added) == (ADDED if added else NOT_ADDED)
    if meeting.over and added:
        once, twice = sorted(1000 * (each.waited or 0.0) for each in (first, second))
        trial.advise(
            CHECK,
            "expected two vCPUs to wait for the lock at the same time, found that they waited one "
            f"after the other and got their answers after {once:.0f} ms and {twice:.0f} ms; in a "
            "guest with N vCPUs, the last one would wait N times as long",
        )


def _together(first: CertsRequest, second: CertsRequest) -> bool:
    """Whether the waits certainly do not add up: the periods in which the vCPUs tried to take the
    lock overlap, or at least one vCPU hardly waited.
    """
    if not first.lock_tries or not second.lock_tries:
        return True
    if min(first.waited or 0.0, second.waited or 0.0) < WAIT_MIN:
        return True
    # If one thread of the VMM serves both vCPUs, each of its tries is recorded for both requests.
    # Then the periods overlap even if the waits add up.
    if {*first.lock_tries} & {*second.lock_tries}:
        return False
    overlap = min(first.lock_tries[-1], second.lock_tries[-1]) - max(
        first.lock_tries[0], second.lock_tries[0]
    )
    return overlap > 0


def _adds_up(first: CertsRequest, second: CertsRequest, delay: float) -> bool | None:
    """Whether the second vCPU's time limit began only when the first vCPU's wait ended, or None if
    that is unclear.

    On a busy machine every answer may be late. So the function also counts how often the second
    vCPU tried to take the lock after the first had given up. If the second vCPU's time limit began
    with its own request, few such tries are left.
    """
    waited, answered = first.waited or 0.0, second.answered_at or 0.0
    apart = abs(second.asked_at - first.asked_at) / waited
    if apart > APART_MAX:
        return None
    began, ended = first.lock_tries[0], first.lock_tries[-1]
    after = sum(at > ended for at in second.lock_tries)
    if max(len(first.lock_tries), after) <= TRIES_FEW:
        if delay > waited:
            return None
        again = answered - second.lock_tries[0] - delay
        return min(second.lock_tries[0] - began, again) >= AGAIN * waited
    expected = 1 + LATER * apart * len(first.lock_tries)  # if its time limit began with its request
    return after > 1 + expected and answered - ended >= ended - began


SCENARIOS = (_scenario(),)
