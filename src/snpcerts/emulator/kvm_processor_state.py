# SPDX-License-Identifier: Apache-2.0
"""The processor as a VMM sets it up: registers, MSRs and CPUID, kept and given back.

An emulated vCPU executes no instructions, so nothing here has an effect. But a
VMM that was not written for the emulator sets dozens of things before its first
KVM_RUN, reads some of them back, and gives up where a call fails.

Numbers and sizes: Linux ``include/uapi/linux/kvm.h``. Structures are opaque
here, but for the lists of MSRs and of CPUID entries.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Final

from snpcerts.abi.ioctl import io, ior, iow, iowr
from snpcerts.abi.kvm import KVMIO
from snpcerts.emulator.memory import UserMemory

MSR_ENTRIES_MAX = 256
CPUID_ENTRIES_MAX = 256
_CPUID_ENTRY: Final = struct.Struct("<7I12x")
_MSR_ENTRY: Final = struct.Struct("<I4xQ")
_LIST_HEADER: Final = 8

# One state of so many bytes, by its name: how it is read, how it is set.
_STATES: Final = {
    "regs": (ior(KVMIO, 0x81, 144), iow(KVMIO, 0x82, 144), 144),
    "sregs": (ior(KVMIO, 0x83, 312), iow(KVMIO, 0x84, 312), 312),
    "fpu": (ior(KVMIO, 0x8C, 416), iow(KVMIO, 0x8D, 416), 416),
    "lapic": (ior(KVMIO, 0x8E, 1024), iow(KVMIO, 0x8F, 1024), 1024),
    "mp_state": (ior(KVMIO, 0x98, 4), iow(KVMIO, 0x99, 4), 4),
    "vcpu_events": (ior(KVMIO, 0x9F, 64), iow(KVMIO, 0xA0, 64), 64),
    "debugregs": (ior(KVMIO, 0xA1, 128), iow(KVMIO, 0xA2, 128), 128),
    "xsave": (ior(KVMIO, 0xA4, 4096), iow(KVMIO, 0xA5, 4096), 4096),
    "xcrs": (ior(KVMIO, 0xA6, 392), iow(KVMIO, 0xA7, 392), 392),
    "sregs2": (ior(KVMIO, 0xCC, 320), iow(KVMIO, 0xCD, 320), 320),
}
REGISTERS: Final = frozenset(("regs", "sregs", "sregs2"))
GETS: Final = {get: name for name, (get, _, _) in _STATES.items()}
SETS: Final = {put: name for name, (_, put, _) in _STATES.items()}
SIZES: Final = {name: size for name, (_, _, size) in _STATES.items()}

GET_MSRS: Final = iowr(KVMIO, 0x88, 8)
SET_MSRS: Final = iow(KVMIO, 0x89, 8)
SET_CPUID2: Final = iow(KVMIO, 0x90, 8)
GET_CPUID2: Final = iowr(KVMIO, 0x91, 8)
GET_TSC_KHZ: Final = io(KVMIO, 0xA3)
TSC_KHZ: Final = 2_000_000

# Taken and forgotten.
IGNORED: Final = {
    iow(KVMIO, 0x8B, 4): "KVM_SET_SIGNAL_MASK",
    iowr(KVMIO, 0x92, 40): "KVM_TPR_ACCESS_REPORTING",
    iow(KVMIO, 0x93, 8): "KVM_SET_VAPIC_ADDR",
    iow(KVMIO, 0x9C, 8): "KVM_X86_SETUP_MCE",
    io(KVMIO, 0x9A): "KVM_NMI",
    io(KVMIO, 0xA2): "KVM_SET_TSC_KHZ",
    io(KVMIO, 0xAD): "KVM_KVMCLOCK_CTRL",
    iow(KVMIO, 0x9B, 72): "KVM_SET_GUEST_DEBUG",
}


class ProcessorState:
    """What one vCPU was told. ``protected`` says whether the firmware has its registers by now."""

    def __init__(self, protected: Callable[[], bool]) -> None:
        self._protected = protected
        self._states: dict[str, bytes] = {}
        self._msrs: dict[int, int] = {}
        self._cpuid = b""  # entries as they were set

    @property
    def cpuid(self) -> dict[int, tuple[int, int, int, int]]:
        """EAX to EDX of each CPUID function's subleaf 0."""
        return {
            function: (a, b, c, d)
            for function, index, _, a, b, c, d in _CPUID_ENTRY.iter_unpack(self._cpuid)
            if index == 0
        }

    @property
    def mp_state(self) -> int:
        """KVM_MP_STATE_*."""
        return int.from_bytes(self._states.get("mp_state", bytes(4)), "little")

    @mp_state.setter
    def mp_state(self, value: int) -> None:
        self._states["mp_state"] = value.to_bytes(4, "little")

    def ioctl(self, memory: UserMemory, request: int, argument: int) -> int | None:
        """Serve a call about the processor's state; None for another call."""
        if request in GETS:
            name = GETS[request]
            self._refuse_protected(name)
            memory.write(argument, self._states.get(name, bytes(SIZES[name])))
        elif request in SETS:
            name = SETS[request]
            data = memory.read(argument, SIZES[name])
            self._refuse_protected(name)
            self._states[name] = data
        elif request == SET_MSRS:
            entries = _msrs(memory, argument)
            self._msrs.update(entries)
            return len(entries)
        elif request == GET_MSRS:
            entries = _msrs(memory, argument)
            for place, (index, _) in enumerate(entries):
                at = argument + _LIST_HEADER + place * _MSR_ENTRY.size
                memory.write(at, _MSR_ENTRY.pack(index, self._msrs.get(index, 0)))
            return len(entries)
        elif request == SET_CPUID2:
            self._cpuid = _cpuid_entries(memory, argument)
        elif request == GET_CPUID2:
            _give_cpuid(memory, argument, self._cpuid)
        elif request == GET_TSC_KHZ:
            return TSC_KHZ
        elif request not in IGNORED:
            return None
        return 0

    def _refuse_protected(self, name: str) -> None:
        if name in REGISTERS and self._protected():
            raise OSError(errno.EINVAL, "the guest's registers are protected")


def _msrs(memory: UserMemory, argument: int) -> list[tuple[int, int]]:
    """``struct kvm_msrs``: a count, then index and value of each."""
    count = int(struct.unpack("<I4x", memory.read(argument, _LIST_HEADER))[0])
    if count >= MSR_ENTRIES_MAX:
        raise OSError(errno.E2BIG, "too many MSRs")
    data = memory.read(argument + _LIST_HEADER, count * _MSR_ENTRY.size)
    return list(_MSR_ENTRY.iter_unpack(data))


def _cpuid_entries(memory: UserMemory, argument: int) -> bytes:
    """``struct kvm_cpuid2``: a count, then the entries."""
    count = int(struct.unpack("<I4x", memory.read(argument, _LIST_HEADER))[0])
    if count > CPUID_ENTRIES_MAX:
        raise OSError(errno.E2BIG, "too many CPUID entries")
    return memory.read(argument + _LIST_HEADER, _CPUID_ENTRY.size * count)


def _give_cpuid(memory: UserMemory, argument: int, entries: bytes) -> None:
    """The same the other way, if there is room for it."""
    room = int(struct.unpack("<I4x", memory.read(argument, _LIST_HEADER))[0])
    count = len(entries) // _CPUID_ENTRY.size
    if room < count:
        raise OSError(errno.E2BIG, "too little room for the CPUID entries")
    memory.write(argument, struct.pack("<I4x", count) + entries)
