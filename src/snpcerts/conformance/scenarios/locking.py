# SPDX-License-Identifier: Apache-2.0
"""Scenarios about the lock: its kind, its duration, its file, and the answer while a writer holds
it.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Generator
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path

from snpcerts.abi.cert_table import PAGE_SIZE, pages_of
from snpcerts.conformance.file_observer import (
    DATA_READS,
    HeldUntil,
    takes_lock,
    waits_for_lock,
)
from snpcerts.conformance.journal import CertsRequest
from snpcerts.conformance.processor_time import ThreadsUsage, delay_time
from snpcerts.conformance.scenarios.answers import (
    REFUSED_AND_WRITTEN,
    advise_on_refusal,
    unharmed,
)
from snpcerts.conformance.served_file import ServedFile
from snpcerts.conformance.trial import (
    TABLE_SIZE,
    Scenario,
    Script,
    Trial,
    TrialVcpu,
    above_memory,
    lock_before_read,
    lock_kind,
    lock_until_signed,
)
from snpcerts.conformance.trial_guest import FIELD_PAGES, Answer
from snpcerts.emulator.frontdoor.file_watch import FileCall, OpenCall
from snpcerts.emulator.guest.program import Event, Sleep

FIRMWARE_TIME = 0.02  # seconds of delay for each signature of the emulated firmware
LOCK_TIME = 0.03  # seconds of delay for a lock call, so that another thread can read meanwhile
SLOW_FIRMWARE = 5.0  # seconds; Linux waits 100 s for a command by default
STOPPED_LIMIT = 3.0  # seconds of inactivity after which a VM counts as stopped
RELEASE_LIMIT = 1.0  # seconds after which a lock counts as never released
BUSY_IN_A_ROW = 4  # requests while one update has the lock
WAIT_MIN = 0.02  # seconds; shorter waits are not judged
SLEEP_MIN = 0.0003  # seconds between two tries for the lock; a shorter pause is no sleep
PAUSED_MIN = 4  # number of pauses that show clearly whether the VMM sleeps in them
TRIES_MIN = 20  # with fewer pauses, the shortest tenth is not meaningful
WARM_UP = 2  # requests before a state counts as steady
REPEATED, REPEATED_BUSY = 6, 3  # requests of each kind
INTERRUPTED = 2  # lock calls in a row that a signal interrupts
UPDATE_TIME = 0.02  # seconds for which an update holds the lock
LATE = 0.5  # seconds after an update in which a VMM might still serve a request that got EAGAIN
LATE_STEP = 0.05  # seconds between two reads of the guest's memory during that time
MANY_REPLACEMENTS = 40  # of the file, in a row; a VMM may give up sooner and answer EAGAIN
OTHER_SIZES = (3000, 10000)  # bytes; they need fewer and more pages than TABLE_SIZE
REPLACED_AGAIN = 3  # tries while the VMM answers EAGAIN, which says nothing about the check
NO_IMMEDIATE_EXIT = (
    "; the VMM answered with immediate_exit 0, so KVM_RUN did not return before the guest ran"
)
OPENED_BEFORE = (
    "; the VMM looks the file up in a directory that it opened before, and does not notice that a "
    "symbolic link in the file's path now leads to another directory"
)
NOT_LOCKED = "when the VMM answered, it held no lock on the file that it had read last"
TALKS = 0.8  # lines per request; more counts as a flood
LINE_MAX = 200  # bytes; a longer line counts as several


def slow_firmware(seconds: float = FIRMWARE_TIME) -> Callable[[CertsRequest], bool]:
    """Return a gate that delays the firmware's answer to each request by ``seconds``."""

    def gate(request: CertsRequest) -> bool:
        return time.monotonic() - (request.answered_at or 0.0) >= seconds

    return gate


