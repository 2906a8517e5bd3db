# SPDX-License-Identifier: Apache-2.0
"""Compares the kernel's KVM_SET_SREGS and KVM_SET_SREGS2 with the emulator's.

The host's processor has the features of the emulated host, or most features, or random ones.
"""

from __future__ import annotations

import ctypes
import random
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from snpcerts.abi.kvm import REGS_SIZE, SREGS2_SIZE, SREGS_SIZE
from snpcerts.emulator.kvm.host_cpuid import HOST, CpuidTable
from snpcerts.emulator.kvm.system_registers import SystemRegisters
from snpcerts.emulator.psp import vmsa

from .difference import DifferenceError
from .user import PAGE, weighted

# For each word of cpufeatures.h: CPUID function, subleaf, and register (0 is EAX, 3 is EDX).
_WORDS: Final = {
    0: (0x1, 0, 3),
    1: (0x8000_0001, 0, 3),
    4: (0x1, 0, 2),
    6: (0x8000_0001, 0, 2),
    9: (0x7, 0, 1),
    12: (0x7, 1, 0),
    16: (0x7, 0, 2),
    18: (0x7, 0, 3),
    20: (0x8000_0021, 0, 0),
}
_WORD_COUNT: Final = 32
# Word and bit of each feature on which a bit of CR4 or EFER depends, and of LAM and X2APIC.
_FEATURES: Final = (
    *((4, bit) for bit in (5, 17, 21, 26)),
    *((9, bit) for bit in (0, 7, 20)),
    *((16, bit) for bit in (2, 3, 7, 16)),
    *((1, 20), (1, 25), (6, 2), (12, 26), (18, 20), (20, 8)),
)
_CR4_BITS: Final = (11, 12, 13, 16, 17, 18, 20, 21, 22, 23, 28)
_EFER_BITS: Final = (11, 12, 14, 21)
_SEGMENTS: Final = 8
_LONG, _LEGACY = (1 << 31 | 1, 1 << 5, 1 << 10 | 1 << 8), (0x11, 0, 0)  # CR0, CR4, EFER
_PAE: Final = (1 << 31 | 1, 1 << 5, 0)
_LAM: Final = (1 << 61, 1 << 62, 1 << 61 | 1 << 62)  # of CR3
_APIC_BASE_AT: Final = SREGS_SIZE - 32 - 8  # in front of a bitmap of 256 interrupts
_OLD_BITS: Final = 36  # of a guest without CPUID 0x80000008
Table = dict[tuple[int, int | None], tuple[int, int, int, int]]


_HOST: Final = {
    word: HOST[function, index][register]
    for word, (function, index, register) in _WORDS.items()
    if (function, index) in HOST
}


def _packed(words: Mapping[int, int]) -> bytes:
    return struct.pack(f"<{_WORD_COUNT}I", *(words.get(each, 0) for each in range(_WORD_COUNT)))


def _table(words: Mapping[int, int]) -> Table:
    """A CPUID table with these words."""
    table: dict[tuple[int, int | None], list[int]] = {}
    for word, (function, index, register) in _WORDS.items():
        table.setdefault((function, index), [0, 0, 0, 0])[register] = words.get(word, 0)
    return {key: (a, b, c, d) for key, (a, b, c, d) in table.items()}


