# SPDX-License-Identifier: Apache-2.0
"""Agents announce hosts, operators announce rolls; the mirror queues and fetches for both."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.machine.key_server import KeyServer
from snpcerts.kds.url import VcekResource
from snpcerts.mirror import wanted
from snpcerts.mirror.announcement import Announcement
from snpcerts.mirror.api import Tokens

from . import running
from .conftest import MILAN_TCB, vcek
from .running import Reply, RunningMirror
from .sample_fleet import file_report

AGENT, ADMIN = "a" * 32, "b" * 32
NEXT_TCB = replace(MILAN_TCB, microcode=220)
TOKENS = Tokens((AGENT,), (ADMIN,))


@pytest.fixture
def fleet(start: Callable[..., RunningMirror], database: str) -> RunningMirror:
    """A mirror with tokens, on each database."""
    return start(database=database, tokens=TOKENS)


@pytest.fixture
def slow_fleet(start: Callable[..., RunningMirror]) -> RunningMirror:
    """A mirror that requests a VCEK every five minutes, so that its queue does not change."""
    return start(tokens=TOKENS, gap=300.0)


def announced(amd: KeyServer, index: int = 0, **changed: Any) -> Announcement:
    chip = amd.lines[Product.MILAN].chips[index]
    plain = Announcement(
        host=f"host-{index}",
        product=Product.MILAN,
        hwid=chip.hwid,
        current=MILAN_TCB,
        reported=MILAN_TCB,
        files=(file_report(),),
    )
    return replace(plain, **changed)


def put(mirror: RunningMirror, announced: Announcement, token: str = AGENT) -> Reply:
    return mirror.ask(
        f"api/v1/hosts/{announced.product.value}/{announced.hwid.hex()}",
        method="PUT",
        body=json.dumps(announced.to_json()).encode(),
        headers={"Authorization": f"Bearer {token}"},
    )


def states(reply: Reply) -> dict[int, str]:
    assert reply.status == 200, reply.text
    return {each["tcb"]["microcode"]: each["state"] for each in json.loads(reply.body)["wanted"]}


def roll(mirror: RunningMirror, given: Mapping[str, object], token: str = ADMIN) -> Reply:
    return mirror.ask(
        "api/v1/rolls",
        method="POST",
        body=json.dumps(given).encode(),
        headers={"Authorization": f"Bearer {token}"},
    )


def milan_roll(tcb: TcbVersion = NEXT_TCB, hosts: list[str] | None = None) -> dict[str, object]:
    return {"product": "milan", "tcb": tcb.components(), "hosts": hosts}


def queue(mirror: RunningMirror) -> list[tuple[str, int]]:
    with mirror.mirror.database.read() as connection:
        rows = connection.exec_driver_sql(
            "SELECT resource, need FROM queue WHERE paced ORDER BY need, wanted_at, resource"
        )
        return [(row[0], row[1]) for row in rows]


def until_stored(mirror: RunningMirror, resource: VcekResource) -> None:
    running.until_stored(mirror.url, resource.path)


def test_what_an_announced_host_needs_next_is_fetched_before_it_commits(
    amd: KeyServer, fleet: RunningMirror
) -> None:
    before = announced(amd)
    assert states(put(fleet, before)) == {219: "queued"}
    until_stored(fleet, vcek(amd))
    pending = replace(before, current=NEXT_TCB)
    assert states(put(fleet, pending)) == {219: "stored", 220: "queued"}
    until_stored(fleet, replace(vcek(amd), tcb=NEXT_TCB))
    assert states(put(fleet, pending)) == {219: "stored", 220: "stored"}
    assert {path: count for path, count in amd.requests.items() if "cert_chain" not in path} == {
        vcek(amd).path: 1,
        replace(vcek(amd), tcb=NEXT_TCB).path: 1,
    }


def test_a_roll_fetches_for_every_host_and_shows_how_far_each_has_come(
    amd: KeyServer, fleet: RunningMirror
) -> None:
    hosts = [announced(amd, index) for index in range(3)]
    for each in hosts:
        put(fleet, each)
    answer = roll(fleet, milan_roll())
    assert answer.status == 201, answer.text
    found = json.loads(answer.body)
    assert (found["hosts"], found["stored"], found["queued"]) == (3, 0, 3)
    for index in range(3):
        until_stored(fleet, replace(vcek(amd, index=index), tcb=NEXT_TCB))
    put(fleet, replace(hosts[0], current=NEXT_TCB, reported=NEXT_TCB))
    put(
        fleet,
        replace(hosts[1], current=NEXT_TCB, reported=NEXT_TCB, files=(file_report("empty"),)),
    )
    shown = json.loads(fleet.ask("api/v1/rolls").body)["rolls"][0]
    assert (shown["hosts"], shown["stored"]) == (3, 3)
    assert (shown["committed"], shown["in_step"], shown["done"]) == (2, 1, False)
    page = fleet.ask("/")
    assert page.status == 200
    assert "host-0" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_a_host_has_a_page_and_a_history(amd: KeyServer, fleet: RunningMirror) -> None:
    put(fleet, announced(amd))
    put(fleet, announced(amd))
    put(fleet, announced(amd, current=NEXT_TCB))
    at = f"Milan/{announced(amd).hwid.hex()}"
    found = json.loads(fleet.ask(f"api/v1/hosts/{at}").body)
    assert found["state"] == "behind"
    assert len(found["history"]) == 2
    assert fleet.ask(f"hosts/{at}").status == 200
    assert fleet.ask("hosts/Milan/" + "ab" * 64).status == 404
    assert fleet.ask("hosts/Milan/zz").status == 404


def test_a_waiting_host_comes_before_a_roll_and_a_roll_before_strangers(
    amd: KeyServer, slow_fleet: RunningMirror
) -> None:
    mirror = slow_fleet
    until_stored(mirror, vcek(amd, index=3))  # the next VCEK is now minutes away
    for number in range(1, 11):
        stranger = VcekResource(Product.MILAN, bytes([number]) * 64, MILAN_TCB)
        assert mirror.ask(stranger.path, headers={"Prefer": "wait=0"}).status == 503
    put(mirror, announced(amd, 0))
    roll(mirror, milan_roll(hosts=["host-0"]))
    put(mirror, announced(amd, 1, files=(file_report("empty"),)))
    first = [(path.split("?")[0][-8:], need) for path, need in queue(mirror)[:4]]
    chips = [announced(amd, index).hwid.hex()[-8:] for index in range(2)]
    assert first[0] == (chips[1], 0)
    assert first[1] == first[2] == (chips[0], 1)
    assert first[3][1] == 2
    # The waiting host is first, whatever strangers have in the queue.
    first_wanted = json.loads(put(mirror, announced(amd, 1, files=(file_report("empty"),))).body)
    assert first_wanted["wanted"][0]["position"] == 0
    assert first_wanted["wanted"][0]["wait_seconds"] <= 301


def test_a_caller_about_an_announced_chip_is_no_stranger(
    amd: KeyServer, slow_fleet: RunningMirror
) -> None:
    until_stored(slow_fleet, vcek(amd, index=3))
    put(slow_fleet, announced(amd))
    assert queue(slow_fleet) == [(vcek(amd).path, 1)]
    assert slow_fleet.ask(vcek(amd).path, headers={"Prefer": "wait=0"}).status == 503
    assert queue(slow_fleet) == [(vcek(amd).path, 0)]


WRONG_TOKENS: dict[str, tuple[dict[str, str], int]] = {
    "absent": ({}, 401),
    "empty": ({"Authorization": "Bearer "}, 401),
    "another scheme": ({"Authorization": f"Basic {AGENT}"}, 401),
    "unknown": ({"Authorization": "Bearer " + "c" * 32}, 403),
    "a token without its last character": ({"Authorization": f"Bearer {AGENT[:-1]}"}, 403),
    "a token with an extra character": ({"Authorization": f"Bearer {AGENT}a"}, 403),
    "not ASCII": ({"Authorization": "Bearer \xe9" + "c" * 31}, 403),
}


@pytest.mark.parametrize("name", WRONG_TOKENS)
def test_without_a_token_nothing_can_be_written(
    amd: KeyServer, mirror_with_tokens: RunningMirror, name: str
) -> None:
    headers, status = WRONG_TOKENS[name]
    each = announced(amd)
    for target, method in (
        (f"api/v1/hosts/Milan/{each.hwid.hex()}", "PUT"),
        ("api/v1/rolls", "POST"),
    ):
        found = mirror_with_tokens.ask(target, method=method, body=b"{}", headers=headers)
        assert found.status == status
        assert json.loads(found.body)["error"]
    assert queue(mirror_with_tokens) == []


@pytest.fixture
def mirror_with_tokens(start: Callable[..., RunningMirror]) -> RunningMirror:
    return start(tokens=TOKENS)


def test_an_agents_token_starts_no_roll(amd: KeyServer, mirror_with_tokens: RunningMirror) -> None:
    assert roll(mirror_with_tokens, milan_roll(), AGENT).status == 403
    assert put(mirror_with_tokens, announced(amd), ADMIN).status == 200


def test_without_token_files_writing_is_off(amd: KeyServer, mirror: RunningMirror) -> None:
    found = put(mirror, announced(amd))
    assert found.status == 403
    assert "--agent-token-file" in found.text


BAD_BODIES = {
    "empty": b"",
    "not JSON": b"{",
    "a list": b"[]",
    "deep": b"[" * 50_000,
    "another version": b'{"version": 99}',
    "not text": b"\xff\xfe",
    "too large": b'{"version": 1, "host": "' + b"a" * (9 << 20) + b'"}',
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_is_refused_with_a_reason(
    amd: KeyServer, mirror_with_tokens: RunningMirror, name: str
) -> None:
    mirror = mirror_with_tokens
    for target, method, token in (
        (f"api/v1/hosts/Milan/{announced(amd).hwid.hex()}", "PUT", AGENT),
        ("api/v1/rolls", "POST", ADMIN),
    ):
        try:
            found = mirror.ask(
                target,
                method=method,
                body=BAD_BODIES[name],
                headers={"Authorization": f"Bearer {token}"},
            )
        except (BrokenPipeError, ConnectionResetError):
            continue  # it answered before it had read all
        assert found.status in (400, 413)
        assert json.loads(found.body)["error"]
    assert mirror.ask("healthz").status == 200


def test_an_announcement_must_be_of_the_chip_in_the_url(
    amd: KeyServer, mirror_with_tokens: RunningMirror
) -> None:
    body = json.dumps(announced(amd, 1).to_json()).encode()
    found = mirror_with_tokens.ask(
        f"api/v1/hosts/Milan/{announced(amd, 0).hwid.hex()}",
        method="PUT",
        body=body,
        headers={"Authorization": f"Bearer {AGENT}"},
    )
    assert found.status == 400


BAD_ROLLS: dict[str, dict[str, object]] = {
    "no host": milan_roll(),
    "an unknown host": milan_roll(hosts=["nowhere"]),
    "an empty list": milan_roll(hosts=[]),
    "hosts that are not a list": milan_roll() | {"hosts": "host-0"},
    "hosts that are not names": milan_roll() | {"hosts": [1]},
    "an unknown product": milan_roll() | {"product": "Naples"},
    "a Turin TCB": milan_roll() | {"tcb": {"fmc": 1}},
    "no TCB": {"product": "milan"},
}


@pytest.mark.parametrize("name", BAD_ROLLS)
def test_a_bad_roll_is_refused_and_queues_nothing(
    mirror_with_tokens: RunningMirror, name: str
) -> None:
    found = roll(mirror_with_tokens, BAD_ROLLS[name])
    assert found.status in (400, 409)
    assert json.loads(found.body)["error"]
    assert queue(mirror_with_tokens) == []


def test_a_roll_takes_chips_that_no_agent_has_announced(
    amd: KeyServer, mirror_with_tokens: RunningMirror
) -> None:
    chip = announced(amd).hwid.hex()
    found = json.loads(roll(mirror_with_tokens, milan_roll(hosts=[chip])).body)
    assert (found["hosts"], found["queued"]) == (1, 1)
    until_stored(mirror_with_tokens, replace(vcek(amd), tcb=NEXT_TCB))


def test_metrics_are_readable_and_count_answers(amd: KeyServer, fleet: RunningMirror) -> None:
    until_stored(fleet, vcek(amd))
    until_stored(fleet, vcek(amd))
    put(fleet, announced(amd))
    text = fleet.ask("metrics").text
    assert 'snpcerts_mirror_requests_total{outcome="hit",resource="vcek"} 1.0' in text
    assert 'snpcerts_mirror_hosts{state="in-step"} 1.0' in text
    assert "snpcerts_mirror_database_up 1.0" in text
    assert 'snpcerts_mirror_upstream_requests_total{outcome="ok"} 2.0' in text


def test_a_full_queue_takes_no_more_from_agents_and_operators(
    amd: KeyServer, slow_fleet: RunningMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    until_stored(slow_fleet, vcek(amd, index=3))
    monkeypatch.setattr(wanted, "MAX_QUEUE", 2)
    assert put(slow_fleet, announced(amd, 0)).status == 200
    many = [put(slow_fleet, announced(amd, 1, current=replace(NEXT_TCB, snp=n))) for n in (30, 31)]
    refused = [
        *many,
        roll(slow_fleet, milan_roll(hosts=[announced(amd, n).hwid.hex() for n in (1, 2)])),
    ]
    assert {(each.status, json.loads(each.body)["code"]) for each in refused} == {
        (409, "mirror-queue-full")
    }
    assert queue(slow_fleet) == [(vcek(amd).path, 1)]
    # An announcement that would not lengthen the queue is still recorded.
    assert put(slow_fleet, announced(amd, 0, guests=7)).status == 200
