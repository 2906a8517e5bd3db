# SPDX-License-Identifier: Apache-2.0
"""Run guests, their VMMs and a writer at once, each in its thread, on one emulated host.

Every part is the one that ships: the VMMs use the exit service, the writer the
certificate file's update. Only what is below the system call is emulated.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from snpcerts.abi.kvm import ExitReason
from snpcerts.certfile import system
from snpcerts.certfile.certfile import CertFile
from snpcerts.certfile.step import Performer
from snpcerts.demo.event import Answered, Attested, Event, Failed, Updated
from snpcerts.demo.host import EmulatedHost
from snpcerts.emulator.guest_program import LaunchedVm
from snpcerts.emulator.machine import Machine
from snpcerts.emulator.platform import Platform
from snpcerts.emulator.reference_vmm import ReferenceVm, build_vm
from snpcerts.emulator.scripted_guest import ReportOutcome, ScriptedGuest
from snpcerts.errors import SnpCertsError
from snpcerts.vmm.exit_service import ExitService
from snpcerts.vmm.guest_memory import MappedMemory

_GUEST_PAUSE = 0.005  # between two reports of one guest
_BUSY_DELAY = 0.05  # a Linux guest waits 2 s; nobody would watch that
# Between a VMM's answer and its KVM_RUN: a vCPU thread may be kept from running
# at any point, and at this one a lock that is not held would matter.
_DETOUR, _LONG_DETOUR, _LONG_SHARE = 0.002, 0.03, 0.25
_WITHOUT_END = 1 << 60


@dataclass(frozen=True, slots=True)
class Script:
    """What is to happen: how many guests and updates, for how many seconds.

    ``seed`` decides the order of keys and how long VMM threads are kept from
    running; the interleaving of threads remains the machine's.
    """

    guests: int = 4
    updates: int = 20
    seconds: float = 5.0
    seed: int = 0


class Stage:
    """One run. ``path`` is where the certificate file goes, in a directory of its own."""

    def __init__(
        self,
        host: EmulatedHost,
        path: str,
        script: Script,
        readers: Performer = system.perform,
    ) -> None:
        self._host = host
        self._script = script
        self._readers = readers
        self._certs = CertFile(path)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._start = time.monotonic()
        self._machine = Machine(Platform(host.firmware, guest=self._boot))
        self._booting = 0

    def play(self) -> Iterator[Event]:
        """Publish the first table, run everything, and tell what happens as it happens."""
        self._certs.publish(self._host.table())
        vms = [self._launch(number) for number in range(self._script.guests)]
        workers = [
            threading.Thread(target=self._guarded, args=(self._run_vmm, number, vm), daemon=True)
            for number, vm in enumerate(vms)
        ]
        workers.append(threading.Thread(target=self._guarded, args=(self._write,), daemon=True))
        self._start = time.monotonic()
        for worker in workers:
            worker.start()
        with self._stopping(workers):
            while (left := self._start + self._script.seconds - time.monotonic()) > 0:
                try:
                    yield self._events.get(timeout=left)
                except queue.Empty:
                    break
            workers[-1].join()  # an update that has begun is seen to its end
        while not self._events.empty():
            yield self._events.get()

    @contextmanager
    def _stopping(self, workers: list[threading.Thread]) -> Iterator[None]:
        try:
            yield
        finally:
            self._stop.set()
            for worker in workers:
                worker.join()

    def _now(self) -> float:
        return time.monotonic() - self._start

    def _guarded(self, part: Callable[..., None], *arguments: object) -> None:
        try:
            part(*arguments)
        except (SnpCertsError, OSError) as error:
            self._events.put(Failed(self._now(), error))

    def _launch(self, number: int) -> ReferenceVm:
        self._booting = number
        return build_vm(self._machine)

    def _boot(self, vm: LaunchedVm) -> ScriptedGuest:
        guest = self._booting

        def tell(outcome: ReportOutcome) -> None:
            self._events.put(Attested(self._now(), guest, outcome))

        return ScriptedGuest(
            vm,
            reports=_WITHOUT_END,
            pause=_GUEST_PAUSE,
            busy_delay=_BUSY_DELAY,
            on_report=tell,
        )

    def _run_vmm(self, number: int, vm: ReferenceVm) -> None:
        """A VMM's loop for its one vCPU."""
        delays = random.Random(f"{self._script.seed} vmm {number}")  # noqa: S311 (a schedule)
        service = ExitService(CertFile(self._certs.path, self._readers))
        memory = MappedMemory([(vm.base, memoryview(vm.memory))])
        run = vm.runs[0]

        def delayed_run() -> None:
            longest = _LONG_DETOUR if delays.random() < _LONG_SHARE else _DETOUR
            time.sleep(delays.uniform(0, longest))
            vm.run()

        while not self._stop.is_set():
            vm.run()
            if run.exit_reason != ExitReason.SNP_REQ_CERTS:
                return
            if not self._stop.is_set():
                served = service.serve(run, memory, delayed_run)
                self._events.put(Answered(self._now(), number, served))

    def _write(self) -> None:
        """An operator who moves the reported TCB at regular times."""
        script = self._script
        choice = random.Random(f"{script.seed} writer")  # noqa: S311 (a schedule)
        for number in range(1, script.updates + 1):
            due = self._start + script.seconds * number / (script.updates + 1)
            if self._stop.wait(max(0.0, due - time.monotonic())):
                return
            now = self._host.reported_tcb()
            tcb = choice.choice([each for each in self._host.tcbs if each != now])
            update = self._certs.update(partial(self._host.report_as, tcb))
            self._events.put(Updated(self._now(), number, self._host.key_name(tcb), update))