class _Life:
    """A vCPU whose registers are set and read."""

    def __init__(self, library: ctypes.CDLL, seed: str) -> None:
        self._pick = random.Random(seed)
        self._library = library
        boot = self._pick.random() < 0.5
        self._guest: Table = {}
        some = {word: self._pick.getrandbits(32) for word in _WORDS}
        words = weighted(self._pick, ((_HOST, 20), (self._most(), 50), (some, 30)))
        host = HOST if words is _HOST else _table(words)
        self._registers = SystemRegisters(boot=boot, host=host)
        self._bits = _OLD_BITS  # of the guest's physical addresses
        self._apic_base = 0
        self._accepted = b""  # what both structures begin with, as it was set last
        library.oracle_reset(_packed(words), boot)
        self._story = [f"boot {boot}"]
        self.reached: set[str] = set()

    def live(self) -> None:
        """Go through the sequence; raises :class:`DifferenceError` at the first difference."""
        self._compare()
        for _ in range(self._pick.randint(1, 8)):
            if self._pick.random() < 0.25:
                self._set_cpuid()
            else:
                self._set()
            self._compare()

    def _most(self) -> dict[int, int]:
        """All features, except for a few of :data:`_FEATURES`."""
        words = dict.fromkeys(_WORDS, 0xFFFF_FFFF)
        for word, bit in _FEATURES:
            if self._pick.random() < 0.2:
                words[word] &= ~(1 << bit)
        return words

    def _set_cpuid(self) -> None:
        pick = self._pick
        words = self._most()
        if pick.random() < 0.3:
            words = {word: pick.getrandbits(32) for word in _WORDS}
        bits = weighted(
            pick, ((pick.choice((36, 46, 48, 52, 60)), 88), (0, 8), (pick.choice((64, 255)), 4))
        )
        self._bits = _OLD_BITS
        # None marks an entry for all subleaves, without KVM_CPUID_FLAG_SIGNIFCANT_INDEX.
        self._guest = {
            (function, index if function == 7 or pick.random() < 0.5 else None): entry
            for (function, index), entry in _table(words).items()
        }
        last = pick.choice((0x8000_0007, 0x8000_0008, 0x8000_001F))
        self._guest[0x8000_0000, 0] = (last, 0, 0, 0)
        sizes = -1  # there is no such function
        if pick.random() < 0.9:
            sizes = 0x3000 | bits
            self._guest[0x8000_0008, pick.choice((0, None))] = (sizes, 0, 0, 0)
            if last >= 0x8000_0008:
                self._bits = bits
        self._story.append(f"cpuid {self._guest}")
        self._library.oracle_set_cpuid(_packed(words), last, sizes)

    def _set(self) -> None:
        pick = self._pick
        second = pick.random() < 0.5
        again = self._accepted and pick.random() < 0.2
        shared = self._accepted if again else self._new()
        if second:
            flags = weighted(pick, ((0, 65), (1, 30), (1 << pick.randrange(64), 5)))
            data = shared + struct.pack("<Q", flags) + pick.randbytes(32)
            assert len(data) == SREGS2_SIZE
        else:
            bitmap = weighted(
                pick, ((0, 70), (1 << pick.randrange(256), 20), (pick.getrandbits(256), 10))
            )
            data = shared + bitmap.to_bytes(32, "little")
            assert len(data) == SREGS_SIZE
        name = "sregs2" if second else "sregs"
        self._story.append(f"set {name} {data.hex()}")
        kernel = getattr(self._library, f"oracle_set_{name}")(data)
        emulator = self._call(self._registers.set2 if second else self._registers.set, data)
        self.reached.add(f"{name} {'set' if kernel == 0 else 'refused'}")
        self._differ(f"set {name}", kernel, emulator)
        if kernel == 0:
            self._accepted = shared

    def _new(self) -> bytes:
        """New values of the registers that both structures have."""
        pick = self._pick
        cr0, cr4, efer = pick.choice((_LONG, _LONG, _LEGACY, _PAE))
        cr3 = weighted(
            pick,
            (
                (0x1000, 60),
                (0x1000 | pick.choice(_LAM), 15),
                (1 << pick.randrange(64), 20),
                (pick.getrandbits(64), 5),
            ),
        )
        cr0, cr4, efer = (self._spoilt(each) for each in (cr0, cr4, efer))
        cr4 |= weighted(pick, ((0, 50), (1 << pick.choice(_CR4_BITS), 50)))
        efer |= weighted(pick, ((0, 70), (1 << pick.choice(_EFER_BITS), 30)))
        apic = weighted(
            pick,
            (
                (0xFEE0_0900, 60),
                (0xFEE0_0C00, 10),
                (0xFEE0_0000, 10),
                (0xFEE0_0800 ^ 1 << pick.randrange(64), 20),
            ),
        )
        if self._bits == 0 and pick.random() < 0.8:  # hardly anything else is valid
            cr3, apic = pick.choice((0, 1)), self._apic_base
        cr8 = pick.choice((0, 7, 15, 16, 1 << 63))
        data = b"".join(self._segment() for _ in range(_SEGMENTS))
        data += pick.randbytes(32)  # GDT and IDT
        return data + struct.pack("<7Q", cr0, pick.getrandbits(64), cr3, cr4, cr8, efer, apic)

    def _call(self, setter: Callable[[bytes, CpuidTable], None], data: bytes) -> int:
        try:
            setter(data, self._guest)
        except OSError as refused:
            return -(refused.errno or 0)
        return 0

    def _segment(self) -> bytes:
        pick = self._pick
        kind = weighted(pick, ((11, 40), (3, 30), (pick.getrandbits(8), 30)))
        flags = [weighted(pick, ((1, 45), (0, 45), (pick.getrandbits(8), 10))) for _ in range(8)]
        if pick.random() < 0.6:
            flags[4] = 0  # L
        limit = pick.choice((0xFFFF, 0xF_FFFF, 0x10_0000, 0xFFFF_FFFF))
        head = struct.pack("<QIH", pick.getrandbits(64), limit, pick.getrandbits(16))
        return head + bytes([kind, *flags]) + pick.randbytes(1)

    def _spoilt(self, value: int) -> int:
        pick = self._pick
        return weighted(
            pick, ((value, 87), (value ^ 1 << pick.randrange(33), 11), (pick.getrandbits(64), 2))
        )

    def _compare(self) -> None:
        kernel = [(ctypes.c_ubyte * size)() for size in (SREGS_SIZE, SREGS2_SIZE)]
        self._differ("get", self._library.oracle_get_sregs(*kernel), 0)
        (self._apic_base,) = struct.unpack_from("<Q", kernel[0], _APIC_BASE_AT)
        emulator = (self._registers.get(), self._registers.get2())
        for name, theirs, ours in zip(("sregs", "sregs2"), kernel, emulator, strict=True):
            for at in range(0, len(ours), 8):
                word = bytes(theirs[at : at + 8])
                self._differ(f"get {name} at {at}", word.hex(), ours[at : at + 8].hex())

        segments = (ctypes.c_ubyte * PAGE)()
        size = self._library.oracle_segments(segments)
        page = vmsa.build({"regs": bytes(REGS_SIZE)}, self._registers.shared, {}, 0)
        self._differ("VMSA: segments", bytes(segments[:size]).hex(), page[:size].hex())

    def _differ(self, what: str, kernel: object, emulator: object) -> None:
        if kernel != emulator:
            self._story.append(f"{what} -> {kernel}")
            raise DifferenceError(what, {"value": f"{kernel} {emulator}"}, self._story)


def lives(
    path: Path, seed: int, numbers: Iterable[int]
) -> Iterator[tuple[int, set[str], DifferenceError | None]]:
    """Yield for each vCPU: its number, what was set or refused, and the difference, if any."""
    library = ctypes.CDLL(str(path))
    library.oracle_reset.argtypes = (ctypes.c_char_p, ctypes.c_bool)
    library.oracle_set_cpuid.argtypes = (ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64)
    for number in numbers:
        found = None
        life = _Life(library, f"{seed}:{number}")
        try:
            life.live()
        except DifferenceError as differs:
            found = differs
        yield number, life.reached, found
