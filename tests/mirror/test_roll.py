# SPDX-License-Identifier: Apache-2.0
"""``mirror roll``: an operator announces firmware, and reads how long the queue will take."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from snpcerts.cli.main import main
from snpcerts.emulator.machine.key_server import KeyServer
from snpcerts.mirror.api import Tokens
from tests.documented_json import documented

from ..kds.answering import Answering, ok
from .conftest import MILAN_TCB, vcek
from .running import RunningMirror
from .test_fleet_api import ADMIN, AGENT

NEXT = "bl=4,tee=0,snp=24,ucode=220"


@pytest.fixture
def fleet(start: Callable[..., RunningMirror]) -> RunningMirror:
    """A mirror that fetches a certificate every five minutes."""
    return start(tokens=Tokens((AGENT,), (ADMIN,)), gap=300.0)


@pytest.fixture
def token(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.write_text(ADMIN + "\n")
    return str(path)


def test_a_roll_says_how_long_it_will_take(
    fleet: RunningMirror,
    amd: KeyServer,
    token: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hosts = tmp_path / "hosts"
    chips = [vcek(amd, index=index).hwid.hex() for index in range(4)]
    hosts.write_text("# rack 1\n\n" + "\n".join(f"{chip}  # a comment" for chip in chips))
    argv = ["mirror", "roll", "--product", "milan", "--tcb", NEXT, "--hosts", str(hosts)]
    argv += ["--mirror", fleet.url, "--token-file", token]
    assert main([*argv, "--json"]) == 0
    found = documented("mirror roll", capsys.readouterr().out)
    assert (found["hosts"], found["stored"], found["queued"]) == (4, 0, 4)
    assert 0 <= found["wait_seconds"] <= 4 * 300
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "4 hosts" in text
    assert re.search(r"the last one    in \d+ min", text)
    (first, second) = (json.loads(fleet.ask("api/v1/rolls").text)["rolls"])[:2]
    assert first["tcb"] == second["tcb"] == replace(MILAN_TCB, microcode=220).components()


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["--tcb", "bl=4"], 2, "missing"),
        (["--tcb", NEXT], 2, "milan or genoa"),
        (["--tcb", NEXT, "--product", "turin"], 2, "fmc"),
        (["--tcb", NEXT, "--product", "milan"], 1, "no Milan host has announced itself"),
        (["--tcb", NEXT, "--product", "milan", "--hosts", "none"], 2, "No such file"),
        (["--tcb", NEXT, "--product", "milan", "--hosts", "empty"], 2, "found no host"),
        (["--tcb", NEXT, "--product", "milan", "--hosts", "odd"], 1, "'nowhere'"),
        (["--tcb", NEXT, "--product", "milan", "--token-file", "odd"], 1, "403"),
        (["--tcb", NEXT, "--product", "milan", "--mirror", "http://mirror.example"], 2, "https"),
    ],
)
def test_what_cannot_be_announced_is_refused_with_a_reason(
    fleet: RunningMirror,
    token: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("# nothing\n")
    (tmp_path / "odd").write_text("nowhere\n")
    monkeypatch.setenv("SNPCERTS_MIRROR", fleet.url)
    monkeypatch.setenv("SNPCERTS_MIRROR_TOKEN_FILE", token)
    assert main(["mirror", "roll", *argv]) == code
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("body", [b"", b"[]", b'{"roll": 1}', b"[" * 50_000])
def test_an_answer_of_another_server_is_an_error(
    body: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with Answering(lambda _: ok(body)) as server:
        argv = ["--tcb", NEXT, "--product", "milan", "--mirror", server.url]
        assert main(["mirror", "roll", *argv]) == 3
    assert "cannot be read" in capsys.readouterr().err
