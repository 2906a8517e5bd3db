# SPDX-License-Identifier: Apache-2.0
"""One run of the VMM under test through one scenario, from its start to its end.

The VMM is a real process on the emulated host. Its guest's vCPUs run the scenario. The scenario
requests reports and, between requests, acts as the host's operator: it replaces the file, takes the
lock, sends a signal. All of this happens in one loop of this process, so the order does not depend
on the speed of any process.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from snpcerts.abi.cert_table import EMPTY
from snpcerts.abi.ghcb import PAGE_SIZE
from snpcerts.conformance.description import holding
from snpcerts.conformance.file_observer import FileObserver
from snpcerts.conformance.journal import UPDATE, VERDICT, CertsRequest, Journal
from snpcerts.conformance.observed_kvm import ObservedKvm
from snpcerts.conformance.processor_time import delay_time
from snpcerts.conformance.result import Result, ResultState
from snpcerts.conformance.served_file import ServedFile
from snpcerts.conformance.stop_signal import receiver_of
from snpcerts.conformance.trial_guest import Answer, Asking, TrialGuest
from snpcerts.conformance.vmm_check import BY_ID, Level
from snpcerts.conformance.vmm_output import VmmOutput
from snpcerts.conformance.workers import end_if_asked
from snpcerts.emulator.frontdoor.door import Door
from snpcerts.emulator.frontdoor.keeper import descendants
from snpcerts.emulator.frontdoor.spawn import Program, spawn
from snpcerts.emulator.frontdoor.supervisor import Supervisor
from snpcerts.emulator.guest.linux import SharedPages
from snpcerts.emulator.guest.program import (
    Event,
    GuestCpu,
    LaunchedVm,
    Sleep,
    StartProcessors,
    WaitUntil,
)
from snpcerts.emulator.guest.program import Program as GuestProgram
from snpcerts.emulator.kvm.kvm_device import KvmDevice
from snpcerts.emulator.kvm.platform import Platform
from snpcerts.emulator.kvm.release import NEWEST, KernelRelease
from snpcerts.emulator.machine.virtual_files import host_files
from snpcerts.emulator.psp.firmware import Firmware
from snpcerts.emulator.psp.sev_device import SevDevice
from snpcerts.errors import SnpCertsError
from snpcerts.printable import printable

CERTS: Final = "{certs}"  # replaced by the file's path in the VMM's arguments
TABLE_SIZE: Final = 6000  # bytes: two pages, neither of them full
BUSY_TRIES: Final = 4  # tries of a request that gets EAGAIN although no update has the lock
GIVES_UP_AFTER: Final = 0.05  # seconds; a VMM that answers EAGAIN sooner has not waited
SPINS_MAX: Final = 50  # consecutive KVM_RUNs that immediate_exit ends; one or two kicks are normal
RETS: Final = (0, errno.ENOSPC, errno.EAGAIN, errno.EIO)  # api, KVM_EXIT_SNP_REQ_CERTS
USED_AFTER_END: Final = "the VMM locked or read the file again after EINTR, without a new exit"
INTERRUPTED: Final = (
    "; on the emulated host, any call may end with EINTR if a signal arrives whose handler was "
    "installed without SA_RESTART"
)
_STEP: Final = 0.05  # seconds between checks of the time limits
_LOG: Final = "snpcerts.emulator"
_LOOK_AGAIN: Final = 0.25  # seconds between two measurements of the VMM's delay
_DELAY_MAX: Final = 4  # times a limit: no more of a delay than this is subtracted
_STEPS_MAX: Final = 6  # a whole scenario may take this many times the limit of a step
_ABOUT_LOCKS: Final = frozenset(
    ("lock-kind", "lock-before-read", "lock-until-signed", "busy", "changed-before-lock")
)
_REFUSED_MAX: Final = 20  # refused calls that are listed

Script = Generator[Event, int, None]


@dataclass(frozen=True, slots=True)
class Limits:
    """Time limits in seconds, and the signal that stops the VMM.

    ``trial`` is the limit for one step of a scenario, such as the VMM's start or a request.
    ``busy`` is the longest time that the VMM should wait for the lock.
    """

    trial: float = 10.0
    busy: float = 2.0
    stop: signal.Signals = signal.SIGTERM


def _first_table(served: ServedFile) -> None:
    served.replace(served.table(TABLE_SIZE))


@dataclass(frozen=True, slots=True)
class Scenario:
    """A sequence of events by which some checks are judged.

    ``script`` runs on the guest's first vCPU, ``second`` on its second, if there is one. ``after``
    runs when the scripts are done or the VMM has ended; processes that the VMM started may still
    exist. ``ends`` says whether the VMM should end by itself. With ``strict_page_states``, the
    guest faults when it uses a page whose state the VMM has not changed as the guest requested.
    ``also`` lists checks for which this scenario must run, although every scenario judges them.
    ``start`` creates the first file, by default one of :data:`TABLE_SIZE` bytes. ``attribute`` is
    the value of KVM_X86_SEV_SNP_REQ_CERTS. ``environment`` is added to the VMM's environment.
    ``seconds`` is roughly how long a correct VMM takes.
    """

    checks: tuple[str, ...]
    script: Callable[[Trial, TrialVcpu], Script]
    second: Callable[[Trial, TrialVcpu], Script] | None = None
    after: Callable[[Trial], None] | None = None
    ends: bool = False
    strict_page_states: bool = False
    certs_supported: bool = True
    also: tuple[str, ...] = ()
    start: Callable[[ServedFile], None] = _first_table
    attribute: int | None = None
    environment: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.5


@dataclass(slots=True)
class TrialVcpu:
    """A vCPU of the guest, with the actions that a scenario's script may take."""

    cpu: GuestCpu
    pages: SharedPages
    guest: TrialGuest
    trial: Trial

    def ask(
        self,
        npages: int,
        *,
        gpa: int | None = None,
        field: tuple[int, int] | None = None,
        when: Callable[[], bool] | None = None,
        until: Callable[[], bool] | None = None,
    ) -> Asking:
        """Make a request with :meth:`TrialGuest.ask`, and record the answer, which is judged later.

        On a busy machine, a VMM may stop waiting and answer EAGAIN although no update holds the
        lock. The guest then repeats the request, as Linux does.
        """
        served = self.trial.served
        for _ in range(BUSY_TRIES):
            start = len(served.contents) - 1
            answer = yield from self.guest.ask(
                self.cpu, self.pages, npages, gpa=gpa, field=field, when=when, until=until
            )
            self.trial.note(answer, served.contents[max(0, start) :])
            if served.updating or not _gave_up(answer.request):
                break
        return answer


