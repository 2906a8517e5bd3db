# SPDX-License-Identifier: Apache-2.0
"""Two vCPUs request certificates at the same time."""

from __future__ import annotations

import errno
import time
from functools import partial

from snpcerts.conformance.journal import CertsRequest
from snpcerts.conformance.scenarios.locking import released
from snpcerts.conformance.trial import TABLE_SIZE, Scenario, Script, Trial, TrialVcpu
from snpcerts.emulator.guest.program import Sleep

ROUNDS = 3
TOGETHER = 1.0  # seconds that the first answer waits for the second
_TRIES = 20  # an exclusive lock of the VMM's own makes its vCPUs wait for each other


class _OneByOne:
    """A gate that waits until both requests are answered, then lets them proceed in turn.

    Between the two it checks the second request's lock. By then the first has
    dropped its own, since its vCPU runs again.
    """

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._first: CertsRequest | None = None
        self._second: CertsRequest | None = None
        self._entered = 0
        self.done = [0, 0]  # rounds, by vCPU
        self.lost = 0

    def __call__(self, request: CertsRequest) -> bool:
        if request.ret != 0:
            return True
        if self._first is None:
            self._first = request
        if request is self._first:
            return self._first_goes(request)
        return request is self._second and self._second_goes(request)

    def _first_goes(self, request: CertsRequest) -> bool:
        self._second = next(
            (
                each
                for each in self._trial.journal.open_requests()
                if each is not request and each.answered_at is not None and each.ret == 0
            ),
            None,
        )
        self._entered = self._trial.journal.entered.get(request.vcpu, 0)
        if self._second is None and not _late(request.answered_at):
            return False
        if self._second is None:
            self._first = None
        return True

    def _second_goes(self, request: CertsRequest) -> bool:
        first, trial = self._first, self._trial
        if first is None or first.errno is None:
            return False
        runs_again = trial.journal.entered.get(first.vcpu, 0) > self._entered
        if not runs_again and not _late(first.answered_at, 2):
            return False
        self.lost += self._has_lost(request)
        self._first = self._second = None
        return True

    def _has_lost(self, request: CertsRequest) -> bool:
        """Whether the lock that this request was answered under has been released.

        Checks the request's own descriptors, since the first request's lock may remain.
        """
        served = self._trial.served
        if request.lock_at_answer is None or request.file is None:
            return False
        if not request.lock_descriptors:
            return served.locked(request.file) is None
        return not served.still_locked_by(request.lock_descriptors, request.file)


def _late(since: float | None, times: int = 1) -> bool:
    """Whether to stop waiting for the other vCPU: a VMM may serve one request at a time."""
    return time.monotonic() - (since or 0.0) > times * TOGETHER


def _reached(done: list[int], vcpu: int, number: int) -> bool:
    return done[vcpu] > number


def _script(trial: Trial, vcpu: TrialVcpu) -> Script:
    if trial.vcpus < 2:
        for check in ("vcpus-served", "vcpus-keep-locks"):
            trial.skip(check, "the VM has one vCPU")
        return
    mine, other = vcpu.cpu.index, 1 - vcpu.cpu.index
    if not isinstance(trial.gate, _OneByOne):
        trial.served.replace(trial.served.table(TABLE_SIZE))
        trial.gate = _OneByOne(trial)
    done = trial.gate.done
    table = trial.served.content or b""
    for number in range(ROUNDS):
        for _ in range(_TRIES):
            answer = yield from vcpu.ask(2)
            if answer.request is None or answer.request.ret != errno.EAGAIN:
                break
            yield Sleep(0.005)
        wrong = answer.delivers(table)
        trial.judge("vcpus-served", None if wrong is None else f"vCPU {mine}: {wrong}")
        done[mine] += 1
        yield from trial.wait_for(partial(_reached, done, other, number), trial.limits.trial)
    if mine == 0:
        yield from released(trial, "after two vCPUs asked at once")


def _after(trial: Trial) -> None:
    gate = trial.gate
    if not isinstance(gate, _OneByOne):
        return
    served = [each for each in trial.journal.requests if each.answered_at and each.ret == 0]
    if all(each.lock_at_answer is None for each in served):
        trial.skip("vcpus-keep-locks", "the VMM takes no lock")
        return
    problem = "when one vCPU finished, the other's lock was released"
    trial.judge("vcpus-keep-locks", problem if gate.lost else None)


SCENARIOS = (
    Scenario(
        checks=("vcpus-served", "vcpus-keep-locks"), script=_script, second=_script, after=_after
    ),
)
