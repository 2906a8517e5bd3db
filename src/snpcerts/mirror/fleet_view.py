# SPDX-License-Identifier: Apache-2.0
"""The state of a fleet, as the mirror's pages and metrics show it.

The classes hold plain values and do not use the database. :mod:`snpcerts.mirror.fleet_records`
reads the values, and :mod:`snpcerts.mirror.fleet_page` and :mod:`snpcerts.mirror.host_page` show
them. All times are the database's, in UTC.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from snpcerts.abi.processor_names import PROCESSORS, processor_names
from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.mirror.announcement import Announcement, FileReport
from snpcerts.verify.bulletins import BulletinData

# An agent announces itself after each round, every 30 s unless configured otherwise.
SILENT_AFTER: Final = timedelta(minutes=10)
EXPIRES_SOON: Final = timedelta(days=30)


class HostState(enum.Enum):
    """The state of a host: the first of these that applies."""

    WRONG = "wrong"  # a file has wrong certificates, or cannot be read
    SILENT = "silent"  # the agent has not announced itself for a while
    EMPTY = "empty"  # guests get no certificates although they should
    BEHIND = "behind"  # certificates match, but newer firmware is not committed yet
    IN_STEP = "in step"

    @property
    def slug(self) -> str:
        """The state in the spelling that URLs and metrics use, such as ``in-step``."""
        return self.value.replace(" ", "-")


class NextState(enum.Enum):
    """The state of the certificate that a host needs at its next commit."""

    NONE = "none"  # no newer firmware is running or announced
    STORED = "stored"
    QUEUED = "queued"
    NOT_FOUND = "not found"  # AMD's server answered 404; it will be asked again


_MISLEADS: Final = ("wrong", "foreign", "unreadable")
_LACKS: Final = ("empty", "missing")


@dataclass(frozen=True, slots=True)
class FleetHost:
    """A host, as its last announcement describes it. ``target`` is the TCB that the host should
    have next, if any.
    """

    announcement: Announcement
    seen_at: datetime
    first_seen_at: datetime
    target: TcbVersion | None = None
    next_state: NextState = NextState.NONE

    def state(self, now: datetime) -> HostState:
        """Return the host's state at the time ``now``."""
        states = [each.state for each in self.announcement.files]
        if any(each in _MISLEADS for each in states):
            return HostState.WRONG
        if now - self.seen_at > SILENT_AFTER:
            return HostState.SILENT
        if any(each in _LACKS for each in states) or not states:
            return HostState.EMPTY
        if self.commit_pending or any(each != "right" for each in states):
            return HostState.BEHIND
        if self.target is not None and not self.announcement.reported.covers(self.target):
            return HostState.BEHIND
        return HostState.IN_STEP

    @property
    def commit_pending(self) -> bool:
        """Whether the current TCB differs from the reported TCB, so that a commit is pending."""
        return self.announcement.current != self.announcement.reported

    def reason(self, now: datetime) -> str:
        """Return in one sentence why the host is not in step; empty if it is."""
        announcement = self.announcement
        for wanted in (_MISLEADS, _LACKS):
            for file in announcement.files:
                if file.state in wanted:
                    return f"{file.path}: {file.reason or file.state}"
        if now - self.seen_at > SILENT_AFTER:
            return f"no announcement for {span(now - self.seen_at)}"
        if not announcement.files:
            return "no certificate file is configured"
        if self.commit_pending:
            ready = {
                NextState.STORED: "the host can commit: the next certificate is stored",
                NextState.QUEUED: "the next certificate is queued",
                NextState.NOT_FOUND: "the key server does not have the next certificate",
                NextState.NONE: "newer firmware is running",
            }
            return f"a commit is pending, and {ready[self.next_state]}"
        for file in announcement.files:
            if file.state != "right":
                return f"{file.path}: {file.reason or file.state}"
        if self.state(now) is HostState.BEHIND:
            return "the roll's firmware is not loaded yet"
        return ""

    @property
    def expires_at(self) -> datetime | None:
        """The time until which all certificates in the host's files are valid; None if the files
        have none.
        """
        return min(
            (each.not_after for each in self.announcement.files if each.not_after), default=None
        )


