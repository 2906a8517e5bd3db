# SPDX-License-Identifier: Apache-2.0
"""Keeps the state of the board that a VMM sets up: interrupt controllers, timers and the clock.

No interrupts occur in an emulated VM. But a VMM that was not written for the emulator sets the
board up, and later reads the board's state.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Final

from snpcerts.abi.kvm import (
    MSR_FILTER_DEFAULT_DENY,
    MSR_FILTER_MAX_BITMAP_SIZE,
    MSR_FILTER_MAX_RANGES,
    MSR_FILTER_READ,
    MSR_FILTER_SIZE,
    MSR_FILTER_WRITE,
    PIT_STATE2_SIZE,
    Ioctl,
)
from snpcerts.emulator.syscall.caller_memory import UserMemory

_IRQCHIP: Final = struct.Struct("<II512s")  # struct kvm_irqchip: which, padding, state
_CHIPS: Final = 3  # two PICs and the I/O APIC
_TSS_ADDR_MAX: Final = (1 << 32) - 3 * 4096
# struct kvm_msr_filter: flags, then for each range: flags, number of MSRs, first MSR, bitmap
_FILTER_HEADER: Final = 8
_FILTER_RANGE: Final = struct.Struct("<IIIxxxxQ")

# Accepted and ignored.
IGNORED: Final = frozenset(
    (
        Ioctl.IRQ_LINE,
        Ioctl.IRQ_LINE_STATUS,
        Ioctl.REGISTER_COALESCED_MMIO,
        Ioctl.UNREGISTER_COALESCED_MMIO,
        Ioctl.SET_GSI_ROUTING,
        Ioctl.REINJECT_CONTROL,
        Ioctl.IOEVENTFD,
        Ioctl.SET_CLOCK,
        Ioctl.SIGNAL_MSI,
    )
)


class Board:
    """The board of one VM. ``clock`` returns the time in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._chips: dict[int, bytes] = {}
        self._pit: bytes | None = None

    def ioctl(
        self, memory: UserMemory, request: int, argument: int, *, chips: bool, vcpus: bool
    ) -> bool:
        """Handle the ioctl if it is one of the board's; return whether it was.

        ``chips`` says whether KVM emulates all interrupt controllers of the VM, and ``vcpus``
        whether the VM already has vCPUs.
        """
        if request in IGNORED:
            return True
        match request:
            case Ioctl.SET_TSS_ADDR:
                if argument > _TSS_ADDR_MAX:
                    raise OSError(errno.EINVAL, "the TSS does not fit below 4 GiB")
            case Ioctl.SET_IDENTITY_MAP_ADDR:
                if vcpus:
                    raise OSError(
                        errno.EINVAL, "the identity map cannot move once the VM has vCPUs"
                    )
                memory.read(argument, 8)
            case Ioctl.X86_SET_MSR_FILTER:
                _judge_msr_filter(memory, argument)
            case Ioctl.GET_CLOCK:
                memory.write(argument, struct.pack("<Q40x", int(self._clock() * 1e9)))
            case Ioctl.CREATE_PIT2:
                memory.read(argument, 4)
                self._create_pit(chips=chips)
            case Ioctl.GET_PIT2:
                memory.write(argument, self._made_pit())
            case Ioctl.SET_PIT2:
                state = memory.read(argument, PIT_STATE2_SIZE)
                self._made_pit()
                self._pit = state
            case Ioctl.GET_IRQCHIP:
                chip, _, _ = self._chip(memory, argument, chips=chips)
                state = self._chips.get(chip, bytes(512))
                memory.write(argument, _IRQCHIP.pack(chip, 0, state))
            case Ioctl.SET_IRQCHIP:
                chip, _, state = self._chip(memory, argument, chips=chips)
                self._chips[chip] = state
            case _:
                return False
        return True

    def _create_pit(self, *, chips: bool) -> None:
        if self._pit is not None:
            raise OSError(errno.EEXIST, "cannot create a second timer")
        if not chips:
            raise OSError(
                errno.ENOENT,
                "cannot create a timer: KVM does not emulate all interrupt controllers of the VM",
            )
        self._pit = bytes(PIT_STATE2_SIZE)

    def _made_pit(self) -> bytes:
        if self._pit is None:
            raise OSError(errno.ENXIO, "the VM has no timer: KVM_CREATE_PIT2 has not been called")
        return self._pit

    @staticmethod
    def _chip(memory: UserMemory, argument: int, *, chips: bool) -> tuple[int, int, bytes]:
        """Read ``struct kvm_irqchip`` at ``argument``: the controller's number, padding and
        state.
        """
        chip, padding, state = _IRQCHIP.unpack(memory.read(argument, _IRQCHIP.size))
        if not chips:
            raise OSError(errno.ENXIO, "KVM does not emulate all interrupt controllers of the VM")
        if chip >= _CHIPS:
            raise OSError(errno.EINVAL, f"unknown interrupt controller {chip}")
        return chip, padding, state


def _judge_msr_filter(memory: UserMemory, argument: int) -> None:
    """Check the argument of KVM_X86_SET_MSR_FILTER. The filter has no effect here."""
    data = memory.read(argument, MSR_FILTER_SIZE)
    flags = int.from_bytes(data[:4], "little")
    ranges = list(_FILTER_RANGE.iter_unpack(data[_FILTER_HEADER:]))[:MSR_FILTER_MAX_RANGES]
    used = [each for each in ranges if each[1]]
    if flags & ~MSR_FILTER_DEFAULT_DENY or (flags and not used):
        raise OSError(
            errno.EINVAL, f"MSR filter flags {flags:#x} are unknown, or the filter has no range"
        )
    for kind, count, _, bitmap in used:
        size = (count + 63) // 64 * 8
        if kind & ~(MSR_FILTER_READ | MSR_FILTER_WRITE) or size > MSR_FILTER_MAX_BITMAP_SIZE:
            raise OSError(errno.EINVAL, "the MSR filter has an invalid range")
        memory.read(bitmap, size)
