# SPDX-License-Identifier: Apache-2.0
"""Scenarios in which the VMM is stopped or killed during a request, and what it leaves behind."""

from __future__ import annotations

import contextlib
import errno
import operator
import os
import re
import signal
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from snpcerts.abi.cert_table import PAGE_SIZE
from snpcerts.conformance.file_observer import (
    DATA_READS,
    READS,
    HeldUntil,
    drops_lock,
    read_short,
    takes_lock,
)
from snpcerts.conformance.journal import CertsRequest
from snpcerts.conformance.scenarios.locking import ask_while_busy
from snpcerts.conformance.stop_signal import may_handle
from snpcerts.conformance.trial import TABLE_SIZE, Scenario, Script, Trial, TrialVcpu, above_memory
from snpcerts.emulator.frontdoor.bpf import Syscall
from snpcerts.emulator.frontdoor.file_watch import FileCall
from snpcerts.emulator.frontdoor.tasks import task
from snpcerts.emulator.guest.program import Event, Sleep

KICK_TIME = 2.0  # seconds that the VMM's other threads have to see the signal and kick the vCPU
_ROUNDS = 3  # requests of each kind; the first is a warm-up
SETTLE_TIME = 1.0  # time limit for releasing everything that a request used, in seconds
SETTLE_STEP = 0.05  # seconds between two counts of what is still in use
_DESCRIPTORS = "open descriptors"
_BIG = 128 * PAGE_SIZE  # bytes of a table; less if the VM has less memory
_BIG_MIN = 16 * PAGE_SIZE
_BIG_MARGIN = 64 * PAGE_SIZE  # kept free for two vCPUs' pages and the VM's initial contents
_BIG_ROUNDS = 16  # requests of each kind that are judged
_HUGE = 1 << 28  # bytes of a buffer
_BUSY_ROUNDS = 6  # requests that get EAGAIN; each lasts as long as the VMM waits for the lock
_BUSY_ROUNDS_MAX = 16  # the same, while the memory grows with each request
_BUSY_WARM_UP = 2
_SMALL_ROUNDS = 48  # measured requests with a small table or none; as many precede them
_SMALL_STEP = 8  # requests between two measurements of the memory
DEATH_TIME = 2.0  # time limit for releasing a killed process's locks, in seconds

Moment = Callable[["Trial", Callable[[], None]], None]


def _stopped_when(moment: Moment, answer: str = "a table") -> Scenario:
    """Return a scenario that stops the VMM at ``moment`` of a request that gets this ``answer``."""
    check = "kick-not-lost"
    asked: list[float] = []  # when the stop was requested

    def script(trial: Trial, vcpu: TrialVcpu) -> Script:
        number = trial.limits.stop
        asked.clear()
        if trial.stopper is None or not may_handle(number, trial.stopper):
            trial.skip(check, f"{number.name} ends the VMM, but does not stop its vCPUs first")
            trial.send(signal.SIGKILL)
            return
        trial.served.rewrite(trial.served.table(TABLE_SIZE))
        yield from vcpu.ask(2)

        def stop() -> None:
            asked.append(time.monotonic())
            trial.ask_to_stop()

        if answer == "EAGAIN":
            yield from trial.wait_for(trial.served.lock, SETTLE_TIME)
        elif answer == "no table":
            trial.served.remove()
        moment(trial, stop)
        gpa = above_memory(trial) if answer == "EIO" else None
        yield from vcpu.ask(0 if answer == "ENOSPC" else 2, gpa=gpa)
        if not asked:
            trial.skip(check, "the request never reached the point at which the signal is sent")
            trial.send(signal.SIGKILL)

    def after(trial: Trial) -> None:
        if not asked:
            return
        if trial.ended_by is not None:
            trial.judge(check, None)
            _judge_lock_gone(trial)
            return
        name = trial.limits.stop.name
        seconds = time.monotonic() - asked[0]
        trial.judge(
            check,
            f"the guest is still running {seconds:.0f} s after {name}, which arrived during a "
            f"request that got {answer}",
        )

    return Scenario(checks=(check,), script=script, after=after, ends=True)


class _Kick:
    """Detects whether a VMM that was asked to stop has kicked the vCPU whose call the suite
    delays.

    A kick is a signal for the vCPU's thread, or a newly set immediate_exit. A VMM that has ended
    needs no kick.
    """

    def __init__(self, trial: Trial, tid: int) -> None:
        self._trial = trial
        self._tid = tid
        self._before = self._flags()

    def __call__(self) -> bool:
        program = self._trial.program
        if program is None or program.exit_code is not None:
            return True
        thread = task(self._tid)
        return thread is None or bool(thread.own) or self._flags() > self._before

    def _flags(self) -> int:
        vcpus = getattr(self._trial.vm, "vcpus", {})
        return sum(bool(vcpu.run.immediate_exit) for vcpu in vcpus.values())


