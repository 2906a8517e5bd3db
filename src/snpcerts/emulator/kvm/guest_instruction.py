# SPDX-License-Identifier: Apache-2.0
"""Instructions that KVM performs for a guest through its GHCB: CPUID, IN, OUT, MSRs, VMMCALL.

Source: Linux ``arch/x86/kvm/x86.c`` (``kvm_fast_pio``, ``kvm_sev_es_string_io``,
``kvm_sev_es_mmio``, ``____kvm_emulate_hypercall``), ``svm/svm.c`` (``io_interception``,
``svm_complete_emulated_msr``) and ``svm/sev.c`` (``sev_es_string_io``). The emulator has no
in-kernel devices, so all I/O goes to userspace.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final, Protocol

from snpcerts.abi.ghcb import Field, InputErrorCode, Instruction
from snpcerts.abi.kvm import (
    HC_CLOCK_PAIRING,
    HC_MAP_GPA_RANGE,
    HC_VAPIC_POLL_IRQ,
    HYPERCALL_ENOSYS,
)
from snpcerts.emulator.guest.memory_slots import SlotMemory
from snpcerts.emulator.kvm import exits as kvm_exit
from snpcerts.emulator.kvm.ghcb_page import GhcbSnapshot, MappedGhcb

MMIO_MAX: Final = 8
GP_VECTOR: Final = 13
_U32: Final = 0xFFFF_FFFF
_U64: Final = (1 << 64) - 1
_INT_MAX: Final = (1 << 31) - 1
_PAGE_SHIFT: Final = 12
_IO_IN, _IO_STRING = 1, 4

Completion = Callable[[SlotMemory], None]


class InstructionVm(Protocol):
    """What the instructions of a vCPU need from its VM."""

    @property
    def exits_for_page_state(self) -> bool:
        """Whether the VMM has enabled the KVM_HC_MAP_GPA_RANGE exit."""

    def cpuid(self, function: int, index: int = 0) -> tuple[int, int, int, int]:
        """Return EAX, EBX, ECX and EDX of a CPUID function, as the VMM has set them."""


class Msrs(Protocol):
    """What the instructions need from the vCPU: its MSRs."""

    def read_msr(self, index: int) -> int | None:
        """Return the value of the MSR ``index``, or None if it does not exist."""

    def write_msr(self, index: int, value: int) -> bool:
        """Set the MSR ``index`` if it exists; return whether it does."""


class Instructions:
    """Performs instructions for one vCPU. A method returns the function that completes the exit to
    userspace, or None if it causes no exit.

    A method may raise the ``OSError`` with which KVM_RUN fails.
    """

    def __init__(
        self, machine: InstructionVm, msrs: Msrs, ghcb: MappedGhcb, run: memoryview
    ) -> None:
        self._machine = machine
        self._msrs = msrs
        self._ghcb = ghcb
        self._run = run

    def carry_out(self, snapshot: GhcbSnapshot, memory: SlotMemory) -> Completion | None:
        """Perform the instruction that the guest requests in ``snapshot``.

        Returns None also for an instruction without a visible effect, such as INVD or MWAIT.
        """
        match snapshot.code:
            case Instruction.CPUID:
                self._cpuid()
            case Instruction.IOIO:
                return self._port_io(snapshot, memory)
            case Instruction.MSR:
                self._msr(snapshot, memory)
            case Instruction.VMMCALL:
                return self._hypercall(snapshot)
            case Instruction.RDTSC:
                kvm_exit.unexpected(self._run, snapshot.code)
                return _nothing
        return None

    def mmio(
        self, snapshot: GhcbSnapshot, memory: SlotMemory, *, writing: bool
    ) -> Completion | None:
        """Perform an MMIO access of ``snapshot.info2`` bytes at the address ``snapshot.info1``."""
        size = snapshot.info2
        if not size:
            return None
        if size > MMIO_MAX:
            self._ghcb.bad(memory, InputErrorCode.INVALID_INPUT)
            return None
        at = self._scratch(snapshot, memory, size)
        if at is None:
            return None
        if writing:
            kvm_exit.mmio_write(self._run, snapshot.info1, self._ghcb.read(memory, at, size))
            return _nothing
        kvm_exit.mmio_read(self._run, snapshot.info1, size)
        return lambda memory: self._ghcb.write(memory, at, kvm_exit.mmio_data(self._run, size))

    def _scratch(self, snapshot: GhcbSnapshot, memory: SlotMemory, size: int) -> int | None:
        at = self._ghcb.scratch(snapshot, size)
        if at is None:
            self._ghcb.bad(memory, InputErrorCode.INVALID_SCRATCH_AREA)
        return at

    def _cpuid(self) -> None:
        registers = self._ghcb.registers
        found = self._machine.cpuid(registers[Field.RAX] & _U32, registers[Field.RCX] & _U32)
        for field, value in zip((Field.RAX, Field.RBX, Field.RCX, Field.RDX), found, strict=True):
            registers[field] = value

    def _msr(self, snapshot: GhcbSnapshot, memory: SlotMemory) -> None:
        registers = self._ghcb.registers
        index = registers[Field.RCX] & _U32
        if snapshot.info1:
            value = (registers[Field.RDX] & _U32) << 32 | registers[Field.RAX] & _U32
            known = self._msrs.write_msr(index, value)
        else:
            found = self._msrs.read_msr(index)
            known = found is not None
            if found is not None:
                registers[Field.RAX] = found & _U32
                registers[Field.RDX] = found >> 32
        if not known:
            self._ghcb.inject(memory, GP_VECTOR)

    def _port_io(self, snapshot: GhcbSnapshot, memory: SlotMemory) -> Completion | None:
        info = snapshot.info1 & _U32
        size, port, inward = info >> 4 & 7, info >> 16, bool(info & _IO_IN)
        if not size:
            return None
        if not info & _IO_STRING:
            return self._register_io(size, port, inward=inward)
        count = snapshot.info2
        if count * size > _INT_MAX or count > _INT_MAX:
            raise OSError(
                errno.EINVAL, f"string I/O: expected at most {_INT_MAX} bytes, found {count * size}"
            )
        if not count:
            return None
        at = self._scratch(snapshot, memory, count * size)
        if at is None:
            return None
        self._set_port_data(
            bytes(count * size) if inward else self._ghcb.read(memory, at, count * size)
        )
        kvm_exit.port_io(self._run, inward=inward, size=size, port=port, count=count)
        if not inward:
            return _nothing
        return lambda memory: self._ghcb.write(memory, at, self._port_data(count * size))

    def _register_io(self, size: int, port: int, *, inward: bool) -> Completion:
        registers = self._ghcb.registers
        old = registers[Field.RAX].to_bytes(8, "little")
        self._set_port_data(bytes(size) if inward else old[:size])
        kvm_exit.port_io(self._run, inward=inward, size=size, port=port, count=1)
        if not inward:
            return _nothing

        def done(_: SlotMemory) -> None:
            kept = registers[Field.RAX].to_bytes(8, "little") if size < 4 else bytes(8)
            registers[Field.RAX] = int.from_bytes(self._port_data(size) + kept[size:], "little")

        return done

    def _port_data(self, size: int) -> bytes:
        return bytes(self._run[kvm_exit.PIO_PAGE : kvm_exit.PIO_PAGE + size])

    def _set_port_data(self, data: bytes) -> None:
        self._run[kvm_exit.PIO_PAGE : kvm_exit.PIO_PAGE + len(data)] = data

    def _hypercall(self, snapshot: GhcbSnapshot) -> Completion | None:
        registers = self._ghcb.registers
        number = registers[Field.RAX]
        gpa, pages, attributes = (registers[each] for each in (Field.RBX, Field.RCX, Field.RDX))
        result = -HYPERCALL_ENOSYS
        if snapshot.cpl:
            result = -errno.EPERM
        elif number == HC_VAPIC_POLL_IRQ:
            result = 0
        elif number == HC_CLOCK_PAIRING:
            result = -errno.EOPNOTSUPP
        elif number == HC_MAP_GPA_RANGE and self._machine.exits_for_page_state:
            first = gpa >> _PAGE_SHIFT
            if not gpa & (1 << _PAGE_SHIFT) - 1 and first < (first + pages & _U64):
                kvm_exit.map_gpa_range(self._run, gpa, pages, attributes)
                kvm_exit.long_mode(self._run)
                return self._take_result
            result = -errno.EINVAL
        kvm_exit.set_hypercall_result(self._run, result & _U64)
        self._take_result(None)
        return None

    def _take_result(self, _: SlotMemory | None) -> None:
        self._ghcb.registers[Field.RAX] = kvm_exit.hypercall_result(self._run)


def _nothing(_: SlotMemory) -> None:
    """Do nothing, for an exit that needs no completion."""
