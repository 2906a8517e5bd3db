# SPDX-License-Identifier: Apache-2.0
"""Whatever upstream answers, each row of the queue that can succeed does so, at AMD's pace.

Instances with random rows meet random outcomes, on a clock that skips waits. The database and the
fetcher are real; upstream and the verification are scripted.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, update

from snpcerts.abi.product import Product
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import FormatError
from snpcerts.kds.body import ChainPair
from snpcerts.kds.client import FailedRequest, KdsClient
from snpcerts.kds.errors import KdsNotFoundError, KdsUntrustedError
from snpcerts.kds.url import ChainResource, CrlResource, Resource, VcekResource
from snpcerts.mirror.admission import Admission
from snpcerts.mirror.database import MirrorDatabase
from snpcerts.mirror.fetcher import Fetcher, Waiter
from snpcerts.mirror.stored import Admitted
from snpcerts.mirror.tables import CERTIFICATE, NEGATIVE, PACE, QUEUE
from snpcerts.mirror.wanted import LEASE, REQUEST, Need, Taken, WantedQueue

from ..sizes import sized
from .conftest import MILAN_TCB
from .turns import Turns

START = 1_800_000_000.0
GAP = 10.0
LATENCY = 0.3
LONGEST_HOLD = 360.0  # of a 429 that names 30 s, repeated and lengthened
LONGEST_ROW_WAIT = 72.0


class Outcome(enum.Enum):
    """How upstream answers one request."""

    OK = "ok"
    NOT_FOUND = "404"
    FAILS = "500"
    LATER = "503 with Retry-After"
    THROTTLED = "429"
    UNREADABLE = "a page"
    UNTRUSTED = "does not verify"
    RAISES = "an unforeseen error"
    HANGS = "no answer in time"
    STOPPED = "an answer, but its instance stalls and records it after the lease"
    KILLED = "the instance dies"


# Outcomes that an instance records, and after which it leaves the row in the queue.
AGAIN = (
    Outcome.FAILS,
    Outcome.LATER,
    Outcome.THROTTLED,
    Outcome.UNREADABLE,
    Outcome.RAISES,
    Outcome.HANGS,
)
FAILURES = (*AGAIN, Outcome.STOPPED, Outcome.KILLED)


@dataclass(frozen=True)
class Row:
    """A row of the queue. Upstream answers as ``first`` says, in turn, and then always ``then``."""

    need: Need
    added: float
    first: tuple[Outcome, ...]
    then: Outcome

    @property
    def succeeds(self) -> bool:
        return self.then is Outcome.OK


@dataclass(frozen=True)
class Course:
    """What a simulation plays: ``rows`` for VCEKs, ``others`` for chains and revocation lists."""

    rows: tuple[Row, ...]
    others: tuple[Row, ...]
    instances: int
    jumps: tuple[tuple[float, float], ...]


ROWS = st.builds(
    Row,
    st.sampled_from(Need),
    st.sampled_from([0.0, 0.0, 0.0, 35.0, 200.0]),
    st.lists(st.sampled_from(FAILURES), max_size=2).map(tuple),
    st.sampled_from([Outcome.OK, Outcome.OK, Outcome.NOT_FOUND, Outcome.UNTRUSTED, *AGAIN]),
)
OTHERS = st.builds(
    Row,
    st.just(Need.REFRESH),
    st.just(0.0),
    st.just(()),
    st.sampled_from([Outcome.OK, *AGAIN]),
)
COURSES = st.builds(
    Course,
    st.lists(ROWS, min_size=1, max_size=12).map(tuple),
    st.lists(OTHERS, max_size=3).map(tuple),
    st.integers(1, 3),
    st.lists(
        st.tuples(
            st.floats(1.0, 300.0), st.sampled_from([-86400.0, -1500.0, -20.0, 20.0, 86400.0])
        ),
        max_size=1,
    ).map(tuple),
)


class KilledError(BaseException):
    """Raised in an instance at the point where it is killed."""


@dataclass
class Upstream:
    """A scripted client and admission, which records each request and its time."""

    turns: Turns
    scripts: dict[str, list[Outcome]]
    then: dict[str, Outcome]
    url: str = "http://upstream"
    asked: list[tuple[float, str, Outcome]] = field(default_factory=list)
    standing: set[str] = field(default_factory=set)

    def ask_once(self, resource: Resource, _read: object, *, limit: float) -> bytes | FailedRequest:
        path = resource.path
        script = self.scripts.get(path)
        outcome = script.pop(0) if script else self.then.get(path, Outcome.OK)
        self.asked.append((self.turns.now, path, outcome))
        self.turns.sleep(limit if outcome is Outcome.HANGS else LATENCY)
        match outcome:
            case Outcome.NOT_FOUND:
                raise KdsNotFoundError(f"{path}: 404")
            case Outcome.FAILS:
                return FailedRequest("server-error", "500")
            case Outcome.LATER:
                return FailedRequest("server-error", "503", retry_after=30.0)
            case Outcome.THROTTLED:
                return FailedRequest("throttled", "429", retry_after=30.0)
            case Outcome.UNREADABLE:
                raise FormatError("a certificate", "is a page")
            case Outcome.RAISES:
                raise ZeroDivisionError
            case Outcome.HANGS:
                return FailedRequest("timeout", "no answer")
            case Outcome.STOPPED:
                self.standing.add(path)
            case Outcome.KILLED:
                raise KilledError
        return str(outcome.value).encode()

    def vcek(self, resource: Resource, body: bytes, *_: object) -> Admitted:
        if body == Outcome.UNTRUSTED.value.encode():
            raise KdsUntrustedError(f"{resource}: of another chip")
        return Admitted(resource, body, 0.0, math.inf)

    chain = crl = vcek

    @property
    def vceks(self) -> list[float]:
        return [at for at, path, _ in self.asked if "?" in path]


class MortalFetcher(Fetcher):
    """A fetcher that can stall, or be killed: it then writes nothing more."""

    def _ask(self, taken: Taken, known: object) -> object:  # type: ignore[override]  # as it is
        try:
            return super()._ask(taken, known)  # type: ignore[arg-type]  # as it was given
        except KilledError:
            self.waiter.end()
            raise

    def _settle(self, taken: Taken, answer: object) -> None:
        standing = cast("Upstream", self._client).standing
        if taken.resource.path in standing:
            standing.remove(taken.resource.path)
            self.waiter.sleep(LEASE + 4)
        if not self.waiter.ended:
            super()._settle(taken, answer)  # type: ignore[arg-type]  # as it was given

    def _chain(self, *_: object) -> tuple[ChainPair, tuple[Admitted, ...]]:
        return cast("ChainPair", object()), ()


class TurnsWaiter(Waiter):
    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self._turns = turns

    def monotonic(self) -> float:
        return self._turns.now

    def sleep(self, seconds: float) -> None:
        self._turns.sleep(seconds)


class Simulation:
    """Plays one course until each row that can succeed has done so, or for ``most`` seconds."""

    def __init__(self, database: MirrorDatabase, course: Course) -> None:
        self.database, self.course = database, course
        self.turns = Turns(START)
        self.queue = WantedQueue(GAP)
        self.rows: dict[str, Row] = {}
        self.resources: dict[str, Resource] = {}
        for number, row in enumerate(course.rows, 1):
            hwid = number.to_bytes(64, "big")
            self._know(VcekResource(Product.MILAN, hwid, MILAN_TCB), row)
        for number, row in enumerate(course.others):
            product = list(Product)[number // 2]
            self._know(
                CrlResource(product, VekKind.VLEK)
                if number % 2
                else ChainResource(product, VekKind.VLEK),
                row,
            )
        self.upstream = Upstream(
            self.turns,
            {path: list(row.first) for path, row in self.rows.items()},
            {path: row.then for path, row in self.rows.items()},
        )
        self.left = {path for path, row in self.rows.items() if row.succeeds}
        self.stored_at: dict[str, float] = {}
        self.jumped = 0.0
        self.ended = False

    def _know(self, resource: Resource, row: Row) -> None:
        self.rows[resource.path], self.resources[resource.path] = row, resource

    @property
    def most(self) -> float:
        """Seconds within which every row that can succeed must be stored. Each round of the queue
        serves every row, and a row needs one more round for each failure. A round may take twice
        as many requests as there are rows, because every second one is for the most urgent row.
        """
        count = len(self.rows)
        rounds = 1 + max((len(row.first) for row in self.rows.values()), default=0)
        dearest = max(LONGEST_HOLD, LEASE + REQUEST + GAP)
        last = max((row.added for row in self.rows.values()), default=0.0)
        return last + 2 * (count + 2) * (rounds + 1) * dearest

    def run(self) -> None:
        bodies: list[Callable[[], None]] = [self._instance] * self.course.instances
        self.turns.run([*bodies, self._add, *(self._jump(*each) for each in self.course.jumps)])

    def now(self) -> float:
        return self.turns.now + self.jumped

    def _add(self) -> None:
        for added in sorted({row.added for row in self.rows.values()}):
            self.turns.sleep(START + added - self.turns.now)
            with self.database.write() as connection:
                for path, row in self.rows.items():
                    if row.added == added:
                        resource = self.resources[path]
                        self.queue.want(connection, resource, row.need, self.now())

    def _jump(self, at: float, by: float) -> Callable[[], None]:
        def jump() -> None:
            self.turns.sleep(at)
            self.jumped += by

        return jump

    def _instance(self) -> None:
        while not self.ended:
            fetcher = MortalFetcher(
                self.database,
                self.queue,
                cast("KdsClient", self.upstream),
                cast("Admission", self.upstream),
                done=self._done,
                waiter=TurnsWaiter(self.turns),
                wall=lambda: self.turns.now,
            )
            try:
                self._until_it_ends(fetcher)
            except KilledError:
                continue  # another one starts in its place

    def _until_it_ends(self, fetcher: Fetcher) -> None:
        while not self.ended:
            wait = fetcher.step()
            self._look()
            if self.turns.now > START + self.most:
                self.ended = True
            if not self.left:
                self.ended = True
            if wait > 0:
                self.turns.sleep(min(wait, 20.0))

    def _done(self, path: str) -> None:
        if path in self.left:
            self.left.remove(path)
            self.stored_at[path] = self.turns.now

    def _look(self) -> None:
        """Check the expected waits, of a row and of the queue: neither negative nor too long."""
        path = min(self.left, default=None)
        if path is None:
            return
        with self.database.read() as connection:
            place = self.queue.place(connection, self.resources[path], self.now())
            empty = self.queue.empty_in(connection, self.now())
        assert 0 <= empty <= 3600 + 2 * (len(self.rows) + 1) * (GAP + REQUEST)
        if place is not None:
            assert 0 <= place.ahead < len(self.rows)
            assert 0 <= place.wait <= 3600 + 2 * (len(self.rows) + 1) * (GAP + REQUEST)


@pytest.fixture
def opened(database: str) -> Iterator[MirrorDatabase]:
    found = MirrorDatabase(database)
    found.prepare()
    yield found
    found.close()


def simulate(database: MirrorDatabase, course: Course) -> Simulation:
    with database.write() as connection:
        for table in (QUEUE, CERTIFICATE, NEGATIVE):
            connection.execute(delete(table))
        plain = {column.name: 0 for column in PACE.columns if column.name not in ("id", "problem")}
        connection.execute(update(PACE).values(plain | {"busy_by": None, "problem": None}))
    simulation = Simulation(database, course)
    database._clock = simulation.now
    simulation.run()
    return simulation


def check(simulation: Simulation) -> None:
    course, upstream = simulation.course, simulation.upstream
    assert not simulation.left, f"must be stored within {simulation.most:.0f} s: {simulation.left}"
    # To the mirror, a forward jump of the database's clock looks like time that has passed. A gap
    # with a jump in it may therefore be shorter.
    jumps = [START + at for at, _ in course.jumps]
    for one, other in pairwise(upstream.vceks):
        if not any(one <= at <= other for at in jumps):
            times = f"{one - START:.1f} s and {other - START:.1f} s"
            assert other - one >= GAP, f"must be a gap apart: {times}"
    if jumps:
        return
    for at, path, outcome in upstream.asked:
        if outcome is Outcome.THROTTLED:
            soon = [each for each, _, _ in upstream.asked if at + 1 + 20 < each < at + 30]
            assert not soon, f"must send no request soon after the 429 for {path}"
    counts = Counter(path for _, path, _ in upstream.asked)
    for path, row in simulation.rows.items():
        if row.then not in AGAIN:
            asked = f"{path}: {row} asked {counts[path]} times"
            assert counts[path] <= 1 + len(row.first), f"must not be asked so often: {asked}"


def row(*first: Outcome, then: Outcome = Outcome.OK, need: Need = Need.HOST) -> Row:
    return Row(need, 0.0, first, then)


LATER = row(then=Outcome.LATER)
FAILING = row(then=Outcome.FAILS)
# Each set contains rows that once starved the others in it.
STARVING_ROWS: dict[str, Sequence[Row]] = {
    "rows for which upstream names a time": [LATER] * 8 + [row(need=Need.ROLL)] * 3,
    "a row that is always throttled": [row(then=Outcome.THROTTLED), row(), row(need=Need.ROLL)],
    "rows that always fail": [FAILING] * 8 + [row(Outcome.FAILS, need=Need.REFRESH)] * 3,
}


@pytest.mark.parametrize("name", STARVING_ROWS)
def test_rows_that_never_succeed_do_not_stop_the_others(opened: MirrorDatabase, name: str) -> None:
    check(simulate(opened, Course(tuple(STARVING_ROWS[name]), (), 1, ())))


def test_chains_and_lists_that_fail_do_not_stop_vceks(opened: MirrorDatabase) -> None:
    others = tuple(Row(Need.REFRESH, 0.0, (), Outcome.FAILS) for _ in range(3))
    check(simulate(opened, Course((row(), row()), others, 1, ())))


def test_an_answer_after_the_lease_does_not_shorten_the_next_gap(opened: MirrorDatabase) -> None:
    check(simulate(opened, Course((row(Outcome.STOPPED), *[row()] * 5), (), 3, ())))


def test_after_a_step_back_of_the_clock_rows_are_still_due(opened: MirrorDatabase) -> None:
    simulation = simulate(opened, Course((row(),) * 6, (), 1, ((15.0, -1500.0),)))
    check(simulation)
    assert max(simulation.stored_at.values()) - START < LEASE + 8 * GAP


@settings(
    max_examples=sized(5, 100),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(course=COURSES)
def test_every_row_that_can_succeed_does(opened: MirrorDatabase, course: Course) -> None:
    check(simulate(opened, course))