def _held(trial: Trial, vcpu: TrialVcpu) -> Script:
    trial.gate = slow_firmware()
    trial.observer.meddle = lambda call: (
        HeldUntil(lambda: False, LOCK_TIME) if takes_lock(call) else None
    )
    for size in (TABLE_SIZE, 0, 5000, 0):
        if size:  # if it is 0, the file has not changed since the last request
            trial.served.replace(trial.served.table(size))
        trial.judging("lock-before-read")
        answer = yield from vcpu.ask(2)
        request = answer.request
        if request is None or request.ret != 0:
            for check in ("lock-before-read", "lock-kind", "lock-until-signed", "lock-released"):
                trial.skip(check, f"the table was not delivered: {answer}")
            return
        trial.judge("lock-before-read", lock_before_read(request, trial.journal))
        trial.judge("lock-kind", _lock_kind(request))
        trial.judge("lock-until-signed", lock_until_signed(request))
        trial.judging("lock-released")
        yield from released(trial, "after the table was delivered")
    trial.observer.meddle = lambda _: None
    yield from vcpu.ask(0)
    yield from released(trial, "after ENOSPC")
    yield from vcpu.ask(2, gpa=above_memory(trial))
    yield from released(trial, "after EIO")
    trial.observer.meddle = lambda call: -errno.EIO if call.call in DATA_READS else None
    yield from vcpu.ask(2)
    trial.observer.meddle = lambda _: None
    yield from released(trial, "after a read that failed")
    trial.served.replace(b"")
    yield from vcpu.ask(2)
    yield from released(trial, "with an empty file")


def released(trial: Trial, when: str) -> Script:
    """Judge whether the VMM, while the guest runs, releases the lock within the time limit."""
    free = yield from trial.wait_for(lambda: trial.served.locked() is None, RELEASE_LIMIT)
    problem = None
    if not free:
        problem = f"{when}, these locks are still held while the guest runs: {trial.served.kinds()}"
        last = trial.journal.requests[-1]
        if not last.immediate_exit and not last.errno:
            problem += NO_IMMEDIATE_EXIT
    trial.judge("lock-released", problem)


def _lock_kind(request: CertsRequest) -> str | None:
    if request.lock_at_answer is None and all(read.lock is None for read in request.reads):
        refused = f": {request.lock_refused}" if request.lock_refused else ""
        return f"the VMM never took a lock that an update would see{refused}"
    return lock_kind(request)


def _slow(trial: Trial, vcpu: TrialVcpu) -> Script:
    """Delay the firmware for longer than a VMM should wait for a lock."""
    check, seconds = "slow-firmware", min(SLOW_FIRMWARE, trial.limits.trial / 2)
    lost: list[float] = []

    def gate(request: CertsRequest) -> bool:
        held = time.monotonic() - (request.answered_at or 0.0)
        if request.ret == 0 and request.lock_at_answer is not None and not lost:
            if trial.served.locked(request.file) is not None:
                return held >= seconds
            lost.append(held)
        return True

    trial.served.replace(trial.served.table(TABLE_SIZE))
    trial.gate = gate
    answer = yield from vcpu.ask(2)
    request = answer.request
    if request is None or request.ret != 0 or request.lock_at_answer is None:
        trial.skip(check, f"no table was delivered under a lock: {answer}")
        return
    trial.judge(
        check,
        (f"the firmware took {seconds:g} s, but the lock was dropped after {lost[0]:.1f} s")
        if lost
        else None,
    )


def _lock_fails(trial: Trial, vcpu: TrialVcpu) -> Script:
    check, served = "lock-fails", trial.served
    refused: list[FileCall] = []

    def meddle(call: FileCall) -> int | None:
        if not takes_lock(call):
            return None
        refused.append(call)
        return -errno.ENOLCK

    table = served.table(TABLE_SIZE)
    served.replace(table)
    trial.observer.meddle = meddle
    answer = yield from vcpu.ask(2)
    trial.observer.meddle = lambda _: None
    if not refused:
        trial.skip(check, "the VMM takes no lock")
        return
    request = answer.request
    if answer.has_table and request is not None and request.lock_at_answer is None:
        trial.judge(check, "after ENOLCK, the VMM delivered the table without a lock")
    else:
        trial.judge(check, unharmed(answer, table))
        advise_on_refusal(trial, check, "ENOLCK", answer)
    answer = yield from vcpu.ask(2)
    wrong = answer.delivers(table)
    trial.judge(check, None if wrong is None else f"after ENOLCK: {wrong}")
    yield from _lock_interrupted(trial, vcpu)


