# SPDX-License-Identifier: Apache-2.0
"""Checks the CPUID values in a launch page or a guest's request as the firmware does.

Source: AMD-ASPFW ``cpuid_lookup.c``, ``sanitize_cpuid_list`` and ``sanitize_cpuid_entry``. Unlike
that source, this module does not check individual feature bits, whose rules come from AMD's
Processor Programming Reference. It checks the reserved field, the highest function numbers, the
processor's signature, the size of a cache line, and functions that the processor does not have.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Final

from snpcerts.abi.cstruct import CStruct, u32, u64

CPUID_COUNT_MAX: Final = 64
LIST_HEADER: Final = 16  # count (or status and count), then reserved bytes

_STANDARD, _EXTENDED = range(0x1_0000), range(0x8000_0000, 0x8001_0000)
_HIGHEST_STANDARD, _HIGHEST_EXTENDED = 0x10, 0x8000_0028
_SIGNATURE_RESERVED = 0xF000_F000
_CACHE_LINE, _CACHE_LINE_SHIFT = 8, 8

# Functions that exist, with their subfunctions. The values of all others must be zero.
_KNOWN: Final = {
    **dict.fromkeys((0, 1, 2, 4, 5, 6), (0,)),
    0x07: (0, 1),
    0x0B: (0, 1, 2),
    0x0D: (0, 1, 2, 5, 6, 7, 9, 11, 12),
    0x0F: (0, 1),
    0x10: (0, 1),
    **dict.fromkeys(range(0x8000_0000, 0x8000_0009), (0,)),
    **dict.fromkeys((0x8000_000A, 0x8000_0019, 0x8000_001A, 0x8000_001B), (0,)),
    0x8000_001D: (0, 1, 2, 3, 4),
    **dict.fromkeys((0x8000_001E, 0x8000_001F), (0,)),
    0x8000_0020: (0, 1, 2, 3),
    **dict.fromkeys((0x8000_0021, 0x8000_0022, 0x8000_0023), (0,)),
    0x8000_0024: (0, 1),
    0x8000_0026: (0, 1, 2, 3),
}


@dataclass(frozen=True, slots=True)
class CpuidFunction(CStruct):
    """One CPUID function: its inputs, and the outputs to check."""

    SIZE: ClassVar[int] = 48
    eax_in: int = u32(0)
    ecx_in: int = u32(4)
    xcr0_in: int = u64(8)
    xss_in: int = u64(16)
    eax: int = u32(24)
    ebx: int = u32(28)
    ecx: int = u32(32)
    edx: int = u32(36)
    reserved: int = u64(40)


def judge(data: bytes, count: int, signature: int) -> tuple[bytes, int, bool]:
    """Check the first ``count`` CPUID functions in ``data``.

    Returns the permitted values, the number of functions checked, and whether all pass.
    ``signature`` is what CPUID function 1 returns in EAX on this processor.
    """
    right, judged, sound = b"", 0, True
    for at in range(0, count * CpuidFunction.SIZE, CpuidFunction.SIZE):
        given = CpuidFunction.unpack(data[at : at + CpuidFunction.SIZE])
        corrected = given
        if given.eax_in in _STANDARD or given.eax_in in _EXTENDED:
            judged += 1
            corrected = _corrected(given, signature)
            sound = sound and corrected == given and not given.reserved
        right += corrected.pack()
    return right, judged, sound


def _corrected(given: CpuidFunction, signature: int) -> CpuidFunction:
    if given.ecx_in not in _KNOWN.get(given.eax_in, ()):
        return replace(given, eax=0, ebx=0, ecx=0, edx=0)
    match given.eax_in:
        case 0:
            return replace(given, eax=min(given.eax, _HIGHEST_STANDARD))
        case 1:
            eax = given.eax if _order(given.eax) <= _order(signature) else signature
            line = given.ebx & ~(0xFF << _CACHE_LINE_SHIFT) | _CACHE_LINE << _CACHE_LINE_SHIFT
            return replace(given, eax=eax & ~_SIGNATURE_RESERVED, ebx=line)
        case 0x8000_0000:
            return replace(given, eax=min(given.eax, _HIGHEST_EXTENDED))
        case _:
            return given


def _order(signature: int) -> tuple[int, int, int]:
    """Return the combined family, combined model and stepping as a tuple, for comparison."""
    base, extended = signature >> 8 & 0xF, signature >> 20 & 0xFF
    family = base + extended if base == 0xF else base
    model = signature >> 4 & 0xF | (signature >> 16 & 0xF) << 4
    return family, model, signature & 0xF
