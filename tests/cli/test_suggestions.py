# SPDX-License-Identifier: Apache-2.0
"""What snpcerts suggests for a mistyped command."""

from __future__ import annotations

from pathlib import Path

import pytest

from snpcerts import __version__
from snpcerts.cli.main import main


@pytest.mark.parametrize(
    ("word", "nearest"), [("hots", "host"), ("verfy", "verify"), ("emulator", "emulate")]
)
def test_a_mistyped_command_names_the_nearest(
    capsys: pytest.CaptureFixture[str], word: str, nearest: str
) -> None:
    assert main([word]) == 2
    assert f"Did you mean '{nearest}'?" in capsys.readouterr().err


@pytest.mark.parametrize("group", ["report", "table"])
def test_a_file_in_place_of_a_command_names_show(
    capsys: pytest.CaptureFixture[str], group: str, tmp_path: Path
) -> None:
    file = tmp_path / "report.bin"
    assert main([group, str(file)]) == 2
    assert f"{group} show" not in capsys.readouterr().err
    file.touch()
    assert main([group, str(file)]) == 2
    assert f"Did you mean 'snpcerts {group} show {file}'?" in capsys.readouterr().err


def test_a_word_unlike_every_command_gets_no_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xyzzy"]) == 2
    assert "Did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize("option", ["-v", "--version"])
def test_the_version(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert main([option]) == 0
    assert __version__ in capsys.readouterr().out
