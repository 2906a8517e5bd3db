# SPDX-License-Identifier: Apache-2.0
"""The CPUID values that KVM supports, and the features that a guest has with its CPUID table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from snpcerts.emulator.guest.memory_slots import PHYSICAL_BITS
from snpcerts.emulator.kvm.ghcb_exit import C_BIT

# EAX to EDX by function and subleaf. None as subleaf means all subleaves.
CpuidTable = Mapping[tuple[int, int | None], tuple[int, int, int, int]]

# The values for a guest's CPUID table: vendor, a processor of the x86-64 baseline, SEV's leaf,
# KVM's signature. Columns: function, index, flags, EAX to EDX.
SUPPORTED: Final = (
    (0x0000_0000, 0, 0, 0x10, 0x68747541, 0x444D4163, 0x69746E65),
    (0x0000_0001, 0, 0, 0x00A1_0F11, 0, 0x8020_2001, 0x078B_FBFF),
    (0x0000_0007, 0, 1, 0, 0, 0, 0),
    (0x0000_000D, 0, 1, 0b111, 0x340, 0x340, 0),
    (0x4000_0000, 0, 0, 0x4000_0001, 0x4B4D564B, 0x564B4D56, 0x4D),
    (0x4000_0001, 0, 0, 0x0100_007B, 0, 0, 0),
    (0x8000_0000, 0, 0, 0x8000_001F, 0x68747541, 0x444D4163, 0x69746E65),
    (0x8000_0001, 0, 0, 0x00A1_0F11, 0, 0x0000_0003, 0x2010_0800),
    (0x8000_0008, 0, 0, 0x3000 | PHYSICAL_BITS, 0, 0, 0),
    (0x8000_001F, 0, 0, 0b11011, 5 << 6 | C_BIT, 0, 0),
)
HOST: Final[CpuidTable] = {
    (function, index): (a, b, c, d) for function, index, _, a, b, c, d in SUPPORTED
}
_ABSENT: Final = (0, 0, 0, 0)
# Width of physical addresses for a guest without CPUID function 0x80000008, in bits.
_OLD_PHYSICAL_BITS: Final = 36


def entry(table: CpuidTable, function: int, index: int = 0) -> tuple[int, int, int, int]:
    """Return EAX, EBX, ECX and EDX of a CPUID function; zeros if ``table`` lacks the function."""
    return table.get((function, None)) or table.get((function, index)) or _ABSENT


def has(
    host: CpuidTable, guest: CpuidTable, function: int, register: int, bit: int, index: int = 0
) -> bool:
    """Whether a guest has a feature: KVM supports it, and the guest's CPUID table has it."""
    both = entry(host, function, index)[register] & entry(guest, function, index)[register]
    return bool(both >> bit & 1)


def physical_bits(guest: CpuidTable) -> int:
    """Return the width of a guest's physical addresses, as KVM reads it from the CPUID table."""
    if entry(guest, 0x8000_0000)[0] < 0x8000_0008:
        return _OLD_PHYSICAL_BITS
    if (0x8000_0008, None) not in guest and (0x8000_0008, 0) not in guest:
        return _OLD_PHYSICAL_BITS
    return entry(guest, 0x8000_0008)[0] & 0xFF
