# SPDX-License-Identifier: Apache-2.0
"""A guest that requests a number of extended reports, then shuts down.

Each vCPU works independently, like a program in a Linux guest. It makes a request with its current
buffer and, if the buffer is too small, repeats it with a larger one. vCPU n uses VMPCK n modulo 4,
so up to four requests are in progress at once.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from snpcerts.abi.guest_message import (
    REPORT_AT,
    VMPCK_COUNT,
    MessageType,
    ReportRequest,
    ReportResponse,
)
from snpcerts.abi.sev_guest import EXITINFO2_PRESET, REPORT_RESPONSE_SIZE
from snpcerts.emulator.guest.linux import DriverCall, DriverRequest, DriverResponse, LinuxGuest
from snpcerts.emulator.guest.program import (
    GuestCpu,
    Program,
    Sleep,
    StartProcessors,
    WaitUntil,
)

START_LIMIT = 5.0  # time limit for a VMM to run a vCPU that it has created, in seconds
_LOOK_AGAIN = 0.01  # seconds
TRIES_MAX = 4  # calls for one report, each with a larger buffer, until the buffer is large enough


@dataclass(frozen=True, slots=True)
class ReportOutcome:
    """The result of one report request, as the guest's program gets it.

    ``report`` and ``table`` are empty unless the call succeeded; the table is the whole buffer,
    page padding included. ``errno`` is the error as a positive number. It is 0 for success, and for
    a call that returned ``es_result``, which is the positive result of an exit that the host did
    not handle. ``exitinfo2`` is None if the driver never set it. ``tries`` counts calls to the
    driver, ``exits`` the VMGEXITs of all of them; ``seconds`` is the time from the start of the
    first call to the end of the last, and ``ended`` is that end by the platform's clock.
    """

    vcpu: int
    number: int
    report_data: bytes
    report: bytes
    table: bytes
    errno: int
    es_result: int
    exitinfo2: int | None
    pages_wanted: int
    tries: int
    exits: int
    seconds: float
    ended: float

    @property
    def succeeded(self) -> bool:
        """Whether the request returned a report."""
        return bool(self.report)


def _random_report_data(_vcpu: int, _number: int) -> bytes:
    return os.urandom(64)


def _ignore(_outcome: ReportOutcome) -> None:
    """Do nothing; this is the default for ``on_report``."""


@dataclass(slots=True)
class ScriptedGuest(LinuxGuest):
    """A guest that requests ``reports`` reports on every vCPU, ``pause`` seconds apart, then shuts
    down.

    A vCPU that has its reports waits for the others, because the first vCPU that ends shuts the
    machine down. If the VMM has never run a vCPU, the wait for it ends after :data:`START_LIMIT`.
    ``made`` counts the reports of each vCPU. If a VMM resets its machine, the next guest continues
    with these counts. If a guest has nothing left to do when it starts, it calls ``when_done``
    instead of shutting down.

    ``first_pages`` is the size of the first call's buffer in pages (0: no buffer, to learn the
    size; None: ``data_pages``). ``report_data`` returns the 64 bytes for (vCPU index, number of the
    report). ``on_report`` gets each outcome. It is called inside KVM_RUN and must not raise. A vCPU
    whose key has been destroyed stops early.
    """

    reports: int = 1
    pause: float = 0.0
    first_pages: int | None = None
    extended: bool = True
    report_data: Callable[[int, int], bytes] = _random_report_data
    on_report: Callable[[ReportOutcome], None] = _ignore
    made: dict[int, int] = field(default_factory=dict)
    when_done: Callable[[], None] | None = None
    _busy: set[int] = field(default_factory=set)

    def submit(self, request: DriverRequest) -> DriverCall:  # noqa: ARG002 - as in LinuxGuest
        """Fail with ENODEV: this guest runs only its script."""
        raise OSError(errno.ENODEV, "a scripted guest runs no programs")

    def program(self, cpu: GuestCpu) -> Program:
        """Boot, request this vCPU's reports, and wait for those of the other vCPUs."""
        if cpu.index == 0:
            yield StartProcessors()
        if self.when_done is not None and self._nothing_left():
            if cpu.index == 0:
                self.when_done()
            yield WaitUntil(lambda: False)
        self._busy.add(cpu.index)
        try:
            yield from self._reports(cpu)
        finally:
            self._busy.discard(cpu.index)
        self.made.setdefault(cpu.index, self.reports)
        yield from self._others(cpu)

    def _nothing_left(self) -> bool:
        counts = [self.made.get(index, 0) for index in range(self.vm.processors)]
        return bool(self.made) and min(counts, default=0) >= self.reports

    def _others(self, cpu: GuestCpu) -> Program:
        """Wait until all other vCPUs have their reports."""
        until = cpu.now() + START_LIMIT
        while not self._nothing_left() and (self._busy or cpu.now() < until):
            yield Sleep(_LOOK_AGAIN)

    def _reports(self, cpu: GuestCpu) -> Program:
        pages = yield from self.boot(cpu)
        if pages is None:
            return
        vmpck = self.vmpcks[cpu.index % VMPCK_COUNT]
        buffer = self.data_pages if self.first_pages is None else self.first_pages
        for number in range(self.made.get(cpu.index, 0), self.reports):
            if number and self.pause:
                yield Sleep(self.pause)
            data = self.report_data(cpu.index, number)
            payload = ReportRequest(report_data=data, vmpl=vmpck.number).pack()
            started, tries, exits = cpu.now(), 0, 0
            while True:
                response = yield from self.request(
                    cpu,
                    pages,
                    vmpck,
                    DriverRequest(
                        MessageType.REPORT_REQ,
                        1,
                        payload,
                        REPORT_RESPONSE_SIZE,
                        buffer if self.extended else None,
                    ),
                )
                tries, exits = tries + 1, exits + response.exits
                too_small = response.result == -errno.EIO and response.pages > buffer
                if not too_small or tries == TRIES_MAX:
                    break
                if response.pages > self.data_pages:
                    # The driver's answer to a buffer that is larger than it supports.
                    response = DriverResponse(-errno.EINVAL, EXITINFO2_PRESET, pages=response.pages)
                    tries += 1
                    break
                buffer = response.pages
            self.on_report(_outcome(cpu, number, data, response, tries, exits, started, cpu.now()))
            self.made[cpu.index] = self.reports if vmpck.disabled else number + 1
            if vmpck.disabled:
                return


def _outcome(
    cpu: GuestCpu,
    number: int,
    report_data: bytes,
    response: DriverResponse,
    tries: int,
    exits: int,
    started: float,
    ended: float,
) -> ReportOutcome:
    report = b""
    if response.result == 0:
        answer = ReportResponse.unpack(response.payload.ljust(ReportResponse.SIZE, b"\0"))
        report = response.payload[REPORT_AT : REPORT_AT + answer.report_size]
    return ReportOutcome(
        vcpu=cpu.index,
        number=number,
        report_data=report_data,
        report=report,
        table=response.data,
        errno=max(0, -response.result),
        es_result=max(0, response.result),
        exitinfo2=response.exitinfo2,
        pages_wanted=response.pages,
        tries=tries,
        exits=exits,
        seconds=ended - started,
        ended=ended,
    )
