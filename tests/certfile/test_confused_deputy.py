# SPDX-License-Identifier: Apache-2.0
"""The user of a VMM, who may write to the directory, cannot redirect root's updates."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from snpcerts.abi.cert_table import VCEK_GUID, CertTable, TableEntry
from snpcerts.certfile import step
from snpcerts.certfile.file import CertFile
from snpcerts.certfile.holders import locks_through
from snpcerts.certfile.trusted_path import doubts, resolve
from snpcerts.certfile.writer import Strategy
from snpcerts.errors import InputError, RefusedError

from .relay import relay

TABLE = CertTable((TableEntry(VCEK_GUID, b"a certificate"),))
OTHER = CertTable((TableEntry(VCEK_GUID, b"a certificate of somebody else's"),))
STRANGER = 12345
STRATEGIES = pytest.mark.parametrize("strategy", Strategy, ids=lambda each: each.value)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "open" / "certs.bin"
    path.parent.mkdir()
    path.write_bytes(TABLE.encode())
    return path


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim.bin"
    path.write_bytes(OTHER.encode())
    path.chmod(0o600)
    return path


def unharmed(victim: Path) -> bool:
    return victim.read_bytes() == OTHER.encode() and victim.stat().st_mode & 0o777 == 0o600


@needs_root
@STRATEGIES
def test_a_strangers_link_at_the_path_is_not_followed(
    file: Path, victim: Path, strategy: Strategy
) -> None:
    file.unlink()
    file.symlink_to(victim)
    os.chown(file, STRANGER, STRANGER, follow_symlinks=False)
    with pytest.raises(RefusedError, match=f"symbolic link that belongs to user {STRANGER}"):
        CertFile(str(file)).publish(TABLE, strategy=strategy)
    assert unharmed(victim)


@needs_root
def test_a_strangers_link_on_the_way_is_not_followed(file: Path, victim: Path) -> None:
    way = file.parent.parent / "way"
    way.symlink_to(victim.parent)
    os.chown(way, STRANGER, STRANGER, follow_symlinks=False)
    with pytest.raises(RefusedError, match="symbolic link that belongs to user"):
        CertFile(str(way / victim.name)).publish(TABLE)
    assert unharmed(victim)
    assert [doubt.refused for doubt in doubts(str(way / victim.name))] == [True]


@STRATEGIES
def test_a_file_with_a_second_name_is_left_alone(
    file: Path, victim: Path, strategy: Strategy
) -> None:
    file.unlink()
    file.hardlink_to(victim)
    with pytest.raises(RefusedError, match="2 hard links"):
        CertFile(str(file)).publish(TABLE, strategy=strategy)
    assert unharmed(victim)


@STRATEGIES
def test_a_planted_leftover_is_not_emptied(file: Path, victim: Path, strategy: Strategy) -> None:
    """The next update empties ``.NAME.old``; if that were a planted link, the update would empty
    the link's target.
    """
    old = file.with_name(f".{file.name}.old")
    old.hardlink_to(victim)
    with pytest.raises(RefusedError, match="2 hard links"):
        CertFile(str(file)).publish(OTHER, strategy=strategy)
    old.unlink()
    old.symlink_to(victim)
    with pytest.raises((RefusedError, InputError)):
        CertFile(str(file)).publish(OTHER, strategy=strategy)
    assert unharmed(victim)
    old.unlink()
    CertFile(str(file)).publish(OTHER, strategy=strategy)
    assert file.read_bytes() == OTHER.encode()


def test_the_way_is_followed_as_the_kernel_does(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    (tmp_path / "absolute").symlink_to(tmp_path / "link")
    for relative in ("link/../x", "absolute/x", "a/./b/x", "missing/more/x", "absolute/../../a/x"):
        path = os.path.join(tmp_path, relative)
        assert resolve(path) == os.path.realpath(path)
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(InputError, match="symbolic links"):
        resolve(str(tmp_path / "circle" / "x"))


def test_directories_on_the_path_that_others_may_write_to_are_reported(tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    (loose / "inner").mkdir(parents=True)
    path = str(loose / "inner" / "certs.bin")
    assert not list(doubts(path))
    loose.chmod(0o777)
    (doubt,) = doubts(path)
    assert (doubt.place, doubt.refused) == (str(loose), False)
    loose.chmod(0o1777)
    assert not list(doubts(path)), "in a sticky directory, users cannot rename each other's files"


@STRATEGIES
def test_a_close_that_fails_leaves_no_lock(file: Path, strategy: Strategy) -> None:
    """Linux closes a descriptor even if close(2) fails; the update must then close the others."""

    def fail(action: object, result: object) -> object:
        if isinstance(action, step.Close):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return result

    CertFile(str(file), relay(after=fail)).publish(OTHER, strategy=strategy)
    assert file.read_bytes() == OTHER.encode()
    status = file.stat()
    identity = (status.st_dev, status.st_ino)
    for number in os.listdir("/proc/self/fd"):
        assert not list(locks_through(os.getpid(), number, identity))
    CertFile(str(file)).publish(TABLE, strategy=strategy, lock_wait=0)


def test_a_descriptor_without_locks_is_not_looked_at(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptor's file may be on a file system whose server is gone; stat(2) would hang."""

    def hang(path: object, **_: object) -> os.stat_result:
        raise AssertionError(f"must not call stat for {path}")

    fd = os.open(file, os.O_RDONLY)
    try:
        status = os.fstat(fd)
        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", hang)
            assert list(locks_through(os.getpid(), fd, (status.st_dev, status.st_ino))) == []
    finally:
        os.close(fd)