def _at_call(wanted: Callable[[FileCall], bool]) -> Moment:
    def moment(trial: Trial, stop: Callable[[], None]) -> None:
        done: list[FileCall] = []

        def meddle(call: FileCall) -> HeldUntil | None:
            if done or not wanted(call):
                return None
            done.append(call)
            kicked = _Kick(trial, call.tid)
            stop()
            return HeldUntil(kicked, KICK_TIME)

        trial.observer.meddle = meddle

    return moment


def _in_firmware(trial: Trial, stop: Callable[[], None]) -> None:
    held: list[HeldUntil] = []

    def gate(request: CertsRequest) -> bool:
        if not held:
            tids = [tid for tid, vcpu in trial.journal.threads.items() if vcpu == request.vcpu]
            kicked = _Kick(trial, tids[-1] if tids else 0)
            stop()
            held.append(HeldUntil(kicked, KICK_TIME))
        return held[0].poll() is not None

    trial.gate = gate


def _leaves_nothing(trial: Trial, vcpu: TrialVcpu) -> Script:
    """Count the VMM's resources after each way in which a request can end."""
    served, top = trial.served, above_memory(trial)

    def reset() -> None:
        trial.observer.meddle, trial.observer.meddle_open = lambda _: None, lambda _: None
        served.unlock()
        if not served.path.is_file():
            served.replace(served.table(TABLE_SIZE))

    def replaced() -> None:
        done: list[FileCall] = []

        def meddle(call: FileCall) -> None:
            if not done and takes_lock(call):
                done.append(call)
                served.replace(served.table(TABLE_SIZE))

        trial.observer.meddle = meddle

    def refused(wanted: Callable[[FileCall], bool], code: int) -> Callable[[], None]:
        def prepare() -> None:
            trial.observer.meddle = lambda call: -code if wanted(call) else None

        return prepare

    def cut_short() -> None:
        done: list[FileCall] = []

        def meddle(call: FileCall) -> int | None:
            if done or call.call not in READS:
                return None
            done.append(call)
            return read_short(call)

        trial.observer.meddle = meddle

    def unopened() -> None:
        trial.observer.meddle_open = lambda _: -errno.EMFILE

    kinds: tuple[tuple[str, Callable[[], object], int, int | None], ...] = (
        ("a table", lambda: served.rewrite(served.table(TABLE_SIZE)), 2, None),
        ("ENOSPC", lambda: None, 0, None),
        ("EIO", lambda: None, 2, top),
        ("EAGAIN", served.lock, 2, None),
        ("a file that was replaced", replaced, 2, None),
        ("a lock that failed", refused(takes_lock, errno.ENOLCK), 2, None),
        ("a short read", cut_short, 2, None),
        ("a read that failed", refused(lambda call: call.call in DATA_READS, errno.EIO), 2, None),
        ("a directory in place of the file", served.put_directory, 2, None),
        ("an empty file", lambda: served.replace(b""), 2, None),
        ("a file that cannot be opened", unopened, 2, None),
        ("no file", served.remove, 2, None),
    )
    for kind, prepare, npages, gpa in kinds:
        for _ in range(2):  # again, because a runtime may open files of its own once
            first: dict[str, int] = {}
            for _ in range(_ROUNDS):
                prepare()
                yield from vcpu.ask(npages, gpa=gpa)
                reset()
                yield Sleep(0.002)
                # The first request of a kind may open files that stay open.
                first = first or _left_in(trial)
            # Resources that are released late are not a leak.
            settled = partial(_no_more_than, trial, first)
            if (yield from trial.wait_for(settled, SETTLE_TIME, every=SETTLE_STEP)):
                break
        now = _left_in(trial)
        for what, before in first.items():
            more = now[what] - before
            trial.judge(
                "descriptors" if what == _DESCRIPTORS else "nothing-left",
                None
                if more < _ROUNDS - 1
                else f"{more} more {what} after {_ROUNDS - 1} requests with {kind}",
            )


def _no_more_than(trial: Trial, before: dict[str, int]) -> bool:
    return all(each - before[what] < _ROUNDS - 1 for what, each in _left_in(trial).items())


def _left_in(trial: Trial) -> dict[str, int]:
    processes = trial.processes()
    threads = 0
    for process in processes:
        with contextlib.suppress(OSError):
            threads += len(os.listdir(f"/proc/{process}/task"))
    return {
        _DESCRIPTORS: _descriptors(processes),
        "threads or processes": threads,
        "mappings of the file": trial.served.mappings_in(processes),
        "timers": sum(map(_timers, processes)),
        "files that the VMM created": trial.observer.written.created(),
    }


