# SPDX-License-Identifier: Apache-2.0
"""Stores the processor state that a VMM sets up: registers, MSRs and CPUID.

An emulated vCPU executes no instructions, so most of this state has no effect. But the registers go
into the launch measurement, and a guest can request MSR and CPUID values through its GHCB. Besides,
a VMM that was not written for the emulator makes dozens of calls that set such state before its
first KVM_RUN, reads some of the state back, and gives up if a call fails.

This module does not interpret structures, except for the lists of MSRs and of CPUID entries.
``system_registers`` and ``model_registers`` check segments, control registers and MSRs as KVM does.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Final

from snpcerts.abi import kvm
from snpcerts.abi.kvm import Ioctl
from snpcerts.emulator.kvm.model_registers import ModelRegisters
from snpcerts.emulator.kvm.system_registers import SystemRegisters
from snpcerts.emulator.psp import vmsa
from snpcerts.emulator.syscall.caller_memory import UserMemory

MSR_ENTRIES_MAX = 256
CPUID_ENTRIES_MAX = 256
_CPUID_ENTRY: Final = struct.Struct("<7I12x")
_MSR_ENTRY: Final = struct.Struct("<I4xQ")
_LIST_HEADER: Final = 8

# For each state, by name: the ioctl that reads it, the ioctl that sets it, its size in bytes.
_STATES: Final = {
    "regs": (Ioctl.GET_REGS, Ioctl.SET_REGS, kvm.REGS_SIZE),
    "sregs": (Ioctl.GET_SREGS, Ioctl.SET_SREGS, kvm.SREGS_SIZE),
    "fpu": (Ioctl.GET_FPU, Ioctl.SET_FPU, kvm.FPU_SIZE),
    "lapic": (Ioctl.GET_LAPIC, Ioctl.SET_LAPIC, kvm.LAPIC_STATE_SIZE),
    "mp_state": (Ioctl.GET_MP_STATE, Ioctl.SET_MP_STATE, 4),
    "vcpu_events": (Ioctl.GET_VCPU_EVENTS, Ioctl.SET_VCPU_EVENTS, kvm.VCPU_EVENTS_SIZE),
    "debugregs": (Ioctl.GET_DEBUGREGS, Ioctl.SET_DEBUGREGS, kvm.DEBUGREGS_SIZE),
    "xsave": (Ioctl.GET_XSAVE, Ioctl.SET_XSAVE, kvm.XSAVE_SIZE),
    "xcrs": (Ioctl.GET_XCRS, Ioctl.SET_XCRS, kvm.XCRS_SIZE),
    "sregs2": (Ioctl.GET_SREGS2, Ioctl.SET_SREGS2, kvm.SREGS2_SIZE),
}
REGISTERS: Final = frozenset(("regs", "sregs", "sregs2"))
GETS: Final[dict[int, str]] = {
    **{get: name for name, (get, _, _) in _STATES.items()},
    Ioctl.GET_XSAVE2: "xsave",  # its size is the value of KVM_CAP_XSAVE2
}
SETS: Final[dict[int, str]] = {put: name for name, (_, put, _) in _STATES.items()}
SIZES: Final = {name: size for name, (_, _, size) in _STATES.items()}

TSC_KHZ: Final = 2_000_000
# The lowest frequency that KVM refuses: the smaller of 0x7FFF_FFFF and SVM_TSC_RATIO_MAX times the
# processor's frequency.
TSC_KHZ_END: Final = min(0x7FFF_FFFF, 0xFF_FFFF_FFFF * TSC_KHZ >> 32)
CPUID_SIGNIFICANT_INDEX: Final = 1
# The registers of a new vCPU: ``struct kvm_regs`` with RDX, RIP and RFLAGS set.
_RESET_REGS: Final = struct.pack("<18Q", 0, 0, 0, 0x600, *[0] * 12, 0xFFF0, 0x2)

# Accepted and ignored.
IGNORED: Final = frozenset(
    (
        Ioctl.TPR_ACCESS_REPORTING,
        Ioctl.SET_VAPIC_ADDR,
        Ioctl.X86_SETUP_MCE,
        Ioctl.NMI,
        Ioctl.KVMCLOCK_CTRL,
        Ioctl.SET_GUEST_DEBUG,
    )
)


class ProcessorState:
    """The processor state of one vCPU, as its VMM sets it up.

    ``protected`` returns whether the vCPU's registers belong to the firmware. ``boot`` says whether
    the vCPU is the boot processor. ``tsc_khz`` is the frequency of its TSC, which the VMM can
    change unless ``tsc_fixed`` is set.
    """

    def __init__(
        self,
        protected: Callable[[], bool],
        *,
        boot: bool,
        tsc_khz: int = TSC_KHZ,
        tsc_fixed: bool = False,
    ) -> None:
        self._protected = protected
        self._tsc_khz = tsc_khz
        self._tsc_fixed = tsc_fixed
        self._states = {"regs": _RESET_REGS}
        self._system = SystemRegisters(boot=boot)
        self._msrs = ModelRegisters(self._system)
        self._cpuid = b""  # the entries that the VMM has set

    @property
    def cpuid(self) -> dict[tuple[int, int | None], tuple[int, int, int, int]]:
        """EAX to EDX by CPUID function and subleaf. Subleaf None stands for all subleaves."""
        return {
            (function, index if flags & CPUID_SIGNIFICANT_INDEX else None): (a, b, c, d)
            for function, index, flags, a, b, c, d in _CPUID_ENTRY.iter_unpack(self._cpuid)
        }

    def read_msr(self, index: int) -> int | None:
        """Return an MSR's value; None if it was never set."""
        return self._msrs.values.get(index)

    def write_msr(self, index: int, value: int) -> bool:
        """Set an MSR if it has been set before; return whether it has."""
        if index not in self._msrs.values:
            return False
        self._msrs.values[index] = value
        return True

    @property
    def apic_base(self) -> int:
        """The address and flags of the local APIC, as the VMM set them."""
        return self._system.apic_base

    @property
    def debugged(self) -> bool:
        """Whether the debug registers prevent the vCPU's launch."""
        return vmsa.debugged(self._states)

    def vmsa(self, features: int) -> bytes:
        """Return the vCPU's VMSA, from which the firmware reads the registers; see
        :func:`vmsa.build`.
        """
        return vmsa.build(self._states, self._system.shared, self._msrs.values, features)

    @property
    def mp_state(self) -> int:
        """The vCPU's multiprocessing state, one of KVM_MP_STATE_*."""
        return int.from_bytes(self._states.get("mp_state", bytes(4)), "little")

    @mp_state.setter
    def mp_state(self, value: int) -> None:
        self._states["mp_state"] = value.to_bytes(4, "little")

    def ioctl(self, memory: UserMemory, request: int, argument: int) -> int | None:
        """Handle the ioctl if it is about the processor's state; return None if it is not."""
        if request in GETS:
            name = GETS[request]
            self._refuse_protected(name)
            memory.write(argument, self._read(name))
        elif request in SETS:
            name = SETS[request]
            data = memory.read(argument, SIZES[name])
            self._refuse_protected(name)
            self._write(name, data)
        elif request == Ioctl.SET_MSRS:
            return self._set_msrs(_msrs(memory, argument))
        elif request == Ioctl.GET_MSRS:
            found = self._get_msrs([index for index, _ in _msrs(memory, argument)])
            packed = b"".join(_MSR_ENTRY.pack(*each) for each in found)
            memory.write(argument + _LIST_HEADER, packed)
            return len(found)
        elif request == Ioctl.SET_CPUID2:
            self._cpuid = _cpuid_entries(memory, argument)
        elif request == Ioctl.GET_CPUID2:
            _give_cpuid(memory, argument, self._cpuid)
        elif request == Ioctl.GET_TSC_KHZ:
            return self._tsc_khz
        elif request == Ioctl.SET_TSC_KHZ:
            if self._tsc_fixed:
                raise OSError(errno.EINVAL, "the VMM cannot set the frequency of a secure TSC")
            self._tsc_khz = checked_tsc_khz(argument)
        elif request not in IGNORED:
            return None
        return 0

    def _set_msrs(self, entries: list[tuple[int, int]]) -> int:
        """Set MSRs up to the first that KVM refuses; return how many were set."""
        guest = self.cpuid
        for place, (index, value) in enumerate(entries):
            if not self._msrs.write(index, value, guest):
                return place
        return len(entries)

    def _get_msrs(self, indices: list[int]) -> list[tuple[int, int]]:
        """Return the values of the MSRs before the first one that KVM does not support."""
        found = []
        for index in indices:
            value = self._msrs.read(index)
            if value is None:
                break
            found.append((index, value))
        return found

    def _read(self, name: str) -> bytes:
        match name:
            case "sregs":
                return self._system.get()
            case "sregs2":
                return self._system.get2()
            case _:
                return self._states.get(name, bytes(SIZES[name]))

    def _write(self, name: str, data: bytes) -> None:
        match name:
            case "sregs":
                self._system.set(data, self.cpuid)
            case "sregs2":
                self._system.set2(data, self.cpuid)
            case _:
                self._states[name] = data

    def _refuse_protected(self, name: str) -> None:
        if name in REGISTERS and self._protected():
            raise OSError(errno.EINVAL, "the VMM cannot access a guest's registers after launch")


