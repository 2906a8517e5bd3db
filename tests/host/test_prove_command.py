# SPDX-License-Identifier: Apache-2.0
"""With a guest's help, an operator's commands find out which key signs under each firmware."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from snpcerts.abi.cert_table import EMPTY
from snpcerts.abi.product import Product
from snpcerts.emulator.psp.choices import NAMES, PUBLISHED, choices_of
from tests.documented_json import documented

from ..emulated import SNPCERTS, Emulated
from ..forked_commands import Commands
from ..keys import prepare_platform
from ..sizes import sized
from .site import Lines, Site, key_server, watching

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=sized((PUBLISHED,), NAMES))
def played(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, forked: Commands
) -> Iterator[Emulated]:
    folder = tmp_path_factory.mktemp("played")
    emulated = Emulated(folder / "platform", folder / "certs", forked)
    prepare_platform(emulated.directory, Product.GENOA, choices_of(request.param))
    emulated.issue_certificates()
    with emulated.in_use():
        yield emulated


@pytest.fixture
def host(played: Emulated, tmp_path: Path) -> Iterator[Site]:
    with key_server(played) as url:
        yield Site(played, tmp_path, url)


def reload(site: Site) -> None:
    """Unload kvm_amd and load it again."""
    made = site.emulated.run("firmware", "reload")
    assert made.returncode == 0, made.stderr


def prove(
    site: Site, *options: str, report_data: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``host prove-key``. The guest is behind another front door.

    So the hand-over passes the request, and then the report, through two FIFOs.
    """
    ask, answer = site.folder / "ask", site.folder / "answer"
    report = site.folder / "report.bin"
    report.unlink(missing_ok=True)
    for fifo in (ask, answer):
        if not fifo.exists():
            os.mkfifo(fifo)

    def guest() -> None:
        data, key_sel = ask.read_text().split()
        argv = [*SNPCERTS, "guest", "report", "-o", str(report), "--key-sel", key_sel]
        role = ("guest", "--certs", str(site.file), "--")
        site.emulated.run(*role, *argv, "--report-data", report_data or data)
        answer.write_bytes(report.read_bytes() if report.exists() else b"")

    asked = threading.Thread(target=guest)
    asked.start()
    try:
        return site.host(
            "prove-key",
            "--timeout=110",
            *options,
            "--",
            "sh",
            "-c",
            f'echo {{report_data}} {{key_sel}} > "{ask}"; cat "{answer}"',
        )
    finally:
        asked.join()


def test_a_signal_ends_the_hand_over_as_well(host: Site) -> None:
    """If the hand-over is an ssh session to a guest, for example, it must not stay open."""
    host.done("sync")
    pids = host.folder / "pids"
    os.mkfifo(pids)
    command = f'echo $$ $PPID > "{pids}"; exec sleep 600'
    argv = host.arguments("prove-key", "--timeout=600", "--", "sh", "-c", command)
    with subprocess.Popen(host.emulated.command(*argv), stderr=subprocess.PIPE) as process:
        hand_over, prover = map(int, pids.read_text().split())
        ended = os.pidfd_open(hand_over)
        try:
            os.kill(prover, signal.SIGTERM)
            assert process.wait(60) == 128 + signal.SIGTERM
            assert select.select([ended], [], [], 60)[0], "must end the hand-over"
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(ended, signal.SIGKILL)
            os.close(ended)


def test_a_reload_below_the_current_tcb_is_noticed_and_a_guest_proves_which_key_signs(
    host: Site,
) -> None:
    """The agent is killed before the reload, so a later agent must notice the reload."""
    with watching(host) as agent:
        Lines(agent).until("published")
        agent.kill()
    host.done("set-config", "--reported-tcb", host.lowered())
    assert host.attest() == 0
    assert host.status()["signing_key_basis"] == "believed"
    reload(host)
    host.done("sync")
    assert host.file.read_bytes() == EMPTY
    status = host.status()
    assert status["signing_key_basis"] == "unknown"
    assert "kvm_amd was reloaded" in status["vcek_doubt"]

    refused = prove(host, report_data="00" * 64)
    assert refused.returncode == 1
    assert "does not answer this request" in refused.stderr
    assert host.status()["proofs"] == []

    made = prove(host)
    published = (
        documented("emulate status", host.emulated.run("status", "--json").stdout)["firmware"]
        == PUBLISHED
    )
    assert made.returncode == (1 if published else 0), made.stderr
    status = host.status()
    assert status["signing_key_basis"] == "proven"
    (proof,) = status["proofs"]
    assert proof["key_sel"] == 0
    signs = status["current_tcb" if published else "reported_tcb"]
    assert proof["tcb"] == signs
    if published:
        assert "contradicts the firmware's status" in made.stderr
        assert host.file.read_bytes() == EMPTY
    else:
        assert host.attest() == 0
    host.done("set-config", "--again")
    assert host.attest() == 0
    status = host.status()
    assert status["signing_key_basis"] == "believed"
    shown = documented("host prove-key", prove(host, "--json").stdout)
    assert shown["key"]["tcb"] == status["reported_tcb"]
    assert not shown["contradicts"]


def test_a_hand_over_that_fails_or_lasts_leaves_everything_as_it_was(site: Site) -> None:
    site.done("sync")
    before = site.file.read_bytes()
    for argv, code, text in (
        (("false",), 1, "exit code 1"),
        (("true",), 1, "is not a report"),
        (("/nowhere/at/all",), 1, "cannot run"),
        (("sleep", "600"), 3, "timed out after"),
        (("cat", "/dev/zero"), 1, "is not a report"),
    ):
        made = site.host("prove-key", "--timeout=3", "--", *argv)
        assert made.returncode == code, (argv, made.stderr)
        assert text in made.stderr
        assert "Traceback" not in made.stderr
        assert site.file.read_bytes() == before
