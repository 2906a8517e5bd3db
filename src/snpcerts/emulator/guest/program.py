# SPDX-License-Identifier: Apache-2.0
"""The program of an emulated vCPU: a generator that yields events.

A program accesses guest memory through its :class:`GuestCpu` and yields when the processor would
leave the guest. When the guest resumes, the vCPU sends the program the value of the GHCB MSR. When
a program returns, its machine shuts down.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

from snpcerts.abi.ghcb import PAGE_SIZE
from snpcerts.emulator.guest.memory_slots import MemorySlots, SlotMemory


@dataclass(frozen=True, slots=True)
class Vmgexit:
    """The guest writes ``msr`` to the GHCB MSR and executes VMGEXIT.

    If the low 12 bits are zero, it is the address of a GHCB page with the request. Any other value
    is a request of the GHCB MSR protocol.
    """

    msr: int


@dataclass(frozen=True, slots=True)
class Sleep:
    """The vCPU halts for ``seconds``."""

    seconds: float


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """The vCPU halts until ``ready`` returns true.

    ``ready`` is called after each change that may affect it.
    """

    ready: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class StartProcessors:
    """The boot processor starts the other processors."""


@dataclass(frozen=True, slots=True)
class MemoryFault:
    """A memory access, to the page at ``gpa``, that KVM cannot complete.

    The host did not provide the page, or host and guest disagree on whether it is private. When the
    program resumes, it repeats the access.
    """

    gpa: int
    private: bool


Event = Vmgexit | Sleep | WaitUntil | StartProcessors | MemoryFault
Program = Generator[Event, int, None]


class GuestTerminatedError(Exception):
    """The guest has asked its host to terminate it, and must not run again."""


class GuestCpu:
    """A vCPU as its program uses it.

    ``index`` counts vCPUs from 0 in the order of their creation. The vCPU sets ``memory`` while it
    runs. ``is_private`` returns whether a page is private on the host; if it is None, this is not
    checked. An access that faults leaves the guest and is repeated, so every access is a generator.
    Use it with ``yield from``.
    """

    __slots__ = ("_clock", "index", "is_private", "memory")

    def __init__(
        self,
        index: int,
        clock: Callable[[], float],
        is_private: Callable[[int], bool] | None = None,
    ) -> None:
        self.index = index
        self.memory: SlotMemory | None = None
        self.is_private = is_private
        self._clock = clock

    def now(self) -> float:
        """Return the platform's time in seconds."""
        return self._clock()

    def read(self, gpa: int, size: int) -> Generator[Event, int, bytes]:
        """Read ``size`` bytes of shared memory (C-bit clear)."""
        while True:
            yield from self._reach(gpa, size, private=False)
            try:
                return self._memory().read(gpa, size)
            except OSError:
                yield self._missing(gpa, size)

    def write(self, gpa: int, data: bytes) -> Generator[Event, int, None]:
        """Write ``data`` to shared memory (C-bit clear)."""
        while True:
            yield from self._reach(gpa, len(data), private=False)
            try:
                return self._memory().write(gpa, data)
            except OSError:
                yield self._missing(gpa, len(data))

    def use_private(self, gpa: int, size: int) -> Generator[Event, int, None]:
        """Access private memory (C-bit set). Private memory is in a guest_memfd, whose bytes are
        not emulated.
        """
        yield from self._reach(gpa, size, private=True)
        while self.is_private is not None and not self._memory().has_private(gpa, size):
            yield MemoryFault(gpa & -PAGE_SIZE, private=True)

    def mismatch(self, gpa: int, size: int, *, private: bool) -> int | None:
        """Return the first page of the range whose state on the host does not match ``private``, or
        None.
        """
        if self.is_private is not None:
            for page in range(gpa & -PAGE_SIZE, gpa + size, PAGE_SIZE):
                if self.is_private(page) != private:
                    return page
        return None

    def _reach(self, gpa: int, size: int, *, private: bool) -> Generator[Event, int, None]:
        while (page := self.mismatch(gpa, size, private=private)) is not None:
            yield MemoryFault(page, private)

    def _missing(self, gpa: int, size: int) -> MemoryFault:
        """Return the fault at the first page of the range that cannot be accessed."""
        first = gpa & -PAGE_SIZE
        for page in range(first, gpa + size, PAGE_SIZE):
            try:
                self._memory().read(page, 1)
            except OSError:
                return MemoryFault(page, private=False)
        return MemoryFault(first, private=False)

    def _memory(self) -> SlotMemory:
        if self.memory is None:
            raise OSError(errno.EFAULT, "cannot access guest memory: the vCPU is not running")
        return self.memory


class LaunchedVm(Protocol):
    """The VM that a guest starts in, after SNP_LAUNCH_FINISH."""

    @property
    def name(self) -> str:
        """The VM's name on its platform."""

    @property
    def creator(self) -> int:
        """The ID of the process that created the VM."""

    @property
    def processors(self) -> int:
        """The number of the VM's vCPUs."""

    @property
    def slots(self) -> MemorySlots:
        """The VM's memory slots."""

    @property
    def exits_for_page_state(self) -> bool:
        """Whether the VMM has enabled the KVM_HC_MAP_GPA_RANGE exit."""

    @property
    def secrets_page(self) -> bytes | None:
        """The secrets page, 4096 bytes of private memory; None if the VMM did not provide it."""


class Guest(Protocol):
    """The software in one VM."""

    def program(self, cpu: GuestCpu) -> Program:
        """Return the program of one vCPU. This is called when the vCPU first runs."""


GuestFactory = Callable[[LaunchedVm], Guest]
