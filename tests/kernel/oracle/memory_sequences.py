# SPDX-License-Identifier: Apache-2.0
"""Compares the kernel's memory slots, guest_memfds and memory attributes with the emulator's."""

from __future__ import annotations

import ctypes
import random
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, cast

from snpcerts.abi.kvm import (
    MEM_GUEST_MEMFD,
    CreateGuestMemfd,
    Ioctl,
    MemoryAttributes,
    UserspaceMemoryRegion,
    UserspaceMemoryRegion2,
    VmType,
)
from snpcerts.emulator.guest.linux import LinuxGuest
from snpcerts.emulator.kvm.platform import Platform
from snpcerts.emulator.kvm.release import KernelRelease
from snpcerts.emulator.kvm.vm import Vm
from snpcerts.emulator.psp.firmware import Firmware
from snpcerts.emulator.syscall.device import Caller, NewDescriptor

from .difference import DifferenceError
from .user import PAGE, OneStructure, weighted

_SLOTS, _LAST_SLOT, _PAGES = 8, 32763, 64
_OWN, _ANOTHERS, _OTHER_FD, _CLOSED_FD = (10, 11, 12), 13, 14, 15  # numbers in stubs/memory.c
_ADDRESS: Final = 0x7F00_0000_0000
_TERABYTE: Final = 1 << 40


