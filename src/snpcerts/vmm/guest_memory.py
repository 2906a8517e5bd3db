# SPDX-License-Identifier: Apache-2.0
"""Guest memory that a VMM has mapped, addressed by guest physical address (GPA)."""

from __future__ import annotations

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
        """Write all of ``data`` at ``gpa``, or nothing and raise :class:`GuestMemoryError`."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One mapped range: ``memory`` holds the guest's memory starting at ``gpa``."""

    gpa: int
    memory: memoryview

    @property
    def end(self) -> int:
        """First GPA after the slot."""
        return self.gpa + self.memory.nbytes


class MappedMemory:
    """Guest memory made of mapped slots that do not overlap."""

    def __init__(self, slots: Iterable[tuple[int, bytearray | memoryview]]) -> None:
        self._slots = sorted(
            (Slot(gpa, memoryview(memory).cast("B")) for gpa, memory in slots),
            key=lambda slot: slot.gpa,
        )

    def write(self, gpa: int, data: bytes) -> None:
        """Write all of ``data``, across adjacent slots; nothing if any byte has no slot."""
        parts: list[tuple[memoryview, int, int]] = []
        at, end = gpa, gpa + len(data)
        for slot in self._slots:
            if slot.gpa <= at < slot.end:
                stop = min(end, slot.end)
                parts.append((slot.memory[at - slot.gpa : stop - slot.gpa], at, stop))
                at = stop
            if at == end:
                break
        if at != end:
            raise GuestMemoryError(f"guest address {at:#x} is outside the guest's memory")
        for target, start, stop in parts:
            target[:] = data[start - gpa : stop - gpa]
