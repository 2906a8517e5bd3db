# SPDX-License-Identifier: Apache-2.0
"""One run of the VMM under test through one scenario, from its start to its end.

The VMM is a real process behind the front door. Its guest's vCPUs run the
scenario, which requests reports and also acts as the host's operator between
requests: it replaces the file, takes the lock, sends a signal. All of this
happens in one loop of this process, so the order does not depend on the speed
of any process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snpcerts.abi.ghcb import PAGE_SIZE
from snpcerts.abi.kvm import ExitReason
from snpcerts.conformance.file_observer import FileObserver
from snpcerts.conformance.journal import CertsRequest, Journal
from snpcerts.conformance.observed_kvm import ObservedKvm
from snpcerts.conformance.result import Result, ResultState
from snpcerts.conformance.served_file import ServedFile
from snpcerts.conformance.trial_guest import Answer, Asking, TrialGuest
from snpcerts.conformance.vmm_check import BY_ID
from snpcerts.emulator.frontdoor.door import Door
from snpcerts.emulator.frontdoor.keeper import descendants
from snpcerts.emulator.frontdoor.launch import Program, spawn
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
from snpcerts.emulator.kvm.release import KernelRelease
from snpcerts.emulator.machine.virtual_files import host_files
from snpcerts.emulator.psp.firmware import Firmware
from snpcerts.emulator.psp.sev_device import SevDevice
from snpcerts.errors import SnpCertsError
from snpcerts.printable import printable

CERTS: Final = "{certs}"  # replaced by the file's path in the VMM's arguments
TABLE_SIZE: Final = 6000  # bytes: two pages, neither of them full
SPINS_MAX: Final = 50  # KVM_RUNs in a row that immediate_exit ends; a kick or two are normal
RETS: Final = (0, errno.ENOSPC, errno.EAGAIN, errno.EIO)  # api, KVM_EXIT_SNP_REQ_CERTS
_STEP: Final = 0.05  # seconds between checks of the time limits
_LOG_SHOWN: Final = 300  # characters of the VMM's last output

Script = Generator[Event, int, None]


@dataclass(frozen=True, slots=True)
class Limits:
    """Time limits in seconds, and the signal that stops the VMM.

    ``trial`` is the limit for a scenario; ``busy`` is the longest time that the
    VMM claims to wait for the lock.
    """

    trial: float = 10.0
    busy: float = 2.0
    stop: signal.Signals = signal.SIGTERM


@dataclass(frozen=True, slots=True)
class Scenario:
    """A sequence of events that judges some checks.

    ``script`` runs on the guest's first vCPU, ``second`` on its second, if there
    is one. ``after`` runs when the scripts are done or the VMM has ended;
    processes that the VMM started may still exist. With ``ends`` the VMM is
    expected to end by itself.
    """

    checks: tuple[str, ...]
    script: Callable[[Trial, TrialVcpu], Script]
    second: Callable[[Trial, TrialVcpu], Script] | None = None
    after: Callable[[Trial], None] | None = None
    ends: bool = False
    certs_supported: bool = True


@dataclass(slots=True)
class TrialVcpu:
    """A vCPU as scripts see it."""

    cpu: GuestCpu
    pages: SharedPages
    guest: TrialGuest
    trial: Trial

    def ask(
        self, npages: int, *, gpa: int | None = None, field: tuple[int, int] | None = None
    ) -> Asking:
        """Make one request with :meth:`TrialGuest.ask`; records it to judge writes later."""
        answer = yield from self.guest.ask(self.cpu, self.pages, npages, gpa=gpa, field=field)
        self.trial.note(answer)
        return answer


class Trial:
    """One run. Scripts call :meth:`judge` and :meth:`skip`."""

    def __init__(
        self,
        scenario: Scenario,
        argv: Sequence[str],
        served: ServedFile,
        firmware: Firmware,
        limits: Limits,
        log: Path,
        exit_number: int = ExitReason.SNP_REQ_CERTS,
    ) -> None:
        self.scenario = scenario
        self.served = served
        self.limits = limits
        self.journal = Journal()
        self.observer = FileObserver(served, self.journal)
        self.gate: Callable[[CertsRequest], bool] = lambda _: True
        self.answers: list[Answer] = []
        self.vm: LaunchedVm | None = None
        self.program: Program | None = None
        self.ended_by: int | None = None  # the VMM's exit code, as a shell reports it
        self._argv = [word.replace(CERTS, str(served.path)) for word in argv]
        self._platform = Platform(firmware, certs_supported=scenario.certs_supported)
        self._exit_number = exit_number
        self._log = log
        self._results: dict[str, Result] = {}
        self._now = scenario.checks[0]
        self._done = 0
        self._broken: BaseException | None = None
        self._started = 0.0

    # Called by scripts.

    def judging(self, check: str) -> None:
        """From now on this check fails if the VMM ends or hangs."""
        self._now = check

    def judge(self, check: str, problem: str | None) -> None:
        """Record a pass if ``problem`` is None, else a failure. A failure is never overwritten."""
        state = ResultState.PASSED if problem is None else ResultState.FAILED
        self._note(check, state, problem or "")

    def skip(self, check: str, why: str) -> None:
        """Record that the check cannot be judged."""
        self._note(check, ResultState.SKIPPED, why)

    def note(self, answer: Answer) -> None:
        """Record an answer; :meth:`run` checks all of them for writes outside the buffer."""
        self.answers.append(answer)

    def lets_go(self, request: CertsRequest) -> bool:
        """Whether an answered request may proceed to the firmware."""
        return self.gate(request)

    def wait_for(self, ready: Callable[[], bool], seconds: float) -> Generator[Event, int, bool]:
        """Halt the vCPU until ``ready`` or for ``seconds``; False if time ran out."""
        until = time.monotonic() + seconds
        while not ready():
            if time.monotonic() >= until:
                return False
            yield Sleep(0.005)
        return True

    @property
    def exits_served(self) -> bool | None:
        """Whether the VMM served an exit for certificates; None if there was no exit.

        A VMM that does not know the exit ends, or re-enters without an answer.
        """
        requests = self.journal.requests
        if not requests:
            return None
        return any(
            request.reads or request.lock_descriptors or request.immediate_exit or request.ret
            for request in requests
        )

    @property
    def vcpus(self) -> int:
        """How many vCPUs the VM has."""
        return len(getattr(self.vm, "vcpus", ()))

    def processes(self) -> list[int]:
        """The VMM's live processes, including those that left its process tree."""
        return [] if self.program is None else descendants(self.program.process.pid)

    def send(self, number: signal.Signals) -> None:
        """Send the VMM a signal."""
        if self.program is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.program.pid, number)

    # The run.

    def run(self) -> list[Result]:
        """Run the VMM through the scenario; returns results of its checks and of general ones."""
        self._started = time.monotonic()
        with Supervisor() as supervisor, open(self._log, "wb") as log:
            try:
                self.program = spawn(
                    self._argv,
                    supervisor,
                    self._door(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    own_group=True,
                )
                self._serve(supervisor)
                if self._broken is not None:
                    raise self._broken
                if self.scenario.after is not None:
                    self.scenario.after(self)
            finally:
                self._kill(supervisor)
        self._close()
        return list(self._results.values())

    def _door(self) -> Door:
        platform = self._platform
        return Door(
            {
                "/dev/kvm": lambda _: ObservedKvm(
                    KvmDevice(
                        platform, self._make_guest, KernelRelease(req_certs_exit=self._exit_number)
                    ),
                    self,
                ),
                "/dev/sev": lambda _: SevDevice(platform.firmware),
            },
            host_files(platform.firmware),
            watch=self.observer,
        )

    def _serve(self, supervisor: Supervisor) -> None:
        until = time.monotonic() + self.limits.trial
        while True:
            supervisor.step(_STEP)
            self.ended_by = None if self.program is None else self.program.exit_code
            if self.ended_by is not None or self._broken is not None or self.spinning:
                return
            if self._is_done() and not self.scenario.ends:
                return
            if time.monotonic() >= until:
                return

    @property
    def spinning(self) -> bool:
        """Whether a vCPU cannot run its guest because immediate_exit stays set."""
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
        for answer in self.answers:
            self._judge_writes(answer)
        bad_rets = self._judge_rets()
        missing = [check for check in self.scenario.checks if check not in self._results]
        if not missing:
            return
        why = self._why_unfinished()
        if bad_rets:
            # Later failures are only a consequence of the unsupported ret.
            for check in missing:
                self._note(check, ResultState.SKIPPED, f"after an unsupported ret: {why}")
            return
        blamed = self._now if self._now in missing else missing[0]
        self._note(blamed, ResultState.FAILED, why)
        for check in missing:
            if check != blamed:
                self._note(check, ResultState.SKIPPED, f"not reached: {why}")

    def _judge_rets(self) -> list[int]:
        """Judge every ret; returns the unsupported ones."""
        answered = [each for each in self.journal.requests if each.answered_at is not None]
        bad = [each.ret for each in answered if each.ret not in RETS]
        if answered:
            shown = [ret - (1 << 64) if ret >> 63 else ret for ret in bad[:1]]
            self.judge("ret-supported", f"ret was {shown[0]}" if shown else None)
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

    def _why_unfinished(self) -> str:
        if self.spinning:
            return "immediate_exit stays set: KVM_RUN returns before the guest runs"
        output = self._last_output()
        if self.ended_by is not None:
            how = f"exit code {self.ended_by}"
            if self.ended_by > 128:
                how = f"signal {_signal_name(self.ended_by - 128)}"
            return f"the VMM ended ({how}){output}"
        if self.vm is None:
            return f"the VMM did not run the guest within {self.limits.trial:g} s{output}"
        waiting = self.journal.open_requests()
        if waiting and waiting[-1].answered_at is None:
            return f"the VMM did not answer the request within {self.limits.trial:g} s"
        return f"the VM did not continue within {self.limits.trial:g} s"

    def _last_output(self) -> str:
        try:
            text = self._log.read_bytes()[-4096:].decode(errors="replace").strip()
        except OSError:
            return ""
        shown = printable(text[-_LOG_SHOWN:])
        return f": {shown}" if shown else ""

    def _note(self, check: str, state: ResultState, detail: str) -> None:
        if check not in BY_ID:
            raise KeyError(check)
        known = self._results.get(check)
        if known is not None and known.state is ResultState.FAILED:
            return
        if known is not None and state is ResultState.SKIPPED:
            return
        self._results[check] = Result(check, state, detail, time.monotonic() - self._started)

    # The guest.

    def _make_guest(self, vm: LaunchedVm) -> TrialGuest:
        self.vm = vm
        return TrialGuest(vm, self.journal, self._program)

    def _program(self, guest: TrialGuest, cpu: GuestCpu) -> GuestProgram:
        """A vCPU's program: boot, run the script, then halt."""
        script = self.scenario.script if cpu.index == 0 else self.scenario.second
        if cpu.index == 0:
            yield StartProcessors()
        if cpu.index > 1 or script is None:
            yield WaitUntil(lambda: False)
            return
        pages = yield from guest.boot(cpu)
        if pages is None:
            # The VMM must provide these; the emulator's log has the details.
            self.judge("vm-starts", "the VM has no secrets page, or too little memory")
        else:
            try:
                yield from script(self, TrialVcpu(cpu, pages, guest, self))
            except SnpCertsError as error:
                self.judge(self._now, str(error))
            except GeneratorExit:
                raise
            except BaseException as error:  # a bug in a script: run() raises it
                self._broken = error
        self._done += 1
        yield WaitUntil(lambda: False)


def field_around(gpa: int, npages: int, before: int = 1, after: int = 1) -> tuple[int, int]:
    """The range to check (GPA, bytes) for a buffer outside the vCPU's field."""
    return gpa - before * PAGE_SIZE, (before + npages + after) * PAGE_SIZE


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
