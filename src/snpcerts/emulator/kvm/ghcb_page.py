# SPDX-License-Identifier: Apache-2.0
"""A guest's GHCB page while KVM has it mapped: from VMGEXIT to the next entry.

Source: ``sev_es_sync_from_ghcb``, ``sev_es_sync_to_ghcb`` and
``setup_vmgexit_scratch`` in Linux ``arch/x86/kvm/svm/sev.c``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from snpcerts.abi.ghcb import (
    CPL,
    PAGE_SIZE,
    SHARED_BUFFER,
    SHARED_BUFFER_SIZE,
    USAGE,
    VALID_BITMAP,
    VALID_BITMAP_SIZE,
    Field,
    GhcbPage,
    InputErrorCode,
    ResponseCode,
)
from snpcerts.emulator.guest.memory_slots import SlotMemory

log = logging.getLogger(__name__)

_SYNCED: Final = (Field.RAX, Field.RBX, Field.RCX, Field.RDX)
_REGISTERS: Final = (*_SYNCED, Field.RSI)
_EVENT_VALID, _EVENT_EXCEPTION = (1 << 64) - (1 << 31), 3 << 8  # an int, which KVM sign-extends


@dataclass(frozen=True, slots=True)
class GhcbSnapshot:
    """A GHCB request as it was at VMGEXIT. Later changes to the page do not affect it.

    Registers, scratch address and CPL are 0 if the guest has not marked them valid.
    """

    gpa: int
    code: int
    info1: int
    info2: int
    scratch: int
    cpl: int
    usage: int
    registers: dict[Field, int]
    valid: frozenset[Field]
    cpl_valid: bool


class MappedGhcb:
    """The GHCB page as KVM reads and writes it, and the registers that KVM will write to it."""

    def __init__(self) -> None:
        self.registers: dict[Field, int] = {}
        self._gpa = 0
        self._mapped = False
        # KVM keeps the page mapped even if the VMM removes it. Here every access maps it again. If
        # it has been removed, this copy is used instead.
        self._copy = bytearray(PAGE_SIZE)

    def take(self, memory: SlotMemory, gpa: int) -> GhcbSnapshot | None:
        """Map the GHCB at ``gpa`` and clear its valid bitmap; return None if the page cannot be
        mapped.
        """
        if not memory.writable(gpa):
            return None
        try:
            page = memory.read(gpa, PAGE_SIZE)
            memory.write(gpa + VALID_BITMAP, bytes(VALID_BITMAP_SIZE))
        except OSError:
            return None
        ghcb = GhcbPage(bytearray(page))
        valid = frozenset(field for field in Field if ghcb.is_valid(field))
        cpl_valid = bool(page[VALID_BITMAP + CPL // 64] >> CPL // 8 % 8 & 1)
        self._gpa = gpa
        self._mapped = True
        self._copy = bytearray(page)
        self._copy[VALID_BITMAP : VALID_BITMAP + VALID_BITMAP_SIZE] = bytes(VALID_BITMAP_SIZE)
        self.registers = {each: ghcb.get(each) if each in valid else 0 for each in _REGISTERS}
        return GhcbSnapshot(
            gpa,
            ghcb.get(Field.SW_EXITCODE),
            ghcb.get(Field.SW_EXITINFO1),
            ghcb.get(Field.SW_EXITINFO2),
            ghcb.get(Field.SW_SCRATCH) if Field.SW_SCRATCH in valid else 0,
            page[CPL] if cpl_valid else 0,
            int.from_bytes(page[USAGE : USAGE + 4], "little"),
            dict(self.registers),
            valid,
            cpl_valid,
        )

    def let_go(self, memory: SlotMemory) -> None:
        """Write the four registers that the guest gets back and unmap the page, as KVM does before
        an entry.
        """
        if not self._mapped:
            return
        for register in _SYNCED:
            self.put(memory, register, self.registers[register])
        self._mapped = False

    # Answers. After each, the guest resumes.

    def put(self, memory: SlotMemory, field: Field, value: int) -> None:
        """Write a field of the page and set the field's bit in the valid bitmap."""
        self.write(memory, field, value.to_bytes(8, "little"))
        bitmap = self.read(memory, field.valid_byte, 1)[0]
        self.write(memory, field.valid_byte, bytes([bitmap | field.valid_mask]))

    def ok(self, memory: SlotMemory, value: int) -> None:
        """Report success to the guest, with ``value`` as the result."""
        self._answer(memory, ResponseCode.NO_ACTION, value)

    def bad(self, memory: SlotMemory, why: InputErrorCode) -> None:
        """Report to the guest that its input is malformed."""
        self._answer(memory, ResponseCode.MALFORMED_INPUT, why)

    def inject(self, memory: SlotMemory, vector: int) -> None:
        """Report an exception to the guest, which must then raise it."""
        event = _EVENT_VALID | _EVENT_EXCEPTION | vector
        self._answer(memory, ResponseCode.ISSUE_EXCEPTION, event)

    def _answer(self, memory: SlotMemory, response: ResponseCode, value: int) -> None:
        self.put(memory, Field.SW_EXITINFO1, response)
        self.put(memory, Field.SW_EXITINFO2, value)

    # Access to bytes of the page by offset.

    def scratch(self, snapshot: GhcbSnapshot, size: int) -> int | None:
        """Return the offset of the guest's scratch area in the page.

        Return None if the area is not inside the page's shared buffer. Version 2 of the protocol
        requires that it is.
        """
        offset = snapshot.scratch - snapshot.gpa
        if not snapshot.scratch or snapshot.scratch + size >= 1 << 64:
            return None
        if offset < SHARED_BUFFER or offset + size > SHARED_BUFFER + SHARED_BUFFER_SIZE:
            return None
        return offset

    def read(self, memory: SlotMemory, offset: int, size: int) -> bytes:
        """Return ``size`` bytes of the page at ``offset``, as they are now. If the VMM has removed
        the page, read this object's copy.
        """
        try:
            return memory.read(self._gpa + offset, size)
        except OSError:
            return bytes(self._copy[offset : offset + size])

    def write(self, memory: SlotMemory, offset: int, data: bytes) -> None:
        """Write ``data`` to the page at ``offset``. If the VMM has removed the page, write only to
        this object's copy.
        """
        self._copy[offset : offset + len(data)] = data
        try:
            memory.write(self._gpa + offset, data)
        except OSError:
            log.debug("the page of the GHCB at %#x was unmapped during the request", self._gpa)