def _lock_interrupted(trial: Trial, vcpu: TrialVcpu) -> Script:
    """Let a signal interrupt the VMM's first calls that wait in the kernel for the lock.

    An interrupted call takes no lock. The VMM may answer EAGAIN or call again.
    """
    check, served = "lock-fails", trial.served
    interrupted: list[FileCall] = []

    def meddle(call: FileCall) -> int | None:
        if len(interrupted) == INTERRUPTED or not waits_for_lock(call):
            return None
        interrupted.append(call)
        return -errno.EINTR

    trial.observer.meddle = meddle
    answer = yield from vcpu.ask(2)
    trial.observer.meddle = lambda _: None
    if not interrupted:
        return
    request = answer.request
    if answer.has_table and request is not None and request.lock_at_answer is None:
        trial.judge(check, "after EINTR, the VMM delivered the table without a lock")
    else:
        wrong = unharmed(answer, served.content or b"")
        trial.judge(check, wrong and f"EINTR: {wrong}")


def _handshake_fails(trial: Trial, vcpu: TrialVcpu) -> Script:
    trial.served.replace(trial.served.table(TABLE_SIZE))
    failed: list[CertsRequest] = []
    failed_at: list[float] = []

    def fails(request: CertsRequest) -> int:
        if request.ret != 0 or failed:
            return 0
        failed.append(request)
        failed_at.append(time.monotonic())
        return errno.EIO

    def stops_waiting() -> None:
        """End the wait if the VMM has stopped its VM; QEMU does so when KVM_RUN fails."""
        if failed_at and time.monotonic() - failed_at[0] > STOPPED_LIMIT:
            trial.enough = True

    trial.fails_reentry, trial.tick = fails, stops_waiting
    answer = yield from vcpu.ask(2)
    trial.tick = lambda: None
    if not failed or failed[0].lock_at_answer is None:
        trial.skip("handshake-fails", f"no table was delivered under a lock: {answer}")
        return
    free = yield from trial.wait_for(lambda: trial.served.locked() is None, RELEASE_LIMIT)
    trial.judge(
        "handshake-fails",
        None
        if free
        else "after EIO from KVM_RUN, these locks are still held while the guest runs: "
        f"{trial.served.kinds()}",
    )


def _after_handshake(trial: Trial) -> None:
    """Judge what a failed hand-shake leaves behind.

    The VMM may exit, or stop its VM and keep running, but no lock may remain.
    """
    if trial.ended_by is None and not trial.enough:
        return
    what = "the VMM ended" if trial.ended_by is not None else "the VMM stopped the VM"
    # Other processes of the VMM may end a little later.
    gone = trial.serve_until(lambda: trial.served.locked() is None, RELEASE_LIMIT)
    trial.judge(
        "handshake-fails",
        None if gone else f"{what}, but these locks are still held: {trial.served.kinds()}",
    )


def _after_lock(trial: Trial, vcpu: TrialVcpu) -> Script:
    """Replace the file that the VMM has locked, just before the VMM uses the path again."""
    yield from _replaced_after_lock(trial, vcpu, TABLE_SIZE, when_opened=True)
    for size in OTHER_SIZES:
        # To compare files, a VMM examines the path once. It may do so again for another reason.
        for times in (1, 2):
            yield from _replaced_after_lock(trial, vcpu, size, times=times)
    yield from _between_opens(trial, vcpu)


def _between_opens(trial: Trial, vcpu: TrialVcpu) -> Script:
    """Replace the file when the VMM opens the path for the second time, before it takes a lock."""
    served, opened = trial.served, list[OpenCall]()
    served.replace(served.table(TABLE_SIZE))

    def opening(call: OpenCall) -> None:
        opened.append(call)
        if len(opened) == 2 and served.locked() is None:
            served.replace(served.table(TABLE_SIZE))

    trial.observer.meddle_open = opening
    answer = yield from vcpu.ask(2)
    trial.observer.meddle_open = lambda _: None
    request = answer.request
    if request is not None and request.lock_tries and answer.has_table:
        unlocked = request.lock_at_answer is None
        trial.judge("replaced-after-lock", NOT_LOCKED if unlocked else None)


