# SPDX-License-Identifier: Apache-2.0
"""The guest of a trial. It requests reports into chosen buffers, and checks which memory was
written.

Its vCPUs use pages at the top of the largest slot: GHCB, request page, response page, then a field
of :data:`FIELD_PAGES` pages that contains the buffers. Before a request the field is filled with
random bytes, which differ from any table.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Final

from snpcerts.abi.cert_table import EMPTY
from snpcerts.abi.ghcb import (
    PAGE_SIZE,
    ExitCode,
    Field,
    GhcbPage,
    PageStateOperation,
    VmmError,
    guest_err,
)
from snpcerts.abi.guest_message import (
    MESSAGE_SIZE,
    VMPCK_COUNT,
    MessageType,
    ReportRequest,
)
from snpcerts.conformance.journal import CertsRequest, Journal
from snpcerts.emulator.guest import page_state_calls
from snpcerts.emulator.guest.linux import LinuxGuest, SharedPages
from snpcerts.emulator.guest.program import Event, GuestCpu, LaunchedVm, Program, WaitUntil
from snpcerts.emulator.psp.message_seal import SealError, header_for, open_sealed, seal

FIELD_PAGES: Final = 12
LARGE_PAGES: Final = 24  # a field for large tables, if the VM has the memory
_VCPUS: Final = 2  # number of vCPUs that make requests
INVALID_LEN: Final = guest_err(VmmError.INVALID_LEN, 0)
BUSY: Final = guest_err(VmmError.BUSY, 0)
GENERIC: Final = guest_err(VmmError.GENERIC, 0)

_NAMES: Final = {
    0: "success",
    INVALID_LEN: "buffer too small",
    BUSY: "busy",
    GENERIC: "error",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request, as the guest got it.

    ``exitinfo2`` is SW_EXITINFO2; ``pages`` is RBX. ``signed`` says whether the firmware returned a
    report. ``before`` and ``after`` are the contents of the field, which starts at GPA ``field``;
    the buffer is at ``gpa``. ``request`` is the VMM's side of the request, or None if the VMM got
    no exit.
    """

    gpa: int
    npages: int
    exitinfo2: int
    pages: int
    signed: bool
    field: int
    before: bytes
    after: bytes
    request: CertsRequest | None

    def __str__(self) -> str:
        text = _NAMES.get(self.exitinfo2, f"SW_EXITINFO2 {self.exitinfo2:#x}")
        if self.exitinfo2 == INVALID_LEN:
            text += f", {self.pages} pages needed"
        if self.request is not None:
            text = f"ret {self.request.ret}, the guest got: {text}"
        return text

    @property
    def ok(self) -> bool:
        """Whether the request succeeded and returned a report."""
        return self.exitinfo2 == 0 and self.signed

    @property
    def untouched(self) -> bool:
        """Whether the request changed neither the buffer nor the memory around it."""
        return self.before == self.after

    def got(self, size: int) -> bytes:
        """Return the first ``size`` bytes of the buffer."""
        start = self.gpa - self.field
        return self.after[start : start + size]

    @property
    def has_table(self) -> bool:
        """Whether the buffer was written to and does not begin with an empty table."""
        start = self.gpa - self.field
        end = start + self.npages * PAGE_SIZE
        if start < 0 or end > len(self.after):
            return False
        written = self.after[start:end] != self.before[start:end]
        return written and self.got(len(EMPTY)) != EMPTY

    @property
    def first_write_outside(self) -> int | None:
        """The GPA of the first byte written outside the buffer, or None."""
        start = self.gpa - self.field
        end = start + self.npages * PAGE_SIZE
        below, above = max(0, start), max(0, end)
        if self.before[:below] == self.after[:below] and self.before[above:] == self.after[above:]:
            return None
        for at, (old, new) in enumerate(zip(self.before, self.after, strict=True)):
            if old != new and not start <= at < end:
                return self.field + at
        return None

    def delivers(self, table: bytes) -> str | None:
        """Return why the buffer does not contain ``table``, or None if it does.

        The VMM may leave or zero the rest of the buffer.
        """
        if not self.ok:
            return f"expected ret 0 and the table, found {self}"
        got = self.got(len(table))
        if got != table:
            if got[: len(EMPTY)] == EMPTY:
                return "ret 0, but the guest got an empty table"
            if self.untouched:
                return "ret 0, but nothing was written to the guest's buffer"
            at = next((n for n, (a, b) in enumerate(zip(got, table, strict=False)) if a != b), 0)
            return f"ret 0, but byte {at:#x} of {len(table):#x} differs from the file"
        return None


