# SPDX-License-Identifier: Apache-2.0
"""A host with a credential of its own keeps its chip, until an operator frees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from snpcerts.abi.product import Product
from snpcerts.cli.main import main
from snpcerts.emulator.psp.chip import Chip
from snpcerts.mirror.announcement import Announcement
from snpcerts.mirror.api import Tokens
from tests.documented_json import documented

from .running import Reply, RunningMirror
from .test_fleet_api import ADMIN, AGENT, milan_roll, put, queue, roll
from .test_pace import host

ONE, TWO, BOTH = "1" * 32, "2" * 32, "3" * 32
TOKENS = Tokens(
    (AGENT, ONE, TWO, BOTH),
    (ADMIN,),
    {
        ONE: frozenset({"host-1"}),
        TWO: frozenset({"host-2"}),
        BOTH: frozenset({"old-name", "new-name"}),
    },
)


@pytest.fixture
def mirror(start: Callable[..., RunningMirror], database: str) -> RunningMirror:
    return start(database=database, tokens=TOKENS, gap=300.0)


@pytest.fixture
def first() -> Announcement:
    return host(Chip.create(Product.MILAN), host="host-1")


@pytest.fixture
def second() -> Announcement:
    return host(Chip.create(Product.MILAN), host="host-2")


def named(announced: Announcement, name: str) -> Announcement:
    return host(Chip.create(Product.MILAN), host=name, hwid=announced.hwid)


def refused(reply: Reply, status: int, code: str, *words: str) -> None:
    assert (reply.status, json.loads(reply.body)["code"]) == (status, code), reply.text
    assert all(word in reply.text for word in words), reply.text


def names(mirror: RunningMirror) -> list[str]:
    return [each.announcement.host for each in mirror.mirror.records.fleet().hosts]


def forget(mirror: RunningMirror, *hosts: str, token: str = ADMIN) -> Reply:
    return mirror.ask(
        "api/v1/forget",
        method="POST",
        body=json.dumps({"hosts": hosts}).encode(),
        headers={"Authorization": f"Bearer {token}"},
    )


def test_a_token_of_one_host_speaks_for_no_other(
    mirror: RunningMirror, first: Announcement
) -> None:
    refused(put(mirror, first, TWO), 403, "wrong-token", "host-1")
    assert put(mirror, named(first, "HOST-1"), ONE).status == 200


@pytest.mark.parametrize("token", [TWO, AGENT])
def test_another_host_cannot_announce_a_chip_that_belongs_to_a_host(
    mirror: RunningMirror, first: Announcement, token: str
) -> None:
    """The mirror refuses the other host's own token and, under any name, the shared token."""
    assert put(mirror, first, ONE).status == 200
    for name in ("host-2",) if token == TWO else ("host-2", "host-1"):
        refused(put(mirror, named(first, name), token), 409, "mirror-other-host", "'host-1'")
    assert names(mirror) == ["host-1"]
    assert put(mirror, first, ONE).status == 200


def test_a_host_with_its_own_token_has_one_chip(
    mirror: RunningMirror, first: Announcement, second: Announcement
) -> None:
    assert put(mirror, first, ONE).status == 200
    other = named(second, "host-1")
    refused(put(mirror, other, ONE), 409, "mirror-other-chip", first.hwid.hex(), "mirror forget")
    assert len(queue(mirror)) == 1


def test_a_shared_token_announces_any_chip_that_has_no_host(
    mirror: RunningMirror, first: Announcement
) -> None:
    assert put(mirror, named(first, "host-2"), AGENT).status == 200
    assert put(mirror, named(first, "host-3"), AGENT).status == 200
    # The chip now belongs to the first host that announces it with a token of its own.
    assert put(mirror, first, ONE).status == 200
    refused(put(mirror, named(first, "host-3"), AGENT), 409, "mirror-other-host")


def test_a_host_whose_token_has_two_names_can_change_its_name(
    mirror: RunningMirror, first: Announcement
) -> None:
    for name in ("old-name", "new-name", "old-name"):
        assert put(mirror, named(first, name), BOTH).status == 200


def test_an_operators_token_changes_no_binding(mirror: RunningMirror, first: Announcement) -> None:
    assert put(mirror, first, ONE).status == 200
    assert put(mirror, named(first, "anything"), ADMIN).status == 200
    refused(put(mirror, named(first, "host-2"), TWO), 409, "mirror-other-host")


def test_after_forget_chip_and_host_are_free(
    mirror: RunningMirror, first: Announcement, second: Announcement
) -> None:
    assert put(mirror, first, ONE).status == 200
    assert put(mirror, second, TWO).status == 200
    assert roll(mirror, milan_roll()).status == 201
    assert len(queue(mirror)) >= 3  # one may have been asked for
    assert forget(mirror, first.hwid.hex().upper(), "host-2").status == 200
    assert names(mirror) == []
    assert len(queue(mirror)) <= 1  # one may be under way
    assert mirror.mirror.records.rolls()[0].hosts == 0
    assert put(mirror, named(first, "host-2"), TWO).status == 200
    assert put(mirror, named(second, "host-1"), ONE).status == 200


def test_forget_needs_an_operator_and_names_that_are_known(
    mirror: RunningMirror, first: Announcement
) -> None:
    put(mirror, first, ONE)
    refused(forget(mirror, "host-1", token=AGENT), 403, "wrong-token")
    refused(forget(mirror, "host-1", "nowhere"), 409, "mirror-unknown-host", "nowhere")
    refused(forget(mirror), 400, "format")
    assert names(mirror) == ["host-1"]


def test_forget_says_what_it_has_forgotten(
    mirror: RunningMirror,
    first: Announcement,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put(mirror, first, ONE)
    (tmp_path / "token").write_text(ADMIN + "\n")
    argv = ["mirror", "forget", "--mirror", mirror.url, "--token-file", str(tmp_path / "token")]
    assert main([*argv, "host-1", "--json"]) == 0
    assert documented("mirror forget", capsys.readouterr().out)["forgotten"] == [
        {"product": "Milan", "hwid": first.hwid.hex(), "host": "host-1"}
    ]
    assert main([*argv, "host-1"]) == 1
    assert (
        "no host with the name or chip ID 'host-1' has announced itself" in capsys.readouterr().err
    )
    put(mirror, first, ONE)
    assert main([*argv, "host-1"]) == 0
    assert "forgotten: host-1" in capsys.readouterr().out
