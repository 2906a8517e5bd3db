# SPDX-License-Identifier: Apache-2.0
"""An update first puts in order what an interrupted update left behind."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snpcerts.abi.cert_table import EMPTY, VCEK_GUID, CertTable, TableEntry
from snpcerts.abi.lock import F_OFD_SETLK, SHARED
from snpcerts.certfile import step
from snpcerts.certfile.file import CertFile
from snpcerts.certfile.reader import Table
from snpcerts.certfile.writer import LockHeldError, Strategy
from snpcerts.errors import InputError, RefusedError

from .relay import relay

OLD = CertTable((TableEntry(VCEK_GUID, b"the old key's certificate"),))
NEW = CertTable((TableEntry(VCEK_GUID, b"the new key's certificate"),))
STRATEGIES = pytest.mark.parametrize("strategy", Strategy, ids=lambda each: each.value)


class CutOffError(BaseException):
    """Stands for SIGKILL: nothing is performed after it."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "certs.bin"
    path.write_bytes(OLD.encode())
    return path


@pytest.fixture
def request_on_its_way(file: Path) -> Iterator[int]:
    """A descriptor of the file now at the path, with a reader's lock."""
    fd = os.open(file, os.O_RDONLY)
    fcntl.fcntl(fd, F_OFD_SETLK, SHARED)
    yield fd
    os.close(fd)


def cut_off_after_rename(file: Path) -> None:
    """Run an update until its rename, and close its descriptors as the kernel would."""
    fds: set[int] = set()
    dead = False

    def before(action: Any) -> None:
        if dead:
            raise CutOffError

    def after(action: Any, result: Any) -> Any:
        nonlocal dead
        if isinstance(action, step.OpenOrCreate | step.OpenWrite | step.Create):
            fds.add(result)
        dead = isinstance(action, step.Rename)
        return result

    with pytest.raises(CutOffError):
        CertFile(str(file), relay(before=before, after=after)).publish(NEW)
    for fd in fds:
        os.close(fd)
    assert file.read_bytes() == EMPTY
    assert file.with_name(".certs.bin.old").read_bytes() == OLD.encode()


@STRATEGIES
def test_requests_on_their_way_from_a_file_set_aside_are_waited_for(
    file: Path, request_on_its_way: int, strategy: Strategy
) -> None:
    """A request that began with that file may still deliver the old key's table, so the firmware
    must not change yet.
    """
    cut_off_after_rename(file)
    changed: list[bool] = []

    def change() -> CertTable:
        changed.append(True)
        return NEW

    with pytest.raises(LockHeldError, match=f"pid {os.getpid()}"):
        CertFile(str(file)).update(change, strategy=strategy, lock_wait=0.02)
    assert not changed
    assert os.pread(request_on_its_way, 4096, 0) == OLD.encode()


@STRATEGIES
def test_a_file_set_aside_is_never_left_with_its_table(file: Path, strategy: Strategy) -> None:
    """The next update moves the file back to the path; a swap then sets it aside again, emptied."""
    kept = os.open(file, os.O_RDONLY)
    try:
        cut_off_after_rename(file)
        CertFile(str(file)).publish(NEW, strategy=strategy)
        right = EMPTY if strategy is Strategy.SWAP else NEW.encode()
        assert os.pread(kept, 4096, 0) == right
    finally:
        os.close(kept)
    assert file.read_bytes() == NEW.encode()
    assert {path.name for path in file.parent.iterdir()} == {"certs.bin", ".certs.bin.turn"}


@STRATEGIES
def test_another_table_at_the_path_is_not_replaced_by_a_file_set_aside(
    file: Path, strategy: Strategy
) -> None:
    """After the interruption, another program wrote a table to the path. Even an update that gives
    up leaves this table there.
    """
    cut_off_after_rename(file)
    file.write_bytes(NEW.encode())
    reader = os.open(file, os.O_RDONLY)
    try:
        fcntl.fcntl(reader, F_OFD_SETLK, SHARED)
        with pytest.raises(LockHeldError):
            CertFile(str(file)).publish(OLD, strategy=strategy, lock_wait=0.02)
    finally:
        os.close(reader)
    assert file.read_bytes() == NEW.encode()
    assert {path.name for path in file.parent.iterdir()} == {"certs.bin", ".certs.bin.turn"}


def test_an_error_while_putting_things_in_order_leaves_no_lock_behind(file: Path) -> None:
    """The error occurs when the empty file is already at the path; a lock left on this file would
    keep every reader out.
    """
    broken = False

    def before(action: Any) -> None:
        nonlocal broken
        if isinstance(action, step.SyncDirectory):
            broken = True
        if broken and isinstance(action, step.SyncDirectory | step.Unlink):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(RefusedError):
        CertFile(str(file), relay(before=before)).publish(NEW)
    CertFile(str(file)).publish(NEW, lock_wait=0)
    seen: list[object] = []
    CertFile(str(file)).serve(deliver=seen.append, handshake=lambda: None, lock_wait=0)
    assert seen == [Table(NEW.encode())]


def test_a_link_in_the_place_of_a_file_set_aside_is_not_followed(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(b"of no concern")
    file.with_name(".certs.bin.old").symlink_to(other)
    with pytest.raises(InputError):
        CertFile(str(file)).publish(NEW)
    assert other.read_bytes() == b"of no concern"
    assert file.read_bytes() == OLD.encode()
