# SPDX-License-Identifier: Apache-2.0
"""Threads that take turns on a virtual clock: one runs, the others sleep until their time comes.

In this way, several instances have requests under way at once, in the same order in each run.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Sequence


class Turns:
    """The clock, and whose turn it is."""

    def __init__(self, now: float) -> None:
        self.now = now
        self._next: list[tuple[float, int]] = []
        self._numbers = itertools.count()
        self._turn = threading.Condition()
        self._running: int | None = None
        self._failed: BaseException | None = None

    def sleep(self, seconds: float) -> None:
        """Let the other threads run until that much time has passed on the clock."""
        with self._turn:
            mine = self._enter(seconds)
            self._pass_on()
            self._wait(mine)

    def run(self, bodies: Sequence[Callable[[], None]]) -> None:
        """Run each function in a thread, until all of them have returned."""
        threads = []
        with self._turn:
            for body in bodies:
                mine = self._enter(0.0)
                threads.append(threading.Thread(target=self._run, args=(mine, body), daemon=True))
            for thread in threads:
                thread.start()
            self._pass_on()
        for thread in threads:
            thread.join()
        if self._failed is not None:
            raise self._failed

    def _run(self, mine: int, body: Callable[[], None]) -> None:
        with self._turn:
            self._wait(mine)
        try:
            body()
        except BaseException as error:
            self._failed = self._failed or error
        finally:
            with self._turn:
                self._pass_on()

    def _enter(self, seconds: float) -> int:
        mine = next(self._numbers)
        heapq.heappush(self._next, (self.now + max(seconds, 0.0), mine))
        return mine

    def _wait(self, mine: int) -> None:
        self._turn.wait_for(lambda: self._running == mine)

    def _pass_on(self) -> None:
        if self._next:
            at, self._running = heapq.heappop(self._next)
            self.now = max(self.now, at)
            self._turn.notify_all()