def checked_tsc_khz(argument: int) -> int:
    """Return the TSC frequency that KVM_SET_TSC_KHZ requests; raise EINVAL if it is too high."""
    wanted = argument & 0xFFFF_FFFF
    if wanted >= TSC_KHZ_END:
        raise OSError(
            errno.EINVAL, f"TSC frequency: expected less than {TSC_KHZ_END} kHz, found {wanted}"
        )
    return wanted or TSC_KHZ


def _msrs(memory: UserMemory, argument: int) -> list[tuple[int, int]]:
    """Return the index and value of each MSR in the caller's ``struct kvm_msrs``."""
    count = int(struct.unpack("<I4x", memory.read(argument, _LIST_HEADER))[0])
    if count >= MSR_ENTRIES_MAX:
        raise OSError(
            errno.E2BIG,
            f"list of MSRs: expected fewer than {MSR_ENTRIES_MAX} entries, found {count}",
        )
    data = memory.read(argument + _LIST_HEADER, count * _MSR_ENTRY.size)
    return list(_MSR_ENTRY.iter_unpack(data))


def _cpuid_entries(memory: UserMemory, argument: int) -> bytes:
    """Return the bytes of the entries in the caller's ``struct kvm_cpuid2``."""
    count = int(struct.unpack("<I4x", memory.read(argument, _LIST_HEADER))[0])
    if count > CPUID_ENTRIES_MAX:
        raise OSError(
            errno.E2BIG,
            f"list of CPUID functions: expected at most {CPUID_ENTRIES_MAX} entries, found {count}",
        )
    return memory.read(argument + _LIST_HEADER, _CPUID_ENTRY.size * count)


def _give_cpuid(memory: UserMemory, argument: int, entries: bytes) -> None:
    """Write ``entries`` to the caller's ``struct kvm_cpuid2``; raise E2BIG if they do not fit."""
    room = int(struct.unpack("<I4x", memory.read(argument, _LIST_HEADER))[0])
    count = len(entries) // _CPUID_ENTRY.size
    if room < count:
        raise OSError(
            errno.E2BIG, f"CPUID entries: expected room for at least {count}, found room for {room}"
        )
    memory.write(argument, struct.pack("<I4x", count) + entries)
