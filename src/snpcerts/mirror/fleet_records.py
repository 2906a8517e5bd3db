# SPDX-License-Identifier: Apache-2.0
"""Stores announcements and rolls in the database, and reads what the pages show.

The certificates that announcements and rolls require are queued in the same transaction.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, delete, func, select, update

from snpcerts import __version__
from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.errors import RefusedError
from snpcerts.kds.url import VcekResource
from snpcerts.mirror import stored
from snpcerts.mirror.announcement import MAX_HOSTS, Announcement, announcement_of
from snpcerts.mirror.database import MirrorDatabase, insert
from snpcerts.mirror.fleet_view import (
    Expiring,
    Fleet,
    FleetHost,
    HostHistory,
    NextState,
    Queue,
    Roll,
    RollPoint,
    Seen,
    differs,
)
from snpcerts.mirror.tables import (
    CERTIFICATE,
    HOST,
    HOST_HISTORY,
    INSTANCE,
    NEGATIVE,
    QUEUE,
    ROLL,
    ROLL_HOST,
)
from snpcerts.mirror.wanted import Need, WantedQueue

MAX_ROLLS: Final = 50  # the oldest ones are removed
ALIVE: Final = 60.0  # seconds since an instance's last sign of life

_SEEN_AGAIN: Final = 60.0  # an unchanged announcement is written this often, in seconds
_KEPT_HISTORY: Final = 200  # rows of one host
_POINTS: Final = 200
_HOUR: Final = 3600.0


@dataclass(frozen=True, slots=True)
class WantedState:
    """The state of a host's certificate for one TCB.

    If the certificate is queued, ``ahead`` counts the certificates before it, and ``wait`` is the
    number of seconds until it is fetched. If the key server gave no certificate, ``wait`` is the
    number of seconds until the mirror may ask again.
    """

    tcb: TcbVersion
    state: str  # stored, queued, not-found or refused
    ahead: int | None = None
    wait: float | None = None

    def to_json(self) -> dict[str, object]:
        """Return the state as JSON values."""
        return {
            "tcb": self.tcb.components(),
            "state": self.state,
            "position": self.ahead,
            "wait_seconds": self.wait,
        }


@dataclass(frozen=True, slots=True)
class RollStart:
    """A roll that was just started: its number, and how many certificates are stored and queued."""

    number: int
    hosts: int
    stored: int
    queued: int
    wait: float  # seconds until the last certificate has been fetched


@dataclass(frozen=True, slots=True)
class AnnouncerIdentity:
    """The sender of an announcement, as the credential shows it. ``names`` are the hosts that the
    credential belongs to, in lower case; None if all hosts share the credential.
    """

    names: frozenset[str] | None = None
    operator: bool = False


SHARED_TOKEN: Final = AnnouncerIdentity()


@dataclass(frozen=True, slots=True)
class ForgottenHost:
    """A host that was removed by :meth:`FleetRecords.forget`."""

    product: str
    hwid: str
    name: str


class FleetRecords:
    """The hosts and rolls in one database."""

    def __init__(self, database: MirrorDatabase, queue: WantedQueue, upstream: str = "") -> None:
        self._database = database
        self._queue = queue
        self._upstream = upstream

    def announce(
        self, announcement: Announcement, announcer: AnnouncerIdentity = SHARED_TOKEN
    ) -> list[WantedState]:
        """Record an announcement, queue the certificates that the host needs now and next, and
        return their states.

        Raises :class:`RefusedError` if the chip is bound to another host or the host to another
        chip, if there are too many hosts, or if the queue is full.
        """
        tcbs = _needed(announcement)
        with self._database.read() as connection:
            bound_to = self._bound_to(connection, announcement, announcer)
            now = self._database.now(connection)
            tcbs += [tcb for tcb in self._targets(connection, announcement) if tcb not in tcbs]
            states = [self._wanted(connection, announcement, tcb, now) for tcb in tcbs]
            if (
                not self._worth_writing(connection, announcement, bound_to, now)
                and None not in states
            ):
                return [each for each in states if each is not None]
        with self._database.write() as connection:
            now = self._database.now(connection)
            bound_to = self._bound_to(connection, announcement, announcer)
            self._record(connection, announcement, bound_to, now)
            states = [self._wanted(connection, announcement, tcb, now) for tcb in tcbs]
            in_step = all(each.in_step for each in announcement.files)
            missing = [tcb for tcb, state in zip(tcbs, states, strict=True) if state is None]
            if missing:
                self._queue.require_room(connection, len(missing))
            for tcb in missing:
                need = Need.HOST if tcb == announcement.reported and not in_step else Need.ROLL
                self._queue.want(connection, _resource(announcement, tcb), need, now)
            if missing:
                self._database.notify(connection, "")
            states = [self._wanted(connection, announcement, tcb, now) for tcb in tcbs]
        return [each for each in states if each is not None]

    def start_roll(
        self, product: Product, tcb: TcbVersion, names: Sequence[str] | None
    ) -> RollStart:
        """Start a roll for all hosts of a product, or for those given by name or chip ID.

        A chip ID may also be that of a host that has not announced itself. Raises
        :class:`RefusedError` if a name is unknown, if there are no hosts or too many, or if the
        queue is full.
        """
        with self._database.write() as connection:
            now = self._database.now(connection)
            chips = self._chips(connection, product, names)
            resources = {chip: VcekResource(product, bytes.fromhex(chip), tcb) for chip in chips}
            paths = [each.path for each in resources.values()]
            have = stored.stored_among(connection, paths)
            number = self._new_roll(connection, product, tcb, now)
            rows = [
                {
                    "roll": number,
                    "hwid": chip,
                    "resource": each.path,
                    "stored_at": now if each.path in have else None,
                }
                for chip, each in resources.items()
            ]
            connection.execute(insert(connection, ROLL_HOST), rows)
            for announcement in self._announced(connection, product, chips):
                self._progress(connection, announcement, now)
            missing = [each for each in resources.values() if each.path not in have]
            self._queue.require_room(connection, len(missing))
            self._queue.want_all(connection, missing, Need.ROLL, now)
            self._database.notify(connection, "")
            wait = self._queue.done_in(connection, Need.ROLL, now) if missing else 0.0
        return RollStart(number, len(chips), len(have), len(missing), wait)

    def forget(self, names: Sequence[str]) -> list[ForgottenHost]:
        """Remove hosts, each given by its name or chip ID, and their histories.

        Rolls no longer wait for these hosts, and their certificates leave the queue. Afterwards any
        host can announce the chips. Raises :class:`RefusedError`, and removes nothing, if a name is
        unknown.
        """
        h = HOST.c
        with self._database.write() as connection:
            now = self._database.now(connection)
            rows = connection.execute(select(h.product, h.hwid, h.name)).all()
            found: dict[tuple[str, str], str] = {}
            for name in names:
                named = [row for row in rows if name.lower() in (row.name.lower(), row.hwid)]
                if not named:
                    raise RefusedError(
                        f"no host with the name or chip ID {name!r} has announced itself",
                        code="mirror-unknown-host",
                    )
                found |= {(row.product, row.hwid): row.name for row in named}
            for product, hwid in found:
                self._forget(connection, product, hwid, now)
        return [ForgottenHost(*chip, name) for chip, name in found.items()]

    def _forget(self, connection: Connection, product: str, hwid: str, now: float) -> None:
        for table in (HOST, HOST_HISTORY):
            c = table.c
            connection.execute(delete(table).where(c.product == product, c.hwid == hwid))
        rolls = select(ROLL.c.id).where(ROLL.c.product == product)
        r, q = ROLL_HOST.c, QUEUE.c
        connection.execute(
            delete(ROLL_HOST).where(r.hwid == hwid, r.roll.in_(rolls), r.in_step_at.is_(None))
        )
        connection.execute(
            delete(QUEUE).where(q.product == product, q.hwid == hwid, q.lease_until <= now)
        )

    def alive(self, instance: str) -> None:
        """Record that an instance of the mirror is running."""
        with self._database.write() as connection:
            now = self._database.now(connection)
            statement = insert(connection, INSTANCE).values(id=instance, seen_at=now)
            connection.execute(
                statement.on_conflict_do_update(index_elements=["id"], set_={"seen_at": now})
            )
            connection.execute(delete(INSTANCE).where(INSTANCE.c.seen_at < now - 10 * ALIVE))

    def fleet(self) -> Fleet:
        """Return the state of the whole fleet, which the page shows."""
        with self._database.read() as connection:
            now = self._database.now(connection)
            return Fleet(
                now=_when(now),
                hosts=self._hosts(connection),
                queue=self._queue_view(connection, now),
                rolls=self._rolls(connection, now),
                stored=self._stored(connection),
                lists=self._lists(connection),
                instances=self._instances(connection, now),
                version=__version__,
            )

    def rolls(self) -> tuple[Roll, ...]:
        """Return all rolls, the newest first."""
        with self._database.read() as connection:
            return self._rolls(connection, self._database.now(connection))

    def crl_ages(self) -> dict[tuple[str, str], float]:
        """Return how many seconds ago each revocation list was fetched, by product and key kind."""
        c = CERTIFICATE.c
        with self._database.read() as connection:
            now = self._database.now(connection)
            rows = connection.execute(
                select(c.resource, c.product, c.fetched_at).where(c.kind == "crl")
            ).all()
        return {(row.product, row.resource[:4]): max(0.0, now - row.fetched_at) for row in rows}

    def host(self, product: Product, hwid: bytes) -> HostHistory | None:
        """Return a host and its history; None if the host has not announced itself."""
        h = HOST_HISTORY.c
        with self._database.read() as connection:
            now = self._database.now(connection)
            hosts = self._hosts(connection, product, hwid.hex())
            rows = connection.execute(
                select(h.at, h.announcement)
                .where(h.product == product.value, h.hwid == hwid.hex())
                .order_by(h.at, h.id)
            ).all()
        if not hosts:
            return None
        seen = tuple(Seen(_when(row.at), _read(row.announcement)) for row in rows)
        return HostHistory(_when(now), hosts[0], seen)

    # Changes that an announcement makes.

    def _bound_to(
        self, connection: Connection, announcement: Announcement, announcer: AnnouncerIdentity
    ) -> str | None:
        """Return the name of the host that the chip is bound to from now on; None if it is bound to
        no host.

        Raises :class:`RefusedError` if the chip is bound to another host, or the host to another
        chip.
        """
        h = HOST.c
        bound_to = connection.execute(select(h.bound_to).where(*_is(announcement))).scalar()
        if announcer.operator:
            return bound_to
        names = announcer.names or frozenset()
        if bound_to is not None and bound_to not in names:
            raise RefusedError(
                f"this chip belongs to host {bound_to!r}, which announced the chip first, with a "
                "client certificate or token of its own; if the chip is in another host now, run "
                f"{_forget(announcement.hwid.hex())}",
                code="mirror-other-host",
            )
        if announcer.names is None:
            return None
        name = announcement.host.lower()
        other = connection.execute(select(h.product, h.hwid).where(h.bound_to == name)).first()
        if other is not None and (other.product, other.hwid) != (
            announcement.product.value,
            announcement.hwid.hex(),
        ):
            raise RefusedError(
                f"host {name!r} has announced another chip before, {other.product} {other.hwid}; "
                f"if the host has a new processor, run {_forget(other.hwid)}",
                code="mirror-other-chip",
            )
        return name

    def _worth_writing(
        self, connection: Connection, announcement: Announcement, bound_to: str | None, now: float
    ) -> bool:
        row = connection.execute(
            select(HOST.c.announced_at, HOST.c.announcement, HOST.c.bound_to).where(
                *_is(announcement)
            )
        ).first()
        if row is None or row.bound_to != bound_to:
            return True
        if not now - _SEEN_AGAIN < row.announced_at <= now:
            return True
        return bool(row.announcement != _text(announcement))

    def _record(
        self, connection: Connection, announcement: Announcement, bound_to: str | None, now: float
    ) -> None:
        text = _text(announcement)
        row = connection.execute(select(HOST.c.announcement).where(*_is(announcement))).first()
        if row is None:
            count = connection.execute(select(func.count()).select_from(HOST)).scalar_one()
            if count >= MAX_HOSTS:
                raise RefusedError(
                    f"cannot add host {announcement.host!r}: {count} hosts have announced "
                    f"themselves, and this mirror accepts at most {MAX_HOSTS}",
                    code="mirror-too-many-hosts",
                )
        before = None if row is None else _read(row.announcement)
        values = {
            "name": announcement.host,
            "announced_at": now,
            "announcement": text,
            "bound_to": bound_to,
        }
        statement = insert(connection, HOST).values(
            product=announcement.product.value, hwid=announcement.hwid.hex(), first_at=now, **values
        )
        connection.execute(
            statement.on_conflict_do_update(index_elements=["product", "hwid"], set_=values)
        )
        if differs(before, announcement):
            chip = {"product": announcement.product.value, "hwid": announcement.hwid.hex()}
            connection.execute(
                insert(connection, HOST_HISTORY).values(**chip, at=now, announcement=text)
            )
            self._trim(connection, announcement)
        self._progress(connection, announcement, now)

    def _trim(self, connection: Connection, announcement: Announcement) -> None:
        h = HOST_HISTORY.c
        mine = (h.product == announcement.product.value, h.hwid == announcement.hwid.hex())
        oldest = connection.execute(
            select(h.id).where(*mine).order_by(h.id.desc()).offset(_KEPT_HISTORY).limit(1)
        ).scalar()
        if oldest is not None:
            connection.execute(delete(HOST_HISTORY).where(*mine, h.id <= oldest))

    def _progress(self, connection: Connection, announcement: Announcement, now: float) -> None:
        """Record how far a host has progressed in the rolls that include it."""
        r = ROLL_HOST.c
        rows = connection.execute(
            select(r.roll, r.committed_at, r.in_step_at, ROLL.c.tcb)
            .join(ROLL, ROLL.c.id == r.roll)
            .where(r.hwid == announcement.hwid.hex(), ROLL.c.product == announcement.product.value)
        ).all()
        for row in rows:
            reached = announcement.reported.covers(_tcb(row.tcb))
            in_step = (
                reached
                and bool(announcement.files)
                and all(each.in_step for each in announcement.files)
            )
            values = {
                "committed_at": (row.committed_at or now) if reached else None,
                "in_step_at": (row.in_step_at or now) if in_step else None,
            }
            if (values["committed_at"], values["in_step_at"]) != (row.committed_at, row.in_step_at):
                mine = (r.roll == row.roll, r.hwid == announcement.hwid.hex())
                connection.execute(update(ROLL_HOST).where(*mine).values(**values))

    def _targets(self, connection: Connection, announcement: Announcement) -> list[TcbVersion]:
        """Return the TCBs of those rolls whose target the host has not reached."""
        rows = connection.execute(
            select(ROLL.c.tcb)
            .join(ROLL_HOST, ROLL_HOST.c.roll == ROLL.c.id)
            .where(
                ROLL_HOST.c.hwid == announcement.hwid.hex(),
                ROLL.c.product == announcement.product.value,
                ROLL_HOST.c.committed_at.is_(None),
            )
            .order_by(ROLL.c.id)
        ).scalars()
        return [_tcb(text) for text in rows]

    def _wanted(
        self, connection: Connection, announcement: Announcement, tcb: TcbVersion, now: float
    ) -> WantedState | None:
        """Return the state of a host's certificate for a TCB; None if the certificate is neither
        stored nor queued, nor known to be unavailable.
        """
        resource = _resource(announcement, tcb)
        found = stored.find(connection, resource.path)
        if found is not None and found.not_after > now:
            return WantedState(tcb, "stored")
        place = self._queue.place(connection, resource, now)
        if place is not None:
            return WantedState(tcb, "queued", place.ahead, place.wait)
        negative = stored.find_negative(connection, resource.path, now)
        if negative is not None:
            return WantedState(tcb, negative.reason, None, negative.until - now)
        return None

    def _chips(
        self, connection: Connection, product: Product, names: Sequence[str] | None
    ) -> list[str]:
        rows = connection.execute(
            select(HOST.c.hwid, HOST.c.name).where(HOST.c.product == product.value)
        ).all()
        if names is None:
            if not rows:
                raise RefusedError(
                    f"no {product.value} host has announced itself",
                    hint=(
                        "name the hosts by their chip IDs, or wait until the agents have "
                        "announced their hosts"
                    ),
                    code="mirror-no-host",
                )
            return sorted(row.hwid for row in rows)
        by_name: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            by_name[row.name].add(row.hwid)
        found: set[str] = set()
        for name in names:
            chips = by_name.get(name) or _as_chip(name, product)
            if not chips:
                raise RefusedError(
                    (
                        f"{name!r} is neither a chip ID nor the name of a {product.value} host "
                        "that has announced itself"
                    ),
                    code="mirror-unknown-host",
                )
            found |= chips
        if not found:
            raise RefusedError(
                "expected at least one host for the roll, found none", code="mirror-no-host"
            )
        if len(found) > MAX_HOSTS:
            raise RefusedError(
                f"expected at most {MAX_HOSTS} hosts for the roll, found {len(found)}",
                code="mirror-too-many-hosts",
            )
        return sorted(found)

    def _new_roll(
        self, connection: Connection, product: Product, tcb: TcbVersion, now: float
    ) -> int:
        number = connection.execute(
            insert(connection, ROLL)
            .values(product=product.value, tcb=json.dumps(tcb.components()), announced_at=now)
            .returning(ROLL.c.id)
        ).scalar_one()
        old = connection.execute(
            select(ROLL.c.id).order_by(ROLL.c.id.desc()).offset(MAX_ROLLS)
        ).scalars()
        for each in list(old):
            connection.execute(delete(ROLL_HOST).where(ROLL_HOST.c.roll == each))
            connection.execute(delete(ROLL).where(ROLL.c.id == each))
        return int(number)

    def _announced(
        self, connection: Connection, product: Product, chips: Sequence[str]
    ) -> Iterable[Announcement]:
        wanted = set(chips)
        rows = connection.execute(
            select(HOST.c.hwid, HOST.c.announcement).where(HOST.c.product == product.value)
        ).all()
        return [_read(row.announcement) for row in rows if row.hwid in wanted]

    # Values for the pages.

    def _hosts(
        self, connection: Connection, product: Product | None = None, hwid: str | None = None
    ) -> tuple[FleetHost, ...]:
        query = select(HOST).order_by(HOST.c.name, HOST.c.hwid)
        if product is not None:
            query = query.where(HOST.c.product == product.value, HOST.c.hwid == hwid)
        rows = [(row, _read(row.announcement)) for row in connection.execute(query)]
        targets = self._newest_targets(connection)
        nexts: dict[tuple[str, str], VcekResource] = {}
        for row, announcement in rows:
            target = targets.get((row.product, row.hwid))
            if target is None and announcement.current != announcement.reported:
                target = announcement.current
            if target is not None:
                nexts[row.product, row.hwid] = _resource(announcement, target)
        paths = [each.path for each in nexts.values()]
        have = stored.stored_among(connection, paths)
        queued = set(connection.execute(select(QUEUE.c.resource)).scalars())
        refused = set(connection.execute(select(NEGATIVE.c.resource)).scalars())

        def next_state(chip: tuple[str, str]) -> NextState:
            wanted = nexts.get(chip)
            if wanted is None:
                return NextState.NONE
            if wanted.path in have:
                return NextState.STORED
            if wanted.path in queued:
                return NextState.QUEUED
            return NextState.NOT_FOUND if wanted.path in refused else NextState.QUEUED

        return tuple(
            FleetHost(
                announcement,
                _when(row.announced_at),
                _when(row.first_at),
                targets.get((row.product, row.hwid)),
                next_state((row.product, row.hwid)),
            )
            for row, announcement in rows
        )

    def _newest_targets(self, connection: Connection) -> dict[tuple[str, str], TcbVersion]:
        rows = connection.execute(
            select(ROLL.c.product, ROLL_HOST.c.hwid, ROLL.c.tcb)
            .join(ROLL_HOST, ROLL_HOST.c.roll == ROLL.c.id)
            .where(ROLL_HOST.c.committed_at.is_(None))
            .order_by(ROLL.c.id)
        ).all()
        read: dict[str, TcbVersion] = {}
        return {(row.product, row.hwid): read.setdefault(row.tcb, _tcb(row.tcb)) for row in rows}

    def _queue_view(self, connection: Connection, now: float) -> Queue:
        q, c, n = QUEUE.c, CERTIFICATE.c, NEGATIVE.c
        counts = connection.execute(select(q.need, func.count()).group_by(q.need)).all()
        waiting = {Need(need).label: count for need, count in counts}
        pace = self._queue.pace(connection, now)
        fetched = connection.execute(
            select(func.count()).select_from(CERTIFICATE).where(c.fetched_at > now - _HOUR)
        ).scalar_one()
        refused = connection.execute(
            select(func.count()).select_from(NEGATIVE).where(n.noted_at > now - _HOUR)
        ).scalar_one()
        ends = self._queue.empty_in(connection, now)
        return Queue(
            waiting=waiting,
            gap=pace.gap,
            ends_at=_when(now + ends) if ends else None,
            hold_until=_when(pace.hold_until) if pace.hold_until > now else None,
            fetched=fetched,
            refused=refused,
            problem=pace.problem or "",
            upstream=self._upstream,
        )

    def _rolls(self, connection: Connection, now: float) -> tuple[Roll, ...]:
        rows = connection.execute(select(ROLL).order_by(ROLL.c.id.desc())).all()
        return tuple(self._roll(connection, row, now) for row in rows)

    def _roll(self, connection: Connection, row: Row[Any], now: float) -> Roll:
        number, product, tcb, at = row.id, row.product, row.tcb, row.announced_at
        r = ROLL_HOST.c
        hosts = connection.execute(
            select(r.stored_at, r.committed_at, r.in_step_at).where(r.roll == number)
        ).all()
        times: list[list[float]] = [
            sorted(host[index] for host in hosts if host[index] is not None) for index in range(3)
        ]
        missing = len(hosts) - len(times[0])
        ends: float | None = times[0][-1] if times[0] else at
        if missing:
            ends = now + self._queue.done_in(connection, Need.ROLL, now)
        return Roll(
            number=number,
            product=Product(product),
            tcb=_tcb(tcb),
            started_at=_when(at),
            hosts=len(hosts),
            points=_points(at, times),
            prefetched_at=None if ends is None else _when(ends),
        )

    def _stored(self, connection: Connection) -> Mapping[str, int]:
        c = CERTIFICATE.c
        rows = connection.execute(select(c.kind, func.count()).group_by(c.kind)).all()
        return {row[0]: row[1] for row in rows}

    def _lists(self, connection: Connection) -> tuple[Expiring, ...]:
        c = CERTIFICATE.c
        rows = connection.execute(
            select(c.resource, c.product, c.kind, c.not_after).where(c.kind.in_(("crl", "chain")))
        ).all()
        return tuple(
            Expiring(_what(row.resource, row.product, row.kind), _when(row.not_after))
            for row in rows
        )

    def _instances(self, connection: Connection, now: float) -> int:
        return connection.execute(
            select(func.count()).select_from(INSTANCE).where(INSTANCE.c.seen_at > now - ALIVE)
        ).scalar_one()


def _needed(announcement: Announcement) -> list[TcbVersion]:
    """Return the TCBs for which a host needs certificates: the reported TCB and, if it differs, the
    current TCB.
    """
    if announcement.reported == announcement.current:
        return [announcement.reported]
    return [announcement.reported, announcement.current]


def _points(start: float, times: Sequence[Sequence[float]]) -> tuple[RollPoint, ...]:
    """Return how the counts of a roll grew from its start until now, as at most :data:`_POINTS`
    points.
    """
    moments = sorted({start, *(at for each in times for at in each)})
    if len(moments) > _POINTS:
        last = len(moments) - 1
        moments = [moments[index * last // (_POINTS - 1)] for index in range(_POINTS)]
    found: list[RollPoint] = []
    done = [0, 0, 0]
    for moment in moments:
        for index, each in enumerate(times):
            while done[index] < len(each) and each[done[index]] <= moment:
                done[index] += 1
        found.append(RollPoint(_when(moment), *done))
    return tuple(found)


def _what(resource: str, product: str, kind: str) -> str:
    of = "VLEK" if resource.startswith("vlek") else "VCEK"
    return f"{product} {of} {'revocation list' if kind == 'crl' else 'chain'}"


def _as_chip(name: str, product: Product) -> set[str]:
    try:
        chip = bytes.fromhex(name)
    except ValueError:
        return set()
    significant = chip[: product.hwid_size]
    rest = chip[product.hwid_size :]
    whole = len(chip) in (product.hwid_size, 64) and any(significant) and not any(rest)
    return {significant.hex()} if whole else set()


def _is(announcement: Announcement) -> tuple[ColumnElement[bool], ...]:
    return (HOST.c.product == announcement.product.value, HOST.c.hwid == announcement.hwid.hex())


def _resource(announcement: Announcement, tcb: TcbVersion) -> VcekResource:
    return VcekResource(announcement.product, announcement.hwid, tcb)


def _text(announcement: Announcement) -> str:
    return json.dumps(announcement.to_json(), sort_keys=True)


def _read(text: str) -> Announcement:
    return announcement_of(json.loads(text))


def _tcb(text: str) -> TcbVersion:
    return TcbVersion(**json.loads(text))


def _forget(hwid: str) -> str:
    return f"snpcerts mirror forget {hwid}"


def _when(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
