# SPDX-License-Identifier: Apache-2.0
"""The memory of a process that makes system calls, on both sides. The kernel's is in user.c."""

from __future__ import annotations

import ctypes
import errno
import random
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

_T = TypeVar("_T")

PAGE: Final = 4096
USER: Final = 0x1000_0000
USER_PAGES: Final = 16
_NO_ERRNO: Final = 9999  # no result of a system call


class OneStructure:
    """Stands in for the VMM's memory: every address holds the same structure."""

    def __init__(self) -> None:
        self.structure = b""

    def read(self, _: int, size: int) -> bytes:
        return self.structure[:size]

    def write(self, address: int, data: bytes) -> None:
        raise AssertionError(f"must write nothing, but wrote {len(data)} bytes at {address:#x}")


class _Memory:
    """The process's memory, as the emulator reaches it."""

    def __init__(self) -> None:
        self.bytes = bytearray(USER_PAGES * PAGE)
        self.mapped = [True] * USER_PAGES

    def _at(self, address: int, size: int) -> int:
        at = address - USER
        if not size:
            return 0
        if at < 0 or at + size > len(self.bytes):
            raise OSError(errno.EFAULT, "not mapped")
        if not all(self.mapped[at // PAGE : (at + size - 1) // PAGE + 1]):
            raise OSError(errno.EFAULT, "not mapped")
        return at

    def read(self, address: int, size: int) -> bytes:
        at = self._at(address, size)
        return bytes(self.bytes[at : at + size])

    def write(self, address: int, data: bytes) -> None:
        at = self._at(address, len(data))
        self.bytes[at : at + len(data)] = data


class UserSide:
    """The memory on both sides. A copy from or to a page that is not mapped copies nothing."""

    def __init__(self, library: ctypes.CDLL) -> None:
        def area(name: str, size: int) -> memoryview:
            function = getattr(library, f"oracle_{name}")
            function.restype = ctypes.c_void_p
            return memoryview((ctypes.c_ubyte * size).from_address(function())).cast("B")

        self._theirs = area("memory", USER_PAGES * PAGE)
        self._states = area("page_states", USER_PAGES)
        self.memory = _Memory()

    def map(self, page: int, *, mapped: bool) -> None:
        """Map or unmap a page."""
        self._states[page] = not mapped
        self.memory.mapped[page] = mapped

    def write(self, address: int, data: bytes) -> None:
        """Write to the memory, whether it is mapped or not."""
        at = address - USER
        self._theirs[at : at + len(data)] = data
        self.memory.bytes[at : at + len(data)] = data

    def peek(self, address: int, size: int) -> bytes:
        """The content of the memory on the kernel's side."""
        return bytes(self._theirs[address - USER : address - USER + size])

    def result(self, call: Callable[[], Any]) -> int:
        """The result of a system call on the emulator's side; an errno as a negative number."""
        try:
            return int(call())
        except OSError as failed:
            return -(failed.errno or _NO_ERRNO)

    def differences(self) -> dict[str, str]:
        """The first place where the memories of the two sides differ, if any."""
        theirs = bytes(self._theirs)
        if theirs == self.memory.bytes:
            return {}
        at = next(
            i for i, (a, b) in enumerate(zip(theirs, self.memory.bytes, strict=True)) if a != b
        )
        ours = self.memory.bytes[at : at + 16]
        return {"memory": f"at {USER + at:#x}: {theirs[at : at + 16].hex()} {ours.hex()}"}


def weighted(pick: random.Random, choices: Sequence[tuple[_T, int]]) -> _T:
    """Pick one of the choices by weight. ``random.choices`` would take twice as long."""
    left = pick.random() * sum([weight for _, weight in choices])
    for each, weight in choices:
        left -= weight
        if left < 0:
            return each
    return choices[-1][0]
