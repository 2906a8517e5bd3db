# SPDX-License-Identifier: Apache-2.0
"""Memory, clock and platform for the tests of the KVM model."""

from __future__ import annotations

import errno
import os
import threading
from functools import cache
from typing import Any

from snpcerts.abi.product import Product
from snpcerts.emulator.guest.linux import LinuxGuest
from snpcerts.emulator.guest.program import GuestFactory
from snpcerts.emulator.kvm.platform import Platform
from snpcerts.emulator.machine.in_process import Machine
from snpcerts.emulator.psp.chip import Chip
from snpcerts.emulator.psp.firmware import Firmware
from snpcerts.emulator.syscall.device import Caller, Device


class Arena:
    """User memory of ``size`` bytes at ``base``; remembers what was written where."""

    def __init__(self, size: int = 0x20000, base: int = 0x10000) -> None:
        self.base = base
        self.bytes = bytearray(size)
        self.holes: set[int] = set()  # addresses of pages that are not mapped
        self.written: list[tuple[int, int]] = []

    def _at(self, address: int, size: int) -> int:
        at = address - self.base
        pages = range(address & ~0xFFF, address + size, 0x1000)
        if at < 0 or at + size > len(self.bytes) or self.holes.intersection(pages):
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return at

    def read(self, address: int, size: int) -> bytes:
        at = self._at(address, size)
        return bytes(self.bytes[at : at + size])

    def write(self, address: int, data: bytes) -> None:
        at = self._at(address, len(data))
        self.bytes[at : at + len(data)] = data
        self.written.append((address, len(data)))


class VirtualClock:
    """A clock that advances only when something waits for it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, changed: threading.Condition, timeout: float | None) -> None:
        if timeout is None:
            assert changed.wait(30), "nothing woke the caller"
        else:
            changed.wait(0)  # others may act first
            self.now += timeout
            changed.notify_all()


@cache
def _chip() -> Chip:
    return Chip.create(Product.GENOA)


def make_platform(**settings: Any) -> Platform:
    """A platform with a firmware of its own."""
    return Platform(Firmware(_chip()), **settings)


def make_machine(guest: GuestFactory = LinuxGuest, **settings: Any) -> tuple[Machine, VirtualClock]:
    """A machine whose clock jumps to the next deadline instead of waiting."""
    clock = VirtualClock()
    return Machine(make_platform(clock=clock, **settings), guest=guest, wait=clock.wait), clock


def caller_with(
    memory: Arena, devices: dict[int, Device] | None = None, *, pid: int = 1, signal: bool = False
) -> Caller:
    """A caller with that memory and those descriptors."""
    table = devices or {}
    return Caller(memory, table.get, pid=pid, interrupted=lambda _: signal)
