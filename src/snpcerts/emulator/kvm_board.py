# SPDX-License-Identifier: Apache-2.0
"""The board as a VMM sets it up: interrupt controllers, timers, clock, kept and given back.

Nothing in an emulated VM makes or takes interrupts, but a VMM that was not
written for the emulator sets these up and saves them at its end. Numbers and
sizes: Linux ``include/uapi/linux/kvm.h`` and ``arch/x86/include/uapi/asm/kvm.h``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from snpcerts.abi.ioctl import io, ior, iow, iowr
from snpcerts.abi.kvm import KVMIO
from snpcerts.emulator.memory import UserMemory

GET_CLOCK: Final = ior(KVMIO, 0x7C, 48)
_IRQCHIP: Final = struct.Struct("<II512s")  # struct kvm_irqchip: which, padding, state
GET_IRQCHIP: Final = iowr(KVMIO, 0x62, _IRQCHIP.size)
SET_IRQCHIP: Final = ior(KVMIO, 0x63, _IRQCHIP.size)
_PIT2_SIZE: Final = 112
GET_PIT2: Final = ior(KVMIO, 0x9F, _PIT2_SIZE)
SET_PIT2: Final = iow(KVMIO, 0xA0, _PIT2_SIZE)
_CHIPS: Final = 3  # two PICs and the I/O APIC

# Taken and forgotten.
IGNORED: Final = {
    io(KVMIO, 0x47): "KVM_SET_TSS_ADDR",
    iow(KVMIO, 0x48, 8): "KVM_SET_IDENTITY_MAP_ADDR",
    iow(KVMIO, 0x61, 8): "KVM_IRQ_LINE",
    iowr(KVMIO, 0x67, 8): "KVM_IRQ_LINE_STATUS",
    iow(KVMIO, 0x67, 16): "KVM_REGISTER_COALESCED_MMIO",
    iow(KVMIO, 0x68, 16): "KVM_UNREGISTER_COALESCED_MMIO",
    iow(KVMIO, 0x6A, 8): "KVM_SET_GSI_ROUTING",
    io(KVMIO, 0x71): "KVM_REINJECT_CONTROL",
    iow(KVMIO, 0x76, 32): "KVM_IRQFD",
    iow(KVMIO, 0x77, 64): "KVM_CREATE_PIT2",
    io(KVMIO, 0x78): "KVM_SET_BOOT_CPU_ID",
    iow(KVMIO, 0x79, 64): "KVM_IOEVENTFD",
    iow(KVMIO, 0x7B, 48): "KVM_SET_CLOCK",
    io(KVMIO, 0xA2): "KVM_SET_TSC_KHZ",
    iow(KVMIO, 0xA5, 32): "KVM_SIGNAL_MSI",
}


class Board:
    """One VM's. ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._chips: dict[int, bytes] = {}
        self._pit = bytes(_PIT2_SIZE)

    def ioctl(self, memory: UserMemory, request: int, argument: int) -> bool:
        """Serve a call about the board; whether it was one."""
        if request in IGNORED:
            return True
        match request:
            case r if r == GET_CLOCK:
                memory.write(argument, struct.pack("<Q40x", int(self._clock() * 1e9)))
            case r if r == GET_PIT2:
                memory.write(argument, self._pit)
            case r if r == SET_PIT2:
                self._pit = memory.read(argument, _PIT2_SIZE)
            case r if r == GET_IRQCHIP:
                chip = int.from_bytes(memory.read(argument, 4), "little") % _CHIPS
                state = self._chips.get(chip, bytes(512))
                memory.write(argument, _IRQCHIP.pack(chip, 0, state))
            case r if r == SET_IRQCHIP:
                chip, _, state = _IRQCHIP.unpack(memory.read(argument, _IRQCHIP.size))
                self._chips[chip % _CHIPS] = state
            case _:
                return False
        return True
