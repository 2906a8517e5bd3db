# SPDX-License-Identifier: Apache-2.0
"""Compares KVM_CHECK_EXTENSION and KVM_ENABLE_CAP of the kernel and of the emulator.

The sequences check each capability on /dev/kvm and on each type of VM. They also enable
capabilities; in between, they make calls that affect them, such as KVM_CREATE_VCPU.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, cast

from snpcerts.abi.kvm import ENABLE_CAP_SIZE, Cap, Ioctl, VmType
from snpcerts.emulator.guest.linux import LinuxGuest
from snpcerts.emulator.kvm.kvm_device import KvmDevice
from snpcerts.emulator.kvm.platform import Platform
from snpcerts.emulator.kvm.release import KernelRelease
from snpcerts.emulator.kvm.vm import Vm
from snpcerts.emulator.psp.firmware import Firmware
from snpcerts.emulator.syscall.device import Caller, NewDescriptor

from .difference import DifferenceError
from .user import OneStructure, weighted

NUMBERS: Final = range(300)  # of capabilities: Linux 7.3 has 250
_ASKED: Final = (None, VmType.DEFAULT, VmType.SNP)  # None is /dev/kvm
CASES: Final = tuple(itertools.product(NUMBERS, _ASKED))
# Capabilities that a VM can enable, or for which earlier calls change KVM_CHECK_EXTENSION.
_ENABLED: Final = (
    Cap.DISABLE_QUIRKS,
    Cap.SPLIT_IRQCHIP,
    Cap.X2APIC_API,
    Cap.MSR_PLATFORM_INFO,
    Cap.EXCEPTION_PAYLOAD,
    Cap.X86_TRIPLE_FAULT_EVENT,
    Cap.X86_USER_SPACE_MSR,
    Cap.EXIT_HYPERCALL,
    Cap.EXIT_ON_EMULATION_FAILURE,
    Cap.MAX_VCPU_ID,
    Cap.HALT_POLL,
    Cap.X86_APIC_BUS_CYCLES_NS,
)
# The shortest cycle of the APIC's bus, in ns, for which the longest timeout overflows 64 bits.
_BUS_CYCLE_END: Final = -(-(1 << 64) // (0xFFFF_FFFF * 128))
# Capabilities that KVM reports and the emulator does not, by the feature that the emulator lacks.
NOT_EMULATED: Final = {
    "Hyper-V's enlightenments": (44, 45, 46, 96, 123, 148, 149, 154, 155, 161, 167, 191, 199),
    "Xen's hypercalls": (38,),
    "KVM_GET_ONE_REG and KVM_SET_ONE_REG": (70,),
    "system management mode": (117,),
    "device attributes of a vCPU": (127,),
    "control over which events in a guest cause exits": (143, 193),
    "dirty-page logging": (168, 192, 223),
    "performance counters": (173, 212, 226),
    "nothing: KVM_CAP_LAST_CPU adds no ioctl": (184,),
    "features of KVM that only code in a guest sees": (187, 190, 213),
    "a debugger's breakpoints in a guest": (195,),
    "SGX": (196,),
    "copying and moving an encrypted VM": (197, 206),
    "statistics": (203,),
    "huge pages of the host": (220,),
    "faulting in guest memory before the guest runs": (236,),
    "a guest_memfd that can be mapped": (244,),
}
_NOT_REPORTED: Final = frozenset(itertools.chain.from_iterable(NOT_EMULATED.values()))


_OTHERS: Final = tuple(number for number in NUMBERS if number not in _NOT_REPORTED)


class _Life:
    """A VM that enables capabilities."""

    def __init__(self, library: ctypes.CDLL, platform: Platform, series: str, seed: str) -> None:
        self._pick = random.Random(seed)
        self._library = library
        kind = self._pick.choice((VmType.DEFAULT, VmType.SNP))
        self._vm = Vm(platform, kind, 1, LinuxGuest, KernelRelease(series))
        library.oracle_reset(int(kind), os.cpu_count() or 1)
        self._memory = OneStructure()
        self._closing: list[Any] = [self._vm]
        self._story = [kind.name]
        self.reached: set[str] = set()

    def live(self) -> None:
        try:
            for _ in range(self._pick.randint(2, 8)):
                self._step()
        finally:
            for each in reversed(self._closing):
                each.close()

    def _step(self) -> None:
        pick, library = self._pick, self._library
        step = weighted(
            pick, (("enable", 72), ("check", 10), ("vcpu", 6), ("chip", 6), ("boot", 6))
        )
        number = pick.randrange(8)
        match step:
            case "vcpu":
                if self._call(Ioctl.CREATE_VCPU, number) == 0:
                    library.oracle_create_vcpu()
            case "chip":
                if self._call(Ioctl.CREATE_IRQCHIP) == 0:
                    library.oracle_create_irqchip()
            case "boot":
                if self._call(Ioctl.SET_BOOT_CPU_ID, number) == 0:
                    library.oracle_set_boot_cpu(number)
            case "check":
                self._check(pick.choice(_ENABLED))
            case _:
                self._enable()

    def _enable(self) -> None:
        pick = self._pick
        cap = int(pick.choice(_ENABLED if pick.random() < 0.9 else _OTHERS))
        flags = weighted(pick, ((0, 95), (1, 5)))
        values = [self._value() for _ in range(4)]
        kernel = self._library.oracle_enable_cap(cap, flags, struct.pack("<4Q", *values))
        self._memory.structure = struct.pack("<II4Q", cap, flags, *values).ljust(
            ENABLE_CAP_SIZE, b"\0"
        )
        emulator = self._call(Ioctl.ENABLE_CAP, 0)
        if kernel == 0:
            self.reached.add(f"enabled {cap}")
            self._check(cap)
        said = " ".join(f"{value:#x}" for value in values)
        self._compare(f"enable {cap} flags {flags} values {said}", kernel, emulator)
        self._compare("hypercalls exit", self._library.oracle_hypercalls(), self._vm.hypercalls)

    def _check(self, cap: int) -> None:
        kernel = self._library.oracle_check_extension(cap, True)
        self._compare(f"check {cap}", kernel, self._call(Ioctl.CHECK_EXTENSION, cap))

    def _value(self) -> int:
        pick = self._pick
        return weighted(
            pick,
            (
                (pick.getrandbits(4), 40),
                (pick.choice((0, 24, 100, 4095, 4096, 4097)), 20),
                (_BUS_CYCLE_END + pick.randrange(-2, 2), 5),
                (1 << pick.randrange(64), 20),
                ((1 << pick.randrange(1, 65)) - 1, 10),
                (pick.getrandbits(64), 5),
            ),
        )

    def _call(self, request: int, argument: int = 0) -> int:
        caller = Caller(cast("Any", self._memory), lambda _: None, pid=1)
        self._story.append(f"{Ioctl(request).name} {argument}")
        try:
            result = self._vm.ioctl(caller, request, argument)
        except OSError as failed:
            return -(failed.errno or 0)
        if isinstance(result, NewDescriptor):
            self._closing.append(result.device)
            return 0
        assert isinstance(result, int)
        return result

    def _compare(self, what: str, kernel: int, emulator: int) -> None:
        self._story.append(f"{what} -> {kernel}")
        if kernel != emulator:
            key = " ".join(what.split()[:2])
            raise DifferenceError(key, {"value": f"{kernel} {emulator}"}, self._story)


def _asked(library: ctypes.CDLL, platform: Platform, series: str, number: int) -> bool:
    """Compare the answers to one of :data:`CASES`; return whether the kernel has the capability."""
    cap, kind = CASES[number % len(CASES)]
    library.oracle_reset(0 if kind is None else int(kind), os.cpu_count() or 1)
    kernel = library.oracle_check_extension(cap, kind is not None)
    caller = Caller(cast("Any", OneStructure()), lambda _: None, pid=1)
    device: Any = KvmDevice(platform, kernel=KernelRelease(series))
    if kind is not None:
        device = Vm(platform, kind, 1, LinuxGuest, KernelRelease(series))
    try:
        emulator = device.ioctl(caller, Ioctl.CHECK_EXTENSION, cap)
    finally:
        device.close()
    if cap in _NOT_REPORTED:
        wrong = "in NOT_EMULATED, but KVM does not report it" if not kernel else ""
        wrong = "in NOT_EMULATED, but the emulator reports it" if emulator else wrong
    else:
        wrong = "value" if kernel != emulator else ""
    if wrong:
        values = {"value": f"{kernel:#x} {emulator:#x}"}
        raise DifferenceError(f"capability {cap}: {wrong}", values, [str(kind)])
    return bool(kernel)


def lives(
    path: Path, seed: int, numbers: Iterable[int]
) -> Iterator[tuple[int, set[str], DifferenceError | None]]:
    """Yield for each sequence: its number, what was reported or enabled, and any difference.

    A sequence consists of a VM, which depends on the seed, and of one of :data:`CASES`, which
    does not: the cases are taken in turn, and then again from the first.
    """
    library = ctypes.CDLL(str(path))
    for name in ("reset", "create_vcpu", "create_irqchip", "set_boot_cpu"):
        getattr(library, f"oracle_{name}").restype = None
    library.oracle_set_boot_cpu.argtypes = (ctypes.c_uint32,)
    library.oracle_check_extension.argtypes = (ctypes.c_long, ctypes.c_bool)
    library.oracle_enable_cap.argtypes = (ctypes.c_uint32, ctypes.c_uint32, ctypes.c_char_p)
    library.oracle_hypercalls.restype = ctypes.c_uint64
    platform = Platform(cast("Firmware", None))
    series = ".".join(path.name.split("-")[1].split(".")[:2])
    for number in numbers:
        found, reached = None, set()
        life = _Life(library, platform, series, f"{seed}:{number}")
        try:
            life.live()
            if _asked(library, platform, series, number):
                reached.add("reported")
        except DifferenceError as differs:
            found = differs
        yield number, life.reached | reached, found
