# SPDX-License-Identifier: Apache-2.0
"""Devices that show what reached them. As a program, this module supervises them."""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections import Counter

from snpcerts.abi.ioctl import iowr
from snpcerts.emulator.frontdoor.door import Door, OpenInfo
from snpcerts.emulator.frontdoor.spawn import run
from snpcerts.emulator.syscall.device import EVERY_SIGNAL, Caller, Device, NewDescriptor, Result

MARKER = 4711  # no KVM has this API version
API_VERSION = 0xAE00
CREATE_PLAIN = 0xAE01
FIND = 0xAE20
OPEN_COUNT = 0xAE24
CREATE_SHARED = 0xAE41
WAIT = 0xAE80
RELEASE = 0xAE81
READ_BAD, WRITE_BAD = 0xAE30, 0xAE31
WRITABLE, PROCESS, INTERRUPTED = 0xAE32, 0xAE33, 0xAE34
ECHO = iowr(0xAE, 0x10, 16)
KEY = 0x5EED5EED5EED5EED


class Toys:
    """What all toys of a door have in common."""

    def __init__(self) -> None:
        self.opened: list[OpenInfo] = []
        self.open: list[Toy] = []
        self.closed = 0
        self.waiting: list[Waiting] = []
        self.cancelled = 0
        self.echoed: Counter[int] = Counter()
        self.limit: float | None = None
        self.interruptible = True

    def door(self, *, look: bool = True) -> Door:
        return Door(
            dict.fromkeys(("/dev/kvm", "/dev/sev"), self.device),
            {
                "/sys/module/kvm_amd/parameters/sev": lambda: b"Y\n",
                "/dev/cpu/0/msr": lambda: {0xC0010131: b"register"},
            },
            look=look,
        )

    def device(self, info: OpenInfo) -> Toy:
        self.opened.append(info)
        return Toy(self)


class Waiting:
    """A call that waits for RELEASE; then it writes to its argument, if it has one."""

    def __init__(self, toys: Toys, caller: Caller, address: int) -> None:
        self.toys, self.caller, self.address = toys, caller, address
        self.released = False
        toys.waiting.append(self)

    @property
    def deadline(self) -> float | None:
        return self.toys.limit

    @property
    def blocked(self) -> int | None:
        return None if self.toys.interruptible else EVERY_SIGNAL

    def poll(self) -> int | None:
        if not self.released:
            return None
        self.toys.waiting.remove(self)
        if self.address:
            self.caller.memory.write(self.address, b"x")
        return 7

    def cancel(self) -> None:
        self.toys.waiting.remove(self)
        self.toys.cancelled += 1


class Toy:
    """One open toy. ``shared`` is a page with a number that API_VERSION increments."""

    def __init__(self, toys: Toys, shared: int | None = None) -> None:
        self.toys, self.shared = toys, shared
        toys.open.append(self)

    def close(self) -> None:
        self.toys.open.remove(self)
        self.toys.closed += 1
        if self.shared is not None:
            os.close(self.shared)

    def ioctl(self, caller: Caller, request: int, argument: int) -> Result:
        simple = {
            API_VERSION: self._version,
            OPEN_COUNT: lambda: len(self.toys.open),
            WRITABLE: lambda: int(caller.writable),
            PROCESS: lambda: caller.pid,
            INTERRUPTED: lambda: int(caller.interrupted(None)),
            RELEASE: self._release,
        }
        if request in simple:
            return simple[request]()
        if request == CREATE_PLAIN:
            return NewDescriptor(Toy(self.toys))
        if request == CREATE_SHARED:
            page = os.memfd_create("page", os.MFD_CLOEXEC)
            os.ftruncate(page, 4096)
            return NewDescriptor(Toy(self.toys, page), page)
        if request == FIND:
            found: Device | None = caller.find(argument)
            if found is None:
                raise OSError(errno.EBADF, "not ours")
            return self.toys.open.index(found)  # type: ignore[arg-type]  # all devices are toys
        if request == READ_BAD:
            caller.memory.read(argument, 16)
        elif request == WRITE_BAD:
            caller.memory.write(argument, bytes(16))
        elif request == ECHO:
            number = int.from_bytes(caller.memory.read(argument, 8), "little")
            self.toys.echoed[number] += 1
            caller.memory.write(argument + 8, struct.pack("<Q", number ^ KEY))
            return number % 1000
        elif request == WAIT:
            return Waiting(self.toys, caller, argument)
        raise OSError(errno.EBADRQC, "no such request")

    def _version(self) -> int:
        if self.shared is not None:
            (count,) = struct.unpack("<I", os.pread(self.shared, 4, 0))
            os.pwrite(self.shared, struct.pack("<I", count + 1), 0)
        return MARKER

    def _release(self) -> int:
        for waiting in self.toys.waiting:
            waiting.released = True
        return len(self.toys.waiting)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], Toys().door(look=False)))
