# SPDX-License-Identifier: Apache-2.0
"""The queue of resources to fetch, and the pace of requests to upstream.

All instances share both through the database. An instance takes a row of the queue under a lease,
so that only one instance requests the row's resource. If that instance dies, another takes the row
when the lease ends. The table of the pace has a single row, which says when the next VCEK may be
requested. A transaction locks the pace before it takes a row of the queue, so that no two instances
request VCEKs within one gap. Times are the database's.

The gap is counted from the answer to the last request. Upstream counts from the arrival of the
request, which is earlier.

Chains and revocation lists come first. Then comes the most urgent VCEK and, among VCEKs of the same
need, the one that has been due longest. After a request without a useful answer, the next row is
instead the one that has waited longest since it was requested or added, whatever its need. After
that, the most urgent row is next again. So neither a failing row nor a stream of new rows can block
another row.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Select,
    case,
    delete,
    func,
    or_,
    select,
    true,
    tuple_,
    update,
)

from snpcerts.errors import RefusedError
from snpcerts.kds.retry import MAX_GAP, MAX_RETRY_AFTER, RetryPolicy
from snpcerts.kds.url import Resource, VcekResource, parse_target
from snpcerts.mirror.database import insert
from snpcerts.mirror.stored import batches, hwid_of, kind_of
from snpcerts.mirror.tables import HOST, NEGATIVE, PACE, QUEUE

# The longest duration of one request, and its row's lease, in seconds.
REQUEST: Final = 20.0
LEASE: Final = 25.0
# How many seconds a 404, or an answer that does not verify, is remembered.
NOT_FOUND_FOR: Final = 600.0
REFUSED_FOR: Final = 60.0
MAX_QUEUE: Final = 100_000

_FORGET_GAP: Final = 3600.0  # seconds after the last refusal
_LONGEST_OUTAGE_WAIT: Final = 60.0
# A row is taken earlier by this fraction of a gap, so that the request is sent in time.
_LEAD: Final = 0.05
_LONGEST_LEAD: Final = 0.2
_SMOOTH: Final = 0.2
# Upstream's clock may run slower than ours, so a gap is longer by this fraction.
_MARGIN: Final = 0.002
_RESOLUTION: Final = 0.002  # seconds: SQLite's clock counts milliseconds
_JUMP: Final = 1.0  # seconds; a smaller difference does not count as a step of the clock


class Need(enum.IntEnum):
    """Why a resource is needed. The most urgent need comes first."""

    HOST = 0  # the signing key of an announced host needs it now
    ROLL = 1  # an announced host will need it
    STRANGER = 2  # a caller requests a chip that no host has announced
    REFRESH = 3  # the stored one needs renewal

    @property
    def label(self) -> str:
        """The need's name, as pages and metrics show it."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class PaceState:
    """The pace at ``now``. ``gap``: minimum seconds between two requests for VCEKs."""

    now: float
    next_at: float
    hold_until: float
    busy_until: float
    busy_by: str | None
    gap: float
    refusals: int
    failures: int
    fruitless: int
    latency: float
    problem: str | None
    requests: int
    jumped_back: bool

    @property
    def period(self) -> float:
        """The seconds from one VCEK to the next, including the time that a request takes."""
        return self.spacing + self.latency

    @property
    def spacing(self) -> float:
        """The seconds from the answer to a request for a VCEK to the next request."""
        return self.gap * (1 + _MARGIN) + _RESOLUTION if self.gap else 0.0

    @property
    def free_at(self) -> float:
        """The time at which the next VCEK can be requested."""
        return max(self.now, self.next_at, self.hold_until)


@dataclass(frozen=True, slots=True)
class QueuePlace:
    """A row's place in the queue: the number of VCEKs before it, and the seconds until the row is
    done.
    """

    ahead: int
    wait: float


@dataclass(frozen=True, slots=True)
class Taken:
    """A row that this instance has taken and may request in ``start_in`` seconds. ``token`` names
    the lease.
    """

    resource: Resource
    start_in: float
    token: str
    attempts: int


@dataclass(frozen=True, slots=True)
class NothingToTake:
    """No row may be taken now. The queue should be read again in ``wait`` seconds."""

    wait: float


