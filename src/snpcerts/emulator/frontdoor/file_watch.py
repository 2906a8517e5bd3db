# SPDX-License-Identifier: Apache-2.0
"""Observes a program's calls on certain files before they happen.

The calls are those of :data:`~snpcerts.emulator.frontdoor.bpf.FILE_CALLS`. The watch
lets the kernel perform a call, delays it, or answers it as the kernel might have,
for example with a short read. Other threads of the program continue meanwhile.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final, Protocol

from snpcerts.emulator.frontdoor.bpf import Syscall
from snpcerts.emulator.syscall.device import Pending

# The result of a delayed call that the kernel then performs.
PROCEED: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class FileCall:
    """A call on an open file that a thread is about to make.

    ``descriptor`` is the descriptor number in the program, ``found`` is the file's stat result, and
    ``arguments`` are the six words of the system call.
    """

    call: Syscall
    tid: int
    process: int
    descriptor: int
    found: os.stat_result
    arguments: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OpenCall:
    """A call with which a thread is about to open a path that is not emulated. ``flags`` are those
    of open(2).
    """

    tid: int
    path: bytes
    flags: int


class Watch(Protocol):
    """An observer of file calls. It is called in the supervisor's loop and must not block."""

    def opening(self, call: OpenCall) -> int | None:
        """Return None to let the kernel open the path, or a negative errno as the call's result."""

    def examining(self, tid: int, path: bytes) -> None:
        """Called before the kernel examines a path that is not emulated, without opening it: stat,
        access, readlink.
        """

    def wants(self, found: os.stat_result) -> bool:
        """Whether to observe calls on the file with the stat result ``found``."""

    def before(self, call: FileCall) -> int | Pending | None:
        """Return None to let the kernel perform the call, or a number as the call's result.

        A :class:`Pending` delays the call. Its result becomes the call's result, unless it is
        :data:`PROCEED`.
        """
