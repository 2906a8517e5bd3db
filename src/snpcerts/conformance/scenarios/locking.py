# SPDX-License-Identifier: Apache-2.0
"""The lock: its kind, its duration, its file, and the answer while a writer holds it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

from snpcerts.abi.cert_table import pages_of
from snpcerts.conformance.file_observer import takes_lock
from snpcerts.conformance.journal import CertsRequest
from snpcerts.conformance.trial import TABLE_SIZE, Scenario, Script, Trial, TrialVcpu
from snpcerts.conformance.trial_guest import Answer
from snpcerts.emulator.frontdoor.file_watch import FileCall

FIRMWARE_TIME = 0.02  # seconds for which the emulated firmware delays each signature
RELEASE_LIMIT = 1.0  # seconds after which a lock counts as never released


def slow_firmware(seconds: float = FIRMWARE_TIME) -> Callable[[CertsRequest], bool]:
    """A gate that delays each answer by ``seconds``."""

    def gate(request: CertsRequest) -> bool:
        return time.monotonic() - (request.answered_at or 0.0) >= seconds

    return gate


def _held(trial: Trial, vcpu: TrialVcpu) -> Script:
    trial.gate = slow_firmware()
    for size in (TABLE_SIZE, 5000):
        trial.served.replace(trial.served.table(size))
        trial.judging("lock-before-read")
        answer = yield from vcpu.ask(2)
        request = answer.request
        if request is None or request.ret != 0:
            for check in ("lock-before-read", "lock-kind", "lock-until-signed", "lock-released"):
                trial.skip(check, f"the table was not delivered: {answer}")
            return
        trial.judge("lock-before-read", _lock_before_read(request))
        trial.judge("lock-kind", _lock_kind(request))
        trial.judge("lock-until-signed", _lock_until_signed(trial, request))
        trial.judging("lock-released")
        yield from released(trial, "after the table was delivered")
    yield from vcpu.ask(0)
    yield from released(trial, "after ENOSPC")
    top = max(slot.end for slot in trial.vm.slots) if trial.vm is not None else 0
    yield from vcpu.ask(2, gpa=top + (1 << 30))
    yield from released(trial, "after EIO")


def released(trial: Trial, when: str) -> Script:
    """Judge whether the lock is released while the guest runs; waits for the release."""
    free = yield from trial.wait_for(lambda: trial.served.locked() is None, RELEASE_LIMIT)
    problem = None if free else f"{when}, while the guest runs: {trial.served.kinds()}"
    trial.judge("lock-released", problem)


def _lock_before_read(request: CertsRequest) -> str | None:
    if not request.reads:
        return "the table was delivered, but the file was not read in this request"
    if any(read.lock is None for read in request.reads):
        return "the file was read without a lock"
    return None


def _lock_kind(request: CertsRequest) -> str | None:
    seen = [lock for lock in (request.lock_at_answer, *(r.lock for r in request.reads)) if lock]
    if not seen:
        return "the file never had a lock that an update would see"
    classic = [lock for lock in seen if not lock.is_ofd]
    return f"a classic lock of process {classic[0].pid}" if classic else None


def _lock_until_signed(trial: Trial, request: CertsRequest) -> str | None:
    if request.lock_at_answer is None:
        return "the file had no lock when KVM_RUN was called to have the report signed"
    # If KVM_RUN has not returned yet, the VMM is still in the call that signed.
    then = request.lock_when_signed if request.signed else trial.served.locked(request.file)
    if then is None:
        return "the lock was dropped before KVM_RUN returned"
    return None


def _replaced_at_lock(
    trial: Trial, vcpu: TrialVcpu, check: str, swap: Callable[[], bytes]
) -> Script:
    """Swap the file at the moment the VMM asks for its lock, and judge the answer."""
    old = trial.served.content or b""
    swapped: list[bytes] = []

    def meddle(call: FileCall) -> None:
        if not swapped and takes_lock(call):
            swapped.append(swap())

    trial.observer.meddle = meddle
    answer = yield from vcpu.ask(pages_of(TABLE_SIZE))
    trial.observer.meddle = lambda _: None
    if not swapped:
        trial.skip(check, "the VMM takes no lock")
        return
    trial.judge(check, _serves_new(answer, old, swapped[0]))


def _serves_new(answer: Answer, old: bytes, new: bytes) -> str | None:
    if answer.request is not None and answer.request.ret == errno.EAGAIN:
        return None
    if answer.ok and answer.got(len(old)) == old:
        return "the replaced file's table was delivered"
    return answer.delivers(new)


def _same_inode(trial: Trial, vcpu: TrialVcpu) -> Script:
    served = trial.served
    served.replace(served.table(TABLE_SIZE))

    def swap() -> bytes:
        served.replace(served.table(TABLE_SIZE))
        return served.content or b""

    yield from _replaced_at_lock(trial, vcpu, "same-inode", swap)


def same_device(first: Path, second: Path, link: Path) -> Scenario:
    """``link`` points to ``first``, then to ``second``, whose files have the same inode numbers."""

    def script(trial: Trial, vcpu: TrialVcpu) -> Script:
        served = trial.served
        path, descriptor = served.prepare(first, served.table(TABLE_SIZE))
        served.take_place(path, descriptor)
        other, other_descriptor = served.prepare(second, served.table(TABLE_SIZE))
        other.rename(second / path.with_name(served.path.name).name)
        one, two = os.fstat(descriptor), os.fstat(other_descriptor)
        if one.st_ino != two.st_ino or one.st_dev == two.st_dev:
            trial.skip("same-device", "could not create two files with the same inode number")
            return

        def swap() -> bytes:
            point_link(link, second)
            served.serves(other_descriptor)
            return served.content or b""

        yield from _replaced_at_lock(trial, vcpu, "same-device", swap)

    return Scenario(checks=("same-device",), script=script)


def point_link(link: Path, target: Path) -> None:
    """Atomically point a symbolic link to another directory."""
    fresh = link.with_name(f".{link.name}.next")
    fresh.symlink_to(target, target_is_directory=True)
    fresh.rename(link)


def _busy(trial: Trial, vcpu: TrialVcpu) -> Script:
    served = trial.served
    old = served.table(TABLE_SIZE)
    served.replace(old)
    yield from vcpu.ask(2)
    if not served.lock():
        trial.skip("busy", f"an update cannot take the lock at all: {served.kinds()}")
        return
    answer = yield from vcpu.ask(2)
    trial.judge("busy", _busy_answer(trial, answer))
    new = served.table(5000)
    served.unlock()
    served.rewrite(new)
    after = yield from vcpu.ask(2)
    wrong = after.delivers(new)
    trial.judge("busy", None if wrong is None else f"after the update: {wrong}")


def _busy_answer(trial: Trial, answer: Answer) -> str | None:
    request, limit = answer.request, trial.limits.busy
    if request is None or request.ret != errno.EAGAIN:
        return f"expected ret {errno.EAGAIN} (EAGAIN), found {answer}"
    if not answer.untouched:
        return "EAGAIN, but the guest's memory was written to"
    if request.waited is not None and request.waited > limit:
        return f"EAGAIN after {request.waited * 1000:.0f} ms, the limit is {limit * 1000:.0f} ms"
    return None


SCENARIOS = (
    Scenario(
        checks=("lock-before-read", "lock-kind", "lock-until-signed", "lock-released"),
        script=_held,
    ),
    Scenario(checks=("same-inode",), script=_same_inode),
    Scenario(checks=("busy",), script=_busy),
)
