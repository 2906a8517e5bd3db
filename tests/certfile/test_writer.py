# SPDX-License-Identifier: Apache-2.0
"""Updating the certificate file: order of events, crashes, readers that keep coming."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from snpcerts.abi.cert_table import EMPTY, VCEK_GUID, CertTable, TableEntry
from snpcerts.abi.lock import F_OFD_SETLK, F_OFD_SETLKW, SHARED
from snpcerts.certfile import several, step
from snpcerts.certfile.file import CertFile
from snpcerts.certfile.reader import Empty, Found, Table
from snpcerts.certfile.recognise import ForeignFileError
from snpcerts.certfile.writer import LockHeldError, Strategy
from snpcerts.errors import InputError, RefusedError, SnpCertsError

from .relay import relay

OLD = CertTable((TableEntry(VCEK_GUID, b"the old key's certificate"),))
NEW = CertTable((TableEntry(VCEK_GUID, b"the new key's certificate, which is longer"),))
STRATEGIES = pytest.mark.parametrize("strategy", Strategy, ids=lambda each: each.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "certs.bin"
    path.write_bytes(OLD.encode())
    path.chmod(0o640)
    return path


@contextlib.contextmanager
def locked(path: Path, flock: bytes) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(fd, F_OFD_SETLK, flock)
        yield fd
    finally:
        os.close(fd)


def served(path: Path, lock_wait: float = 0) -> Found:
    seen: list[Found] = []
    CertFile(str(path)).serve(deliver=seen.append, handshake=lambda: None, lock_wait=lock_wait)
    return seen[0]


@STRATEGIES
def test_no_reader_is_served_while_the_firmware_changes(file: Path, strategy: Strategy) -> None:
    during: list[object] = []

    def change() -> CertTable:
        during.append(served(file))
        during.append(file.read_bytes())
        return NEW

    CertFile(str(file)).update(change, strategy=strategy)
    assert type(during[0]).__name__ == "Busy"
    assert during[1] == EMPTY
    assert served(file) == Table(NEW.encode())


@STRATEGIES
def test_the_firmware_does_not_change_while_a_request_is_on_its_way(
    file: Path, strategy: Strategy
) -> None:
    """The update gives up after its lock wait, and changes nothing."""
    changed: list[bool] = []

    def change() -> CertTable:
        changed.append(True)
        return NEW

    with locked(file, SHARED), pytest.raises(LockHeldError, match=f"pid {os.getpid()}"):
        CertFile(str(file)).update(change, strategy=strategy, lock_wait=0.02)
    assert not changed
    assert served(file) == Table(OLD.encode())
    assert {path.name for path in file.parent.iterdir()} == {"certs.bin", ".certs.bin.turn"}


@STRATEGIES
def test_a_table_that_is_known_to_be_wrong_is_not_handed_back(
    file: Path, strategy: Strategy
) -> None:
    """New readers get no certificates, even while an earlier reader still holds its lock."""
    wrong = OLD.encode()
    with locked(file, SHARED) as holder:
        with pytest.raises(LockHeldError, match="emptied") as raised:
            several.perform(
                [several.Target(str(file), strategy, wrong)],
                lambda: [NEW.encode()],
                lambda: [NEW.encode()],
                lock_wait=0.02,
            )
        assert raised.value.emptied
        assert served(file) == Empty()
        assert os.pread(holder, len(EMPTY), 0) == EMPTY, "the holder's file, too, must be emptied"
        assert os.fstat(holder).st_size == len(wrong), "must not shrink: the holder may be reading"
    assert {path.name for path in file.parent.iterdir()} == {"certs.bin", ".certs.bin.turn"}
    CertFile(str(file)).publish(NEW, strategy=strategy)
    assert file.read_bytes() == NEW.encode()


@STRATEGIES
def test_a_table_other_than_the_one_judged_stays(file: Path, strategy: Strategy) -> None:
    """Since the agent judged the file, another agent has repaired it."""
    judged = CertTable((TableEntry(VCEK_GUID, b"some earlier table"),)).encode()
    with locked(file, SHARED), pytest.raises(LockHeldError) as raised:
        several.perform(
            [several.Target(str(file), strategy, judged)],
            lambda: [NEW.encode()],
            lambda: [NEW.encode()],
            lock_wait=0.02,
        )
    assert not raised.value.emptied
    assert served(file) == Table(OLD.encode())


@pytest.mark.parametrize(
    "content",
    [b"127.0.0.1 localhost\n", b"\x7fELF" + bytes(5000), bytes(2 << 20)],
    ids=["text", "program", "image"],
)
def test_a_mistyped_path_costs_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(content)
    with pytest.raises(ForeignFileError, match="--force"):
        CertFile(str(path)).publish(NEW)
    assert path.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["hosts"]
    CertFile(str(path)).publish(NEW, force=True)
    assert path.read_bytes() == NEW.encode()
    # From now on it counts as a certificate file, whatever its content.
    path.write_bytes(content)
    CertFile(str(path)).publish(OLD)
    assert path.read_bytes() == OLD.encode()


@pytest.mark.parametrize("content", [b"", bytes(10), EMPTY + b"half a table", OLD.encode()])
def test_a_file_that_may_be_a_certificate_file_is_updated(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "certs.bin"
    path.write_bytes(content)
    CertFile(str(path)).publish(NEW)
    assert path.read_bytes() == NEW.encode()


@STRATEGIES
def test_owner_mode_and_attributes_survive(file: Path, strategy: Strategy) -> None:
    file.chmod(0o604)
    with contextlib.suppress(PermissionError):
        os.chown(file, 12, 34)
    try:
        os.setxattr(file, "user.label", b"kept")
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip("no extended attributes here")
    before = file.stat()
    CertFile(str(file)).publish(NEW, strategy=strategy)
    after = file.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (
        before.st_uid,
        before.st_gid,
        before.st_mode,
    )
    assert os.getxattr(file, "user.label") == b"kept"


def test_swap_leaves_the_old_file_empty_for_readers_that_keep_it_open(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    try:
        CertFile(str(file)).publish(NEW, strategy=Strategy.SWAP)
        assert os.pread(fd, 4096, 0) == EMPTY
    finally:
        os.close(fd)


@pytest.mark.parametrize("strategy", [Strategy.THERE_AND_BACK, Strategy.IN_PLACE])
def test_readers_that_keep_the_file_open_get_the_new_table(file: Path, strategy: Strategy) -> None:
    """A bind mount of the file leads to the same inode forever, as an open descriptor does."""
    before = file.stat().st_ino
    fd = os.open(file, os.O_RDONLY)
    try:
        CertFile(str(file)).publish(NEW, strategy=strategy)
        assert os.pread(fd, 4096, 0) == NEW.encode()
    finally:
        os.close(fd)
    assert file.stat().st_ino == before
    assert file.read_bytes() == NEW.encode()


@pytest.mark.parametrize(
    ("strategy", "right"), [(Strategy.SWAP, NEW.encode()), (Strategy.THERE_AND_BACK, EMPTY)]
)
def test_a_reader_that_blocks_and_compares_nothing_gets_the_table_after_a_swap_only(
    file: Path, strategy: Strategy, right: bytes
) -> None:
    """The reader opens the file while the writer waits for earlier readers, and blocks on the lock.
    It does not check afterwards whether the path still leads to that file.
    """
    found: list[bytes] = []
    readers: list[threading.Thread] = []

    def open_and_block(action: object, result: object) -> object:
        if isinstance(action, step.SyncDirectory) and not readers:
            fd = os.open(file, os.O_RDONLY)

            def read() -> None:
                fcntl.fcntl(fd, F_OFD_SETLKW, SHARED)
                found.append(os.pread(fd, 4096, 0))
                os.close(fd)

            readers.append(threading.Thread(target=read))
            readers[0].start()
        return result

    CertFile(str(file), relay(after=open_and_block)).publish(NEW, strategy=strategy)
    readers[0].join(30)
    assert found == [right]


def test_there_and_back_is_the_default(file: Path) -> None:
    before = file.stat().st_ino
    CertFile(str(file)).publish(NEW)
    assert file.stat().st_ino == before


@STRATEGIES
def test_a_shorter_table_leaves_nothing_of_the_longer_one(file: Path, strategy: Strategy) -> None:
    CertFile(str(file)).publish(NEW, strategy=strategy)
    CertFile(str(file)).publish(OLD, strategy=strategy)
    assert file.read_bytes() == OLD.encode()


@STRATEGIES
def test_a_missing_file_is_created(tmp_path: Path, strategy: Strategy) -> None:
    path = tmp_path / "new.bin"
    CertFile(str(path)).publish(NEW, strategy=strategy)
    assert path.read_bytes() == NEW.encode()
    assert path.stat().st_mode & 0o137 == 0


@STRATEGIES
def test_a_symbolic_link_stays_one(file: Path, strategy: Strategy) -> None:
    link = file.with_name("link")
    link.symlink_to(file.name)
    CertFile(str(link)).publish(NEW, strategy=strategy)
    assert link.is_symlink()
    assert file.read_bytes() == NEW.encode()


@STRATEGIES
def test_a_failed_change_leaves_the_empty_table(file: Path, strategy: Strategy) -> None:
    def change() -> CertTable:
        raise RefusedError("firmware said no")

    with pytest.raises(RefusedError, match="firmware said no"):
        CertFile(str(file)).update(change, strategy=strategy)
    assert file.read_bytes() == EMPTY
    CertFile(str(file)).publish(NEW, strategy=strategy)
    assert file.read_bytes() == NEW.encode()


def test_a_table_that_cannot_be_encoded_changes_nothing(file: Path) -> None:
    with pytest.raises(SnpCertsError):
        CertFile(str(file)).publish(CertTable((TableEntry(VCEK_GUID, b""),)))
    assert file.read_bytes() == OLD.encode()
    assert [path.name for path in file.parent.iterdir()] == ["certs.bin"]


@STRATEGIES
def test_the_first_entry_is_written_last_and_after_a_sync(file: Path, strategy: Strategy) -> None:
    log: list[str] = []

    def note(action: object) -> None:
        match action:
            case step.Write(_, data, 0) if data == EMPTY:
                log.append("empty")
            case step.Write(_, _, 0):
                log.append("first entry")
            case step.Write():
                log.append("rest")
            case step.Sync():
                log.append("sync")
            case step.Change():
                log.append("change")

    CertFile(str(file), relay(before=note)).publish(NEW, strategy=strategy)
    change = log.index("change")
    assert "empty" in log[:change]
    assert log[change - 1] == "sync"
    assert log[change:] == ["change", "rest", "sync", "first entry", "sync"]


def test_the_default_update_gets_through_while_readers_overlap(file: Path) -> None:
    """At any time one of the readers holds the lock, and none makes room for the writer."""
    stop = threading.Event()
    holding = threading.Barrier(3)

    def read_for_ever() -> None:
        turn = threading.Event()

        def hold() -> None:
            turn.wait(0.003)

        first = True
        while not stop.is_set():
            CertFile(str(file)).serve(deliver=lambda _: None, handshake=hold)
            if first:
                holding.wait()
                first = False

    readers = [threading.Thread(target=read_for_ever) for _ in range(2)]
    for each in readers:
        each.start()
    try:
        holding.wait()
        for table in (NEW, OLD, NEW):
            CertFile(str(file)).publish(table)
            assert served(file, lock_wait=1) == Table(table.encode())
    finally:
        stop.set()
        for each in readers:
            each.join()


def test_a_second_writer_waits_for_the_first_and_names_it(file: Path) -> None:
    program = (
        "import sys\n"
        "from snpcerts.certfile.file import CertFile\n"
        "def change():\n"
        "    print('changing', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    raise SystemExit\n"
        f"CertFile({str(file)!r}).update(change)\n"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "changing\n"
        with pytest.raises(LockHeldError, match=f"pid {first.pid} .*exclusive OFD lock"):
            CertFile(str(file)).publish(NEW, lock_wait=0.02)
    finally:
        first.communicate("\n")
    CertFile(str(file)).publish(NEW)
    assert file.read_bytes() == NEW.encode()


@STRATEGIES
def test_a_directory_is_not_a_certificate_file(tmp_path: Path, strategy: Strategy) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(InputError, match="directory"):
        CertFile(str(folder)).publish(NEW, strategy=strategy)


@STRATEGIES
def test_a_fifo_is_not_a_certificate_file(tmp_path: Path, strategy: Strategy) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(InputError, match="not a regular file"):
        CertFile(str(fifo)).publish(NEW, strategy=strategy)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="existing directory"):
        CertFile(str(tmp_path / "no" / "certs.bin")).publish(NEW)


@STRATEGIES
def test_a_full_disk_leaves_the_empty_table(file: Path, strategy: Strategy) -> None:
    def full(action: object) -> None:
        if isinstance(action, step.Write) and action.offset:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(
        RefusedError, match=r"No space left.* \(free some space on the file's file system"
    ):
        CertFile(str(file), relay(before=full)).publish(NEW, strategy=strategy)
    assert file.read_bytes() == EMPTY


@STRATEGIES
def test_a_device_is_not_a_certificate_file(strategy: Strategy, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    with pytest.raises(SnpCertsError):
        CertFile(str(link)).publish(NEW, strategy=strategy)


@STRATEGIES
def test_a_file_replaced_before_the_firmware_changes_stops_the_update(
    file: Path, strategy: Strategy
) -> None:
    changed: list[bool] = []

    def replace_path(action: object) -> None:
        if isinstance(action, step.Now):
            clock.append(action)
        if len(clock) == 2 and other.exists():  # the lock is granted
            other.rename(file)

    def change() -> CertTable:
        changed.append(True)
        return NEW

    clock: list[object] = []
    other = file.with_name("other")
    other.write_bytes(OLD.encode())
    with pytest.raises(RefusedError, match="another program replaced"):
        CertFile(str(file), relay(before=replace_path)).update(change, strategy=strategy)
    assert not changed
    assert file.read_bytes() == OLD.encode()


@STRATEGIES
def test_a_file_replaced_while_the_firmware_changes_is_reported(
    file: Path, strategy: Strategy
) -> None:
    def change() -> CertTable:
        other = file.with_name("other")
        other.write_bytes(b"not ours")
        other.rename(file)
        return NEW

    with pytest.raises(RefusedError, match="another program replaced"):
        CertFile(str(file)).update(change, strategy=strategy)


def test_a_full_file_system_leaves_the_empty_table_for_real(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", place], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed on this machine")
    try:
        file = place / "certs.bin"
        file.write_bytes(OLD.encode())
        large = CertTable((TableEntry(VCEK_GUID, bytes(b"x" * 20000)),))
        with pytest.raises(RefusedError, match="No space left"):
            CertFile(str(file)).publish(large)
        assert type(served(file)).__name__ == "Empty"
        CertFile(str(file)).publish(NEW)
        assert file.read_bytes() == NEW.encode()
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_read_only_file_system_is_reported_and_nothing_changes(tmp_path: Path) -> None:
    place = tmp_path / "read-only"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed on this machine")
    try:
        file = place / "certs.bin"
        file.write_bytes(OLD.encode())
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        for strategy in Strategy:
            with pytest.raises(RefusedError, match="writable for this user"):
                CertFile(str(file)).publish(NEW, strategy=strategy)
        assert served(file) == Table(OLD.encode())
    finally:
        subprocess.run(["umount", place], check=True)


def test_the_target_of_a_bind_mount_needs_in_place(file: Path) -> None:
    mounted = subprocess.run(["mount", "--bind", file, file], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed on this machine")
    try:
        with pytest.raises(RefusedError, match="in-place"):
            CertFile(str(file)).publish(NEW)
        assert served(file) == Table(OLD.encode())
        CertFile(str(file)).publish(NEW, strategy=Strategy.IN_PLACE)
        assert served(file) == Table(NEW.encode())
    finally:
        subprocess.run(["umount", file], check=True)


def test_a_file_of_someone_else_keeps_its_owner_or_is_left_alone(file: Path) -> None:
    """Without permission to change a file's owner, the update fails and changes nothing."""
    if os.getuid() != 0:
        pytest.skip("needs root to give files away")
    os.chown(file, 12, 34)

    def refuse(action: object) -> None:
        if isinstance(action, step.CopyAttributes):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with pytest.raises(RefusedError, match="writable for this user"):
        CertFile(str(file), relay(before=refuse)).publish(NEW)
    assert served(file) == Table(OLD.encode())
    assert (file.stat().st_uid, file.stat().st_gid) == (12, 34)
