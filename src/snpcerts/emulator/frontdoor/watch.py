# SPDX-License-Identifier: Apache-2.0
"""Watching what a program does with certain files, at the moment before it does it.

The calls are those of :data:`~snpcerts.emulator.frontdoor.bpf.FILE_CALLS`. They
are the kernel's to perform, or the watch holds one back for a while, or answers
it itself, as the kernel might have: with fewer bytes than were asked for, say.
Other threads of the program go on meanwhile.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final, Protocol

from snpcerts.emulator.frontdoor.bpf import Call
from snpcerts.emulator.syscall.device import Pending

# The result of a held call that the kernel shall perform after all.
PROCEED: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class FileCall:
    """A thread is about to make a call on an open file.

    ``descriptor`` is the program's number for the file, ``found`` what a stat of
    it says, ``arguments`` are the six words of the system call as they are.
    """

    call: Call
    tid: int
    process: int
    descriptor: int
    found: os.stat_result
    arguments: tuple[int, ...]


class Watch(Protocol):
    """Somebody who wants to know. Asked in the supervisor's loop; must not block."""

    def wants(self, found: os.stat_result) -> bool:
        """Whether calls on this file matter."""

    def before(self, call: FileCall) -> int | Pending | None:
        """None lets the kernel perform the call; a number is the call's result.

        A :class:`Pending` holds the call back; its result is the call's, or
        :data:`PROCEED`.
        """