def _replaced_after_lock(
    trial: Trial, vcpu: TrialVcpu, size: int, *, when_opened: bool = False, times: int = 1
) -> Script:
    """Replace the locked file with one of ``size`` bytes before the VMM opens or examines the path.

    The replacement happens before the ``times``-th such call.
    """
    check, served = "replaced-after-lock", trial.served
    old, new = served.table(TABLE_SIZE), served.table(size)
    served.replace(old)
    locked: list[FileCall] = []
    uses: list[None] = []

    def meddle(call: FileCall) -> None:
        if takes_lock(call):
            locked.append(call)

    def use() -> None:
        if locked and served.locked() is not None:
            uses.append(None)
            if len(uses) == times:
                served.replace(new)

    observer = trial.observer
    observer.meddle = meddle
    if when_opened:
        observer.meddle_open = lambda _: use()
    else:
        observer.meddle_examine = use
    answer = yield from vcpu.ask(pages_of(max(TABLE_SIZE, size)))
    observer.meddle, observer.meddle_open = lambda _: None, lambda _: None
    observer.meddle_examine = lambda: None
    if not locked:
        trial.skip(check, "the VMM takes no lock")
    elif len(uses) < times:
        trial.judge(check, None)
    else:
        trial.judge(check, _serves_locked(trial, answer, old, new))


def _serves_locked(trial: Trial, answer: Answer, old: bytes, new: bytes) -> str | None:
    """Return why the answer is not the table of the file that the VMM locked, or None if it is.

    The VMM locked the file that held ``old``, then a file that holds ``new`` took its place. The
    VMM may serve either table, but must have locked the file that it read.
    """
    request = answer.request
    if request is None or request.ret == errno.EAGAIN:
        return None
    if answer.delivers(new) is None and not any(
        read.lock for read in request.reads if read.file == trial.served.identity
    ):
        return (
            "the VMM opened the path again after it took the lock, and read the new file "
            "without a lock"
        )
    if answer.has_table and request.lock_at_answer is None:
        return NOT_LOCKED
    if answer.delivers(new) is None or answer.delivers(old) is None:
        return None
    if answer.ok:
        return (
            f"the locked file of {len(old)} bytes was replaced by one of {len(new)} bytes, and the "
            "guest got neither file's whole table; take the size from the locked file, not from "
            "the path"
        )
    return f"expected ret 0 and the table of a locked file, found {answer}"


def _replaced_at_lock(
    trial: Trial,
    vcpu: TrialVcpu,
    check: str,
    swap: Callable[[], bytes],
    times: int = 1,
    explain: Callable[[], str] = lambda: "",
) -> Script:
    """Replace the file at each of the VMM's first ``times`` attempts to lock it. ``explain``
    returns what to append to the message if the check fails.
    """
    for _ in range(REPLACED_AGAIN):
        old = trial.served.content or b""
        swapped: list[bytes] = []

        def meddle(call: FileCall, swapped: list[bytes] = swapped) -> None:
            if len(swapped) < times and takes_lock(call):
                swapped.append(swap())

        trial.observer.meddle = meddle
        answer = yield from vcpu.ask(pages_of(max(TABLE_SIZE, *OTHER_SIZES)))
        trial.observer.meddle = lambda _: None
        if not swapped:
            trial.skip(check, "the VMM takes no lock")
            return
        wrong = _serves_new(answer, [old, *swapped[:-1]], swapped[-1])
        trial.judge(check, wrong and wrong + explain())
        if answer.request is None or answer.request.ret != errno.EAGAIN:
            return


def _serves_new(answer: Answer, old: list[bytes], new: bytes) -> str | None:
    if answer.request is not None and answer.request.ret == errno.EAGAIN:
        return None
    if answer.ok and any(answer.got(len(each)) == each for each in old):
        return "expected the table of the file at the path, found that of the replaced file"
    return answer.delivers(new)