@dataclass(frozen=True, slots=True)
class Queue:
    """The queue of requests that the mirror will make. ``waiting`` counts them by need.

    ``gap`` is the least number of seconds between two requests for VCEKs. ``hold_until`` is the
    time before which the key server must not be asked, after a 429 or a failure. ``ends_at`` is the
    time at which the queue will be empty; None if it is empty or there is no estimate. ``fetched``
    and ``refused`` count what was stored, and what the key server did not give, in the last hour.
    ``problem`` says why the last request failed, if it did.
    """

    waiting: Mapping[str, int]
    gap: float
    ends_at: datetime | None = None
    hold_until: datetime | None = None
    fetched: int = 0
    refused: int = 0
    problem: str = ""
    upstream: str = ""

    @property
    def length(self) -> int:
        """The number of waiting requests."""
        return sum(self.waiting.values())


@dataclass(frozen=True, slots=True)
class RollPoint:
    """The progress of a roll at one moment: how many hosts have reached each step."""

    at: datetime
    stored: int  # the certificate for the target TCB is stored
    committed: int  # reports contain the target TCB
    in_step: int  # reports contain the target TCB, and every file matches


@dataclass(frozen=True, slots=True)
class Roll:
    """A roll: new firmware with the TCB ``tcb`` for ``hosts`` hosts. ``points`` are in
    chronological order.

    ``prefetched_at`` is the time at which the last certificate was or will be fetched.
    """

    number: int
    product: Product
    tcb: TcbVersion
    started_at: datetime
    hosts: int
    points: tuple[RollPoint, ...] = ()
    prefetched_at: datetime | None = None

    @property
    def latest(self) -> RollPoint:
        """The last of the points; a point with all counts 0 if there is none."""
        return self.points[-1] if self.points else RollPoint(self.started_at, 0, 0, 0)

    @property
    def done(self) -> bool:
        """Whether every host of the roll has the target TCB and is in step."""
        return bool(self.points) and self.latest.in_step >= self.hosts


@dataclass(frozen=True, slots=True)
class Expiring:
    """Something that expires: a revocation list, a chain or a host's certificate."""

    what: str
    at: datetime
    host: FleetHost | None = None


@dataclass(frozen=True, slots=True)
class Fleet:
    """The state of the whole fleet at one moment.

    ``stored`` counts the stored certificates, chains and revocation lists by kind.
    """

    now: datetime
    hosts: tuple[FleetHost, ...]
    queue: Queue
    rolls: tuple[Roll, ...] = ()
    stored: Mapping[str, int] = field(default_factory=dict)
    lists: tuple[Expiring, ...] = ()
    instances: int = 1
    version: str = ""

    def by_state(self) -> Counter[HostState]:
        """Count the hosts in each state."""
        return Counter(each.state(self.now) for each in self.hosts)

    def expiring(self) -> list[Expiring]:
        """Return everything that expires, the soonest first."""
        of_hosts = [
            Expiring(file.kind.name, file.not_after, host)
            for host in self.hosts
            for file in host.announcement.files
            if file.not_after is not None
        ]
        return sorted((*self.lists, *of_hosts), key=lambda each: each.at)


@dataclass(frozen=True, slots=True)
class Seen:
    """An earlier announcement of a host, kept because it differs from the announcement before
    it.
    """

    at: datetime
    announcement: Announcement


@dataclass(frozen=True, slots=True)
class HostHistory:
    """One host and its earlier announcements, the oldest first."""

    now: datetime
    host: FleetHost
    seen: tuple[Seen, ...]

    def state_at(self, seen: Seen) -> HostState:
        """Return the state that the host was in at the time of an earlier announcement."""
        return FleetHost(seen.announcement, seen.at, seen.at).state(seen.at)


def differs(before: Announcement | None, after: Announcement) -> bool:
    """Return whether an announcement says something new and therefore belongs in the history."""
    return before is None or any(True for _ in changes(before, after))


def changes(before: Announcement, after: Announcement) -> Iterator[str]:
    """Yield one phrase for each change between two announcements of a host."""
    if before.host != after.host:
        yield f"the host's name is {after.host}, was {before.host}"
    for name, old, new in (
        ("current TCB", before.current, after.current),
        ("reported TCB", before.reported, after.reported),
        ("committed TCB", before.committed, after.committed),
    ):
        if old is not None and new is not None and old != new:
            yield f"{name}: {tcb_change(old, new)}"
    for name, was, is_now in (
        ("firmware", before.firmware, after.firmware),
        ("agent", before.agent, after.agent),
    ):
        if was != is_now:
            yield f"{name} {is_now or '?'}, was {was or '?'}"
    if before.vlek_loaded != after.vlek_loaded:
        yield "a VLEK was loaded" if after.vlek_loaded else "the VLEK is no longer loaded"
    if before.initialised != after.initialised:
        yield "SNP was initialised" if after.initialised else "SNP is no longer initialised"
    yield from _changes_of_files(before.files, after.files)