class Trial:
    """One run of the VMM. Scripts call :meth:`judge` and :meth:`skip`."""

    def __init__(
        self,
        scenario: Scenario,
        argv: Sequence[str],
        served: ServedFile,
        firmware: Firmware,
        limits: Limits,
        kernel: KernelRelease = NEWEST,
    ) -> None:
        self.scenario = scenario
        self.served = served
        served.on_change = lambda what: self.journal.note(UPDATE, what)
        self.limits = limits
        self.journal = Journal()
        self.observer = FileObserver(served, self.journal)
        self.gate: Callable[[CertsRequest], bool] = lambda _: True
        self.output = VmmOutput()
        self.tick: Callable[[], None] = lambda: (
            None
        )  # called often, for conditions that depend on time
        self.enough = False  # set by a script that has seen what it needs
        self.fails_reentry: Callable[[CertsRequest], int] = lambda _: 0
        self.at_answer: Callable[[CertsRequest], None] = lambda _: None
        self.answers: list[tuple[Answer, list[bytes]]] = []
        self.vm: LaunchedVm | None = None
        self.guest: TrialGuest | None = None
        self.program: Program | None = None
        self.ended_by: int | None = None  # the VMM's exit code, as a shell reports it
        self._argv = [word.replace(CERTS, str(served.path)) for word in argv]
        self._platform = Platform(firmware, certs_supported=scenario.certs_supported)
        self._kernel = kernel
        self._results: dict[str, Result] = {}
        self._now = scenario.checks[0]
        self._done = 0
        self._broken: BaseException | None = None
        self._daemon = False
        self._unfinished = ""
        self._started = 0.0
        self._supervisor: Supervisor | None = None

    # Called by scripts.

    def judging(self, check: str) -> None:
        """From now on, fail this check if the VMM ends or hangs."""
        self._now = check

    def judge(self, check: str, problem: str | None) -> None:
        """Record a pass if ``problem`` is None, otherwise a failure. A failure is never
        overwritten.

        For a check of level "advice", record advice instead of a failure.
        """
        state = ResultState.PASSED if problem is None else ResultState.FAILED
        if problem is not None and BY_ID[check].level is Level.ADVICE:
            state = ResultState.ADVICE
        self._note(check, state, problem or "")

    def advise(self, check: str, advice: str) -> None:
        """Record advice instead of a failure, because the VMM breaks no rule of the kernel."""
        self._note(check, ResultState.ADVICE, advice)

    def skip(self, check: str, why: str) -> None:
        """Record that the check cannot be judged."""
        self._note(check, ResultState.SKIPPED, why)

    def note(self, answer: Answer, contents: list[bytes]) -> None:
        """Record an answer and the contents that the file had during the request. :meth:`run`
        judges all answers.
        """
        self.answers.append((answer, contents))

    # Called by the observed devices.

    def lets_go(self, request: CertsRequest) -> bool:
        """Whether to pass this answered request on to the firmware now."""
        return self.gate(request)

    def attribute_value(self) -> int | None:
        """Return the value to show for KVM_X86_SEV_SNP_REQ_CERTS, or None for the emulator's own
        value.
        """
        return self.scenario.attribute

    def reentry_error(self, request: CertsRequest) -> int:
        """Return the errno to report for this request's re-entry; 0 for the emulator's own
        errno.
        """
        return self.fails_reentry(request)

    def note_answer(self, request: CertsRequest) -> None:
        """Record whether the VMM may have answered from a mapping of the file."""
        if not request.reads:
            request.mapped = self.served.mapped_in(self.processes())
        self.at_answer(request)

    def holds(self, request: CertsRequest) -> bool:
        """Whether the request holds its own lock on the file that it read."""
        if self.served.locked(request.file) is None:
            return False
        if not request.marks or request.file is None:
            return True
        found = holding(self.processes(), request.file)
        # While a descriptor is being sent through a socket, it belongs to no process.
        return not found or bool(found & request.marks)

    def wait_for(
        self, ready: Callable[[], bool], seconds: float, *, every: float = 0.005
    ) -> Generator[Event, int, bool]:
        """Halt the vCPU until ``ready()``, called every ``every`` seconds, returns true.
        Return False if that takes longer than ``seconds``.
        """
        until = time.monotonic() + seconds
        while not ready():
            if time.monotonic() >= until:
                return False
            yield Sleep(every)
        return True

    def serve_until(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Serve the calls of the remaining VMM processes until ``ready`` returns true. Return False
        after ``seconds``.

        A scenario's ``after`` needs this, because a process cannot end while it waits for its call
        to be served.
        """
        until = time.monotonic() + seconds
        while not ready():
            if time.monotonic() >= until:
                return False
            if self._supervisor is not None:
                self._supervisor.step(0.01)
        return True

    @property
    def exits_served(self) -> bool | None:
        """Whether the VMM served an exit for certificates; None if there was no exit.

        If the VMM does not know the exit, it ends, or it re-enters without an answer.
        """
        requests = self.journal.requests
        if not requests:
            return None
        return any(
            request.reads or request.lock_tries or request.immediate_exit or request.ret
            for request in requests
        )

    @property
    def vcpus(self) -> int:
        """The number of vCPUs of the VM."""
        return len(getattr(self.vm, "vcpus", ()))

    def processes(self) -> list[int]:
        """Return the VMM's live processes, including those that left its process tree."""
        return [] if self.program is None else descendants(self.program.process.pid)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process that runs the vCPUs."""
        self._send(number, self.runner)

    def ask_to_stop(self) -> None:
        """Send the signal that stops the VMM to the process that handles it."""
        self._send(self.limits.stop, self.stopper)

    def _send(self, number: signal.Signals, process: int | None) -> None:
        if process is not None:
            self.journal.note(UPDATE, f"sends {number.name}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    @property
    def runner(self) -> int | None:
        """The process that runs the vCPUs. It may be a child of the process that was started."""
        if self.journal.runner is not None:
            return self.journal.runner
        return None if self.program is None else self.program.pid

    @property
    def stopper(self) -> int | None:
        """The process that handles the signal that stops the VMM."""
        runner = self.runner
        return runner and receiver_of(self.limits.stop, runner, self.processes())

    # The run.

    def run(self) -> list[Result]:
        """Run the VMM through the scenario.

        Returns the results of its checks and of the general checks.
        """
        self._started = time.monotonic()
        with contextlib.ExitStack() as stack:
            stack.callback(self.output.close)
            stack.enter_context(_refusals(self.journal.refused))
            supervisor = self._supervisor = stack.enter_context(Supervisor())
            supervisor.add_reader(self.output.reader, self.output.read)
            try:
                self.program = spawn(
                    self._argv,
                    supervisor,
                    self._door(),
                    env={**os.environ, **dict(self.scenario.environment)},
                    stdin=subprocess.DEVNULL,
                    stdout=self.output.writer,
                    stderr=self.output.writer,
                    own_group=True,
                )
                self.output.close_writer()
                self._serve(supervisor)
                if self._broken is not None:
                    raise self._broken
                if self.scenario.after is not None:
                    self.scenario.after(self)
            finally:
                self._daemon = self.ended_by == 0 and bool(self._left_behind())
                self._kill(supervisor)
            self.output.read()
            supervisor.remove_reader(self.output.reader)
        self._close()
        return [self._with_cause(result) for result in self._results.values()]

    def _with_cause(self, result: Result) -> Result:
        """Return ``result``. If the check failed for a reason that can make several checks fail,
        add this reason as the cause.
        """
        if result.state is not ResultState.FAILED:
            return result
        answered = [each for each in self.journal.requests if each.reads]
        if result.detail == self._unfinished:
            return replace(result, cause=result.detail)
        if result.id in _ABOUT_LOCKS and answered and not any(e.lock_tries for e in answered):
            return replace(result, cause="the VMM never asks for a lock on the file")
        return result

    def _left_behind(self) -> list[int]:
        return [] if self.program is None else descendants(self.program.process.pid)

    def _door(self) -> Door:
        platform = self._platform
        return Door(
            {
                "/dev/kvm": lambda _: ObservedKvm(
                    KvmDevice(platform, self._make_guest, self._kernel),
                    self,
                ),
                "/dev/sev": lambda _: SevDevice(platform.firmware),
            },
            host_files(platform.firmware),
            watch=self.observer,
        )

    def _serve(self, supervisor: Supervisor) -> None:
        limit = self.limits.trial
        delay = _Delay(self)
        step, whole = _Limit(delay, limit), _Limit(delay, _STEPS_MAX * limit)
        progress = self._progress()
        while True:
            end_if_asked()
            supervisor.step(_STEP)
            self.tick()
            self.ended_by = None if self.program is None else self.program.exit_code
            if self.ended_by is not None or self._broken is not None or self.spinning:
                return
            if self.enough or (self._is_done() and not self.scenario.ends):
                return
            if self._progress() != progress:
                step, progress = _Limit(delay, limit), self._progress()
            if step.over() or whole.over():
                return

    def _progress(self) -> tuple[int, int]:
        """Return a value that changes whenever the guest has made a request or got an answer."""
        return len(self.journal.requests), len(self.answers)

    @property
    def spinning(self) -> bool:
        """Whether a vCPU never enters its guest, because immediate_exit stays set."""
        return any(count > SPINS_MAX for count in self.journal.spins.values())

    def _is_done(self) -> bool:
        scripts = 1 if self.scenario.second is None or self.vcpus < 2 else 2
        return self._done == scripts

    def _kill(self, supervisor: Supervisor) -> None:
        if self.program is None:
            return
        self.program.end()
        while not self.program.ended:  # its last calls must still be served
            supervisor.step(_STEP)

    def _close(self) -> None:
        """Give every check of the scenario a result."""
        self._judge_locks()
        for answer, contents in self.answers:
            self._judge_writes(answer)
            self._judge_rest(answer, contents)
        bad_rets = self._judge_rets()
        missing = [check for check in self.scenario.checks if check not in self._results]
        if not missing and self._is_complete():
            return
        why = self._unfinished = self._why_unfinished()
        if bad_rets:
            # Later failures only follow from the unsupported ret.
            for check in missing:
                self._note(check, ResultState.SKIPPED, f"after an unsupported ret: {why}")
            return
        blamed = self._now if self._now in missing or not missing else missing[0]
        self._note(blamed, ResultState.FAILED, why)
        for check in missing:
            if check != blamed:
                self._note(check, ResultState.SKIPPED, f"not judged: {why}")

    def _is_complete(self) -> bool:
        """Whether the scripts ran as far as the scenario requires."""
        return self.scenario.after is not None or self.enough or self._is_done()

    def _judge_rets(self) -> list[int]:
        """Judge every ``ret``. Return those that KVM does not support."""
        answered = [each for each in self.journal.requests if each.answered_at is not None]
        bad = [each.ret for each in answered if each.ret not in RETS]
        if answered:
            shown = [ret - (1 << 64) if ret >> 63 else ret for ret in bad[:1]]
            self.judge(
                "ret-supported",
                f"expected ret 0, ENOSPC, EAGAIN or EIO, found {shown[0]}" if shown else None,
            )
        return bad

    def _judge_writes(self, answer: Answer) -> None:
        outside = answer.first_write_outside
        self.judge(
            "nothing-outside",
            None
            if outside is None
            else f"the byte at GPA {outside:#x} was written; the buffer is "
            f"{answer.npages} pages at {answer.gpa:#x}",
        )

    def _judge_rest(self, answer: Answer, contents: list[bytes]) -> None:
        """Judge the bytes of the buffer after the table."""
        start = answer.gpa - answer.field
        end = start + answer.npages * PAGE_SIZE
        if not answer.ok or start < 0 or end > len(answer.after):
            return
        sizes = [len(each) for each in contents if each and answer.got(len(each)) == each]
        size = max(sizes, default=len(EMPTY) if answer.got(len(EMPTY)) == EMPTY else 0)
        if not size:
            return
        old, new = answer.before[start + size : end], answer.after[start + size : end]
        at = -1
        if new not in (old, bytes(len(new))):
            pairs = enumerate(zip(old, new, strict=True))
            at = next((at + size for at, (was, now) in pairs if now not in (0, was)), -1)
        self.judge(
            "no-stale-bytes",
            None
            if at < 0
            else f"expected zeros or the guest's own bytes after the table of {size} bytes, "
            f"found a byte of the host's memory at offset {at:#x}",
        )

    def _judge_locks(self) -> None:
        """Judge the lock of every request that delivered a table."""
        if any(request.file_used_after_end for request in self.journal.requests):
            self.judge("exit-reason-stale", USED_AFTER_END)
        for answer, contents in self.answers:
            request = answer.request
            if request is None or not answer.ok or request.ret != 0 or not answer.has_table:
                continue
            sizes = [len(each) for each in contents if answer.got(len(each)) == each]
            self.judge(
                "lock-before-read", lock_before_read(request, self.journal, max(sizes, default=0))
            )
            self.judge("lock-until-signed", lock_until_signed(request))
            if (kind := lock_kind(request)) is not None:
                self.judge("lock-kind", kind)
            part = request.lock_at_answer
            if part is not None and not part.whole:
                self.advise("lock-kind", f"the lock covers {part.range}, not the whole file")

    def _why_unfinished(self) -> str:
        if self.spinning:
            return "immediate_exit stays set: KVM_RUN returns before the guest runs"
        said = self._last_words()
        if self._daemon:
            return (
                "the VMM's first process ended, but others still run. Start the VMM so "
                f"that it stays in the foreground, not as a daemon{said}"
            )
        if self.ended_by is not None:
            how = f"exit code {self.ended_by}"
            if self.ended_by > 128:
                how = f"signal {_signal_name(self.ended_by - 128)}"
            return f"the VMM ended ({how}){said}"
        limit = f"within {self.limits.trial:g} s (--timeout)"
        if self.vm is None:
            return f"the VMM did not run the guest {limit}{said}"
        waiting = self.journal.open_requests()
        if waiting and waiting[-1].answered_at is None:
            return f"the VMM did not answer the request {limit}{said}"
        return f"the VM did not continue {limit}{said}"

    def _last_words(self) -> str:
        said = self.output.last_words().replace(str(self.served.path), CERTS)
        hint = INTERRUPTED if os.strerror(errno.EINTR) in said or "EINTR" in said else ""
        refused = "; the emulator does not serve: " + "; ".join(self.journal.refused[-3:])
        return (f": {said}" if said else "") + hint + (refused if self.journal.refused else "")

    def _note(self, check: str, state: ResultState, detail: str) -> None:
        if check not in BY_ID:
            raise KeyError(check)
        known = self._results.get(check)
        if known is not None and known.state is ResultState.FAILED:
            return
        if known is not None and state is ResultState.SKIPPED:
            return
        if (
            known is not None
            and known.state is ResultState.ADVICE
            and state is not ResultState.FAILED
        ):
            return
        self._results[check] = Result(check, state, detail, time.monotonic() - self._started)
        if state is ResultState.FAILED:
            self.journal.note(VERDICT, f"{check} fails: {detail}")

    # The guest.

    def _make_guest(self, vm: LaunchedVm) -> TrialGuest:
        self.vm = vm
        self.guest = TrialGuest(
            vm, self.journal, self._program, strict=self.scenario.strict_page_states
        )
        return self.guest

    def _program(self, guest: TrialGuest, cpu: GuestCpu) -> GuestProgram:
        """Boot the vCPU, run its script, then halt."""
        script = self.scenario.script if cpu.index == 0 else self.scenario.second
        if cpu.index == 0:
            yield StartProcessors()
        if cpu.index > 1 or script is None:
            yield WaitUntil(lambda: False)
            return
        pages = yield from guest.boot(cpu)
        if pages is None:
            # The VMM must provide these. The emulator's log has the details.
            self.judge("vm-starts", "the VM has no secrets page, or too little memory")
        else:
            try:
                yield from script(self, TrialVcpu(cpu, pages, guest, self))
            except SnpCertsError as error:
                self.judge(self._now, str(error))
            except GeneratorExit:
                raise
            except BaseException as error:  # a bug in a script; run() raises it
                self._broken = error
        self._done += 1
        yield WaitUntil(lambda: False)


def lock_before_read(request: CertsRequest, journal: Journal, size: int = 0) -> str | None:
    """Return why a table of ``size`` bytes was not read under a lock in this request, or None.

    A VMM may also read without a lock, if it reads again under a lock.
    """
    if request.mapped or any(read.maps for read in request.reads):
        if request.lock_at_answer:
            return None
        return "the file was mapped, but not locked when the VMM answered"
    if not request.reads:
        if request.lock_at_answer and any(read.lock for read in journal.reads_for_others(request)):
            return None
        return "the table was delivered, but the file was not read in this request"
    if all(read.lock is None for read in request.reads):
        return "the file was read without a lock"
    under_lock = sum(read.size for read in request.reads if read.lock is not None)
    if under_lock < size:
        return (
            f"the table has {size} bytes, but at most {under_lock} of them were read under a lock "
            "in this request"
        )
    return None


def lock_until_signed(request: CertsRequest) -> str | None:
    """Return why the lock did not last until the firmware had the request, or None if it did."""
    if request.lock_at_answer is None:
        return "the file had no lock when the VMM called KVM_RUN to have the report signed"
    if request.relocked:
        return "the lock was dropped after the read and taken again"
    if request.signed and request.lock_when_signed is None:
        return "the lock was dropped before KVM_RUN returned"
    return None


def lock_kind(request: CertsRequest) -> str | None:
    """Return what is wrong with the kind of the lock, or None if it is right or there was no
    lock.
    """
    seen = [lock for lock in (request.lock_at_answer, *(r.lock for r in request.reads)) if lock]
    classic = [lock for lock in seen if not lock.is_ofd]
    return (
        f"expected an open-file-description lock, found a POSIX lock of process {classic[0].pid}"
        if classic
        else None
    )


class _RefusedCalls(logging.Handler):
    """Collects the calls that the emulator refused, from the emulator's log."""

    def __init__(self, into: list[str]) -> None:
        super().__init__(logging.INFO)
        self._into = into

    def emit(self, record: logging.LogRecord) -> None:
        """Add the message to the list, unless the list already has it or is full."""
        text = printable(record.getMessage())
        if text not in self._into and len(self._into) < _REFUSED_MAX:
            self._into.append(text)


@contextlib.contextmanager
def _refusals(into: list[str]) -> Iterator[None]:
    log, handler = logging.getLogger(_LOG), _RefusedCalls(into)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


class _Delay:
    """How long the VMM has waited for a processor or for this process, in seconds.

    A measurement takes milliseconds and delays the VMM further, so its result is used for
    :data:`_LOOK_AGAIN` seconds.
    """

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._seconds = 0.0
        self._until = 0.0

    def __call__(self) -> float:
        if time.monotonic() >= self._until:
            self._seconds = delay_time(self._trial.processes())
            self._until = time.monotonic() + _LOOK_AGAIN
        return self._seconds


class _Limit:
    """A time limit for the VMM. Time spent waiting for a processor or for this process does not
    count.
    """

    def __init__(self, delay: Callable[[], float], seconds: float) -> None:
        self._delay = delay
        self._seconds = seconds
        self._began = time.monotonic()
        self._delayed = delay()

    def over(self) -> bool:
        """Whether the VMM has used up its time."""
        passed = time.monotonic() - self._began
        if passed < self._seconds:
            return False
        delay = self._delay() - self._delayed
        return passed - min(delay, _DELAY_MAX * self._seconds) >= self._seconds


def _gave_up(request: CertsRequest | None) -> bool:
    return (
        request is not None
        and request.ret == errno.EAGAIN
        and request.waited is not None
        and request.waited >= GIVES_UP_AFTER
    )


def above_memory(trial: Trial) -> int:
    """Return a GPA 1 GiB above the guest's memory; 0 if there is no VM."""
    return (1 << 30) + max((slot.end for slot in trial.vm.slots), default=0) if trial.vm else 0


def field_around(gpa: int, npages: int, before: int = 1, after: int = 1) -> tuple[int, int]:
    """Return the GPA and size of the memory to check: a buffer outside the vCPU's pages, and the
    pages around it.
    """
    return gpa - before * PAGE_SIZE, (before + npages + after) * PAGE_SIZE


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