def _same_inode(trial: Trial, vcpu: TrialVcpu) -> Script:
    served = trial.served
    served.replace(served.table(TABLE_SIZE))

    def swap(size: int = TABLE_SIZE) -> bytes:
        served.replace(served.table(size))
        return served.content or b""

    def swap_unnoticed() -> bytes:
        served.replace_unnoticed(served.table(TABLE_SIZE))
        return served.content or b""

    for how in (swap, swap_unnoticed):
        for times in (1, 2):
            yield from _replaced_at_lock(trial, vcpu, "same-inode", how, times)
    for size in OTHER_SIZES:
        yield from _replaced_at_lock(trial, vcpu, "same-inode", partial(swap, size))
    yield from _replaced_at_lock(trial, vcpu, "same-inode", swap, MANY_REPLACEMENTS)
    yield from _replaced_while_waiting(trial, vcpu)


def _replaced_while_waiting(trial: Trial, vcpu: TrialVcpu) -> Script:
    """Hold the lock when the VMM first tries to take it. While the VMM waits, replace the file and
    release the lock on the old one.
    """
    served = trial.served
    served.replace(served.table(TABLE_SIZE))
    old = served.content or b""
    if not (yield from trial.wait_for(served.lock, RELEASE_LIMIT)):
        return
    tried: list[float] = []

    def meddle(call: FileCall) -> None:
        if takes_lock(call):
            tried.append(time.monotonic())

    def tick() -> None:
        if tried and served.updating and time.monotonic() - tried[0] > UPDATE_TIME:
            served.replace(served.table(TABLE_SIZE))
            served.unlock()

    trial.observer.meddle, trial.tick = meddle, tick
    answer = yield from vcpu.ask(pages_of(TABLE_SIZE))
    trial.observer.meddle, trial.tick = lambda _: None, lambda: None
    served.unlock()
    trial.judge("same-inode", _serves_new(answer, [old], served.content or b""))


def same_device(first: Path, second: Path, link: Path) -> Scenario:
    """Return a scenario that redirects the symbolic link ``link`` from ``first`` to ``second``, and
    back if the VMM answers EAGAIN.

    The files in the two directories have the same inode number, on different devices.
    """

    def script(trial: Trial, vcpu: TrialVcpu) -> Script:
        served = trial.served
        descriptor = served.current
        other, other_descriptor = served.prepare(second, served.table(TABLE_SIZE))
        other.rename(second / served.path.name)
        one, two = os.fstat(descriptor), os.fstat(other_descriptor)
        if one.st_ino != two.st_ino or one.st_dev == two.st_dev:
            trial.skip(
                "same-device", "the suite could not create two files with the same inode number"
            )
            return

        places = cycle(((second, other_descriptor), (first, descriptor)))

        def swap() -> bytes:
            directory, current = next(places)
            point_link(link, directory)
            served.serves(current)
            return served.content or b""

        def explain() -> str:
            replaced = (one.st_dev, one.st_ino), (two.st_dev, two.st_ino)
            seen = trial.observer.led_to
            return OPENED_BEFORE if seen in replaced and seen != served.identity else ""

        yield from _replaced_at_lock(trial, vcpu, "same-device", swap, explain=explain)

    def start(served: ServedFile) -> None:
        served.take_place(*served.prepare(first, served.table(TABLE_SIZE)))

    return Scenario(checks=("same-device",), script=script, start=start)


def point_link(link: Path, target: Path) -> None:
    """Atomically redirect a symbolic link to another directory."""
    fresh = link.with_name(f".{link.name}.next")
    fresh.symlink_to(target, target_is_directory=True)
    fresh.rename(link)


