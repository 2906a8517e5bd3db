# SPDX-License-Identifier: Apache-2.0
"""The program of an emulated vCPU: a generator, and the events it yields.

A program accesses shared guest memory through its :class:`GuestCpu` and yields when
the processor would leave the guest. The vCPU sends back the value of the GHCB MSR at
the time the guest resumes. A program that returns shuts its machine down.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

from snpcerts.emulator.guest.memory_slots import MemorySlots, SlotMemory


@dataclass(frozen=True, slots=True)
class Vmgexit:
    """The guest writes ``msr`` to the GHCB MSR and executes VMGEXIT.

    Low 12 bits zero: the address of a GHCB page, the request is in it. Anything
    else: a request of the GHCB MSR protocol.
    """

    msr: int


@dataclass(frozen=True, slots=True)
class Sleep:
    """The vCPU halts for ``seconds``."""

    seconds: float


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """The vCPU halts until ``ready`` returns true; it is called after every possible change."""

    ready: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class StartProcessors:
    """The boot processor starts the others."""


Event = Vmgexit | Sleep | WaitUntil | StartProcessors
Program = Generator[Event, int, None]


class GuestFaultError(OSError):
    """A program accessed shared memory that the VMM did not provide or has removed."""

    def __init__(self, gpa: int, size: int) -> None:
        super().__init__(errno.EFAULT, f"no guest memory at {gpa:#x}")
        self.gpa = gpa
        self.size = size


class GuestCpu:
    """A vCPU as its program sees it.

    ``index`` counts vCPUs from 0 in the order of their creation; ``memory`` is
    set by the vCPU for as long as it runs.
    """

    __slots__ = ("_clock", "index", "memory")

    def __init__(self, index: int, clock: Callable[[], float]) -> None:
        self.index = index
        self.memory: SlotMemory | None = None
        self._clock = clock

    def now(self) -> float:
        """Seconds on the platform's clock."""
        return self._clock()

    def read(self, gpa: int, size: int) -> bytes:
        """Shared guest memory; raises :class:`GuestFaultError`."""
        try:
            return self._memory().read(gpa, size)
        except OSError:
            raise GuestFaultError(gpa, size) from None

    def write(self, gpa: int, data: bytes) -> None:
        """Write shared guest memory; raises :class:`GuestFaultError`."""
        try:
            self._memory().write(gpa, data)
        except OSError:
            raise GuestFaultError(gpa, len(data)) from None

    def _memory(self) -> SlotMemory:
        if self.memory is None:
            raise OSError(errno.EFAULT, "the vCPU is not running")
        return self.memory


class LaunchedVm(Protocol):
    """The machine that a guest starts on, after SNP_LAUNCH_FINISH."""

    @property
    def name(self) -> str:
        """The VM's name on its platform."""

    @property
    def slots(self) -> MemorySlots:
        """Its memory."""

    @property
    def secrets_page(self) -> bytes | None:
        """The secrets page, 4096 bytes of private memory; None if the VMM provided none."""


class Guest(Protocol):
    """The software in one VM."""

    def program(self, cpu: GuestCpu) -> Program:
        """The program of one vCPU; called once per vCPU, when it first runs."""


GuestFactory = Callable[[LaunchedVm], Guest]
