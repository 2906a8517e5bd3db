# SPDX-License-Identifier: Apache-2.0
"""``snpcerts lock`` as a user runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from snpcerts.cli.main import main


def start(file: Path, *options: str) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-u", "-m", "snpcerts", "lock", str(file), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert "lock held" in holder.stdout.readline()
    return holder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "certs.bin"
    path.write_bytes(bytes(24))
    return path


@pytest.mark.parametrize(("mine", "theirs"), [([], []), (["--shared"], []), ([], ["--shared"])])
def test_a_second_lock_is_refused_at_once_and_names_the_holder(
    file: Path, mine: list[str], theirs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    holder = start(file, *mine)
    try:
        assert main(["lock", str(file), *theirs, "--seconds", "0"]) == 3
    finally:
        holder.kill()
        holder.communicate()
    error = capsys.readouterr().err
    assert f"pid {holder.pid}" in error
    assert ("shared" if mine else "exclusive") + " OFD lock" in error
    assert main(["lock", str(file), *theirs, "--seconds", "0"]) == 0


def test_two_shared_locks_go_together(file: Path) -> None:
    holder = start(file, "--shared")
    try:
        assert main(["lock", str(file), "--shared", "--seconds", "0"]) == 0
    finally:
        holder.kill()
        holder.communicate()


def test_a_line_each_second_and_an_end(file: Path) -> None:
    holder = start(file, "--seconds", "1")
    out, err = holder.communicate(timeout=30)
    assert holder.returncode == 0, err
    assert out.splitlines() == [
        "holding the exclusive lock (1 s)",
        f"{file}: lock released",
    ]


def test_interrupt_ends_it_quietly(file: Path) -> None:
    holder = start(file)
    os.kill(holder.pid, signal.SIGINT)
    _, err = holder.communicate(timeout=30)
    assert holder.returncode == 130
    assert err.strip() == ""