class WantedQueue:
    """The queue and its rules. ``gap``: minimum seconds between two requests for VCEKs."""

    def __init__(self, gap: float, policy: RetryPolicy | None = None) -> None:
        self.gap = gap
        self.policy = policy or RetryPolicy(longest_wait=_LONGEST_OUTAGE_WAIT)

    def want(
        self,
        connection: Connection,
        resource: Resource,
        need: Need,
        now: float,
        *,
        caller: str | None = None,
    ) -> bool:
        """Put a resource into the queue, or make its row more urgent.

        Return whether the row is new.
        """
        q = QUEUE.c
        found = connection.execute(select(q.need).where(q.resource == resource.path)).scalar()
        if found is not None:
            if need < found:
                connection.execute(
                    update(QUEUE).where(q.resource == resource.path).values(need=int(need))
                )
            return False
        row = _row(resource, need, now, caller if need is Need.STRANGER else None)
        statement = insert(connection, QUEUE).values(row).on_conflict_do_nothing()
        return connection.execute(statement).rowcount == 1

    def want_all(
        self, connection: Connection, resources: Sequence[Resource], need: Need, now: float
    ) -> int:
        """Put many resources into the queue, as :meth:`want` does. Return how many rows are new."""
        q = QUEUE.c
        by_path = {resource.path: resource for resource in resources}
        known: set[str] = set()
        for part in batches(list(by_path)):
            known |= set(
                connection.execute(select(q.resource).where(q.resource.in_(part))).scalars()
            )
            connection.execute(
                update(QUEUE).where(q.resource.in_(part), q.need > need).values(need=int(need))
            )
        rows = [_row(each, need, now) for path, each in by_path.items() if path not in known]
        if rows:
            connection.execute(insert(connection, QUEUE).on_conflict_do_nothing(), rows)
        return len(rows)

    def require_room(self, connection: Connection, count: int) -> None:
        """Raise :class:`RefusedError` unless the queue has room for ``count`` more rows."""
        size = self.size(connection)
        if size + count > MAX_QUEUE:
            raise RefusedError(
                (
                    f"the queue has {size:,} certificates and cannot take {count:,} more; "
                    f"the limit is {MAX_QUEUE:,}"
                ),
                code="mirror-queue-full",
            )

    def drop(self, connection: Connection, resource: str) -> None:
        """Remove the row of a resource that upstream has answered."""
        connection.execute(delete(QUEUE).where(QUEUE.c.resource == resource))

    def lock(self, connection: Connection) -> None:
        """Lock the pace until the end of the transaction. The caller must not read the time before
        this returns.
        """
        connection.execute(select(PACE.c.id).with_for_update())

    def take(self, connection: Connection, now: float, token: str) -> Taken | NothingToTake:
        """Take the next row that may be requested, under a lease of :data:`LEASE` seconds.

        The caller must have locked the pace, as it must before it records an outcome.
        """
        pace = self.pace(connection, now)
        if pace.jumped_back:
            connection.execute(
                update(PACE).values(
                    set_at=now,
                    next_at=pace.next_at,
                    hold_until=pace.hold_until,
                    busy_until=pace.busy_until,
                )
            )
            _bring_back(connection, now)
        if pace.hold_until > now:
            return NothingToTake(pace.hold_until - now)
        opens = max(pace.next_at, pace.busy_until)
        opens -= 0.0 if pace.busy_until > now else min(pace.gap * _LEAD, _LONGEST_LEAD)
        row = connection.execute(_next(now, pace, unpaced_only=opens > now)).first()
        if row is None:
            wait = self._next_row_in(connection, now, unpaced_only=opens > now)
            return NothingToTake(min(wait, opens - now) if opens > now else wait)
        start_in = 0.0
        if row.paced:
            start_in = max(0.0, pace.next_at - now)
            # Count the request now, because upstream counts it even if this instance dies.
            connection.execute(
                update(PACE).values(
                    set_at=now,
                    busy_until=now + LEASE,
                    busy_by=token,
                    next_at=now + start_in + pace.spacing,
                )
            )
        connection.execute(
            update(QUEUE)
            .where(QUEUE.c.resource == row.resource)
            .values(
                wanted_at=_at_most(QUEUE.c.wanted_at, now),
                not_before=_at_most(QUEUE.c.not_before, now),
                asked_at=now,
                lease_until=now + LEASE,
                leased_by=token,
                attempts=row.attempts + 1,
            )
        )
        if pace.fruitless:
            # The order alternates with each row taken, because several instances may take rows
            # before the first of them gets an answer.
            connection.execute(update(PACE).values(fruitless=pace.fruitless + 1))
        resource = parse_target(row.resource)
        return Taken(resource, start_in, token, row.attempts + 1)

    def answered(
        self, connection: Connection, taken: Taken, now: float, *, ago: float, took: float
    ) -> None:
        """Record that upstream gave a final answer ``ago`` seconds before ``now``: a certificate, a
        404, or an answer that does not verify.

        ``took`` is the duration of the request in seconds. The row leaves the queue.
        """
        self.drop(connection, taken.resource.path)
        pace = self.pace(connection, now)
        values = self._after(pace, taken, now, ago=ago)
        if _paced(taken):
            latency = took if pace.latency == 0 else pace.latency
            values["latency"] = latency + _SMOOTH * (min(took, REQUEST) - latency)
            values["refusals"] = 0
        values |= {"failures": 0, "fruitless": 0, "problem": None}
        connection.execute(update(PACE).values(**values))

    def not_given(
        self,
        connection: Connection,
        taken: Taken,
        now: float,
        *,
        reason: str,
        problem: str,
    ) -> None:
        """Remember that upstream gave no certificate.

        The reason is ``not-found`` if upstream does not have the certificate, and ``refused`` if
        the answer does not verify. The first is remembered for ten minutes, the second for one.
        """
        lasts = NOT_FOUND_FOR if reason == "not-found" else REFUSED_FOR
        values = {"reason": reason, "problem": problem, "noted_at": now, "until": now + lasts}
        statement = insert(connection, NEGATIVE).values(resource=taken.resource.path, **values)
        connection.execute(
            statement.on_conflict_do_update(index_elements=["resource"], set_=values)
        )

    def throttled(
        self,
        connection: Connection,
        taken: Taken,
        now: float,
        *,
        ago: float,
        retry_after: float | None,
        problem: str,
    ) -> None:
        """Record a 429: send no requests for a while, and lengthen the gap."""
        pace = self.pace(connection, now)
        wait = self.policy.hold_off(pace.refusals + 1, retry_after)
        named = self.policy.named_wait(retry_after)
        values = self._after(pace, taken, now, ago=ago)
        values |= {
            "hold_until": now + min(wait, MAX_RETRY_AFTER),
            "refusals": pace.refusals + 1,
            "refused_at": now,
            "gap": max(pace.gap, min(named, MAX_GAP)),
            "fruitless": pace.fruitless or 1,
            "problem": problem,
        }
        connection.execute(update(PACE).values(**values))
        self._give_back(connection, taken, problem=problem)

    def failed(
        self,
        connection: Connection,
        taken: Taken,
        now: float,
        *,
        ago: float,
        retry_after: float | None,
        problem: str,
    ) -> None:
        """Record that a request got no usable answer.

        If upstream named a time, only this row waits until then: upstream may be another mirror,
        which names a time for each resource. Otherwise all rows wait, longer after each consecutive
        failure. This row waits at least as long as its own failures require.
        """
        pace = self.pace(connection, now)
        values = self._after(pace, taken, now, ago=ago)
        values["fruitless"] = pace.fruitless or 1
        failures = min(pace.failures + 1, 16)
        row_wait = self.policy.wait_after(min(taken.attempts, 16), retry_after)
        if retry_after is None:
            wait = min(self.policy.first_wait * 2.0 ** (failures - 1), _LONGEST_OUTAGE_WAIT)
            values |= {"failures": failures, "hold_until": max(pace.hold_until, now + wait)}
        connection.execute(update(PACE).values(**values, problem=problem))
        self._give_back(connection, taken, problem=problem, not_before=now + row_wait)

    def give_back(self, connection: Connection, taken: Taken, now: float) -> None:
        """Put a taken row back into the queue without a request: this instance is stopping."""
        pace = self.pace(connection, now)
        if _paced(taken) and pace.busy_by == taken.token:
            connection.execute(update(PACE).values(busy_until=0.0, busy_by=None, set_at=pace.now))
        self._give_back(connection, taken, problem=None)

    def pace(self, connection: Connection, now: float) -> PaceState:
        """Return the state of the pace. Call :meth:`lock` before changing the pace."""
        row = connection.execute(select(PACE)).one()
        # If the clock has jumped back, times in the future would stop all requests until then.
        back = row.set_at - now if row.set_at > now + _JUMP else 0.0
        learnt = row.gap if now <= row.refused_at - back + _FORGET_GAP else 0.0
        return PaceState(
            now=now,
            next_at=row.next_at - back,
            hold_until=min(row.hold_until - back, now + MAX_RETRY_AFTER),
            busy_until=min(row.busy_until - back, now + LEASE),
            busy_by=row.busy_by,
            gap=max(self.gap, learnt),
            refusals=row.refusals,
            failures=row.failures,
            fruitless=row.fruitless,
            latency=row.latency,
            problem=row.problem,
            requests=row.requests,
            jumped_back=back > 0,
        )

    def place(self, connection: Connection, resource: Resource, now: float) -> QueuePlace | None:
        """Return the place of a resource in the queue; None if it is not in the queue."""
        q = QUEUE.c
        row = connection.execute(
            select(q.paced, *_URGENT, q.asked_at, q.lease_until).where(q.resource == resource.path)
        ).first()
        if row is None:
            return None
        pace = self.pace(connection, now)
        from_the_future = max(row.asked_at, row.wanted_at) > now + _JUMP
        own = 0.0 if from_the_future else max(0.0, row.not_before - now)
        if not row.paced:
            return QueuePlace(0, max(own, pace.hold_until - now, pace.latency))
        if row.lease_until > now:
            return QueuePlace(0, max(0.0, pace.next_at - pace.spacing - now) + pace.latency)
        before = connection.execute(
            select(func.count())
            .select_from(QUEUE)
            .where(
                q.paced,
                or_(
                    q.lease_until > now,
                    tuple_(*_URGENT)
                    < tuple_(row.need, row.not_before, row.wanted_at, row.resource),
                ),
            )
        ).scalar_one()
        leased = connection.execute(
            select(func.count()).select_from(QUEUE).where(q.paced, q.lease_until > now)
        ).scalar_one()
        # next_at already includes the gap after the request in progress.
        turns = before - leased
        wait = pace.free_at - now + turns * pace.period + pace.latency
        return QueuePlace(before, max(own, wait))

    def done_in(self, connection: Connection, need: Need, now: float) -> float:
        """Return the seconds until all rows of a need, and all rows before them, are done."""
        q = QUEUE.c
        count = connection.execute(
            select(func.count()).select_from(QUEUE).where(q.paced, q.need <= need)
        ).scalar_one()
        if not count:
            return 0.0
        pace = self.pace(connection, now)
        turns = count - (1 if pace.busy_until > now else 0)
        if not turns:
            return pace.latency
        return pace.free_at - now + (turns - 1) * pace.period + pace.latency

    def empty_in(self, connection: Connection, now: float) -> float:
        """Return the seconds until the queue is empty; 0 if it is empty now."""
        return self.done_in(connection, Need.REFRESH, now)

    def strangers(self, connection: Connection, caller: str) -> int:
        """Return how many of the caller's rows are for chips that no host has announced."""
        return connection.execute(
            select(func.count()).select_from(QUEUE).where(QUEUE.c.caller == caller)
        ).scalar_one()

    def budget_free_in(self, connection: Connection, caller: str, now: float) -> float:
        """Return the seconds until the first of the rows that :meth:`strangers` counts is done."""
        q = QUEUE.c
        first = connection.execute(
            select(q.resource).where(q.caller == caller).order_by(*_URGENT).limit(1)
        ).scalar()
        place = None if first is None else self.place(connection, parse_target(first), now)
        return 0.0 if place is None else place.wait

    def has(self, connection: Connection, resource: Resource) -> bool:
        """Return whether the resource is in the queue."""
        q = QUEUE.c.resource
        return connection.execute(select(q).where(q == resource.path)).first() is not None

    def problem(self, connection: Connection, resource: Resource) -> str | None:
        """Return why a resource has no answer yet: the row's last problem, or what stops all
        requests; None if there is no problem.
        """
        q = QUEUE.c
        own = connection.execute(select(q.problem).where(q.resource == resource.path)).scalar()
        return own or connection.execute(select(PACE.c.problem)).scalar()

    def size(self, connection: Connection) -> int:
        """Return the number of rows in the queue."""
        return connection.execute(select(func.count()).select_from(QUEUE)).scalar_one()

    def _after(
        self, pace: PaceState, taken: Taken, now: float, *, ago: float
    ) -> dict[str, float | int | str | None]:
        """Return the new values of the pace after a request, however it ended."""
        values: dict[str, float | int | str | None] = {"set_at": now, "requests": pace.requests + 1}
        if _paced(taken):
            values["next_at"] = now - ago + pace.spacing
            if pace.busy_by == taken.token:
                values |= {"busy_until": 0.0, "busy_by": None}
            else:  # the lease is over, and another instance may be asking
                values["next_at"] = max(pace.next_at, now - ago + pace.spacing)
        return values

    def _give_back(
        self,
        connection: Connection,
        taken: Taken,
        *,
        problem: str | None,
        not_before: float | None = None,
    ) -> None:
        q = QUEUE.c
        values: dict[str, object] = {"lease_until": 0.0, "leased_by": None, "problem": problem}
        if not_before is not None:  # otherwise the row keeps its place
            values["not_before"] = not_before
        connection.execute(
            update(QUEUE)
            .where(q.resource == taken.resource.path, q.leased_by == taken.token)
            .values(values)
        )

    def _next_row_in(self, connection: Connection, now: float, *, unpaced_only: bool) -> float:
        """Return the seconds until a waiting row may be taken: at its own time, or when a lease
        ends.
        """
        q = QUEUE.c
        some = q.paced.is_(False) if unpaced_only else true()
        soonest = connection.execute(select(func.min(q.not_before)).where(some, q.not_before > now))
        leased = connection.execute(
            select(func.min(q.lease_until)).where(some, q.lease_until > now)
        )
        times = [each for each in (soonest.scalar(), leased.scalar()) if each is not None]
        return max(0.0, min(times, default=now + math.inf) - now)


