# SPDX-License-Identifier: Apache-2.0
"""Instances share a queue and a pace: on each kind of database, on a clock that skips waits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from snpcerts.abi.product import Product
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.amd.key_server_faults import Fault, Throttle
from snpcerts.emulator.machine.key_server import KeyServer, ProductLine
from snpcerts.emulator.psp.chip import Chip
from snpcerts.endorsement.anchors import Anchor
from snpcerts.kds.url import VcekResource
from snpcerts.mirror.admission import Admission
from snpcerts.mirror.announcement import Announcement
from snpcerts.mirror.stored import Admitted
from snpcerts.mirror.wanted import LEASE, Need, NothingToTake, Taken

from ..sizes import sized
from .conftest import MILAN_TCB
from .sample_fleet import file_report
from .virtual import QueueNotEmptyError, VirtualClock, VirtualMirrors

GAP = 10.0
NEXT_TCB = replace(MILAN_TCB, microcode=220)
Start = Callable[..., tuple[VirtualMirrors, KeyServer, list[Chip]]]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def start(
    milan: EmulatedAuthority, anchors: tuple[Anchor, ...], database: str, clock: VirtualClock
) -> Iterator[Start]:
    """A function that starts a key server that throttles by address, and mirror instances of it."""
    running: list[tuple[VirtualMirrors, KeyServer]] = []

    def starting(
        chips: int, *, instances: int = 1, throttle: Throttle | None = None, gap: float = GAP
    ) -> tuple[VirtualMirrors, KeyServer, list[Chip]]:
        made = [Chip.create(Product.MILAN) for _ in range(chips)]
        amd = KeyServer(
            [ProductLine(milan, tuple(made))],
            throttle=throttle or Throttle(GAP),
            clock=clock.now,
        )
        amd.start()
        mirrors = VirtualMirrors(database, amd, anchors, clock, gap=gap, count=instances)
        running.append((mirrors, amd))
        return mirrors, amd, made

    yield starting
    for mirrors, amd in running:
        mirrors.close()
        amd.close()


def host(chip: Chip, **changed: object) -> Announcement:
    plain = Announcement(
        host=f"host-{chip.hwid.hex()[:8]}",
        product=Product.MILAN,
        hwid=chip.hwid,
        current=MILAN_TCB,
        reported=MILAN_TCB,
        files=(file_report(),),
    )
    return replace(plain, **changed)  # type: ignore[arg-type]  # a test's


def want(mirrors: VirtualMirrors, chips: list[Chip], need: Need = Need.ROLL) -> None:
    with mirrors.database.write() as connection:
        now = mirrors.database.now(connection)
        resources = [VcekResource(Product.MILAN, chip.hwid, MILAN_TCB) for chip in chips]
        mirrors.queue.want_all(connection, resources, need, now)


@pytest.mark.parametrize("instances", [1, 3])
def test_a_roll_asks_once_for_each_certificate_at_amds_pace(
    start: Start, clock: VirtualClock, instances: int
) -> None:
    """With one instance, the estimated end must also be about right at nearly every step."""
    count = sized(20, 1000 if instances == 3 else 200)
    mirrors, amd, chips = start(count, instances=instances)
    for chip in chips:
        mirrors.records.announce(host(chip))
    mirrors.run()
    began = clock.at
    with_certificates = dict(amd.requests)
    found = mirrors.records.start_roll(Product.MILAN, NEXT_TCB, None)
    assert (found.hosts, found.queued) == (count, count)
    ends: list[tuple[float, float]] = []

    def estimate() -> None:
        roll = mirrors.records.rolls()[0]
        assert roll.prefetched_at is not None
        ends.append((clock.at, roll.prefetched_at.timestamp()))

    mirrors.run(estimate if instances == 1 else lambda: None)
    took = clock.at - began
    assert amd.statuses.keys() == {200}
    new = {path: n for path, n in amd.requests.items() if path not in with_certificates}
    assert set(new.values()) == {1}
    assert len(new) == count
    assert mirrors.stored() == 2 * count
    assert took <= 1.05 * count * GAP
    for at, end in ends[: -count // 10]:
        assert abs(end - clock.at) <= max(GAP, 0.1 * (clock.at - at))
    assert abs(began + found.wait - clock.at) <= max(GAP, 0.1 * took)


def test_two_requests_are_never_within_a_gap(start: Start, clock: VirtualClock) -> None:
    """The key server would answer an early request with 429, and lengthen the throttle."""
    mirrors, amd, chips = start(8, instances=3, throttle=Throttle(GAP, lengthens=True))
    want(mirrors, chips)
    mirrors.run()
    assert amd.statuses == {200: 9}
    assert mirrors.stored() == 8


def test_a_flood_of_strangers_delays_a_host_by_one_gap_at_most(
    start: Start, clock: VirtualClock
) -> None:
    mirrors, amd, chips = start(2, instances=2)
    want(mirrors, chips[:1])
    mirrors.run()
    with mirrors.database.write() as connection:
        now = mirrors.database.now(connection)
        for number in range(1, 100):
            stranger = VcekResource(Product.MILAN, number.to_bytes(64, "big"), MILAN_TCB)
            mirrors.queue.want(connection, stranger, Need.STRANGER, now, caller=f"10.0.0.{number}")
    for _ in range(5):
        for fetcher in mirrors.fetchers:
            clock.advance(fetcher.step())
    began = clock.at
    mirrors.records.announce(host(chips[1], files=(file_report("empty"),)))
    path = VcekResource(Product.MILAN, chips[1].hwid, MILAN_TCB).path
    while path not in amd.requests:
        clock.advance(min(fetcher.step() for fetcher in mirrors.fetchers))
    assert clock.at - began <= 2 * GAP
    assert amd.statuses.keys() <= {200, 404}


def test_after_429_nothing_is_asked_until_the_time_that_was_named(
    start: Start, clock: VirtualClock
) -> None:
    mirrors, amd, chips = start(3, instances=3)
    want(mirrors, chips[:1])
    mirrors.run()
    amd.faults.next(Fault.TOO_MANY)
    want(mirrors, chips[1:])
    clock.advance(GAP)
    mirrors.fetchers[0].step()
    refused_at = clock.at
    assert amd.statuses[429] == 1
    for fetcher in mirrors.fetchers:
        assert fetcher.step() >= 9.9
    mirrors.run()
    assert amd.statuses[429] == 1
    assert clock.at >= refused_at + 10
    assert mirrors.stored() == 3


def test_a_silent_upstream_is_left_alone_longer_each_time(
    start: Start, clock: VirtualClock
) -> None:
    mirrors, amd, chips = start(5, instances=2)
    want(mirrors, chips)
    amd.faults.set(Fault.REFUSE)
    began = clock.at
    while clock.at < began + 1200:
        clock.advance(max(0.1, min(fetcher.step() for fetcher in mirrors.fetchers)))
    assert sum(amd.requests.values()) < 60
    amd.faults.clear()
    mirrors.run()
    assert mirrors.stored() == 5


def test_what_a_dead_instance_had_taken_is_taken_again_after_the_lease(
    start: Start, clock: VirtualClock
) -> None:
    mirrors, amd, chips = start(2, instances=1)
    want(mirrors, chips)
    with mirrors.database.write() as connection:
        mirrors.queue.lock(connection)
        taken = mirrors.queue.take(connection, clock.at, "an instance that dies")
    assert isinstance(taken, Taken)
    wait = mirrors.fetchers[0].step()
    assert 0 < wait <= LEASE
    assert amd.requests == {}
    died = clock.at
    mirrors.run()
    assert clock.at <= died + LEASE + 3 * GAP
    assert set(amd.requests.values()) == {1}
    assert mirrors.stored() == 2


@pytest.mark.parametrize("jump", [-86400.0, -20.0, 20.0, 86400.0])
def test_a_jump_of_the_databases_clock_stops_nothing(
    start: Start, clock: VirtualClock, jump: float
) -> None:
    mirrors, amd, chips = start(6, instances=1)
    want(mirrors, chips)
    for _ in range(3):
        clock.advance(mirrors.fetchers[0].step())
    clock.jumped = jump
    began = clock.at
    mirrors.run()
    assert mirrors.stored() == 6
    assert clock.at - began <= LEASE + 8 * GAP
    assert amd.requests.keys() >= {
        VcekResource(Product.MILAN, chip.hwid, MILAN_TCB).path for chip in chips
    }


def test_places_are_told_apart_and_in_order(start: Start, clock: VirtualClock) -> None:
    mirrors, _, chips = start(6)
    want(mirrors, chips)
    with mirrors.database.read() as connection:
        places = [
            mirrors.queue.place(
                connection, VcekResource(Product.MILAN, chip.hwid, MILAN_TCB), clock.at
            )
            for chip in chips
        ]
    found = sorted((each.ahead, each.wait) for each in places if each is not None)
    assert [ahead for ahead, _ in found] == list(range(6))
    assert [wait for _, wait in found] == [
        pytest.approx(index * GAP, rel=0.01) for index in range(6)
    ]


def test_an_empty_queue_gives_nothing(start: Start, clock: VirtualClock) -> None:
    mirrors, _, _ = start(1)
    with mirrors.database.write() as connection:
        found = mirrors.queue.take(connection, clock.at, "me")
    assert found == NothingToTake(math.inf)


@pytest.mark.parametrize("bad", [1, 8])
def test_rows_whose_answers_raise_an_unforeseen_error_do_not_stop_less_urgent_ones(
    start: Start, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    mirrors, amd, chips = start(bad + 5)
    failing = {chip.hwid for chip in chips[:bad]}
    judged = Admission.vcek

    def raising(self: Admission, resource: VcekResource, *rest: Any) -> Admitted:
        if resource.hwid in failing:
            raise ZeroDivisionError
        return judged(self, resource, *rest)

    monkeypatch.setattr(Admission, "vcek", raising)
    want(mirrors, chips[:bad], Need.HOST)
    want(mirrors, chips[bad:], Need.ROLL)
    with pytest.raises(QueueNotEmptyError):
        mirrors.run(most=6 * bad + 30)
    assert mirrors.stored() == 5
    failing.clear()
    mirrors.run(most=10 * bad + 30)
    assert mirrors.stored() == bad + 5
    assert amd.statuses.keys() == {200}
