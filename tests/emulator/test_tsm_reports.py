# SPDX-License-Identifier: Apache-2.0
"""configfs-tsm of an emulated guest, call by call, with the errno of Linux's driver."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import pytest

from snpcerts.abi.cert_table import VCEK_GUID, CertTable, TableEntry
from snpcerts.abi.guest_message import ReportResponse
from snpcerts.abi.sev_guest import ReportReq
from snpcerts.emulator.guest.configfs import ConfigDirectory, ConfigFile
from snpcerts.emulator.guest.linux import DriverCall, DriverRequest, DriverResponse, LinuxGuest
from snpcerts.emulator.guest.tsm_reports import TsmReports, kstrtouint

T = TypeVar("T")
DATA = bytes(range(64))
REPORT = bytes(1184)
TABLE = CertTable((TableEntry(VCEK_GUID, b"leaf"),)).encode()
SERVICE = ("service_provider", "service_guid", "service_manifest_version", "manifestblob")


def done(operation: Generator[None, None, T]) -> T:
    """The result of an operation that need not wait."""
    try:
        next(operation)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # the generator's
    raise AssertionError("it waits")


def answer(report: bytes = REPORT, status: int = 0, table: bytes = TABLE) -> DriverResponse:
    header = ReportResponse(status, len(report)).pack()
    return DriverResponse(0, 0, header + report, table.ljust(16384, b"\0"))


@dataclass
class Driver(LinuxGuest):
    """The guest's driver, with the answers that a test gives it."""

    answers: list[DriverResponse] = field(default_factory=list)
    asked: list[DriverCall] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.vmpcks = (None,)  # type: ignore[assignment]  # only whether there are any matters

    def submit(self, request: DriverRequest) -> DriverCall:
        call = DriverCall(request, self.answers.pop(0) if self.answers else None)
        self.asked.append(call)
        return call


@dataclass
class Vm:
    """A VM that runs the guest."""

    guest: LinuxGuest | None
    alive: bool = True


class Tsm:
    """The report directory, as a program uses it."""

    def __init__(self, *answers: DriverResponse) -> None:
        self.driver = Driver(None, answers=list(answers))  # type: ignore[arg-type]  # no VM
        self.vm = Vm(self.driver)
        tsm = TsmReports(self.vm).root.children["tsm"]
        assert isinstance(tsm, ConfigDirectory)
        self.tsm = tsm
        reports = tsm.children["report"]
        assert isinstance(reports, ConfigDirectory)
        self.reports = reports

    def entry(self, name: str = "entry") -> ConfigDirectory:
        return done(self.reports.make(name))

    def read(self, entry: ConfigDirectory, name: str) -> bytes:
        opened = file_of(entry, name).open(os.O_RDONLY)
        return done(opened.read(0, 1 << 20))

    def write(self, entry: ConfigDirectory, name: str, data: bytes) -> int:
        opened = file_of(entry, name).open(os.O_WRONLY)
        written = done(opened.write(0, data))
        done(opened.close())
        return written


def file_of(entry: ConfigDirectory, name: str) -> ConfigFile:
    found = entry.children[name]
    assert isinstance(found, ConfigFile)
    return found


def fails(code: int, call: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:
        call()
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code]


def test_a_report_and_its_certificates() -> None:
    tsm = Tsm(answer())
    entry = tsm.entry()
    assert [tsm.read(entry, each) for each in ("provider", "privlevel_floor", "generation")] == [
        b"sev_guest\n",
        b"0\n",
        b"0\n",
    ]
    assert tsm.write(entry, "inblob", DATA) == 64
    assert tsm.write(entry, "privlevel", b"2\n") == 2
    assert tsm.read(entry, "generation") == b"2\n"
    assert (tsm.read(entry, "outblob"), tsm.read(entry, "auxblob")) == (REPORT, TABLE)
    (call,) = tsm.driver.asked
    assert ReportReq.unpack(call.request.payload) == ReportReq(DATA, 2)
    assert (call.request.data_pages, call.request.msg_version) == (4, 1)


def test_one_report_per_generation() -> None:
    tsm = Tsm(answer(), answer(b"second" * 200, table=TABLE))
    entry = tsm.entry()
    tsm.write(entry, "inblob", DATA)
    assert tsm.read(entry, "outblob") == tsm.read(entry, "outblob") == REPORT
    tsm.write(entry, "inblob", DATA)
    assert tsm.read(entry, "outblob") == b"second" * 200
    assert len(tsm.driver.asked) == 2


