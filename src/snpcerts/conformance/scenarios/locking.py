# SPDX-License-Identifier: Apache-2.0
"""The lock: of which kind, from when to when, on which file; and what is said while it is taken."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

from snpcerts.abi.cert_table import pages_of
from snpcerts.conformance.file_observer import takes_lock
from snpcerts.conformance.guest import Answer
from snpcerts.conformance.journal import Request
from snpcerts.conformance.trial import TABLE_SIZE, Scenario, Script, Trial, Vcpu
from snpcerts.emulator.frontdoor.watch import FileCall

FIRMWARE_TIME = 0.02  # seconds that the emulated firmware takes over a request, so that it matters
RELEASE_LIMIT = 1.0  # seconds after which a lock still held is held for good


def slow_firmware(seconds: float = FIRMWARE_TIME) -> Callable[[Request], bool]:
    """A gate that lets an answer through after a while."""

    def gate(request: Request) -> bool:
        return time.monotonic() - (request.answered_at or 0.0) >= seconds

    return gate


def _held(trial: Trial, vcpu: Vcpu) -> Script:
    trial.gate = slow_firmware()
    for size in (TABLE_SIZE, 5000):
        trial.served.replace(trial.served.table(size))
        trial.judging("lock-before-read")
        answer = yield from vcpu.ask(2)
        request = answer.request
        if request is None or request.ret != 0:
            for check in ("lock-before-read", "lock-kind", "lock-until-signed", "lock-released"):
                trial.skip(check, f"the table is not delivered: {answer}")
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
    """Wait until nobody has a lock while the guest runs; judge it."""
    free = yield from trial.wait_for(lambda: trial.served.locked() is None, RELEASE_LIMIT)
    problem = None if free else f"{when}, while the guest runs: {trial.served.kinds()}"
    trial.judge("lock-released", problem)


def _lock_before_read(request: Request) -> str | None:
    if not request.reads:
        return "the table was delivered and the file not read in this request"
    if any(read.lock is None for read in request.reads):
        return "the file was read with no lock on it"
    return None


def _lock_kind(request: Request) -> str | None:
    seen = [lock for lock in (request.lock_at_answer, *(r.lock for r in request.reads)) if lock]
    if not seen:
        return "no lock that an update would see was on the file at any time"
    classic = [lock for lock in seen if not lock.is_ofd]
    return f"a classic lock of process {classic[0].pid}" if classic else None


def _lock_until_signed(trial: Trial, request: Request) -> str | None:
    if request.lock_at_answer is None:
        return "no lock was on the file when KVM_RUN was called to have the report signed"
    # A VMM that does not come back from KVM_RUN is in the very call that signed.
    then = request.lock_when_signed if request.signed else trial.served.locked(request.file)
    if then is None:
        return "the lock was dropped before KVM_RUN returned"
    return None


def _replaced_at_lock(trial: Trial, vcpu: Vcpu, check: str, swap: Callable[[], bytes]) -> Script:
    """The file is another one from the moment on in which the VMM asks for its lock."""
    old = trial.served.content or b""
    swapped: list[bytes] = []

    def meddle(call: FileCall) -> None:
        if not swapped and takes_lock(call):
            swapped.append(swap())

    trial.observer.meddle = meddle
    answer = yield from vcpu.ask(pages_of(TABLE_SIZE))
    trial.observer.meddle = lambda _: None
    if not swapped:
        trial.skip(check, "the VMM takes no lock, so there is no such moment")
        return
    trial.judge(check, _serves_new(answer, old, swapped[0]))


def _serves_new(answer: Answer, old: bytes, new: bytes) -> str | None:
    if answer.request is not None and answer.request.ret == errno.EAGAIN:
        return None
    if answer.ok and answer.got(len(old)) == old:
        return "the table of the file that was replaced was delivered"
    return answer.delivers(new)


def _same_inode(trial: Trial, vcpu: Vcpu) -> Script:
    served = trial.served
    served.replace(served.table(TABLE_SIZE))

    def swap() -> bytes:
        served.replace(served.table(TABLE_SIZE))
        return served.content or b""

    yield from _replaced_at_lock(trial, vcpu, "same-inode", swap)


def same_device(first: Path, second: Path, link: Path) -> Scenario:
    """``link`` leads to ``first``, then to ``second``, whose files have the same inode numbers."""

    def script(trial: Trial, vcpu: Vcpu) -> Script:
        served = trial.served
        path, descriptor = served.prepare(first, served.table(TABLE_SIZE))
        served.take_place(path, descriptor)
        other, other_descriptor = served.prepare(second, served.table(TABLE_SIZE))
        other.rename(second / path.with_name(served.path.name).name)
        one, two = os.fstat(descriptor), os.fstat(other_descriptor)
        if one.st_ino != two.st_ino or one.st_dev == two.st_dev:
            trial.skip("same-device", "two files with the same inode number could not be made")
            return

        def swap() -> bytes:
            lead(link, second)
            served.serves(other_descriptor)
            return served.content or b""

        yield from _replaced_at_lock(trial, vcpu, "same-device", swap)

    return Scenario(checks=("same-device",), script=script)


def lead(link: Path, target: Path) -> None:
    """Make a symbolic link lead elsewhere, without a moment in which it leads nowhere."""
    fresh = link.with_name(f".{link.name}.next")
    fresh.symlink_to(target, target_is_directory=True)
    fresh.rename(link)


def _busy(trial: Trial, vcpu: Vcpu) -> Script:
    served = trial.served
    old = served.table(TABLE_SIZE)
    served.replace(old)
    yield from vcpu.ask(2)
    if not served.lock():
        trial.skip("busy", f"an update cannot have the lock at all: {served.kinds()}")
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
