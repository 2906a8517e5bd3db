# SPDX-License-Identifier: Apache-2.0
"""``snpcerts demo`` as a user runs it, and the proof that its check can fail."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from snpcerts.abi.product import Product
from snpcerts.cli.main import main
from snpcerts.demo.conclusion import conclusion, summary
from snpcerts.demo.demo_event import Updated
from snpcerts.demo.demo_host import EmulatedHost
from snpcerts.demo.stage import DemoMachine, DemoRun, Script
from snpcerts.demo.tally import Tally
from snpcerts.emulator.machine.home import PlatformHome
from tests.documented_json import documented
from tests.keys import prepare_platform
from tests.sizes import sized

DEMO = [sys.executable, "-P", "-m", "snpcerts.cli.main", "demo"]
QUICK = [sys.executable, str(Path(__file__).parents[1] / "quick_demo.py")]


def test_the_run_with_the_lock_has_no_mismatch(capsys: pytest.CaptureFixture[str]) -> None:
    seconds, updates = sized(1, 4), sized(10, 30)
    options = ["--guests", str(sized(2, 4))]
    options += ["--seconds", str(seconds), "--updates", str(updates)]
    code = main(["demo", "--json", *options])
    counts: dict[str, Any] = documented("demo", capsys.readouterr().out)
    assert code == 0
    assert (counts["mismatched"], counts["failed"]) == (0, 0)
    assert counts["verified"] > 0
    for run in (counts, counts["without_lock"]):
        assert run["updates"] == updates
        assert run["reports"] == run["verified"] + run["empty"] + run["mismatched"]
    if sized(0, 1):
        assert counts["without_lock"]["mismatched"] > 0


@pytest.mark.parametrize("broken", ["no-lock", "no-handshake"])
def test_a_wrong_reader_is_detected(broken: str, tmp_path: Path) -> None:
    home = PlatformHome(tmp_path / "machine")
    prepare_platform(home.path, Product.MILAN)
    machine = DemoMachine(home, EmulatedHost.of(home.firmware(), home.authority()))
    run = DemoRun(
        tmp_path / "run", machine, Script(guests=2, updates=1000, seconds=50, broken=broken)
    )
    tally, results = Tally(), []
    with contextlib.closing(run.play()) as events:
        for event in events:
            if (result := tally.count(event, run.host)) and result.result == "mismatched":
                results.append(result)
                break
    assert results, f"no mismatch in {tally}"
    assert results[0].certified != results[0].key


def test_two_runs_make_the_same_updates(tmp_path: Path) -> None:
    home = PlatformHome(tmp_path / "machine")
    prepare_platform(home.path, Product.MILAN)
    machine = DemoMachine(home, EmulatedHost.of(home.firmware(), home.authority()))

    def keys(name: str, broken: str | None) -> list[bytes]:
        script = Script(guests=1, updates=6, seconds=0.3, broken=broken)
        run = DemoRun(tmp_path / name, machine, script)
        return [event.tcb for event in run.play() if isinstance(event, Updated)]

    first = keys("first", "no-lock")
    assert len(first) == 6
    assert keys("second", None) == first


def test_the_last_line_is_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--seconds", "0.3", "--updates", "2", "--guests", "1"]
    assert main(["demo", *options, "--break", "no-handshake"]) in (0, 1)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("Guests request attestation reports")
    assert re.match(
        r"(FAILED: with the lock, )?[\d,]+ (of|reports?,) .*; without the lock, .*", last
    )


def test_every_conclusion_says_what_was_counted() -> None:
    good = Tally(reports=1412, verified=1412, updates=20)
    bad = Tally(reports=1400, verified=1363, mismatched=37, updates=20)
    assert conclusion(bad, good) == (
        "1,412 reports, every one verifies with the certificates that came with it; "
        "without the lock, 37 of 1,400 did not"
    )
    assert "none of 1,412 went wrong this time either" in conclusion(good, good)
    assert conclusion(bad, bad).startswith(
        "FAILED: with the lock, 37 of 1,400 reports do not verify"
    )
    assert "the key did not change" in conclusion(Tally(reports=3, verified=3), good)
    some = Tally(reports=10, verified=8, empty=2, failed=1, busy=3, updates=1)
    assert summary(some) == (
        "10 reports: 8 verify with their certificates, none fails, 2 came without "
        "certificates, 3 requests got BUSY and were repeated, failed requests: 1"
    )
    assert "every one" not in conclusion(bad, some)


@pytest.mark.parametrize(
    ("program", "moment"),
    [(DEMO, "Guests request"), (QUICK, "Starting"), (QUICK, "do not verify")],
    ids=["before it starts", "at its start", "meanwhile"],
)
def test_ctrl_c_at_any_moment_prints_one_line(program: list[str], moment: str) -> None:
    demo = subprocess.Popen(
        [*program, "--seconds", "10", "--guests", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    )
    assert demo.stdout is not None
    seen = b""
    while moment.encode() not in seen:
        part = os.read(demo.stdout.fileno(), 4096)
        assert part, seen
        seen += part
    demo.send_signal(signal.SIGINT)
    _, said = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert said == b"snpcerts: the demo was interrupted by Ctrl-C and left nothing behind\n"
