# SPDX-License-Identifier: Apache-2.0
"""The configfs-tsm client against a model of the kernel's directory."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from snpcerts.abi.cert_table import VLEK_GUID, CertTable, TableEntry
from snpcerts.errors import FormatError, SnpCertsError, UsageError
from snpcerts.guest.configfs_tsm import (
    ConfigfsTsm,
    SystemFiles,
    TsmChangedError,
    TsmReport,
    TsmRequestError,
)

ROOT = "/config/tsm/report"
DATA = bytes(range(64))
TABLE = CertTable((TableEntry(VLEK_GUID, b"leaf"),)).encode()


@dataclass
class Entry:
    """One request, as the kernel keeps it."""

    generation: int = 0
    inblob: bytes | None = None
    privlevel: int = 0
    made_for: int | None = None
    report: bytes = b""


@dataclass
class Kernel:
    """What Linux does with the files of a report directory, provider sev_guest.

    Reading a blob makes a report, unless there is one of the current generation.
    """

    provider: str = "sev_guest"
    floor: int = 0
    table: bytes = TABLE
    report_size: int = 1184
    fails: dict[str, int] = field(default_factory=dict)  # attribute -> errno
    taken: int = 0  # how many names there are already
    meddle_after: str | None = None
    entries: dict[str, Entry] = field(default_factory=dict)
    requests: int = 0

    def _fail(self, name: str) -> None:
        if name in self.fails:
            raise OSError(self.fails[name], os.strerror(self.fails[name]))

    def make(self, path: str) -> None:
        self._fail("mkdir")
        if self.taken:
            self.taken -= 1
            raise FileExistsError(errno.EEXIST, "File exists")
        assert path not in self.entries
        assert os.path.dirname(path) == ROOT
        self.entries[path] = Entry()

    def remove(self, path: str) -> None:
        self._fail("rmdir")
        del self.entries[path]

    def write(self, path: str, data: bytes) -> None:
        folder, name = os.path.split(path)
        entry = self.entries[folder]
        self._fail(name)
        if name == "inblob":
            if len(data) > 64:
                raise OSError(errno.EFBIG, "File too large")
            entry.inblob = data
        elif name == "privlevel":
            level = int(data)
            if not self.floor <= level <= 3:
                raise OSError(errno.EINVAL, "Invalid argument")
            entry.privlevel = level
        else:
            raise OSError(errno.EACCES, "Permission denied")
        entry.generation += 1

    def read(self, path: str, limit: int) -> bytes:
        folder, name = os.path.split(path)
        entry = self.entries[folder]
        self._fail(name)
        if name in ("outblob", "auxblob"):
            data = self._blob(entry, name)
        else:
            texts = {"provider": self.provider, "generation": str(entry.generation)}
            texts["privlevel_floor"] = str(self.floor)
            data = f"{texts[name]}\n".encode()
        if name == self.meddle_after:
            entry.generation += 1
        return data[: limit + 1]

    def _blob(self, entry: Entry, name: str) -> bytes:
        if entry.inblob is None or len(entry.inblob) != 64:
            raise OSError(errno.EINVAL, "Invalid argument")
        if entry.made_for != entry.generation:
            entry.made_for = entry.generation
            self.requests += 1
            entry.report = bytes([entry.privlevel]) + entry.inblob
            entry.report = entry.report.ljust(self.report_size, b"\0")
        return entry.report if name == "outblob" else self.table


def client(kernel: Kernel) -> ConfigfsTsm:
    return ConfigfsTsm(ROOT, files=kernel)


def test_one_request_gives_the_report_and_the_table_and_leaves_nothing() -> None:
    kernel = Kernel()
    got = client(kernel).report(DATA)
    assert got.outblob[:65] == b"\0" + DATA
    assert [entry.data for entry in got.certificates()] == [b"leaf"]
    assert (kernel.requests, kernel.entries) == (1, {})


def test_the_vmpl_is_written_when_it_is_asked_for() -> None:
    assert client(Kernel(floor=2)).report(DATA, vmpl=3).outblob[0] == 3
    with pytest.raises(TsmRequestError, match="privlevel_floor") as caught:
        client(Kernel(floor=2)).report(DATA, vmpl=1)
    assert caught.value.errno == errno.EINVAL


def test_without_a_vmpl_the_guests_own_is_asked_for() -> None:
    """By default, the kernel asks for VMPL 0; the firmware refuses, and the VMPCK is lost."""
    assert client(Kernel(floor=2)).report(DATA).outblob[0] == 2
    older = Kernel(fails={"privlevel_floor": errno.ENOENT})
    assert client(older).report(DATA).outblob[0] == 0


def test_a_host_without_certificates_gives_an_empty_table() -> None:
    assert len(client(Kernel(table=b"")).report(DATA).certificates()) == 0


def test_a_hostile_table_is_an_error_only_when_it_is_read() -> None:
    got = client(Kernel(table=b"\xff" * 100)).report(DATA)
    assert isinstance(got, TsmReport)
    with pytest.raises(FormatError):
        got.certificates()


@pytest.mark.parametrize("meddled", ["auxblob", "outblob"])
def test_an_entry_that_another_process_writes_to_is_not_believed(meddled: str) -> None:
    """Otherwise the report could contain data that another process chose."""
    kernel = Kernel(meddle_after=meddled)
    with pytest.raises(TsmChangedError, match="another process"):
        client(kernel).report(DATA)
    assert kernel.entries == {}


def test_a_guest_of_another_kind_is_reported_as_such() -> None:
    kernel = Kernel(provider="tdx_guest")
    with pytest.raises(TsmRequestError, match="tdx_guest"):
        client(kernel).report(DATA)
    assert (kernel.requests, kernel.entries) == (0, {})


def test_an_existing_entry_name_is_retried() -> None:
    assert client(Kernel(taken=3)).report(DATA).outblob
    with pytest.raises(TsmRequestError, match="random entry names were taken"):
        client(Kernel(taken=100)).report(DATA)


@pytest.mark.parametrize(
    "name", ["mkdir", "provider", "generation", "inblob", "auxblob", "outblob"]
)
@pytest.mark.parametrize(
    "number",
    [
        errno.ENOENT,
        errno.EACCES,
        errno.ENXIO,
        errno.EINVAL,
        errno.EIO,
        errno.ENOTTY,
        errno.ETIMEDOUT,
        errno.EBADMSG,
        errno.EBUSY,
        errno.ENOMEM,
    ],
)
def test_every_failure_is_one_error_and_the_entry_is_removed(name: str, number: int) -> None:
    kernel = Kernel(fails={name: number})
    with pytest.raises(TsmRequestError) as caught:
        client(kernel).report(DATA)
    assert caught.value.errno == number
    assert name in caught.value.message
    assert kernel.entries == {}


def test_a_lost_key_is_reported() -> None:
    for number in (errno.ETIMEDOUT, errno.EBADMSG):
        with pytest.raises(TsmRequestError, match="VMPCK is destroyed"):
            client(Kernel(fails={"auxblob": number})).report(DATA)


def test_an_entry_that_cannot_be_removed_is_not_a_failure() -> None:
    assert client(Kernel(fails={"rmdir": errno.EBUSY})).report(DATA).outblob


@pytest.mark.parametrize("size", [0, 1183, 1185, 70000])
def test_an_outblob_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(FormatError):
        client(Kernel(report_size=size)).report(DATA)


def test_blobs_are_bounded() -> None:
    with pytest.raises(FormatError, match="expected at most"):
        client(Kernel(table=bytes(20000))).report(DATA)


@pytest.mark.parametrize("data", [b"", bytes(63), bytes(65)])
def test_report_data_has_64_bytes(data: bytes) -> None:
    kernel = Kernel()
    with pytest.raises(UsageError):
        client(kernel).report(data)
    with pytest.raises(UsageError):
        client(kernel).report(DATA, vmpl=4)
    assert kernel.entries == {}


def test_a_machine_without_configfs_tsm_says_so(tmp_path: Path) -> None:
    with pytest.raises(TsmRequestError, match="configfs-tsm is not available") as caught:
        ConfigfsTsm(str(tmp_path / "tsm" / "report")).report(DATA)
    assert caught.value.errno == errno.ENOENT
    # A directory that is not configfs has no attributes.
    with pytest.raises(SnpCertsError):
        ConfigfsTsm(str(tmp_path)).report(DATA)
    assert list(tmp_path.iterdir()) == []


def test_system_calls_read_to_the_end_and_write_once(tmp_path: Path) -> None:
    files, path = SystemFiles(), tmp_path / "file"
    path.write_bytes(b"old")
    files.write(str(path), b"new text")
    assert files.read(str(path), 100) == b"new text"
    assert files.read(str(path), 3) == b"new "
    with pytest.raises(OSError, match="No such file"):
        files.write(str(tmp_path / "missing"), b"")
