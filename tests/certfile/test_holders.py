# SPDX-License-Identifier: Apache-2.0
"""Finds the holder of any kind of lock in /proc and names it for people."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from snpcerts.abi.cert_table import VCEK_GUID, CertTable, TableEntry
from snpcerts.certfile import lock_check
from snpcerts.certfile.file import CertFile
from snpcerts.certfile.holders import Holder, holders_of, holders_of_each, vm_named_in
from snpcerts.certfile.writer import LockHeldError
from snpcerts.errors import InputError

TABLE = CertTable((TableEntry(VCEK_GUID, b"certificate"),))
TAKE = {
    "OFDLCK": "fcntl.fcntl(fd, 37, struct.pack('<hh4xqqi4x', kind, 0, 0, 0, 0))",
    "POSIX": "fcntl.lockf(fd, fcntl.LOCK_EX if kind else fcntl.LOCK_SH)",
    "FLOCK": "fcntl.flock(fd, fcntl.LOCK_EX if kind else fcntl.LOCK_SH)",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "certs.bin"
    CertFile(str(path)).publish(TABLE)
    return path


@contextmanager
def held(file: Path, how: str, exclusive: bool, *arguments: str) -> Iterator[int]:
    """Yield the id of another process that holds a lock."""
    program = (
        f"import fcntl, os, struct, sys; kind = {int(exclusive)}; "
        f"fd = os.open({str(file)!r}, os.O_RDWR); {TAKE[how]}; print('held', flush=True); "
        "sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder.pid
    finally:
        holder.communicate("")


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("how", TAKE)
def test_every_kind_of_lock_is_recognised(file: Path, how: str, exclusive: bool) -> None:
    with held(file, how, exclusive) as pid:
        (holder,) = holders_of(str(file))
    assert (holder.pid, holder.kind, holder.exclusive) == (pid, how, exclusive)
    assert holder.since is not None
    assert timedelta(0) <= datetime.now(UTC) - holder.since < timedelta(minutes=5)
    assert holders_of(str(file)) == ()


def test_holders_of_several_files_are_found_together(file: Path, tmp_path: Path) -> None:
    free, gone = tmp_path / "free", tmp_path / "gone"
    free.touch()
    with held(file, "OFDLCK", True) as pid:
        found = holders_of_each([str(free), str(file), str(gone), str(file)])
    assert [[each.pid for each in holders] for holders in found] == [[], [pid], [], [pid]]


def test_the_error_names_process_vm_and_start(file: Path) -> None:
    with (
        held(file, "POSIX", False, "-name", "guest=web-1,debug-threads=on") as pid,
        pytest.raises(LockHeldError) as caught,
    ):
        CertFile(str(file)).publish(TABLE, lock_wait=0.01)
    text = str(caught.value)
    assert f"pid {pid}" in text
    assert "VM web-1" in text
    assert "shared POSIX lock" in text
    assert "running since 20" in text


def test_flock_is_seen_and_does_not_stop_an_update(file: Path) -> None:
    with held(file, "FLOCK", True):
        (holder,) = holders_of(str(file))
        assert not holder.blocks
        CertFile(str(file)).publish(TABLE, lock_wait=0.5)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["qemu", "-name", "web"], "web"),
        (["qemu", "-name", "guest=web,process=x"], "web"),
        (["qemu", "-name", "web,process=x"], "web"),
        (["qemu", "-name", "debug-threads=on,guest=a,,b"], "a,b"),
        (["qemu", "-name", "bad\x1b[2J"], "bad\\x1b[2J"),
        (["cloud-hypervisor", "--name", "web"], "web"),
        (["qemu", "-name"], None),
        (["qemu"], None),
        ([], None),
    ],
)
def test_vm_names_on_command_lines(arguments: list[str], name: str | None) -> None:
    assert vm_named_in(arguments) == name


def test_a_command_line_cannot_play_tricks_on_the_terminal(file: Path) -> None:
    with held(file, "OFDLCK", True, "\x1b[31mred\n"):
        (holder,) = holders_of(str(file))
    assert "\x1b" not in str(holder)
    assert "\n" not in str(holder)
    assert len(holder.command) <= 120


def test_unknown_details_of_holders_are_omitted() -> None:
    assert str(Holder(7, "vmm", "OFDLCK", True)) == "pid 7 (vmm, exclusive OFD lock)"


def test_locks_of_a_local_file_system_have_no_problem(tmp_path: Path) -> None:
    assert lock_check.lock_problem(str(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("granted", "problem"),
    [
        ((True, True), "a second lock was granted alongside an exclusive one"),
        ((False,), "an exclusive lock was refused"),
        ((True, False, True, True, True), "an exclusive lock was granted alongside a shared one"),
        ((True, False, True, False), "a second shared lock was refused"),
    ],
)
def test_each_way_in_which_locks_do_not_work_has_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, granted: tuple[bool, ...], problem: str
) -> None:
    answers = iter(granted)

    def answer(fd: int, command: int, argument: bytes) -> bytes:
        del fd, command
        if next(answers):
            return argument
        raise BlockingIOError(11, "try again")

    monkeypatch.setattr(fcntl, "fcntl", answer)
    assert problem in str(lock_check.lock_problem(str(tmp_path)))
    monkeypatch.undo()
    assert list(answers) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("granted", [True, False])
def test_a_file_system_without_working_locks_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch, granted: bool
) -> None:
    """One file system grants every lock, the other grants none."""
    real = fcntl.fcntl

    def strange(fd: int, command: int, argument: bytes) -> object:
        if command != 37:
            return real(fd, command, argument)
        if granted:
            return argument
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(lock_check, "_known_good", set())
    monkeypatch.setattr(fcntl, "fcntl", strange)
    with pytest.raises(InputError, match="locks do not work here"):
        CertFile(str(file)).publish(TABLE)
    monkeypatch.undo()
    assert file.read_bytes() == TABLE.encode()