def test_the_files_are_those_of_a_guest_without_an_svsm() -> None:
    entry = Tsm().entry()
    modes = {name: file_of(entry, name).mode & 0o777 for name in entry.children}
    assert modes == {
        "generation": 0o444,
        "provider": 0o444,
        "privlevel": 0o200,
        "privlevel_floor": 0o444,
        "inblob": 0o200,
        "outblob": 0o444,
        "auxblob": 0o444,
    }
    assert not modes.keys() & {*SERVICE}
    for name, mode in modes.items():
        fails(errno.EACCES, partial(file_of(entry, name).open, os.O_RDWR))
        other = os.O_WRONLY if mode == 0o444 else os.O_RDONLY
        fails(errno.EACCES, partial(file_of(entry, name).open, other))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"4", errno.EINVAL),
        (b"-1", errno.EINVAL),
        (b"", errno.EFAULT),
        (b"x", errno.EINVAL),
        (b"1 ", errno.EINVAL),
        (b"4294967296", errno.ERANGE),
    ],
)
def test_a_refused_privlevel_changes_nothing(text: bytes, code: int) -> None:
    tsm = Tsm()
    entry = tsm.entry()
    fails(code, lambda: tsm.write(entry, "privlevel", text))
    assert tsm.read(entry, "generation") == b"0\n"


@pytest.mark.parametrize(
    ("text", "value"), [(b"3", 3), (b"+3\n", 3), (b"0x2", 2), (b"02", 2), (b"0", 0), (b"1\0x", 1)]
)
def test_numbers_are_read_as_kstrtouint_reads_them(text: bytes, value: int) -> None:
    assert kstrtouint(text) == value
    for bad in (b"08", b"0x", b"1_0", b"\n1", b"1\n\n", b"3 "):
        fails(errno.EINVAL, partial(kstrtouint, bad))
    # A number of more than 64 bits is ERANGE whatever text follows it. One of more than 32 bits
    # is ERANGE only if no other text follows it.
    for bad in (b"18446744073709551616x", b"077777777777777777777777778", b"4294967296"):
        fails(errno.ERANGE, partial(kstrtouint, bad))
    fails(errno.EINVAL, partial(kstrtouint, b"4294967296x"))


@pytest.mark.parametrize("size", [0, 1, 63])
def test_inblob_of_another_size_is_refused_at_the_read(size: int) -> None:
    tsm = Tsm(answer())
    entry = tsm.entry()
    if size:
        tsm.write(entry, "inblob", DATA[:size])
    fails(errno.EINVAL, lambda: tsm.read(entry, "outblob"))
    assert tsm.driver.asked == []


def test_inblob_takes_effect_when_it_is_closed() -> None:
    tsm = Tsm(answer())
    entry = tsm.entry()
    opened = file_of(entry, "inblob").open(os.O_WRONLY)
    done(opened.write(0, DATA[:40]))
    done(opened.write(40, DATA[40:]))
    fails(errno.EFBIG, lambda: done(opened.write(64, b"x")))
    assert tsm.read(entry, "generation") == b"0\n"
    done(opened.close())
    assert tsm.read(entry, "generation") == b"1\n"
    tsm.read(entry, "outblob")
    assert ReportReq.unpack(tsm.driver.asked[0].request.payload).user_data == DATA


@pytest.mark.parametrize(
    ("response", "code"),
    [
        (DriverResponse(-errno.ENOTTY), errno.ENOTTY),
        (DriverResponse(-errno.EIO, 1 << 32), errno.EIO),
        (DriverResponse(-errno.ETIMEDOUT, 2 << 32), errno.ETIMEDOUT),
        (DriverResponse(-errno.EBADMSG), errno.EBADMSG),
        (answer(status=0x16), errno.EINVAL),
        (answer(status=0x27), errno.EINVAL),
        (answer(status=0x10), errno.ENXIO),
        (DriverResponse(0, 0, ReportResponse(0, 4065).pack()), errno.ENOMEM),
    ],
)
def test_the_errors_of_a_request(response: DriverResponse, code: int) -> None:
    tsm = Tsm(response, answer())
    entry = tsm.entry()
    tsm.write(entry, "inblob", DATA)
    fails(code, lambda: tsm.read(entry, "auxblob"))
    assert tsm.read(entry, "outblob") == REPORT, "the next read must send a new request"


