# SPDX-License-Identifier: Apache-2.0
"""Threads on a simulated clock: one runs at a time, and waits take no time."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from snpcerts.kds.clock import Clock

T = TypeVar("T")


class Baton(Clock):
    """Only the thread with the baton runs. When it waits or ends, the thread due next gets it."""

    boot = "a machine that never was"

    def __init__(self) -> None:
        self.time = 1000.0
        self._turns: list[tuple[float, int]] = []
        self._count = 0
        self._runs = -1
        self._changed = threading.Condition()

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return 1e9 + self.time

    def sleep(self, seconds: float) -> None:
        with self._changed:
            mine = self._queue(seconds)
            self._pass_on()
            self._changed.wait_for(lambda: self._runs == mine)

    def run(self, tasks: Sequence[Callable[[], T]]) -> list[tuple[T | Exception, float]]:
        """Run all tasks. Return the outcome of each, and the time at which it ended."""
        ended: list[tuple[T | Exception, float]] = [(RuntimeError("has not run"), 0.0)] * len(tasks)

        def work(index: int, mine: int) -> None:
            with self._changed:
                self._changed.wait_for(lambda: self._runs == mine)
            try:
                ended[index] = (tasks[index](), self.time)
            except Exception as error:
                ended[index] = (error, self.time)
            with self._changed:
                self._pass_on()

        threads = [
            threading.Thread(target=work, args=(index, self._queue(0.0)), daemon=True)
            for index in range(len(tasks))
        ]
        for thread in threads:
            thread.start()
        with self._changed:
            self._pass_on()
        for thread in threads:
            thread.join()
        return ended

    def _queue(self, seconds: float) -> int:
        self._count += 1
        heapq.heappush(self._turns, (self.time + seconds, self._count))
        return self._count

    def _pass_on(self) -> None:
        if self._turns:
            when, self._runs = heapq.heappop(self._turns)
            self.time = max(self.time, when)
        self._changed.notify_all()
