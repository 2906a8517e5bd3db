# SPDX-License-Identifier: Apache-2.0
"""Guest memory that a VMM has mapped, addressed by guest physical address (GPA)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from snpcerts.errors import SnpCertsError


class GuestMemoryError(SnpCertsError):
    """A range of guest addresses is partly or wholly outside the guest's memory."""

    code = "guest-memory"


class GuestMemory(Protocol):
    """What the exit service needs from a VMM's guest memory."""

    def write(self, gpa: int, data: bytes) -> None:
        """Write all of ``data`` at ``gpa``. If that is impossible, write nothing and raise
        :class:`GuestMemoryError`.
        """


@dataclass(frozen=True, slots=True)
class Slot:
    """One mapped range: ``memory`` is the guest memory that starts at ``gpa``."""

    gpa: int
    memory: memoryview

    @property
    def end(self) -> int:
        """The first GPA after the slot."""
        return self.gpa + self.memory.nbytes


class MappedMemory:
    """Guest memory in mapped slots that do not overlap."""

    def __init__(self, slots: Iterable[tuple[int, bytearray | memoryview]]) -> None:
        self._slots = sorted(
            (Slot(gpa, memoryview(memory).cast("B")) for gpa, memory in slots),
            key=lambda slot: slot.gpa,
        )

        self._at: tuple[tuple[int, int, int], ...] | None = None
        # While these exist, no slot can be resized or freed, so its address stays valid.
        self._held: list[ctypes.c_char] = []

    def addresses(self) -> tuple[tuple[int, int, int], ...]:
        """Return each slot's GPA, size and address in this process, for C code.

        Raises ``TypeError`` if a slot cannot be written to.
        """
        if self._at is None:
            slots = [slot for slot in self._slots if slot.memory.nbytes]
            self._held = [ctypes.c_char.from_buffer(slot.memory) for slot in slots]
            self._at = tuple(
                (slot.gpa, slot.memory.nbytes, ctypes.addressof(held))
                for slot, held in zip(slots, self._held, strict=True)
            )
        return self._at

    def require(self, gpa: int, size: int) -> None:
        """Raise :class:`GuestMemoryError` if any of the ``size`` bytes at ``gpa`` is in no slot."""
        self._parts(gpa, size)

    def write(self, gpa: int, data: bytes) -> None:
        """Write all of ``data`` at ``gpa``, across adjacent slots. If a byte has no slot, write
        nothing and raise :class:`GuestMemoryError`.
        """
        for target, start, stop in self._parts(gpa, len(data)):
            target[:] = data[start - gpa : stop - gpa]

    def _parts(self, gpa: int, size: int) -> list[tuple[memoryview, int, int]]:
        """Return the memory of a range in pieces, each with its first GPA and the GPA after its
        end.
        """
        parts: list[tuple[memoryview, int, int]] = []
        at, end = gpa, gpa + size
        for slot in self._slots:
            if slot.gpa <= at < slot.end:
                stop = min(end, slot.end)
                parts.append((slot.memory[at - slot.gpa : stop - slot.gpa], at, stop))
                at = stop
            if at == end:
                break
        if at != end:
            raise GuestMemoryError(f"guest address {at:#x} is outside the guest's memory")
        return parts
