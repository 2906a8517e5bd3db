# SPDX-License-Identifier: Apache-2.0
"""``snpcerts demo`` as a user runs it, and the proof that its check can fail."""

from __future__ import annotations

import pytest

from snpcerts.cli.main import main
from tests.documented_json import documented

KEYS = {"reports", "verified", "mismatched", "empty", "busy", "updates", "writer_wait_ms_max"}


def demo(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, float]]:
    code = main(["demo", "--json", *options])
    return code, documented("demo", capsys.readouterr().out)


def test_every_report_matches_the_table_that_came_with_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, counts = demo(capsys, "--seconds", "3", "--updates", "15")
    assert code == 0
    assert counts.keys() >= KEYS
    assert counts["mismatched"] == 0
    assert counts["failed"] == 0
    assert counts["verified"] > 0
    assert counts["updates"] == 15
    assert counts["reports"] == counts["verified"] + counts["empty"]


@pytest.mark.parametrize("broken", ["no-lock", "no-handshake"])
def test_a_wrong_reader_is_detected(broken: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, counts = demo(capsys, "--seconds", "4", "--updates", "30", "--break", broken)
    assert code == 1
    assert counts["mismatched"] > 0
    assert counts["verified"] > 0


def test_the_timeline_ends_with_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--seconds", "1", "--updates", "3", "--guests", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("mismatched 0")
    assert sum("lock held" in line for line in lines) == 3
    assert any("verified" in line for line in lines[:-1])
