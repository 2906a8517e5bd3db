# SPDX-License-Identifier: Apache-2.0
"""Instances of the mirror on a clock that skips all waits.

The database, the requests and the verification are real; only time is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from snpcerts.emulator.machine.key_server import KeyServer
from snpcerts.endorsement.anchors import Anchor
from snpcerts.kds.client import KdsClient
from snpcerts.mirror.admission import Admission
from snpcerts.mirror.database import MirrorDatabase
from snpcerts.mirror.fetcher import Fetcher, Waiter
from snpcerts.mirror.fleet_records import FleetRecords
from snpcerts.mirror.wanted import WantedQueue

# Certificates are issued at the real time. An hour later, when this clock starts, they are valid.
START = time.time() + 3600


@dataclass
class VirtualClock:
    """Seconds since the epoch; each wait advances them. The database's clock is ``jumped`` seconds
    ahead of this one.
    """

    at: float = START
    jumped: float = 0.0

    def now(self) -> float:
        return self.at

    def of_database(self) -> float:
        return self.at + self.jumped

    def advance(self, seconds: float) -> None:
        self.at += max(seconds, 0.0)


class SkippingWaiter(Waiter):
    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def monotonic(self) -> float:
        return self._clock.at

    def wait(self, seconds: float) -> None:
        self._clock.advance(seconds)

    def sleep(self, seconds: float) -> None:
        self._clock.advance(seconds)


class QueueNotEmptyError(AssertionError):
    """The queue still has rows after all steps."""


class VirtualMirrors:
    """Some instances with one database and one upstream, all on the same clock."""

    def __init__(
        self,
        url: str,
        amd: KeyServer,
        anchors: Sequence[Anchor],
        clock: VirtualClock,
        *,
        gap: float,
        count: int = 1,
        done: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.clock = clock
        self.database = MirrorDatabase(url, clock=clock.of_database)
        self.database.prepare()
        self.queue = WantedQueue(gap)
        self.records = FleetRecords(self.database, self.queue)
        admission = Admission(anchors)
        self.client = KdsClient(amd.url)
        self.fetchers = [
            Fetcher(
                self.database,
                self.queue,
                self.client,
                admission,
                done=done,
                waiter=SkippingWaiter(clock),
                wall=clock.now,
            )
            for _ in range(count)
        ]

    def size(self) -> int:
        with self.database.read() as connection:
            return self.queue.size(connection)

    def stored(self) -> int:
        """How many VCEKs are stored."""
        with self.database.read() as connection:
            query = "SELECT count(*) FROM certificate WHERE kind = 'vcek'"
            return int(connection.exec_driver_sql(query).scalar_one())

    def run(self, each_step: Callable[[], None] = lambda: None, most: int | None = None) -> None:
        """Let the instances work in turn until the queue is empty. Raise if it is not empty after
        ``most`` steps. The default allows for a few failures.
        """
        bound = 200 + 10 * self.size() if most is None else most
        for _ in range(bound):
            waits = [fetcher.step() for fetcher in self.fetchers]
            each_step()
            if min(waits) > 0:
                if not self.size():
                    return
                self.clock.advance(min(waits))
        raise QueueNotEmptyError(f"after {bound:,} steps the queue still has rows")

    def close(self) -> None:
        self.client.close()
        self.database.close()