Asking = Generator[Event, int, Answer]


class TrialGuest(LinuxGuest):
    """A guest that runs a scenario's programs, one for each vCPU.

    Its field is shared from boot on. If a VMM does not do its part of a page state change, a real
    guest would terminate itself. This guest continues, and its accesses are no longer checked, so
    that the VMM's answers can still be judged. ``ignored`` says what the VMM has not done. With
    ``strict``, an access to a page in the wrong state still faults.
    """

    def __init__(
        self,
        vm: LaunchedVm,
        journal: Journal,
        programs: Callable[[TrialGuest, GuestCpu], Program],
        *,
        strict: bool = False,
    ) -> None:
        slot = vm.slots.largest()
        needed = _VCPUS * (3 + LARGE_PAGES) * PAGE_SIZE
        large = slot is not None and slot.size >= needed
        super().__init__(vm, data_pages=LARGE_PAGES if large else FIELD_PAGES)
        self.ignored: str | None = None
        self._strict = strict
        self._programs = programs
        self._journal = journal
        self._chance = random.Random(0)  # noqa: S311 (bytes that are not the table's)

    def program(self, cpu: GuestCpu) -> Program:
        """Return the scenario's program for this vCPU."""
        return self._programs(self, cpu)

    def boot(self, cpu: GuestCpu) -> Generator[Event, int, SharedPages | None]:
        """Boot as Linux does, then make the vCPU's data pages shared."""
        pages = yield from super().boot(cpu)
        if pages is not None:
            yield from self.make_shared(cpu, pages, pages.data, pages.data_pages)
        return pages

    def set_page_state_early(
        self, cpu: GuestCpu, gpa: int, operation: PageStateOperation
    ) -> Generator[Event, int, None]:
        """Change the page's state as Linux does. If the VMM ignored the request, record that."""
        if cpu.is_private is not None:
            yield from super().set_page_state_early(cpu, gpa, operation)
            self._note_page_state(cpu, gpa, 1, operation)

    def set_page_state(
        self,
        cpu: GuestCpu,
        shared: SharedPages,
        gpa: int,
        pages: int,
        operation: PageStateOperation,
    ) -> Generator[Event, int, None]:
        """Change the pages' state as Linux does. If the VMM ignored the request, record that."""
        if cpu.is_private is not None:
            yield from super().set_page_state(cpu, shared, gpa, pages, operation)
            self._note_page_state(cpu, gpa, pages, operation)

    def page_state_refused(
        self, cpu: GuestCpu, gpa: int, pages: int, operation: PageStateOperation
    ) -> Generator[Event, int, None]:
        """Record why the page state did not change, and continue."""
        if not self.vm.exits_for_page_state:
            why = (
                "KVM_CAP_EXIT_HYPERCALL is not enabled for KVM_HC_MAP_GPA_RANGE, so KVM refuses "
                "every page state change"
            )
        else:
            why = f"{_asked(gpa, pages, operation)}: the VMM answered with an error"
        self.ignored = self.ignored or f"{why}; a Linux guest would terminate itself"
        cpu.is_private = None
        yield from ()

    def _note_page_state(
        self, cpu: GuestCpu, gpa: int, pages: int, operation: PageStateOperation
    ) -> None:
        private = operation == PageStateOperation.PRIVATE
        if cpu.mismatch(gpa, pages * PAGE_SIZE, private=private) is None:
            return
        self.ignored = self.ignored or (
            f"{_asked(gpa, pages, operation)}: ret 0, but the VMM has not made this memory "
            f"{operation.name.lower()} with KVM_SET_MEMORY_ATTRIBUTES; the guest's next access "
            "ends KVM_RUN with EFAULT and KVM_EXIT_MEMORY_FAULT"
        )
        if not self._strict:
            cpu.is_private = None

    def ask(
        self,
        cpu: GuestCpu,
        pages: SharedPages,
        npages: int,
        *,
        gpa: int | None = None,
        field: tuple[int, int] | None = None,
        when: Callable[[], bool] | None = None,
        until: Callable[[], bool] | None = None,
    ) -> Asking:
        """Make one extended guest request without the driver's retries.

        The buffer is ``npages`` pages at ``gpa``, by default the second page of the vCPU's field.
        ``field`` is the range to check, as GPA and size in bytes, by default the vCPU's field. Its
        content is restored afterwards. The vCPU exits when ``when`` returns true, and then
        halts until ``until`` does, so that other vCPUs go on first.
        """
        start, size = field or (pages.data, FIELD_PAGES * PAGE_SIZE)
        gpa = pages.data + PAGE_SIZE if gpa is None else gpa
        if cpu.mismatch(start, size, private=False) is not None:
            yield from self.set_page_state(
                cpu, pages, start, size // PAGE_SIZE, PageStateOperation.SHARED
            )
        kept = yield from cpu.read(start, size)
        before = self._chance.randbytes(size)
        yield from cpu.write(start, before)
        vmpck = self.vmpcks[cpu.index % VMPCK_COUNT]
        header = header_for(MessageType.REPORT_REQ, vmpck.counter + 1, vmpck.number)
        payload = ReportRequest(report_data=before[:64], vmpl=vmpck.number).pack()
        yield from cpu.write(pages.response, bytes(MESSAGE_SIZE))
        yield from cpu.write(pages.request, seal(vmpck.key, header, payload))
        if when is not None:
            yield WaitUntil(when)
        known = len(self._journal.requests)
        exitinfo2, rbx = yield from _exit(cpu, pages, gpa, npages)
        if until is not None:
            yield WaitUntil(until)
        response = yield from cpu.read(pages.response, MESSAGE_SIZE)
        try:
            open_sealed(vmpck.key, response)
        except SealError:
            signed = False  # the firmware has not seen the message: reuse its sequence number
        else:
            signed = True
            vmpck.counter += 2
        after = yield from cpu.read(start, size)
        yield from cpu.write(start, kept)
        request = next(
            (each for each in self._journal.requests[known:] if each.vcpu == cpu.index), None
        )
        return Answer(gpa, npages, exitinfo2, rbx, signed, start, before, after, request)


def _asked(gpa: int, pages: int, operation: PageStateOperation) -> str:
    return f"KVM_HC_MAP_GPA_RANGE to make {pages_at(gpa, pages)} {operation.name.lower()}"


def pages_at(gpa: int, pages: int) -> str:
    """Return a number of pages and their address, for a message."""
    what = "1 page" if pages == 1 else f"{pages} pages"
    return f"{what} at GPA {gpa:#x}"


def _exit(
    cpu: GuestCpu, pages: SharedPages, gpa: int, npages: int
) -> Generator[Event, int, tuple[int, int]]:
    ghcb = GhcbPage(page := bytearray(PAGE_SIZE))
    ghcb.put(Field.RAX, gpa)
    ghcb.put(Field.RBX, npages)
    code = ExitCode.SNP_EXT_GUEST_REQUEST
    yield from page_state_calls.call_hypervisor(
        cpu, pages.ghcb, page, code, pages.request, pages.response
    )
    ghcb = GhcbPage(bytearray((yield from cpu.read(pages.ghcb, PAGE_SIZE))))
    return ghcb.get(Field.SW_EXITINFO2), ghcb.get(Field.RBX)
