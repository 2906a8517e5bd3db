# SPDX-License-Identifier: Apache-2.0
"""Scenarios in which two vCPUs request certificates at the same time, in an order that the suite
forces.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from functools import partial

from snpcerts.conformance.file_observer import (
    DATA_READS,
    READS,
    HeldUntil,
    read_short,
    refuse_open,
    takes_lock,
)
from snpcerts.conformance.journal import CertsRequest
from snpcerts.conformance.processor_time import queue_time
from snpcerts.conformance.scenarios.locking import released
from snpcerts.conformance.trial import (
    TABLE_SIZE,
    Scenario,
    Script,
    Trial,
    TrialVcpu,
    above_memory,
)
from snpcerts.emulator.frontdoor.file_watch import FileCall
from snpcerts.emulator.guest.program import Sleep, WaitUntil
from snpcerts.emulator.syscall.device import Pending

TOGETHER = 1.0  # seconds that one vCPU waits for the other; a VMM may serve one at a time
TOGETHER_AGAIN = 0.1  # the same, after a VMM has been seen to serve one at a time
SETTLE = 0.03  # seconds; a VMM may drop its lock this late
LOOK_AGAIN = 0.05  # seconds between two measurements of how long the VMM was delayed
DELAY_MAX = 20.0  # seconds; a wait is extended by the VMM's delay, but not by more than this
SMALLER = 3000  # bytes; fewer pages than TABLE_SIZE needs
_TRIES = 20  # EAGAINs before the other vCPU may go on; a VMM's exclusive lock makes its vCPUs wait

# For each round: the vCPU that is answered first, and the vCPU that finishes first.
ROUNDS = ((0, 1), (0, 0), (1, 0), (1, 1))


class _Rounds:
    """A gate that holds one vCPU's firmware command while the other vCPU finishes its request.

    ``free`` are the vCPUs whose requests proceed immediately. ``held`` has the requests that wait
    for the firmware, by vCPU. ``done`` counts rounds, by vCPU. ``judged`` counts locks that were
    checked. ``one_at_a_time`` says whether the VMM made one vCPU wait for the other.
    """

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._patience = TOGETHER
        self.free: set[int] = set()
        self.held: dict[int, CertsRequest] = {}
        # For each vCPU: the request that waits for the firmware now, the VMM's queue time when that
        # wait began, and when to look at the queue time again.
        self._waiting: dict[int, CertsRequest] = {}
        self._delays: dict[int, float] = {}
        self._check_at: dict[int, float] = {}
        self.done = [0, 0]
        self._number = 0
        self.lost = ""
        self.judged = 0
        self.one_at_a_time = False

    def __call__(self, request: CertsRequest) -> bool:
        if request.ret != 0 or request.vcpu in self.free:
            return True
        self.held.setdefault(request.vcpu, request)
        if self._waiting.get(request.vcpu) is not request:
            self._waiting[request.vcpu] = request
            self._delays[request.vcpu] = queue_time(self._trial.processes())
            self._check_at[request.vcpu] = 0.0
        _, first = ROUNDS[self._number]
        if first in self.held and 1 - first in self.held:
            self.free.add(first)
        elif self._alone(request):
            self._patience = TOGETHER_AGAIN
            self.one_at_a_time = True
            self.free.add(request.vcpu)
        return request.vcpu in self.free

    def prepare(self, number: int) -> None:
        """Begin round ``number``, unless the other vCPU has already begun it."""
        if self._number < number < len(ROUNDS):
            self._number = number
            self.held.clear()
            self.free.clear()
            self._trial.served.rewrite(self._trial.served.table(TABLE_SIZE))

    def _alone(self, request: CertsRequest) -> bool:
        """Return whether the VMM makes the other vCPU wait until this request is over."""
        held_since = request.answered_at or time.monotonic()
        other = self._trial.journal.last_of(1 - request.vcpu)
        if other is not None and other.errno is None and other.answered_at is None:
            began, patience = max(other.asked_at, held_since), self._patience
        else:
            began, patience = held_since, 5 * TOGETHER
        now = time.monotonic()
        if now < max(began + patience, self._check_at[request.vcpu]):
            return False
        if self.one_at_a_time:  # known already, so the delay does not matter
            return True
        delay = queue_time(self._trial.processes()) - self._delays[request.vcpu]
        left = began + patience + min(delay, DELAY_MAX) - now
        self._check_at[request.vcpu] = now + max(left, LOOK_AGAIN)
        return left <= 0

    def check(self, vcpu: int, after: str) -> None:
        """Record whether the held request of this vCPU still has its lock."""
        request = self.held.get(vcpu)
        if vcpu in self.free or request is None or request.lock_at_answer is None:
            return
        self.judged += 1
        if not self.lost and not self._trial.holds(request):
            self.lost = (
                f"vCPU {vcpu} waits for the firmware, but its lock was dropped after {after}"
            )


def _ask(vcpu: TrialVcpu, npages: int, give_up: Callable[[], None] = lambda: None) -> Script:
    served = vcpu.trial.served
    since = len(served.contents) - 1
    for number in range(2 * _TRIES):
        answer = yield from vcpu.ask(npages)
        if answer.request is None or answer.request.ret != errno.EAGAIN:
            break
        if number == _TRIES:
            give_up()
        yield Sleep(0.005)
    if npages:
        wrong = answer.delivers(served.content or b"")
        if any(answer.delivers(each) is None for each in served.contents[since:]):
            wrong = None  # the file was replaced meanwhile
        mine = vcpu.cpu.index
        vcpu.trial.judge("vcpus-served", None if wrong is None else f"vCPU {mine}: {wrong}")


def _script(trial: Trial, vcpu: TrialVcpu) -> Script:
    if trial.vcpus < 2:
        for check in ("vcpus-served", "vcpus-keep-locks"):
            trial.skip(check, "the VM has one vCPU")
        return
    mine, other = vcpu.cpu.index, 1 - vcpu.cpu.index
    if not isinstance(trial.gate, _Rounds):
        trial.served.replace(trial.served.table(TABLE_SIZE))
        trial.gate = _Rounds(trial)
    rounds = trial.gate
    for number, (starter, first) in enumerate(ROUNDS):
        if mine != starter:
            waits = yield from trial.wait_for(lambda: other in rounds.held, 5 * TOGETHER)
            if mine == first:
                rounds.free.add(mine)
                if waits:
                    yield from _errors(rounds, vcpu, other)
        yield from _ask(vcpu, 2, lambda: rounds.free.add(other))
        if mine == first:
            yield from _more(rounds, vcpu, other)
            if number == 0 and other not in rounds.free:
                yield from _replaced(rounds, vcpu, other)
            rounds.free.add(other)
        rounds.done[mine] += 1
        yield from trial.wait_for(partial(_reached, rounds, other, number), trial.limits.trial)
        rounds.prepare(number + 1)
        yield Sleep(0.002)
    if mine == 0:
        yield from released(trial, "after two vCPUs made requests at the same time")


def _reached(rounds: _Rounds, vcpu: int, number: int) -> bool:
    return rounds.done[vcpu] > number


def _more(rounds: _Rounds, vcpu: TrialVcpu, held: int) -> Script:
    """Let one vCPU make requests while the other waits for the firmware, and check that the other
    keeps its lock.
    """
    mine = f"vCPU {vcpu.cpu.index}"
    yield Sleep(SETTLE)
    rounds.check(held, f"{mine} finished")
    if held in rounds.free:
        return
    for npages, what in ((0, "ENOSPC"), (2, "a table")):
        yield from _ask(vcpu, npages, lambda: rounds.free.add(held))
        yield Sleep(SETTLE)
        rounds.check(held, f"{mine} got its answer ({what})")


def _replaced(rounds: _Rounds, vcpu: TrialVcpu, held: int) -> Script:
    """Replace the file while one vCPU waits for the firmware, and let the other request the new
    table.
    """
    served, mine = vcpu.trial.served, f"vCPU {vcpu.cpu.index}"
    served.replace(served.table(TABLE_SIZE))
    answer = yield from vcpu.ask(2)
    wrong = answer.delivers(served.content or b"")
    if answer.request is not None and answer.request.ret == errno.EAGAIN:
        wrong = None  # a VMM with one open file may wait until it is free
    problem = f"{mine}, after the file was replaced while vCPU {held} waited for the firmware"
    vcpu.trial.judge("vcpus-served", wrong and f"{problem}: {wrong}")
    rounds.check(held, f"{mine} asked for the table of another file")
    if served.lock():
        yield from vcpu.ask(2)
        served.unlock()
        yield Sleep(SETTLE)
        rounds.check(held, f"{mine} got EAGAIN for another file")


def _errors(rounds: _Rounds, vcpu: TrialVcpu, held: int) -> Script:
    """Let one vCPU's requests fail while the other waits for the firmware.

    A VMM that closes a descriptor twice may close one that the other vCPU opened in between. Once
    the other vCPU no longer waits, its next request must not fail.
    """
    observer, mine = vcpu.trial.observer, f"vCPU {vcpu.cpu.index}"
    top = above_memory(vcpu.trial)
    kinds = (("no file", errno.ENOENT, None), ("EMFILE", errno.EMFILE, None), ("EIO", 0, top))
    for what, code, gpa in kinds:
        if held in rounds.free:
            return
        if code:
            observer.meddle_open = partial(refuse_open, code)
        yield from vcpu.ask(2, gpa=gpa)
        observer.meddle_open = lambda _: None
        yield Sleep(SETTLE)
        rounds.check(held, f"{mine} got its answer ({what})")
    for what, refuse in (("a read that failed", _refuse_reads), ("ENOLCK", _refuse_locks)):
        if held in rounds.free:
            return
        observer.meddle = refuse
        yield from vcpu.ask(2)
        observer.meddle = lambda _: None
        yield Sleep(SETTLE)
        rounds.check(held, f"{mine} got its answer ({what})")


def _refuse_reads(call: FileCall) -> int | None:
    return -errno.EIO if call.call in DATA_READS else None


def _refuse_locks(call: FileCall) -> int | None:
    return -errno.ENOLCK if takes_lock(call) else None


def _after(trial: Trial) -> None:
    gate = trial.gate
    if not isinstance(gate, _Rounds):
        return
    served = [each for each in trial.journal.requests if each.answered_at and each.ret == 0]
    if all(each.lock_at_answer is None for each in served):
        trial.skip("vcpus-keep-locks", "the VMM takes no lock")
        return
    if not gate.judged and not gate.one_at_a_time:
        trial.skip("vcpus-keep-locks", "the requests of two vCPUs never overlapped")
        return
    trial.judge("vcpus-keep-locks", gate.lost or None)


class _Interleaved:
    """Stops one vCPU's read half-way, replaces the file, and lets the read go on when the other
    vCPU's request has ended.
    """

    def __init__(self, trial: Trial, size: int) -> None:
        self._trial = trial
        self._size = size  # bytes of the new file
        self._reads = 0
        self.half_read = False
        self.ended = False  # whether one of the two requests has ended

    def __call__(self, call: FileCall) -> int | Pending | None:
        if call.call not in DATA_READS or self.half_read:
            return None
        self._reads += 1
        if self._reads == 1:
            return read_short(call)
        self.half_read = True
        self._trial.served.replace(self._trial.served.table(self._size))
        return HeldUntil(lambda: self.ended, 2 * TOGETHER)


def _interleaved_scenario(size: int) -> Scenario:
    """Return a scenario that fails if two vCPUs share the buffer into which the VMM reads the
    file, or the variable for the file's size.

    The second vCPU reads a file of ``size`` bytes.
    """
    meeting: list[_Interleaved] = []

    def script(trial: Trial, vcpu: TrialVcpu) -> Script:
        if trial.vcpus < 2:
            trial.skip("vcpus-served", "the VM has one vCPU")
            return
        served = trial.served
        served.replace(served.table(TABLE_SIZE))
        old = served.content or b""
        between = _Interleaved(trial, size)
        trial.observer.meddle = between
        meeting[:] = [between]
        answer = yield from vcpu.ask(2)
        trial.observer.meddle = lambda _: None
        wrong = answer.delivers(served.content or b"")
        if answer.request is not None and answer.request.ret == errno.EAGAIN:
            wrong = None
        if not between.half_read or answer.delivers(old) is None:
            wrong = None
        between.ended = True
        problem = f"vCPU 0, while vCPU 1 is served too: {wrong}"
        trial.judge("vcpus-served", wrong and problem)

    def second(_: Trial, vcpu: TrialVcpu) -> Script:
        yield WaitUntil(lambda: bool(meeting) and (meeting[0].half_read or meeting[0].ended))
        if not meeting[0].ended:
            yield from vcpu.ask(2)
            meeting[0].ended = True

    return Scenario(checks=("vcpus-served",), script=script, second=second)


class _Together:
    """Makes two requests overlap: vCPU 1's begins during vCPU 0's read, and vCPU 0's ends first.

    A VMM may answer both requests from one read, but the lock must be held until both have ended.
    """

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self.reading: float | None = None  # since when the first vCPU's read is stopped
        self.ended: float | None = None  # when the first vCPU got its answer
        self.over = False  # the second vCPU got its answer
        self.kept: bool | None = None  # the second vCPU's lock, after the first finished

    def meddle(self, call: FileCall) -> Pending | None:
        """Stop the first read until both vCPUs have made their requests."""
        if call.call not in READS or self.reading is not None:
            return None
        self.reading = time.monotonic()
        return HeldUntil(self._both_ask, TOGETHER)

    def _both_ask(self) -> bool:
        second = self._trial.journal.last_of(1)
        return second is not None and time.monotonic() > second.asked_at + SETTLE

    def gate(self, request: CertsRequest) -> bool:
        """Return whether the firmware may handle the request.

        vCPU 0's request waits until the VMM has answered both, and vCPU 1's until vCPU 0's has
        ended.
        """
        now, answered = time.monotonic(), request.answered_at or 0.0
        if request.ret != 0:
            return True
        other = self._trial.journal.last_of(1 - request.vcpu)
        if request.vcpu == 0:
            both = other is not None and other.answered_at is not None
            return both or now > answered + TOGETHER  # it serves one at a time
        if other is None or other.answered_at is None:
            return now > answered + TOGETHER
        beside = self._trial.journal.beside(request)
        if self.kept is None and other in beside and request.lock_at_answer:
            if self.ended is None or now < self.ended + SETTLE:
                return now > answered + 3 * TOGETHER
            self.kept = self._trial.holds(request)
        return True


def _together_scenario() -> Scenario:
    """Return a scenario in which a VMM may serve two vCPUs from one read of the file.

    It fails if the VMM drops the lock when the first request ends, although the second still needs
    it.
    """
    check, meeting = "vcpus-keep-locks", list[_Together]()

    def script(trial: Trial, vcpu: TrialVcpu) -> Script:
        if trial.vcpus < 2:
            trial.skip(check, "the VM has one vCPU")
            return
        trial.served.replace(trial.served.table(TABLE_SIZE))
        both = _Together(trial)
        trial.observer.meddle, trial.gate = both.meddle, both.gate
        meeting[:] = [both]
        yield from vcpu.ask(2)
        both.ended = time.monotonic()
        yield WaitUntil(lambda: both.over)
        if both.kept is None:
            trial.skip(check, "the requests of two vCPUs never overlapped")
        elif both.kept:
            trial.judge(check, None)
        else:
            trial.judge(
                check,
                "the VMM read the file for vCPU 0 while vCPU 1 waited; when vCPU 0 finished, the "
                "lock was dropped, although vCPU 1 still waited for the firmware",
            )

    def second(_: Trial, vcpu: TrialVcpu) -> Script:
        yield WaitUntil(
            lambda: bool(meeting) and None is not (meeting[0].reading or meeting[0].ended)
        )
        yield from vcpu.ask(2)
        meeting[0].over = True

    return Scenario(checks=(check,), script=script, second=second)


SCENARIOS = (
    Scenario(
        checks=("vcpus-served", "vcpus-keep-locks"),
        script=_script,
        second=_script,
        after=_after,
        seconds=1.0,
    ),
    _interleaved_scenario(TABLE_SIZE),
    _interleaved_scenario(SMALLER),
    _together_scenario(),
)
