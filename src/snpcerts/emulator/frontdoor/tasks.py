# SPDX-License-Identifier: Apache-2.0
"""Asks the kernel for a thread's process ID and signals.

Source: proc_pid_status(5). Threads are identified by their ID (``tid``) in this process's PID
namespace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_STATUS_MAX: Final = 8192  # bytes; a status file has about 1500


@dataclass(frozen=True, slots=True)
class Task:
    """A thread's process ID and signals. In each mask, bit ``signal - 1`` stands for ``signal``.

    ``own`` are pending signals sent to this thread; ``shared`` are those sent to the process, which
    any of its threads may take. ``blocked`` are the signals that the thread blocks. ``threads`` is
    the number of threads in the process.
    """

    process: int
    threads: int
    own: int
    shared: int
    blocked: int

    def deliverable(self, blocked: int | None = None) -> tuple[int, int]:
        """Return two masks of pending signals that are not blocked: the thread's, and its
        process's. ``blocked`` replaces the thread's mask of blocked signals.
        """
        free = ~(self.blocked if blocked is None else blocked)
        return self.own & free, self.shared & free


def task(tid: int) -> Task | None:
    """Return the state of a thread now; None if the thread has ended or its status is not
    readable.
    """
    try:
        with open(f"/proc/{tid}/status", "rb", buffering=0) as file:
            text = file.read(_STATUS_MAX)
    except OSError:
        return None
    return Task(
        process=_field(text, b"\nTgid:", 10),
        threads=_field(text, b"\nThreads:", 10),
        own=_field(text, b"\nSigPnd:", 16),
        shared=_field(text, b"\nShdPnd:", 16),
        blocked=_field(text, b"\nSigBlk:", 16),
    )


def _field(text: bytes, name: bytes, base: int) -> int:
    start = text.find(name)
    if start < 0:
        return 0
    start += len(name)
    return int(text[start : text.find(b"\n", start)], base)