def _changes_of_files(before: Sequence[FileReport], after: Sequence[FileReport]) -> Iterator[str]:
    old = {each.path: each for each in before}
    for file in after:
        was = old.pop(file.path, None)
        reason = f": {file.reason}" if file.reason else ""
        if was is None:
            yield f"{file.path}: new, {file.state}{reason}"
        elif was.state != file.state:
            yield f"{file.path}: {file.state}, was {was.state}{reason}"
        elif was.certificates != file.certificates:
            yield f"{file.path}: " + ("has certificates again" if file.certificates else "emptied")
        elif was.not_after != file.not_after and file.not_after is not None:
            yield f"{file.path}: new certificate, valid until {file.not_after:%Y-%m-%d}"
    for path in old:
        yield f"{path}: no longer configured"


def tcb_change(before: TcbVersion, after: TcbVersion) -> str:
    """Return the components that changed, as in ``snp 23 → 24, microcode 213 → 219``."""
    old, new = before.components(), after.components()
    parts = (f"{name} {old.get(name)} → {new[name]}" for name in new if old.get(name) != new[name])
    return ", ".join(parts)


# The floors that bulletins set.


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A component of a TCB that is below a bulletin's floor."""

    bulletin: str
    component: str
    value: int
    floor: int

    def __str__(self) -> str:
        return f"{self.component} {self.value} is below {self.floor} ({self.bulletin})"


def processors_of(announcement: Announcement) -> tuple[str, ...]:
    """Return the code names of a host's processor.

    There are several names if CPUID does not distinguish the processors, and none if the host has
    not announced its processor or announced an unknown one.
    """
    cpuid = announcement.cpuid
    if cpuid is None:
        return ()
    names = processor_names(cpuid.family, cpuid.model, cpuid.stepping)
    return tuple(name for name in names if announcement.product in PROCESSORS[name].products)


def floors_of(processors: Iterable[str], bulletins: BulletinData) -> dict[str, tuple[int, str]]:
    """Return, for each TCB component, the highest confirmed floor that a bulletin sets for any of
    these processors, and the bulletin.
    """
    names = set(processors)
    found: dict[str, tuple[int, str]] = {}
    for bulletin in bulletins.bulletins:
        for floor in bulletin.floors:
            if floor.confirmed and names & set(floor.processors):
                known = found.get(floor.component)
                if known is None or floor.value > known[0]:
                    found[floor.component] = (floor.value, bulletin.id)
    return found


def shortfalls(
    tcb: TcbVersion, processors: Iterable[str], bulletins: BulletinData
) -> tuple[Shortfall, ...]:
    """Return the components of a TCB that are below the floors for these processors."""
    values = tcb.components()
    return tuple(
        Shortfall(bulletin, component, values[component], floor)
        for component, (floor, bulletin) in floors_of(processors, bulletins).items()
        if component in values and values[component] < floor
    )


@dataclass(frozen=True, slots=True)
class TcbGroup:
    """The hosts that have the same kind of processor and the same reported TCB.

    ``has_floor`` is false if no bulletin has a confirmed value for the processor, or if the host
    does not name its processor.
    """

    product: Product
    processors: tuple[str, ...]
    tcb: TcbVersion
    hosts: int
    has_floor: bool
    below: tuple[Shortfall, ...]


def tcb_spread(hosts: Iterable[FleetHost], bulletins: BulletinData) -> list[TcbGroup]:
    """Group hosts by processor and reported TCB. Each processor's newest TCB comes first."""
    counted: Counter[tuple[Product, tuple[str, ...], TcbVersion]] = Counter(
        (each.announcement.product, processors_of(each.announcement), each.announcement.reported)
        for each in hosts
    )
    order = list(Product)
    return [
        TcbGroup(
            product,
            processors,
            tcb,
            count,
            bool(floors_of(processors, bulletins)),
            shortfalls(tcb, processors, bulletins),
        )
        for (product, processors, tcb), count in sorted(
            counted.items(),
            key=lambda each: (
                order.index(each[0][0]),
                each[0][1],
                tuple(-value for value in each[0][2].components().values()),
            ),
        )
    ]


def span(length: timedelta) -> str:
    """Return a time span in one or two units, as in ``2 h 46 min``."""
    seconds = max(round(length.total_seconds()), 0)
    for unit, size, below, part in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if seconds >= size:
            whole, rest = seconds // size, seconds % size // part
            if unit == "min" and whole >= 10:
                return f"{whole} min"
            return f"{whole} {unit} {rest} {below}" if rest else f"{whole} {unit}"
    return f"{seconds} s"
