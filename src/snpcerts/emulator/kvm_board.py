# SPDX-License-Identifier: Apache-2.0
"""The board as a VMM sets it up: interrupt controllers, timers, clock, kept and given back.

Nothing in an emulated VM makes or takes interrupts, but a VMM that was not
written for the emulator sets these up and saves them at its end.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from snpcerts.abi.kvm import PIT_STATE2_SIZE, Ioctl
from snpcerts.emulator.memory import UserMemory

_IRQCHIP: Final = struct.Struct("<II512s")  # struct kvm_irqchip: which, padding, state
_CHIPS: Final = 3  # two PICs and the I/O APIC

# Taken and forgotten.
IGNORED: Final = frozenset(
    (
        Ioctl.SET_TSS_ADDR,
        Ioctl.SET_IDENTITY_MAP_ADDR,
        Ioctl.IRQ_LINE,
        Ioctl.IRQ_LINE_STATUS,
        Ioctl.REGISTER_COALESCED_MMIO,
        Ioctl.UNREGISTER_COALESCED_MMIO,
        Ioctl.SET_GSI_ROUTING,
        Ioctl.REINJECT_CONTROL,
        Ioctl.IRQFD,
        Ioctl.CREATE_PIT2,
        Ioctl.SET_BOOT_CPU_ID,
        Ioctl.IOEVENTFD,
        Ioctl.SET_CLOCK,
        Ioctl.SET_TSC_KHZ,
        Ioctl.SIGNAL_MSI,
    )
)


class Board:
    """One VM's. ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._chips: dict[int, bytes] = {}
        self._pit = bytes(PIT_STATE2_SIZE)

    def ioctl(self, memory: UserMemory, request: int, argument: int) -> bool:
        """Serve a call about the board; whether it was one."""
        if request in IGNORED:
            return True
        match request:
            case Ioctl.GET_CLOCK:
                memory.write(argument, struct.pack("<Q40x", int(self._clock() * 1e9)))
            case Ioctl.GET_PIT2:
                memory.write(argument, self._pit)
            case Ioctl.SET_PIT2:
                self._pit = memory.read(argument, PIT_STATE2_SIZE)
            case Ioctl.GET_IRQCHIP:
                chip = int.from_bytes(memory.read(argument, 4), "little") % _CHIPS
                state = self._chips.get(chip, bytes(512))
                memory.write(argument, _IRQCHIP.pack(chip, 0, state))
            case Ioctl.SET_IRQCHIP:
                chip, _, state = _IRQCHIP.unpack(memory.read(argument, _IRQCHIP.size))
                self._chips[chip % _CHIPS] = state
            case _:
                return False
        return True