def _busy(trial: Trial, vcpu: TrialVcpu) -> Script:
    served = trial.served
    old = served.table(TABLE_SIZE)
    served.replace(old)
    yield from vcpu.ask(2)
    # A helper process may release the lock a little after the answer.
    if not (yield from trial.wait_for(served.lock, RELEASE_LIMIT)):
        for check in ("busy", "waits-asleep"):
            trial.skip(check, f"an update can never take the lock: {served.kinds()}")
        return
    usage, calls, used = ThreadsUsage(trial.processes()), trial.observer.calls, [(0.0, 0)]

    def meddle(call: FileCall) -> None:
        if takes_lock(call):
            usage.look(call.process, call.tid)

    def at_answer(_: CertsRequest) -> None:
        spent, sleeps = usage.total(trial.processes())
        # While the suite observes a system call, the VMM's thread sleeps: that does not count.
        used[0] = spent, sleeps - (trial.observer.calls - calls)

    trial.observer.meddle = meddle
    wrong = yield from ask_while_busy(trial, vcpu, 1, at_answer)
    trial.observer.meddle = lambda _: None
    _judge_waiting(trial, trial.journal.last_of(vcpu.cpu.index), *used[0])
    for number in range(2, BUSY_IN_A_ROW + 1):
        if wrong is None:
            wrong = yield from ask_while_busy(trial, vcpu, number)
    if wrong is None:
        yield from _size_while_busy(trial, vcpu)
    new = served.table(5000)
    yield from _late_write(trial, vcpu)
    trial.judging("lock-released")
    yield from released(trial, "after EAGAIN")
    trial.judging("busy")
    served.rewrite(new)
    after = yield from vcpu.ask(2)
    wrong = after.delivers(new)
    trial.judge("busy", None if wrong is None else f"after the update: {wrong}")


def _late_write(trial: Trial, vcpu: TrialVcpu) -> Script:
    """End the update, and check that the VMM does not go on with the requests that got EAGAIN.

    The guest may use their buffers for something else by now.
    """
    field = vcpu.pages.data, FIELD_PAGES * PAGE_SIZE
    before = yield from vcpu.cpu.read(*field)
    trial.served.unlock()
    for _ in range(round(LATE / LATE_STEP)):
        yield Sleep(LATE_STEP)
        if (yield from vcpu.cpu.read(*field)) != before:
            trial.judge(
                "busy",
                "when the update had ended, the VMM wrote to the buffer of a request that it had "
                "answered with EAGAIN",
            )
            return


def ask_while_busy(
    trial: Trial,
    vcpu: TrialVcpu,
    number: int,
    at_answer: Callable[[CertsRequest], None] = lambda _: None,
) -> Generator[Event, int, str | None]:
    """Make one request while an update holds the lock, judge its answer, and return what is wrong
    with it.

    ``number`` is the request's position in a series of such requests, from 1.
    """
    before, delay = delay_time(trial.processes()), [0.0]

    def note(request: CertsRequest) -> None:
        delay[0] = delay_time(trial.processes()) - before
        at_answer(request)

    trial.at_answer = note
    answer = yield from vcpu.ask(2)
    trial.at_answer = lambda _: None
    # A later wait may be longer, but a wait that doubles with each request soon fails.
    wrong = _busy_answer(trial, answer, delay[0], 1.0 if number == 1 else 2.0)
    if wrong is not None and number > 1:
        wrong = f"request {number} during the same update: {wrong}"
    trial.judge("busy", wrong)
    return wrong


def _size_while_busy(trial: Trial, vcpu: TrialVcpu) -> Script:
    """Ask for the table's size while an update has written only half of the file."""
    served = trial.served
    served.rewrite(served.table(TABLE_SIZE)[:2000])
    answer = yield from vcpu.ask(0)
    request = answer.request
    if request is not None and request.ret == errno.ENOSPC:
        trial.advise(
            "busy",
            f"expected EAGAIN while an update has the lock, found ENOSPC and npages "
            f"{request.needed}, the size of a half-written file",
        )