@pytest.mark.parametrize(
    ("table", "size"),
    [(b"", 0), (bytes(24), 0), (TABLE, len(TABLE)), (b"\xff" * 16384, 16384)],
)
def test_auxblob_ends_where_the_last_certificate_ends(table: bytes, size: int) -> None:
    tsm = Tsm(answer(table=table))
    entry = tsm.entry()
    tsm.write(entry, "inblob", DATA)
    assert len(tsm.read(entry, "auxblob")) == size


def test_certificates_that_a_later_report_lacks_are_an_error_and_not_the_old_ones() -> None:
    """Linux 7.3 frees the old ones but keeps their length, and then reads from address 0."""
    tsm = Tsm(answer(), answer(table=b""))
    entry = tsm.entry()
    tsm.write(entry, "inblob", DATA)
    assert tsm.read(entry, "auxblob") == TABLE
    tsm.write(entry, "inblob", DATA)
    fails(errno.EFAULT, lambda: tsm.read(entry, "auxblob"))
    fresh = tsm.entry("fresh")
    tsm.driver.answers.append(answer(table=b""))
    tsm.write(fresh, "inblob", DATA)
    assert tsm.read(fresh, "auxblob") == b""


def test_the_others_wait_while_a_report_is_made() -> None:
    tsm = Tsm()
    entry = tsm.entry()
    tsm.write(entry, "inblob", DATA)
    outblob = file_of(entry, "outblob").open(os.O_RDONLY)
    reading = outblob.read(0, 4096)
    next(reading)
    generation = file_of(entry, "generation").open(os.O_RDONLY).read(0, 100)
    making = tsm.reports.make("another")
    next(generation)
    next(making)
    tsm.driver.asked[0].response = answer()
    assert done(reading) == REPORT
    assert done(generation) == b"1\n"
    assert done(making).entries.keys() == entry.entries.keys()


def test_a_reader_that_is_killed_lets_the_others_go_on() -> None:
    tsm = Tsm()
    entry = tsm.entry()
    tsm.write(entry, "inblob", DATA)
    reading = file_of(entry, "outblob").open(os.O_RDONLY).read(0, 4096)
    next(reading)
    reading.close()
    assert tsm.read(entry, "generation") == b"1\n"


def test_a_guest_that_is_gone_ends_the_wait() -> None:
    tsm = Tsm()
    entry = tsm.entry()
    tsm.write(entry, "inblob", DATA)
    reading = file_of(entry, "outblob").open(os.O_RDONLY).read(0, 4096)
    next(reading)
    tsm.vm.alive = False
    fails(errno.ENODEV, lambda: next(reading))


def test_without_a_driver_there_is_no_provider() -> None:
    tsm = Tsm()
    entry = tsm.entry()
    tsm.vm.guest = None
    fails(errno.ENXIO, lambda: tsm.entry("another"))
    fails(errno.ENXIO, lambda: tsm.read(entry, "provider"))
    fails(errno.ENXIO, lambda: tsm.write(entry, "privlevel", b"0"))
    tsm.write(entry, "inblob", DATA)
    fails(errno.ENXIO, lambda: tsm.read(entry, "outblob"))


def test_directories_are_made_and_removed_only_where_the_kernel_allows() -> None:
    tsm = Tsm()
    entry = tsm.entry()
    fails(errno.EEXIST, tsm.entry)
    fails(errno.ENAMETOOLONG, lambda: tsm.entry("x" * 256))
    fails(errno.EPERM, lambda: done(tsm.tsm.make("another")))
    fails(errno.EPERM, lambda: done(tsm.tsm.remove("report")))
    fails(errno.EPERM, lambda: done(entry.make("inner")))
    opened = file_of(entry, "generation").open(os.O_RDONLY)
    done(tsm.reports.remove("entry"))
    fails(errno.ENOENT, lambda: done(opened.read(0, 10)))
    fails(errno.ENOENT, lambda: done(tsm.reports.remove("entry")))
    assert tsm.entry().number != entry.number
