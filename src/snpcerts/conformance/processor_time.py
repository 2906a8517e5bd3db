# SPDX-License-Identifier: Apache-2.0
"""How long the VMM's threads ran, and how long they waited for a processor.

A time limit must not count the time for which a busy machine did not let the VMM run.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path


def cpu_time(processes: list[int]) -> float:
    """Return the processor time of all threads of some processes, in seconds."""
    total = 0
    for process in processes:
        with contextlib.suppress(OSError):
            for tid in os.listdir(f"/proc/{process}/task"):
                total += _schedstat(f"/proc/{process}/task/{tid}")[0]
    return total / 1e9


def delay_time(processes: list[int]) -> float:
    """Return how many seconds processes waited for a processor or for this process."""
    total = sum(_schedstat(f"/proc/{os.getpid()}/task/{threading.get_native_id()}")[:2])
    for process in processes:
        with contextlib.suppress(OSError):
            for tid in os.listdir(f"/proc/{process}/task"):
                total += _schedstat(f"/proc/{process}/task/{tid}")[1]
    return total / 1e9


def _schedstat(task: str) -> tuple[int, int]:
    """Return a thread's processor time and its time on a run queue, in nanoseconds."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path(task, "schedstat").read_text("ascii").split()
        return int(text[0]), int(text[1])
    return 0, 0
