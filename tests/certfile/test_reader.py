# SPDX-License-Identifier: Apache-2.0
"""Serving the certificate file: real files, real locks, other processes."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snpcerts.abi.lock import EXCLUSIVE, F_OFD_SETLK, SHARED
from snpcerts.certfile import reader, step
from snpcerts.certfile.file import CertFile
from snpcerts.certfile.reader import Busy, Empty, Found, Table, Unreadable

from ..privileges import give_up_file_privileges, make_unreadable
from .relay import relay

CONTENT = b"\x63" * 24 + bytes(24) + b"certificates"


def try_lock(path: Path, flock: bytes) -> bool:
    """Return whether another process could take the lock now."""
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(fd, F_OFD_SETLK, flock)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def found_at(path: Path, **options: Any) -> Found:
    seen: list[Found] = []
    CertFile(str(path)).serve(deliver=seen.append, handshake=lambda: None, **options)
    (found,) = seen
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "certs.bin"
    path.write_bytes(CONTENT)
    return path


def test_the_lock_is_held_until_the_handshake_is_over(file: Path) -> None:
    could_update: list[bool] = []

    def look(_: object = None) -> None:
        could_update.append(try_lock(file, EXCLUSIVE))

    CertFile(str(file)).serve(deliver=look, handshake=look)
    look()
    assert could_update == [False, False, True]


def test_the_lock_is_dropped_when_the_handshake_fails(file: Path) -> None:
    def fail() -> None:
        raise OSError(5, "KVM_RUN failed")

    with pytest.raises(OSError, match="KVM_RUN failed"):
        CertFile(str(file)).serve(deliver=lambda _: None, handshake=fail)
    assert try_lock(file, EXCLUSIVE)


def test_readers_share_the_file(file: Path) -> None:
    inner: list[Found] = []
    CertFile(str(file)).serve(
        deliver=lambda _: None, handshake=lambda: inner.append(found_at(file))
    )
    assert inner == [Table(CONTENT)]


def test_no_descriptor_is_left_open(file: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        found_at(file)
        found_at(file.parent / "missing")
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("content", [b"", bytes(24), bytes(5000), bytes(24) + b"half a table"])
def test_a_leading_terminator_is_an_empty_table(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert found_at(file) == Empty()


def _missing(path: Path) -> None:
    path.unlink()


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (_missing, "No such file"),
        (_directory, "not a regular file"),
        (_fifo, "not a regular file"),
        (_loop, "symbolic links"),
    ],
)
def test_a_file_that_cannot_be_served_gives_the_reason(
    file: Path, spoil: Callable[[Path], None], problem: str
) -> None:
    spoil(file)
    found = found_at(file)
    assert isinstance(found, Unreadable)
    assert problem in found.problem


def test_a_symbolic_link_to_the_file_is_followed(file: Path) -> None:
    link = file.parent / "link"
    link.symlink_to(file)
    assert found_at(link) == Table(CONTENT)


def test_more_than_the_limit_is_not_served(file: Path) -> None:
    found = found_at(file, size_limit=len(CONTENT) - 1)
    assert isinstance(found, Unreadable)
    assert f"limit is {len(CONTENT) - 1}" in found.problem
    assert found_at(file, size_limit=len(CONTENT)) == Table(CONTENT)


def test_no_permission_says_so(file: Path) -> None:
    make_unreadable(file)
    program = (
        "from snpcerts.certfile.file import CertFile\n"
        f"CertFile({str(file)!r}).serve(deliver=print, handshake=lambda: None)\n"
    )
    made = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        preexec_fn=give_up_file_privileges,
    )
    assert "Unreadable(problem='Permission denied')" in made.stdout


def test_busy_while_another_process_updates_and_served_after(file: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-m", "snpcerts", "lock", str(file)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert "exclusive lock held" in holder.stdout.readline()
        found = found_at(file, lock_wait=0.02)
        assert isinstance(found, Busy)
        assert found.waited >= 0.02
    finally:
        holder.kill()
        holder.communicate()
    assert found_at(file) == Table(CONTENT)


def test_a_lock_that_comes_free_in_time_is_waited_for(file: Path) -> None:
    fd = os.open(file, os.O_RDWR)
    fcntl.fcntl(fd, F_OFD_SETLK, EXCLUSIVE)

    def release_at_pause(action: object) -> None:
        if isinstance(action, step.Pause):
            os.close(fd)

    seen: list[Found] = []
    CertFile(str(file), relay(before=release_at_pause)).serve(
        deliver=seen.append, handshake=lambda: None
    )
    assert seen == [Table(CONTENT)]


def test_a_file_replaced_between_open_and_lock_is_opened_anew(file: Path) -> None:
    """A lock on a replaced inode protects nothing, so it must not count."""
    newer = CONTENT + b", newer"
    replaced: list[bool] = []

    def replace_before_lock(action: object) -> None:
        if isinstance(action, step.LockShared) and not replaced:
            replaced.append(True)
            other = file.with_name("other")
            other.write_bytes(newer)
            other.rename(file)

    seen: list[Found] = []
    CertFile(str(file), relay(before=replace_before_lock)).serve(
        deliver=seen.append, handshake=lambda: None
    )
    assert seen == [Table(newer)]


def test_a_file_that_shrinks_under_the_lock_is_not_served(file: Path) -> None:
    def shrink_before_read(action: object) -> None:
        if isinstance(action, step.Read):
            os.truncate(file, 30)

    seen: list[Found] = []
    CertFile(str(file), relay(before=shrink_before_read)).serve(
        deliver=seen.append, handshake=lambda: None
    )
    assert isinstance(seen[0], Unreadable)
    assert "shrank" in seen[0].problem


def test_same_inode_number_on_another_device_is_another_file(file: Path) -> None:
    """If only the device differs, the file at the path is still not the one that is locked."""
    tries: list[bool] = []

    def other_device_once(action: object, result: Any) -> Any:
        if isinstance(action, step.StatPath) and not tries:
            tries.append(True)
            return result._replace(device=result.device + 1)
        return result

    opened: list[Found] = []
    CertFile(str(file), relay(after=other_device_once)).serve(
        deliver=opened.append, handshake=lambda: None
    )
    assert opened == [Table(CONTENT)]
    assert tries


def test_default_wait_is_a_tenth_of_a_second() -> None:
    assert reader.DEFAULT_LOCK_WAIT == 0.1


def test_shared_lock_by_a_stranger_does_not_keep_readers_out(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    try:
        fcntl.fcntl(fd, F_OFD_SETLK, SHARED)
        assert found_at(file) == Table(CONTENT)
    finally:
        os.close(fd)
