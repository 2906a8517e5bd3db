# SPDX-License-Identifier: Apache-2.0
"""Every command with bad input."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from snpcerts.cli import files
from snpcerts.cli.main import main

from ..privileges import give_up_file_privileges, make_unreadable

Spoil = Callable[[Path], None]


def _directory(path: Path) -> None:
    path.mkdir()


def _missing(path: Path) -> None:
    pass


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _random(path: Path) -> None:
    path.write_bytes(bytes((index * 73 + 11) % 251 for index in range(1000)))


def _truncated(path: Path) -> None:
    path.write_bytes(bytes.fromhex("63da758de6644564adc5f4b93be8accd3000000010"))


def _huge(path: Path) -> None:
    path.write_bytes(b"\x01" * ((1 << 20) + 1))


def _fifo(path: Path) -> None:
    os.mkfifo(path)


BAD: dict[str, Spoil] = {
    "missing": _missing,
    "directory": _directory,
    "empty": _empty,
    "random": _random,
    "truncated": _truncated,
    "huge": _huge,
    "fifo": _fifo,
}
COMMANDS: dict[str, list[str]] = {
    "table show": ["table", "show", "BAD"],
    "table show --json": ["table", "show", "BAD", "--json"],
    "table show --lenient": ["table", "show", "BAD", "--lenient"],
    "table extract": ["table", "extract", "BAD", "OUT"],
    "table build --vcek": ["table", "build", "-o", "OUT", "--vcek", "BAD"],
    "table build --crl": ["table", "build", "-o", "OUT", "--crl", "BAD"],
    "verify": ["verify", "BAD", "--at", "2024-01-01T00:00:00Z"],
    "verify --json": ["verify", "BAD", "--json"],
    "verify --table": ["verify", "REPORT", "--table", "BAD"],
    "verify --anchor": ["verify", "REPORT", "--table", "TABLE", "--anchor", "BAD"],
    "verify --certs": ["verify", "REPORT", "--certs", "BAD"],
    "run": ["run", "--certs-filename", "TABLE", "--", "BAD"],
}
# These commands accept any content: an entry may hold any bytes, and ``lock`` reads nothing.
ANY_CONTENT: dict[str, list[str]] = {
    "table build --entry": [
        "table",
        "build",
        "-o",
        "OUT",
        "--entry",
        "fbb6ed74-e73e-44ab-8893-4252792d737a=BAD",
    ],
    "lock": ["lock", "BAD", "--seconds", "0"],
}


def _arguments(command: list[str], folder: Path) -> list[str]:
    places = {name: str(folder / name) for name in ("BAD", "OUT", "REPORT", "TABLE")}
    return [
        word.replace("BAD", places["BAD"]) if "=BAD" in word else places.get(word, word)
        for word in command
    ]


@pytest.fixture
def _short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe without a writer counts as empty after 5 s; do not wait that long here."""
    monkeypatch.setattr(files, "WAIT_FOR_DATA", 20)


def _run(
    command: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    (folder / "REPORT").write_bytes(bytes(1184))
    (folder / "TABLE").write_bytes(bytes(24))
    code = main(_arguments(command, folder))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _check(code: int, out: str, err: str, folder: Path) -> None:
    assert code == 2, (out, err)
    assert "Traceback" not in err
    assert err.startswith("snpcerts: ")
    assert err.rstrip("\n").count("\n") == 0, err
    assert not (folder / "OUT").exists()


@pytest.mark.usefixtures("_short_wait")
@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", COMMANDS)
def test_bad_files_are_one_line_and_exit_code_2(
    name: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "verify --certs" and kind == "directory":
        pytest.skip("--certs accepts a directory")
    BAD[kind](tmp_path / "BAD")
    code, out, err = _run(COMMANDS[name], tmp_path, capsys)
    if name == "table show --lenient" and kind in ("random", "truncated"):
        lines = [line for line in err.splitlines() if not line.startswith("  problem: ")]
        err = "\n".join(lines) + "\n"
    _check(code, out, err, tmp_path)


@pytest.mark.usefixtures("_short_wait")
@pytest.mark.parametrize("kind", ["missing", "directory", "fifo"])
@pytest.mark.parametrize("name", ANY_CONTENT)
def test_a_path_that_is_not_a_file_gives_one_line_and_exit_code_2(
    name: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    BAD[kind](tmp_path / "BAD")
    _check(*_run(ANY_CONTENT[name], tmp_path, capsys), tmp_path)


@pytest.mark.parametrize("name", COMMANDS | ANY_CONTENT)
def test_no_permission_is_one_line_and_exit_code_2(name: str, tmp_path: Path) -> None:
    bad = tmp_path / "BAD"
    bad.write_bytes(b"secret")
    make_unreadable(bad)
    for other, content in (("REPORT", bytes(1184)), ("TABLE", bytes(24))):
        (tmp_path / other).write_bytes(content)
    argv = _arguments((COMMANDS | ANY_CONTENT)[name], tmp_path)
    made = subprocess.run(
        [sys.executable, "-m", "snpcerts", *argv],
        capture_output=True,
        text=True,
        preexec_fn=give_up_file_privileges,
    )
    _check(made.returncode, made.stdout, made.stderr, tmp_path)
    assert "ermission" in made.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["table"],
        ["table", "build"],
        ["table", "build", "-o", "OUT"],
        ["table", "build", "-o", "OUT", "--entry", "nonsense"],
        ["table", "build", "-o", "OUT", "--entry", "nonsense=file"],
        ["table", "extract", "x"],
        ["table", "extract", "x", "y", "--encoding", "text"],
        ["verify"],
        ["verify", "x", "--at", "yesterday"],
        ["verify", "x", "--at", "2024-01-01T00:00:00"],
        ["lock"],
        ["lock", "x", "--seconds", "-1"],
        ["demo", "--guests", "0"],
        ["demo", "--seconds", "-1"],
        ["run"],
        ["run", "--", "true"],
        ["run", "--certs-filename", "x"],
        ["run", "--certs-filename", "x", "--print-environment", "true"],
        ["run", "--certs-filename", "x", "--certs-timeout", "60000", "--", "true"],
        ["run", "--certs-filename", "x", "--certs-timeout", "-1", "--", "true"],
    ],
)
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tmp_path / word) if word == "OUT" else word for word in arguments]
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_closed_output_pipe_prints_no_traceback(tmp_path: Path) -> None:
    table = tmp_path / "table"
    table.write_bytes(bytes(24))
    shell = f"{sys.executable} -m snpcerts table show {table} | true"
    made = subprocess.run(["sh", "-c", shell], capture_output=True, text=True)
    assert "Traceback" not in made.stderr
