# SPDX-License-Identifier: Apache-2.0
"""A roll over a whole fleet on a clock that skips waits, at AMD's own gap; for :mod:`bench.fleet`.

The database, the requests and the verification are real; only time is not. Each host announces
itself, and commits as soon as the mirror has its next certificate. Some instances die after they
take a row from the queue and before they request the certificate that the row names.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

from tests.mirror.virtual import VirtualClock, VirtualMirrors

from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.amd.key_server_faults import Throttle
from snpcerts.emulator.machine.key_server import KeyServer, ProductLine
from snpcerts.emulator.psp.chip import Chip
from snpcerts.endorsement.anchors import anchor_from_certificate
from snpcerts.endorsement.vek import VekKind
from snpcerts.kds.url import VcekResource, parse_target
from snpcerts.mirror import stored
from snpcerts.mirror.announcement import Announcement, FileReport
from snpcerts.mirror.stored import Admitted
from snpcerts.mirror.wanted import LEASE, Taken

GAP = 10.0
TCB = TcbVersion(4, 0, 24, 219)
NEXT = replace(TCB, microcode=220)
_DEATHS = 3
_ESTIMATES = 100


class RecordingClock:
    """A clock for a key server. The server reads the clock once for each VCEK request, so the clock
    records the times of these requests.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.times: list[float] = []

    def __call__(self) -> float:
        """Return the time, and remember it."""
        self.times.append(self._now())
        return self.times[-1]

    def shortest_gap(self) -> float:
        """Return the shortest time between two requests, in seconds."""
        found = sorted(self.times)
        return min((b - a for a, b in pairwise(found)), default=0.0)


@dataclass
class Host:
    """A host, its chip and the TCB whose certificate its guests need."""

    name: str
    chip: Chip
    reported: TcbVersion = TCB

    def path(self, tcb: TcbVersion) -> str:
        """Return the URL path of this host's VCEK certificate for a TCB."""
        return VcekResource(Product.MILAN, self.chip.hwid, tcb).path

    def announcement(self, current: TcbVersion, *, right: bool = True) -> Announcement:
        """Return the announcement of the host's agent. If ``right`` is False, the file is empty."""
        file = FileReport(
            "/var/lib/snpcerts/certs.bin",
            VekKind.VCEK,
            "right" if right else "empty",
            certificates=right,
        )
        return Announcement(
            self.name, Product.MILAN, self.chip.hwid, current, self.reported, files=(file,)
        )


@dataclass(frozen=True)
class RollFigures:
    """The costs of a roll, and counts of what went wrong in it."""

    hosts: int
    requests: int
    not_once: int  # certificates that were not asked for exactly once
    statuses: dict[int, int]
    shortest_gap: float
    seconds: float
    ideal: float
    without: int  # how often the certificate of a host's key was missing
    wrong_estimates: int  # times in Retry-After that are off by more than a gap and 10 %
    estimates: int

    @classmethod
    def counted(
        cls,
        fleet: Sequence[Host],
        amd: KeyServer,
        times: RecordingClock,
        *,
        gap: float,
        seconds: float,
        without: int,
        wrong_estimates: int,
        estimates: int,
    ) -> Self:
        """Return the figures, including those that the key server has counted."""
        asked = [amd.requests.get(host.path(NEXT), 0) for host in fleet]
        return cls(
            hosts=len(fleet),
            requests=sum(asked),
            not_once=sum(count != 1 for count in asked),
            statuses=dict(amd.statuses),
            shortest_gap=times.shortest_gap(),
            seconds=seconds,
            ideal=len(fleet) * gap,
            without=without,
            wrong_estimates=wrong_estimates,
            estimates=estimates,
        )

    def print(self, name: str) -> None:
        """Print one row of figures, including the counts that should be 0."""
        print(
            f"  {name:<36} {self.requests:>7} requests, "
            f"{self.not_once} not asked for exactly once, {self.statuses.get(429, 0)} refused, "
            f"shortest gap {self.shortest_gap:.3f} s, "
            f"{self.seconds:.1f} s ({self.seconds / self.ideal:.3f} x N x gap), "
            f"{self.without} certificates missing, "
            f"{self.wrong_estimates} of {self.estimates} estimates wrong",
            flush=True,
        )


def is_wrong(estimate: float, took: float, gap: float) -> bool:
    """Whether the wait ``took`` differs from its estimate in Retry-After by more than a gap and by
    more than 10 %. All arguments are in seconds.
    """
    return abs(took - estimate) > max(gap, 0.1 * took)


class Estimates:
    """Compares the waits that callers were told to expect with the actual waits."""

    def __init__(self, gap: float) -> None:
        self._gap = gap
        self._given: dict[str, tuple[float, float]] = {}
        self._from = 0.0
        self.checked = 0
        self.wrong = 0

    def give(self, path: str, now: float, wait: float) -> None:
        """Note the wait, in seconds, that a caller was told to expect."""
        if now >= self._from:
            self._given.setdefault(path, (now, wait))

    def forget(self, until: float) -> None:
        """Drop the waits noted so far, and note none before ``until``: an instance died, so the
        queue stands still until that instance's lease ends.
        """
        self._given.clear()
        self._from = until

    def done(self, path: str, now: float) -> None:
        """Compare the noted wait for a certificate, which is stored now, with the actual wait."""
        given = self._given.pop(path, None)
        if given is not None:
            self.checked += 1
            self.wrong += is_wrong(given[1], now - given[0], self._gap)