def _timers(process: int) -> int:
    """Return how many timers of timer_create(2) a process has, if the kernel shows them."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/timers").read_text("ascii").count("ID:")
    return 0


def _memory(trial: Trial, vcpu: TrialVcpu) -> Script:
    """Serve a large table many times, and check that the VMM's memory does not keep growing."""
    check, guest, pages = "memory-bounded", vcpu.guest, vcpu.pages
    slot = guest.vm.slots.largest()
    # The memory between the VM's initial contents and its vCPUs' pages.
    room = 0 if slot is None else pages.ghcb - slot.gpa - 2 * _BIG_MARGIN
    size = min(_BIG, room) & -PAGE_SIZE
    if size < _BIG_MIN:
        trial.skip(check, "the VM has too little memory")
        return
    gpa = pages.ghcb - _BIG_MARGIN - size
    trial.served.replace(trial.served.table(size))
    yield from guest.make_private(vcpu.cpu, pages, gpa, size // PAGE_SIZE)
    yield from guest.make_shared(vcpu.cpu, pages, gpa, size // PAGE_SIZE)
    field = (pages.data, PAGE_SIZE)
    for npages, what in ((size // PAGE_SIZE, "a table"), (0, "ENOSPC")):
        # Do not judge the first half of the requests, during which the VMM may keep memory to free
        # or reuse it later.
        for number in range(2 * _BIG_ROUNDS):
            if number == _BIG_ROUNDS:
                before = _private_bytes(trial.processes())
            answer = yield from vcpu.ask(npages, gpa=gpa, field=field)
        if npages and not answer.ok:
            trial.skip(check, f"a table of {size} bytes was not delivered: {answer}")
            return
        grown = _private_bytes(trial.processes()) - before
        trial.judge(
            check,
            None
            if grown < _BIG_ROUNDS * size * 3 // 4
            else f"{grown >> 10} KiB more memory after {_BIG_ROUNDS} requests that got {what}; "
            f"the file has {size >> 10} KiB",
        )
    trial.judge(check, (yield from _takes_what_the_guest_says(trial, vcpu)))
    trial.served.replace(trial.served.table(TABLE_SIZE))
    gpas = None, above_memory(trial)
    trial.judge(check, (yield from _grows_a_little(trial, vcpu, "a small table or EIO", gpas)))
    trial.judge(check, (yield from _grows_when_busy(trial, vcpu)))
    trial.served.remove()
    trial.judge(check, (yield from _grows_a_little(trial, vcpu, "no file", (None,))))


def _takes_what_the_guest_says(trial: Trial, vcpu: TrialVcpu) -> Generator[Event, int, str | None]:
    """Return a message if the VMM's memory grows by half the size of a buffer that is much larger
    than the table, otherwise None.
    """
    before = _peak_bytes(trial.processes())
    yield from vcpu.ask(_HUGE // PAGE_SIZE, field=(vcpu.pages.data, PAGE_SIZE))
    used = _peak_bytes(trial.processes()) - before
    if used < _HUGE // 2:
        return None
    return f"{used >> 20} MiB more memory for a request with a buffer of {_HUGE >> 20} MiB"


def _grows_a_little(
    trial: Trial, vcpu: TrialVcpu, kind: str, gpas: Sequence[int | None]
) -> Generator[Event, int, str | None]:
    """Make many requests with buffers at ``gpas``, which get answers of this ``kind``. Return a
    message if the VMM's memory grew steadily, otherwise None.

    Only the second half of the requests counts, because the first half may reuse memory that the
    large tables left free.
    """
    until = time.monotonic() + trial.limits.trial
    field = (vcpu.pages.data, 4 * PAGE_SIZE)
    sizes: list[int] = []
    for number in range(2 * _SMALL_ROUNDS + 1):
        if number >= _SMALL_ROUNDS and number % _SMALL_STEP == 0:
            sizes.append(_private_bytes(trial.processes()))
        if not all(before < after for before, after in pairwise(sizes)):
            return None
        answer = yield from vcpu.ask(2, gpa=gpas[number % len(gpas)], field=field)
        if answer.request is None or time.monotonic() > until:
            return None
    grown = sizes[-1] - sizes[0]
    return f"{grown >> 10} KiB more memory after {_SMALL_ROUNDS} requests with {kind}"


def _grows_when_busy(trial: Trial, vcpu: TrialVcpu) -> Generator[Event, int, str | None]:
    """Return a message if the VMM's memory grows with requests that get EAGAIN, otherwise None.

    Each request takes as long as the VMM waits for the lock, so there are few of them. A leak
    shows in every one; memory that is collected or kept for reuse does not. Memory that was
    reserved but never written to counts too.
    """
    if not (yield from trial.wait_for(trial.served.lock, SETTLE_TIME)):
        return None
    until = time.monotonic() + trial.limits.trial
    sizes: list[tuple[int, int]] = []
    for number in range(_BUSY_WARM_UP + _BUSY_ROUNDS_MAX):
        if (yield from ask_while_busy(trial, vcpu, number + 1)) is not None:
            break
        if number >= _BUSY_WARM_UP:
            sizes.append((_private_bytes(trial.processes()), _data_bytes(trial.processes())))
        steady = all(any(map(operator.lt, *pair)) for pair in pairwise(sizes))
        if time.monotonic() > until or (len(sizes) > _BUSY_ROUNDS and not steady):
            break
    trial.served.unlock()
    answer = yield from vcpu.ask(2)
    wrong = answer.delivers(trial.served.content or b"")
    trial.judge("busy", wrong and f"after {number + 1} requests that got EAGAIN: {wrong}")
    if len(sizes) <= _BUSY_ROUNDS or not steady:
        return None
    grown = max(last - first for first, last in zip(sizes[0], sizes[-1], strict=True))
    return f"{grown >> 10} KiB more memory after {len(sizes) - 1} requests that got EAGAIN"


def _private_bytes(processes: list[int]) -> int:
    """Return how many bytes of anonymous and shared memory ``processes`` use, swap included.

    Shared memory that several processes have mapped counts once. The counts come from
    "smaps_rollup", because those in "status" may be off by a few pages for each processor.
    """
    return _kilobytes(processes, "smaps_rollup", "Anonymous|Swap|Pss_Shmem") << 10


def _peak_bytes(processes: list[int]) -> int:
    """Return the most memory that ``processes`` ever used, in bytes."""
    return _kilobytes(processes, "status", "VmHWM") << 10


def _data_bytes(processes: list[int]) -> int:
    """Return the number of bytes that ``processes`` may write to, whether touched or not."""
    return _kilobytes(processes, "status", "VmData") << 10


def _kilobytes(processes: list[int], file: str, lines: str) -> int:
    total = 0
    for process in processes:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{process}/{file}").read_text("ascii", errors="replace")
            total += sum(map(int, re.findall(rf"^(?:{lines}):\s*(\d+) kB", text, re.MULTILINE)))
    return total


def _descriptors(processes: list[int]) -> int:
    total = 0
    for process in processes:
        with contextlib.suppress(OSError):
            total += len(os.listdir(f"/proc/{process}/fd"))
    return total


def _killed(trial: Trial, vcpu: TrialVcpu) -> Script:
    trial.served.replace(trial.served.table(TABLE_SIZE))

    def gate(_: CertsRequest) -> bool:
        if any(map(trial.served.inherited_from, trial.processes())):
            trial.advise(
                "lock-ends-with-vmm",
                "the descriptor of the locked file is not close-on-exec: a program that the VMM "
                "starts during a request would keep the lock after the VMM has ended",
            )
        trial.send(signal.SIGKILL)
        return False

    trial.gate = gate
    yield from vcpu.ask(2)


def _after_killed(trial: Trial) -> None:
    if all(each.lock_at_answer is None for each in trial.journal.requests):
        trial.skip("lock-ends-with-vmm", "the VMM held no lock when it was killed")
        return
    _judge_lock_gone(trial)


def _judge_lock_gone(trial: Trial) -> None:
    """Fail if a lock remains on the file after the VMM has ended."""
    gone = trial.serve_until(lambda: trial.served.locked() is None, DEATH_TIME)
    problem = None if gone else f"these locks are still held: {trial.served.kinds()}"
    trial.judge("lock-ends-with-vmm", problem)


def _takes_or_reads(call: FileCall) -> bool:
    return takes_lock(call) or call.call in READS


def _at_close(call: FileCall) -> bool:
    return call.call is Syscall.CLOSE


SCENARIOS = (
    _stopped_when(_at_call(_takes_or_reads)),
    _stopped_when(_in_firmware),
    _stopped_when(_in_firmware, "EAGAIN"),
    _stopped_when(_in_firmware, "ENOSPC"),
    _stopped_when(_in_firmware, "no table"),
    _stopped_when(_in_firmware, "EIO"),
    _stopped_when(_at_call(_at_close)),
    _stopped_when(_at_call(drops_lock)),
    _stopped_when(_at_call(takes_lock), "EAGAIN"),
    Scenario(checks=("descriptors", "nothing-left"), script=_leaves_nothing),
    Scenario(checks=("memory-bounded",), script=_memory, also=("busy",), seconds=2.0),
    Scenario(checks=("lock-ends-with-vmm",), script=_killed, after=_after_killed, ends=True),
)
