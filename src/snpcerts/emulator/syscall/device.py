# SPDX-License-Identifier: Apache-2.0
"""An emulated device: it takes an ioctl number and an argument, and returns a result or an errno.

The same devices serve callers in this process (:mod:`snpcerts.emulator.machine.in_process`) and
unmodified programs behind the front door. Errors are ``OSError`` with the kernel's errno. An ioctl
must not raise anything else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from snpcerts.emulator.syscall.caller_memory import UserMemory

EVERY_SIGNAL: Final = (1 << 64) - 1


@runtime_checkable
class Device(Protocol):
    """An open emulated device."""

    def ioctl(self, caller: Caller, request: int, argument: int) -> Result:
        """Serve one ioctl; raise ``OSError`` as the kernel would.

        ``argument`` is the third argument of ioctl(2), unchanged: a number, or an address in
        ``caller.memory``.
        """

    def close(self) -> None:
        """Handle the closing of the device's last descriptor."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The process that makes a system call on an emulated device.

    ``find`` returns the open emulated device that a descriptor number now refers to in the caller;
    None if it refers to anything else or is not open. ``writable`` says whether the descriptor of
    the ioctl was opened for writing. ``pid`` is the process ID. ``interrupted`` returns whether a
    signal is pending for the thread; its argument is the mask of blocked signals, as in
    :attr:`Pending.blocked`. ``take`` duplicates a descriptor of the caller; the device owns the
    duplicate and must close it.
    """

    memory: UserMemory
    find: Callable[[int], Device | None]
    writable: bool = True
    pid: int = 0
    interrupted: Callable[[int | None], bool] = lambda _: False
    take: Callable[[int], int] = os.dup


@dataclass(frozen=True, slots=True)
class NewDescriptor:
    """The result of a call that returns a new descriptor for ``device``.

    ``shared`` is the memfd that the caller can map through the new descriptor (a vCPU's kvm_run),
    or None.
    """

    device: Device
    shared: int | None = None


class Pending(Protocol):
    """A system call that must wait for its result.

    ``poll`` is called again whenever something may have changed, and at ``deadline`` at the latest
    (``time.monotonic`` seconds; None means no deadline). It returns the result, raises ``OSError``
    as an ioctl would, or returns None while the call must keep waiting.
    """

    @property
    def deadline(self) -> float | None:
        """The latest time at which to call :meth:`poll`, or None for no deadline."""

    @property
    def blocked(self) -> int | None:
        """The mask of signals that do not interrupt the call, with bit ``signal - 1`` for each.

        None means the signals that the caller's thread blocks. SIGKILL always ends the call.
        """

    def poll(self) -> int | None:
        """Return the result, or None if the call must keep waiting."""

    def cancel(self) -> None:
        """Drop the call: the caller has ended or was interrupted."""


Result = int | NewDescriptor | Pending
