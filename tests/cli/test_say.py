# SPDX-License-Identifier: Apache-2.0
"""What a person sees: wrapped and coloured on a terminal, plain and whole in a pipe."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.cli.say import STYLES, wrapped
from tests.verify.test_documented_reasons import CHAIN, sound_report, sound_table

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def on_terminal(arguments: list[str], cwd: Path, **environment: str) -> str:
    """Return what ``snpcerts`` writes to a terminal with 80 columns."""
    ours, theirs = pty.openpty()
    inherited = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    process = subprocess.Popen(
        [sys.executable, "-m", "snpcerts", *arguments],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=inherited | {"TERM": "xterm-256color", "COLUMNS": "80"} | environment,
    )
    os.close(theirs)
    out = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            out += chunk
    except OSError:  # EIO: the other end is closed
        pass
    finally:
        os.close(ours)
        process.wait(timeout=60)
    return out.decode().replace("\r\n", "\n")


def in_pipe_and_terminal(arguments: list[str], cwd: Path) -> tuple[str, str]:
    """Run ``snpcerts`` with a pipe as standard output and a terminal as standard error; return what
    it writes to each.
    """
    ours, theirs = pty.openpty()
    made = subprocess.run(
        [sys.executable, "-m", "snpcerts", *arguments],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color"},
    )
    os.set_blocking(ours, False)
    try:
        shown = os.read(ours, 1 << 16)
    except BlockingIOError:
        shown = b""
    finally:
        os.close(theirs)
        os.close(ours)
    return made.stdout.decode(), shown.decode()


def in_pipe(arguments: list[str], cwd: Path) -> str:
    made = subprocess.run(
        [sys.executable, "-m", "snpcerts", *arguments], cwd=cwd, capture_output=True, text=True
    )
    return made.stdout + made.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "report.bin").write_bytes(sound_report())
    (tmp_path / "table.bin").write_bytes(sound_table())
    (tmp_path / "root.der").write_bytes(CHAIN["ark"])
    return tmp_path


VERIFY = ["verify", "report.bin", "--table", "table.bin", "--anchor", "root.der"]


def test_on_a_terminal_a_verdict_is_coloured_and_no_word_is_broken(folder: Path) -> None:
    shown = on_terminal(VERIFY, folder)
    assert shown.startswith("\x1b[35mverified, with a root that is not AMD's\x1b[0m")
    plain = _COLOUR.sub("", shown)
    assert plain.split() == in_pipe(VERIFY, folder).split()
    for line in plain.splitlines():
        assert len(line) <= 80 or len(line.split()[-1]) > 60, line


def test_a_refusal_is_red_and_its_reasons_have_a_hanging_indent(folder: Path) -> None:
    shown = on_terminal(["verify", "report.bin", "--table", "table.bin"], folder)
    assert shown.startswith("\x1b[1;31mrefused\x1b[0m")
    lines = _COLOUR.sub("", shown).splitlines()
    reason = next(i for i, line in enumerate(lines) if line.startswith("  ark-untrusted"))
    assert lines[reason + 1].startswith("    ")


def test_no_color_and_a_pipe_get_no_colour(folder: Path) -> None:
    assert "\x1b" not in on_terminal(VERIFY, folder, NO_COLOR="1")
    assert "\x1b" not in in_pipe(VERIFY, folder)


def test_a_progress_bar_needs_two_terminals(folder: Path) -> None:
    """With ``snpcerts verify DIR | head``, a bar would be mixed with the lines that head prints."""
    many = ["verify", "report.bin", "report.bin"]
    assert "2/2" in _COLOUR.sub("", on_terminal(many, folder))
    verdicts, shown = in_pipe_and_terminal(many, folder)
    assert verdicts.count("refused     report.bin") == 2
    assert shown == ""


def test_a_reader_that_stops_early_ends_the_command_quietly(folder: Path) -> None:
    name = "long" * 60
    (folder / name).symlink_to("report.bin")  # 400 verdicts with this name do not fit into a pipe
    many = [sys.executable, "-m", "snpcerts", "verify", *[name] * 400]
    running = subprocess.Popen(many, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stderr is not None
    with running:
        assert running.stdout.readline().startswith(b"refused")
        running.stdout.close()
        assert running.stderr.read() == b""


def test_json_is_not_wrapped_on_a_terminal(folder: Path) -> None:
    assert on_terminal([*VERIFY, "--json"], folder) == in_pipe([*VERIFY, "--json"], folder)


def test_checks_not_asked_are_counted_and_listed_on_request(folder: Path) -> None:
    assert re.search(r"\d+ not asked \(-v lists them\)", in_pipe(VERIFY, folder))
    assert "not asked    " in in_pipe([*VERIFY, "-v"], folder)


def test_an_error_has_a_hanging_indent(folder: Path) -> None:
    name = "a directory with a long name " * 4
    lines = on_terminal(["table", "show", name], folder).splitlines()
    assert lines[0].startswith("snpcerts: ")
    assert len(lines) > 1
    assert all(line.startswith("  ") for line in lines[1:])


def test_later_lines_are_indented_to_the_last_column_that_leaves_room() -> None:
    line = "  pass  enabled    the exit is enabled before the first vCPU is made"
    assert wrapped(line, 48).splitlines() == [
        "  pass  enabled    the exit is enabled before",
        "                   the first vCPU is made",
    ]
    value = "ab" * 48
    assert wrapped(f"  measurement  {value} of the guest", 80).splitlines() == [
        f"  measurement  {value}",
        "               of the guest",
    ]


@given(st.text("ab  :", max_size=200), st.integers(40, 120))
def test_wrapping_changes_white_space_alone(line: str, width: int) -> None:
    assert wrapped(line, width).split() == line.split()


@pytest.mark.parametrize("word", [word for word in STYLES if "," not in word])
def test_a_word_that_only_starts_like_a_state_is_not_one(word: str) -> None:
    from snpcerts.cli.say import _STATE

    assert _STATE.search(word)
    assert not _STATE.search(f"{word}ly")
    assert not _STATE.search(f"{word}-not")


def test_the_rules_of_a_vmm_fit_a_terminal(tmp_path: Path) -> None:
    shown = _COLOUR.sub("", on_terminal(["conformance", "--list"], tmp_path))
    assert shown.split() == in_pipe(["conformance", "--list"], tmp_path).split()
    assert max(len(line) for line in shown.splitlines()) <= 80