def _next(now: float, pace: PaceState, *, unpaced_only: bool) -> Select[tuple[str, bool, int]]:
    """Return the query that selects the next row among those that are free and due.

    A row with a time in the future was added or requested before the clock was set back.
    """
    q = QUEUE.c
    touched = case((q.asked_at > q.wanted_at, q.asked_at), else_=q.wanted_at)
    from_the_future = touched > now + _JUMP
    free = or_(q.lease_until <= now, q.asked_at > now + _JUMP)
    due = or_(q.not_before <= now, from_the_future)
    order: tuple[ColumnElement[object], ...] = (q.paced, *_URGENT)
    if pace.fruitless % 2:
        order = (case((from_the_future, 0.0), else_=touched), *order)
    found = select(q.resource, q.paced, q.attempts).where(free, due)
    if unpaced_only:
        found = found.where(q.paced.is_(False))
    return found.order_by(*order).limit(1).with_for_update(skip_locked=True)


def _bring_back(connection: Connection, now: float) -> None:
    """If the clock was set back, make the rows with times in the future due and free."""
    q = QUEUE.c
    connection.execute(
        update(QUEUE)
        .where(or_(q.wanted_at > now, q.asked_at > now, q.not_before > now))
        .values(
            wanted_at=_at_most(q.wanted_at, now),
            not_before=_at_most(q.not_before, now),
            asked_at=_at_most(q.asked_at, now),
            lease_until=case((q.asked_at > now, 0.0), else_=q.lease_until),
        )
    )


def _at_most(column: Column[float], most: float) -> ColumnElement[float]:
    return case((column > most, most), else_=column)


# The order of the VCEKs.
_URGENT: Final = (QUEUE.c.need, QUEUE.c.not_before, QUEUE.c.wanted_at, QUEUE.c.resource)


def _row(
    resource: Resource, need: Need, now: float, caller: str | None = None
) -> dict[str, object]:
    return {
        "resource": resource.path,
        "kind": kind_of(resource),
        "product": resource.product.value,
        "hwid": hwid_of(resource),
        "paced": isinstance(resource, VcekResource),
        "need": int(need),
        "caller": caller,
        "wanted_at": now,
        "not_before": now,
        "asked_at": 0.0,
        "lease_until": 0.0,
        "attempts": 0,
    }


def _paced(taken: Taken) -> bool:
    return isinstance(taken.resource, VcekResource)


def enrolled(connection: Connection, resource: Resource) -> bool:
    """Return whether a host with the resource's chip has announced itself. True for chains and
    revocation lists.
    """
    if not isinstance(resource, VcekResource):
        return True
    h = HOST.c
    query = select(h.hwid).where(h.product == resource.product.value, h.hwid == resource.hwid.hex())
    return connection.execute(query).first() is not None