def virtual_roll(database: str, authority: EmulatedAuthority, hosts: int, instances: int) -> None:
    """Roll a fleet of ``hosts`` hosts to one TCB; print the figures."""
    began = time.monotonic()
    clock = VirtualClock()
    times = RecordingClock(clock.now)
    fleet = [Host(f"host-{n}", Chip.create(Product.MILAN)) for n in range(hosts)]
    line = ProductLine(authority, tuple(host.chip for host in fleet))
    anchors = [anchor_from_certificate(authority.ark)]
    with KeyServer([line], throttle=Throttle(GAP, lengthens=True), clock=times) as amd:
        ended: list[str] = []
        mirrors = VirtualMirrors(
            database, amd, anchors, clock, gap=GAP, count=instances, done=ended.append
        )
        try:
            _enrol(mirrors, fleet, authority)
            figures = _roll(mirrors, amd, times, fleet, ended)
        finally:
            mirrors.close()
    figures.print(f"{hosts} hosts, {mirrors.database.engine.dialect.name}, {instances} inst.")
    print(f"  (took {time.monotonic() - began:.0f} s in reality)", flush=True)


def _enrol(mirrors: VirtualMirrors, fleet: Sequence[Host], authority: EmulatedAuthority) -> None:
    """Store a certificate for each host, as after an earlier roll, and announce all hosts.

    All rows contain the same certificate, because nothing here reads it.
    """
    first = fleet[0].chip
    body = authority.issue_vcek(first.hwid, TCB, first.vcek_key(TCB).public_key()).der
    with mirrors.database.write() as connection:
        now = mirrors.database.now(connection)
        for host in fleet:
            resource = VcekResource(Product.MILAN, host.chip.hwid, TCB)
            earlier = Admitted(resource, body, 0.0, now + 1e8)
            stored.put(connection, earlier, now=now - 1e6, origin="bench")
    for host in fleet:
        mirrors.records.announce(host.announcement(TCB))
    if mirrors.size():
        raise RuntimeError("the hosts' certificates are stored, but the queue is not empty")


def _roll(
    mirrors: VirtualMirrors,
    amd: KeyServer,
    times: RecordingClock,
    fleet: Sequence[Host],
    ended: list[str],
) -> RollFigures:
    """Run the roll. When a path leaves the queue, an instance appends the path to ``ended``."""
    clock, rng = mirrors.clock, random.Random(1)
    by_path = {host.path(NEXT): host for host in fleet}
    waiting = dict(by_path)
    estimates = Estimates(GAP)
    without = 0
    steps = set(rng.sample(range(len(fleet)), min(_ESTIMATES, len(fleet))))
    deaths = {rng.randrange(len(fleet)) for _ in range(_DEATHS)}
    began = clock.at
    mirrors.records.start_roll(Product.MILAN, NEXT, None)

    def each_step() -> None:
        nonlocal without
        done = len(fleet) - len(waiting)
        if done in deaths:
            deaths.discard(done)
            _die(mirrors)
            estimates.forget(clock.at + LEASE + GAP)
        if done in steps and waiting:
            steps.discard(done)
            _estimate(mirrors, rng.choice(list(waiting)), estimates)
        while ended:
            path = ended.pop()
            if path not in waiting:  # the chain
                continue
            host = waiting.pop(path)
            estimates.done(path, clock.at)
            told = {
                each.tcb: each.state for each in mirrors.records.announce(host.announcement(NEXT))
            }
            if told.get(NEXT) != "stored":
                raise RuntimeError(f"{path} is stored, but the mirror says {told}")
            host.reported = NEXT  # the host commits
            without += not _has(mirrors, host)
            mirrors.records.announce(host.announcement(NEXT))

    mirrors.run(each_step)
    took = clock.at - began
    without += sum(not _has(mirrors, host) for host in fleet)
    final = mirrors.records.rolls()[0]
    if not final.done:
        raise RuntimeError(f"the roll is not done: {final.latest}")
    return RollFigures.counted(
        fleet,
        amd,
        times,
        gap=GAP,
        seconds=took,
        without=without,
        wrong_estimates=estimates.wrong,
        estimates=estimates.checked,
    )


def _die(mirrors: VirtualMirrors) -> None:
    """Take a row from the queue, like an instance that dies right afterwards."""
    with mirrors.database.write() as connection:
        mirrors.queue.lock(connection)
        now = mirrors.database.now(connection)
        while not isinstance(mirrors.queue.take(connection, now, "dead"), Taken):
            mirrors.clock.advance(0.5)
            now = mirrors.database.now(connection)


def _estimate(mirrors: VirtualMirrors, path: str, estimates: Estimates) -> None:
    with mirrors.database.read() as connection:
        place = mirrors.queue.place(connection, parse_target(path), mirrors.clock.at)
    if place is not None:
        estimates.give(path, mirrors.clock.at, place.wait)


def _has(mirrors: VirtualMirrors, host: Host) -> bool:
    with mirrors.database.read() as connection:
        return stored.find(connection, host.path(host.reported)) is not None
