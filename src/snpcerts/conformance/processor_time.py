# SPDX-License-Identifier: Apache-2.0
"""How long the VMM's threads ran, how long they waited for a processor, and how often they slept.

A time limit must not count the time for which the VMM could not run on a busy machine.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path


def delay_time(processes: list[int]) -> float:
    """Return how many seconds ``processes`` waited for a processor, or for this process to serve
    them.
    """
    return _schedstat(_own_task())[0] / 1e9 + queue_time(processes)


def queue_time(processes: list[int]) -> float:
    """Return how many seconds ``processes`` and this process waited for a processor."""
    waited = _schedstat(_own_task())[1] + sum(_schedstat(task)[1] for task in _tasks(processes))
    return waited / 1e9


class ThreadsUsage:
    """What the threads of a VMM have used since this object was made.

    A VMM may start a thread for each request. For a thread that has ended, :meth:`total` uses what
    :meth:`look` noted last.
    """

    def __init__(self, processes: list[int]) -> None:
        self._before = _usage(_tasks(processes))
        self._seen: dict[str, _Usage] = {}

    def look(self, process: int, tid: int) -> None:
        """Note what one thread has used until now."""
        self._seen |= _usage([Path(f"/proc/{process}/task/{tid}")])

    def total(self, processes: list[int]) -> tuple[float, int]:
        """Return the processor time in seconds, and how many times the threads have slept
        (voluntary context switches).
        """
        used = self._seen | _usage(_tasks(processes))
        running, slept = 0, 0
        for tid, (nanoseconds, sleeps) in used.items():
            before = self._before.get(tid, (0, 0))
            running += nanoseconds - before[0]
            slept += sleeps - before[1]
        return running / 1e9, slept


_Usage = tuple[int, int]  # nanoseconds of processor time, voluntary context switches


def _usage(tasks: Iterable[Path]) -> dict[str, _Usage]:
    """Return what each thread has used, by its ID."""
    found: dict[str, _Usage] = {}
    for task in tasks:
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = (task / "status").read_text("ascii", "replace")
            sleeps = text.partition("\nvoluntary_ctxt_switches:")[2].split(maxsplit=1)[0]
            found[task.name] = _schedstat(task)[0], int(sleeps)
    return found


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
