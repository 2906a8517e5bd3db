# SPDX-License-Identifier: Apache-2.0
"""Page state changes: a guest asks, through the GHCB MSR or a list, for private or shared pages.

Source: ``snp_begin_psc_msr``, ``snp_begin_psc``, ``snp_do_psc`` and their completions in Linux
``arch/x86/kvm/svm/sev.c``. KVM passes each run of adjacent pages to userspace as one
KVM_HC_MAP_GPA_RANGE.
"""

from __future__ import annotations

import errno
import logging
from typing import Final

from snpcerts.abi.ghcb import (
    PSC_ENTRY_SIZE,
    PSC_HEADER_SIZE,
    SHARED_BUFFER,
    SHARED_BUFFER_SIZE,
    PageStateError,
    PageStateOperation,
)
from snpcerts.abi.kvm import MAP_GPA_RANGE_ENCRYPTED, MAP_GPA_RANGE_PAGE_SZ_2M
from snpcerts.emulator.guest.memory_slots import SlotMemory
from snpcerts.emulator.kvm import exits as kvm_exit
from snpcerts.emulator.kvm.ghcb_page import MappedGhcb

log = logging.getLogger(__name__)

PAGES_OF_2M: Final = 512
_PAGE_SHIFT: Final = 12
_OPERATIONS: Final = frozenset(PageStateOperation)


def operation_and_gpa(msr: int) -> tuple[int, int]:
    """Return the operation and the GPA of a request in the MSR protocol."""
    return msr >> 52 & 0xF, msr & (1 << 52) - 1 & ~0xFFF


def ask_userspace(run: memoryview, gpa: int, pages: int, operation: int, *, huge: bool) -> None:
    """Write the exit that asks userspace to change ``pages`` pages of 4 KiB."""
    attributes = MAP_GPA_RANGE_ENCRYPTED if operation == PageStateOperation.PRIVATE else 0
    if huge:
        attributes |= MAP_GPA_RANGE_PAGE_SZ_2M
    kvm_exit.map_gpa_range(run, gpa, pages, attributes)


def known_operation(operation: int) -> bool:
    """Whether KVM supports this page state operation."""
    return operation in _OPERATIONS


def userspace_agrees(run: memoryview) -> bool:
    """Whether userspace has made the change. An invalid answer raises EINVAL, as in KVM_RUN."""
    answer = kvm_exit.hypercall_result(run)
    if answer not in (0, errno.EINVAL, errno.EAGAIN):
        log.warning("KVM_RUN fails: hypercall.ret: expected 0, EINVAL or EAGAIN, found %d", answer)
        raise OSError(errno.EINVAL, f"hypercall.ret: expected 0, EINVAL or EAGAIN, found {answer}")
    return not answer


class _Entry:
    """One entry in a list of page state changes: ``struct psc_entry``."""

    def __init__(self, raw: int) -> None:
        self.done = raw & 0xFFF
        self.gfn = raw >> 12 & (1 << 40) - 1
        self.operation = raw >> 52 & 0xF
        self.huge = bool(raw >> 56 & 1)

    @property
    def pages(self) -> int:
        """The number of 4 KiB pages in the entry."""
        return PAGES_OF_2M if self.huge else 1


