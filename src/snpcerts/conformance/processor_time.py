# SPDX-License-Identifier: Apache-2.0
"""How long the VMM's threads ran, how long they waited for a processor, and how often they slept.

A time limit must not count the time for which the VMM could not run on a busy machine.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path


def cpu_time(processes: list[int]) -> float:
    """Return the processor time that all threads of ``processes`` have used, in seconds."""
    return sum(_schedstat(task)[0] for task in _tasks(processes)) / 1e9


def delay_time(processes: list[int]) -> float:
    """Return how many seconds ``processes`` waited for a processor, or for this process to serve
    them.
    """
    return _schedstat(_own_task())[0] / 1e9 + queue_time(processes)


def queue_time(processes: list[int]) -> float:
    """Return how many seconds ``processes`` and this process waited for a processor."""
    waited = _schedstat(_own_task())[1] + sum(_schedstat(task)[1] for task in _tasks(processes))
    return waited / 1e9


def sleeps(processes: list[int]) -> int:
    """Return how many times the threads of ``processes`` have slept (voluntary context
    switches).
    """
    total = 0
    for task in _tasks(processes):
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = (task / "status").read_text("ascii", "replace")
            total += int(text.partition("\nvoluntary_ctxt_switches:")[2].split(maxsplit=1)[0])
    return total


def _own_task() -> Path:
    return Path("/proc/self/task", str(threading.get_native_id()))


def _tasks(processes: list[int]) -> Iterator[Path]:
    """Yield the /proc directories of all threads of ``processes``."""
    for process in processes:
        folder = f"/proc/{process}/task"
        with contextlib.suppress(OSError):
            for tid in os.listdir(folder):
                yield Path(folder, tid)


def _schedstat(task: Path) -> tuple[int, int]:
    """Return how long a thread ran and how long it waited on a run queue, in nanoseconds."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = (task / "schedstat").read_text("ascii").split()
        return int(text[0]), int(text[1])
    return 0, 0