class _Life:
    """A VM whose memory is set up."""

    def __init__(self, library: ctypes.CDLL, platform: Platform, series: str, seed: str) -> None:
        self._pick = random.Random(seed)
        self._library = library
        kind = self._pick.choice((VmType.DEFAULT, VmType.SNP))
        release = KernelRelease(series)
        self._vm = Vm(platform, kind, 1, LinuxGuest, release)
        another = Vm(platform, kind, 1, LinuxGuest, release)
        self._memory = OneStructure()
        self._closing: list[Any] = [self._vm, another]
        self._devices: dict[int, Any] = {_OTHER_FD: another}
        self._story = [kind.name]
        self.reached: set[str] = set()
        sizes = [self._pick.choice((4, 16, _PAGES)) for _ in (*_OWN, _ANOTHERS)]
        for number, pages in zip((*_OWN, _ANOTHERS), sizes, strict=True):
            vm = another if number == _ANOTHERS else self._vm
            self._memory.structure = CreateGuestMemfd(pages * PAGE).pack()
            made = vm.ioctl(self._caller(), Ioctl.CREATE_GUEST_MEMFD, 0)
            assert isinstance(made, NewDescriptor)
            self._devices[number] = made.device
            self._closing.append(made.device)
        library.oracle_reset(int(kind), struct.pack("<4I", *sizes))

    def live(self) -> None:
        """Go through the sequence; raises :class:`DifferenceError` at the first difference."""
        try:
            for _ in range(self._pick.randint(3, 12)):
                step = weighted(
                    self._pick,
                    (
                        (self._region, 60),
                        (self._again, 20),
                        (self._attributes, 16),
                        (self._memfd, 4),
                    ),
                )
                step()
        finally:
            for each in reversed(self._closing):
                each.close()

    def _region(self) -> None:
        pick = self._pick
        memfd = weighted(pick, ((MEM_GUEST_MEMFD, 60), (0, 40)))
        flags = memfd | weighted(pick, ((0, 75), (1, 8), (2, 8), (1 << pick.randrange(32), 9)))
        slot = weighted(
            pick,
            (
                (pick.randrange(_SLOTS), 92),
                (pick.choice((_LAST_SLOT, 32764, 0xFFFF, 0x10000, 0x10001, 1 << 31)), 8),
            ),
        )
        size = weighted(
            pick,
            (
                (pick.randrange(1, 4) * PAGE, 50),
                (pick.randrange(1, 9) * PAGE, 20),
                (0, 18),
                (pick.randrange(20) * PAGE + pick.choice((1, 8)), 3),
                (pick.choice(((1 << 31) - 1, 1 << 31, 1 << 35, 1 << 51)) * PAGE, 5),
                (pick.getrandbits(64), 4),
            ),
        )
        top = (1 << 48) - pick.randrange(4) * PAGE
        gpa = weighted(
            pick,
            (
                (pick.randrange(24) * PAGE, 54),
                (pick.randrange(60) * PAGE, 30),
                (top, 6),
                (pick.choice((1, 8, (1 << 64) - PAGE, 1 << 52)), 6),
                (pick.getrandbits(64), 4),
            ),
        )
        end = (1 << 47) - PAGE
        usual = _ADDRESS + pick.choice((0, 0, PAGE)) if size < _TERABYTE else _TERABYTE
        address = weighted(
            pick,
            (
                (usual, 86),
                (pick.choice((_ADDRESS + 1, end - PAGE, end, 1 << 47, (1 << 64) - PAGE)), 8),
                (pick.getrandbits(64), 6),
            ),
        )
        fd = weighted(
            pick,
            (
                (_OWN[0], 68),
                (pick.choice(_OWN), 20),
                (_ANOTHERS, 4),
                (_OTHER_FD, 4),
                (_CLOSED_FD, 4),
            ),
        )
        offset = weighted(
            pick,
            (
                (pick.randrange(12) * PAGE, 88),
                (pick.choice((1, 8, _PAGES * PAGE, (1 << 64) - PAGE)), 8),
                (pick.getrandbits(64), 4),
            ),
        )
        region = UserspaceMemoryRegion2(slot, flags, gpa, size, address, offset, fd)
        self._set(region, first=pick.random() < 0.15)

    def _again(self) -> None:
        """Set a slot again, with other flags or elsewhere, or delete it."""
        pick = self._pick
        there = list(self._vm.slots)
        if not there:
            return
        slot = pick.choice(there)
        if pick.random() < 0.3:
            self._set(UserspaceMemoryRegion2(slot.number), first=False)
            return
        flags = slot.flags ^ weighted(pick, ((1, 60), (0, 25), (2, 8), (MEM_GUEST_MEMFD, 7)))
        gpa = weighted(pick, ((slot.gpa, 60), (pick.randrange(24) * PAGE, 40)))
        size = weighted(pick, ((slot.size, 92), (slot.size + PAGE, 8)))
        address = weighted(pick, ((slot.address, 92), (slot.address + PAGE, 8)))
        region = UserspaceMemoryRegion2(
            slot.number, flags, gpa, size, address, 0, pick.choice(_OWN)
        )
        self._set(region, first=False)

    def _set(self, region: UserspaceMemoryRegion2, *, first: bool) -> None:
        slot, flags, gpa, size, address = (
            region.slot,
            region.flags,
            region.guest_phys_addr,
            region.memory_size,
            region.userspace_addr,
        )
        self._story.append(f"{'REGION' if first else 'REGION2'} {region}")
        if first:
            old = UserspaceMemoryRegion(slot, flags, gpa, size, address)
            self._memory.structure = old.pack()
            given = old.pack().ljust(UserspaceMemoryRegion2.SIZE, b"\0")
            emulator = self._call(Ioctl.SET_USER_MEMORY_REGION)
        else:
            self._memory.structure = given = region.pack()
            emulator = self._call(Ioctl.SET_USER_MEMORY_REGION2)
        kernel = self._library.oracle_set_region(given, first)
        if kernel == 0:
            private = flags & MEM_GUEST_MEMFD
            self.reached.add("deleted" if size == 0 else "private slot" if private else "slot")
        elif kernel == -17:
            self.reached.add("EEXIST")
        self._compare("region", kernel, emulator)
        self._compare_slots()

    def _compare_slots(self) -> None:
        found = (ctypes.c_uint64 * 4)()
        kernel = {}
        for number in (*range(_SLOTS), _LAST_SLOT):
            if self._library.oracle_slot(number, found):
                kernel[number] = tuple(found)
        emulator = {
            slot.number: (slot.gpa // PAGE, slot.size // PAGE, slot.address, slot.flags)
            for slot in self._vm.slots
        }
        self._compare("slots", kernel, emulator)

    def _attributes(self) -> None:
        pick = self._pick
        wanted = MemoryAttributes(
            address=weighted(
                pick,
                (
                    (pick.randrange(40) * PAGE, 88),
                    (pick.choice((8, (1 << 64) - PAGE)), 8),
                    (pick.getrandbits(64), 4),
                ),
            ),
            size=weighted(
                pick,
                ((pick.randrange(1, 24) * PAGE, 88), (0, 4), (8, 4), (pick.getrandbits(64), 4)),
            ),
            attributes=weighted(pick, ((8, 50), (0, 42), (1 << pick.randrange(64), 4), (1, 4))),
            flags=weighted(pick, ((0, 95), (1, 5))),
        )
        self._story.append(f"{wanted}")
        self._memory.structure = wanted.pack()
        emulator = self._call(Ioctl.SET_MEMORY_ATTRIBUTES)
        kernel = self._library.oracle_set_attributes(wanted.pack())
        if kernel == 0:
            self.reached.add("attributes")
        self._compare("attributes", kernel, emulator)
        private = ctypes.string_at(self._library.oracle_private(), _PAGES)
        ours = bytes(self._vm.is_private(page * PAGE) for page in range(_PAGES))
        self._compare("private pages", private.hex(), ours.hex())

    def _memfd(self) -> None:
        pick = self._pick
        size = weighted(pick, ((PAGE, 60), (0, 10), (8, 10), (1 << 63, 10), ((1 << 63) - PAGE, 10)))
        # Flags 1 and 2 ask for a guest_memfd that can be mapped, which is not emulated.
        flags = weighted(pick, ((0, 80), (4, 10), (1 << 63, 10)))
        wanted = CreateGuestMemfd(size, flags)
        self._story.append(f"{wanted}")
        self._memory.structure = wanted.pack()
        emulator = self._call(Ioctl.CREATE_GUEST_MEMFD)
        kernel = self._library.oracle_create_memfd(wanted.pack())
        if kernel == 0:
            self.reached.add("guest_memfd")
        self._compare("guest_memfd", kernel, emulator)

    def _caller(self) -> Caller:
        return Caller(cast("Any", self._memory), self._devices.get, pid=1)

    def _call(self, request: int) -> int:
        try:
            result = self._vm.ioctl(self._caller(), request, 0)
        except OSError as failed:
            return -(failed.errno or 0)
        if isinstance(result, NewDescriptor):
            self._closing.append(result.device)
            return 0
        assert isinstance(result, int)
        return result

    def _compare(self, what: str, kernel: object, emulator: object) -> None:
        if kernel != emulator:
            values = {"value": f"{kernel} {emulator}"}
            raise DifferenceError(f"{what} differ", values, self._story)


def lives(
    path: Path, seed: int, numbers: Iterable[int]
) -> Iterator[tuple[int, set[str], DifferenceError | None]]:
    """Yield for each VM: its number, what it has set up, and the difference, if any."""
    library = ctypes.CDLL(str(path))
    library.oracle_reset.restype = None
    library.oracle_reset.argtypes = (ctypes.c_int, ctypes.c_char_p)
    library.oracle_set_region.argtypes = (ctypes.c_char_p, ctypes.c_bool)
    for name in ("set_attributes", "create_memfd"):
        getattr(library, f"oracle_{name}").argtypes = (ctypes.c_char_p,)
    library.oracle_private.restype = ctypes.c_void_p
    library.oracle_slot.restype = ctypes.c_bool
    platform = Platform(cast("Firmware", None))
    series = ".".join(path.name.split("-")[1].split(".")[:2])
    for number in numbers:
        life = _Life(library, platform, series, f"{seed}:{number}")
        found = None
        try:
            life.live()
        except DifferenceError as differs:
            found = differs
        yield number, life.reached, found