class PageStateList:
    """A list of page state changes in progress. It stays in the GHCB, where the guest can change
    it.
    """

    def __init__(self, ghcb: MappedGhcb, run: memoryview) -> None:
        self._ghcb = ghcb
        self._run = run
        self._at = 0  # offset of the list in the page
        self._index = self._last = self._batch = 0

    def begin(self, memory: SlotMemory, offset: int) -> bool:
        """Start with the list at ``offset`` in the GHCB; return whether userspace must be asked."""
        self._at = offset
        room = (SHARED_BUFFER + SHARED_BUFFER_SIZE - offset - PSC_HEADER_SIZE) // PSC_ENTRY_SIZE
        self._index = self._header(memory, 0)
        self._last = self._header(memory, 2)
        if self._last >= room:
            return self.end(memory, PageStateError.INVALID_HDR)
        return self._go_on(memory)

    def answered(self, memory: SlotMemory) -> bool:
        """Process userspace's answer; return whether userspace must be asked again."""
        if not userspace_agrees(self._run):
            return self.end(memory, PageStateError.GENERIC)
        self._complete(memory)
        return self._go_on(memory)

    def end(self, memory: SlotMemory, outcome: int) -> bool:
        """Report the outcome to the guest; return False, because userspace need not be asked."""
        self._index = self._last = self._batch = 0
        self._ghcb.ok(memory, outcome)
        return False

    def _go_on(self, memory: SlotMemory) -> bool:
        while True:
            if self._batch:  # left over if userspace gave an invalid answer for an earlier list
                return self.end(memory, PageStateError.GENERIC)
            found = self._next(memory)
            if found is None:
                return self.end(memory, 0)
            if isinstance(found, PageStateError):
                return self.end(memory, found)
            first, gfn, pages, huge = found
            pages += self._gather(memory, first, pages, huge=huge)
            if known_operation(first.operation):
                ask_userspace(
                    self._run, gfn << _PAGE_SHIFT, pages, first.operation, huge=first.huge
                )
                return True
            self._complete(memory)

    def _next(self, memory: SlotMemory) -> tuple[_Entry, int, int, bool] | PageStateError | None:
        """Return the next unfinished entry, the frame number of its first unfinished page, how many
        pages it has left, and whether they are a whole 2 MiB page.

        Returns an error if the entry is invalid, and None at the end of the list.
        """
        index = self._index
        while index <= self._last:
            entry = self._entry(memory, index)
            if entry.done > entry.pages or entry.gfn % entry.pages:
                return PageStateError.INVALID_ENTRY
            if entry.done < entry.pages:
                self._index, self._batch = index, 1
                huge = entry.huge and not entry.done
                return entry, entry.gfn + entry.done, entry.pages - entry.done, huge
            self._set_header(memory, self._header(memory, 0) + 1)
            index += 1
        return None

    def _gather(self, memory: SlotMemory, first: _Entry, pages: int, *, huge: bool) -> int:
        """Count the pages of the entries after ``first`` that continue it: the pages are adjacent,
        and the operation and page size are the same.
        """
        more = 0
        for index in range(self._index + 1, self._last + 1):
            entry = self._entry(memory, index)
            if (
                entry.operation != first.operation
                or entry.gfn != first.gfn + pages + more
                or entry.done
                or entry.huge != huge
            ):
                break
            self._batch += 1
            more += PAGES_OF_2M if huge else 1
        return more

    def _complete(self, memory: SlotMemory) -> None:
        """Mark the current entries in the guest's list as done."""
        while self._batch:
            at = self._at + PSC_HEADER_SIZE + self._index * PSC_ENTRY_SIZE
            raw = int.from_bytes(self._ghcb.read(memory, at, 8), "little")
            raw = raw & ~0xFFF | _Entry(raw).pages
            self._ghcb.write(memory, at, raw.to_bytes(8, "little"))
            self._batch -= 1
            self._index += 1
        self._set_header(memory, self._index)

    def _entry(self, memory: SlotMemory, index: int) -> _Entry:
        at = self._at + PSC_HEADER_SIZE + index * PSC_ENTRY_SIZE
        return _Entry(int.from_bytes(self._ghcb.read(memory, at, PSC_ENTRY_SIZE), "little"))

    def _header(self, memory: SlotMemory, at: int) -> int:
        return int.from_bytes(self._ghcb.read(memory, self._at + at, 2), "little")

    def _set_header(self, memory: SlotMemory, entry: int) -> None:
        self._ghcb.write(memory, self._at, (entry & 0xFFFF).to_bytes(2, "little"))