def _judge_waiting(trial: Trial, request: CertsRequest | None, spent: float, pauses: int) -> None:
    check = "waits-asleep"
    if request is None or request.waited is None or request.waited < WAIT_MIN:
        trial.judge(check, None)  # it does not wait
        return
    gaps = sorted(later - earlier for earlier, later in pairwise(request.lock_tries))
    # On a busy machine most pauses are long whatever the VMM does, so only the shortest count.
    short = gaps[len(gaps) // 10] if len(gaps) >= TRIES_MIN else None
    problem = None
    if short is not None and short < SLEEP_MIN:
        problem = (
            "expected pauses between the attempts to take the lock, found "
            f"{len(gaps) + 1} attempts in {request.waited * 1000:.0f} ms, a tenth "
            f"of them less than {short * 1e6:.0f} us apart"
        )
    elif len(gaps) >= PAUSED_MIN and pauses < len(gaps) / 2:
        problem = (
            f"expected pauses between the attempts to take the lock, found {max(0, pauses)} "
            f"between {len(gaps) + 1} attempts"
        )
    elif spent > request.waited / 2:
        problem = (
            f"expected the VMM to sleep, found {spent * 1000:.0f} ms of processor "
            f"time in {request.waited * 1000:.0f} ms of waiting"
        )
    trial.judge(check, problem)


def _quiet(trial: Trial, vcpu: TrialVcpu) -> Script:
    """Count the lines that the VMM prints or writes to files for each kind of request.

    A guest can repeat such requests endlessly.
    """
    check, served = "log-bounded", trial.served
    served.replace(served.table(TABLE_SIZE))
    lines: dict[str, float] = {}

    def ask_often(kind: str, npages: int, count: int, gpa: int | None = None) -> Script:
        for number in range(count + WARM_UP):
            if number == WARM_UP:
                yield Sleep(0.01)
                trial.output.read()
                before = trial.output.lines, trial.output.size
                files = trial.observer.written.sizes()
            yield from vcpu.ask(npages, gpa=gpa)
        yield Sleep(0.01)
        trial.output.read()
        in_files, bytes_in_files = trial.observer.written.grown(files)
        size = trial.output.size - before[1] + bytes_in_files
        lines[kind] = max(trial.output.lines - before[0] + in_files, size / LINE_MAX) / count

    yield from ask_often("success", 2, REPEATED)
    yield from ask_often("ENOSPC", 0, REPEATED)
    yield from ask_often("EIO", 2, REPEATED, above_memory(trial))
    if (yield from trial.wait_for(served.lock, RELEASE_LIMIT)):
        yield from ask_often("EAGAIN", 2, REPEATED_BUSY)
        served.unlock()
    served.remove()
    yield from ask_often("no file", 2, REPEATED)
    talks = {kind: each for kind, each in lines.items() if each >= TALKS}
    found = ", ".join(f"{kind} {each:.0f}" for kind, each in talks.items())
    if not talks:
        trial.judge(check, None)
    elif "success" in talks and max(talks.values()) < 2:
        trial.advise(
            check,
            (
                "expected output only when something changes, found a line for each "
                f"request, whatever its result (lines for each request: {found})"
            ),
        )
    else:
        trial.judge(
            check,
            "expected output only when something changes, found this many lines for each request: "
            f"{found}",
        )


def _busy_answer(trial: Trial, answer: Answer, delay: float, patience: float = 1.0) -> str | None:
    """Return what is wrong with an answer that was given while an update held the lock, or None.

    ``delay`` is the number of seconds for which the VMM could not run. It is subtracted from the
    wait, up to the length of the limit. The VMM may wait for ``patience`` times the limit.
    """
    request, limit = answer.request, trial.limits.busy
    if request is None or request.ret != errno.EAGAIN:
        return f"expected ret {errno.EAGAIN} (EAGAIN), found {answer}"
    if not answer.untouched:
        trial.advise("busy", REFUSED_AND_WRITTEN)
    if request.waited is not None and request.waited - min(delay, limit) > limit * patience:
        return (
            f"EAGAIN came after {request.waited * 1000:.0f} ms; the limit is {limit * 1000:.0f} ms"
        )
    return None


SCENARIOS = (
    Scenario(checks=("slow-firmware",), script=_slow, seconds=SLOW_FIRMWARE),
    Scenario(
        checks=("lock-before-read", "lock-kind", "lock-until-signed", "lock-released"),
        script=_held,
    ),
    Scenario(checks=("lock-fails",), script=_lock_fails),
    Scenario(checks=("handshake-fails",), script=_handshake_fails, after=_after_handshake),
    Scenario(checks=("same-inode",), script=_same_inode),
    Scenario(checks=("replaced-after-lock",), script=_after_lock),
    Scenario(
        checks=("busy", "waits-asleep"),
        script=_busy,
        also=("ret-supported", "lock-released", "exit-reason-stale"),
    ),
    Scenario(checks=("log-bounded",), script=_quiet, seconds=2.0),
)
