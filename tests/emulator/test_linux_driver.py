# SPDX-License-Identifier: Apache-2.0
"""The Linux driver's behaviour, seen through ``/dev/sev-guest``, for every answer a host gives."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from snpcerts.abi.ghcb import ExitCode, Field, GhcbPage, MsrCode, PageStateOperation
from snpcerts.abi.guest_message import ReportRequest, ReportResponse
from snpcerts.abi.kvm import PageType, UserspaceMemoryRegion2
from snpcerts.abi.sev_guest import (
    SNP_GET_DERIVED_KEY,
    SNP_GET_EXT_REPORT,
    SNP_GET_REPORT,
    DerivedKeyReq,
    ExtReportReq,
    GuestRequestIoctl,
)
from snpcerts.emulator.guest.linux import LinuxGuest
from snpcerts.emulator.guest.memory_slots import MemorySlots, SlotMemory
from snpcerts.emulator.guest.program import (
    Guest,
    GuestCpu,
    Program,
    Sleep,
    Vmgexit,
    WaitUntil,
)
from snpcerts.emulator.guest.sev_guest_device import SevGuestDevice
from snpcerts.emulator.psp.firmware import Firmware, FirmwareError, GuestContext
from snpcerts.emulator.psp.message_seal import header_for, seal
from snpcerts.emulator.syscall.device import Pending
from tests.emulator.kvm_rig import Arena, caller_with, make_platform

INVALID_LEN, BUSY, GENERIC = 1 << 32, 2 << 32, 0xFFFFFFFF << 32
NOT_SENT = 2**64 - 1
OUTER, REQUEST, RESPONSE, CERTS = 0x10000, 0x11000, 0x12000, 0x14000
BAD = 0x9000_0000
REPORT_DATA = bytes(range(64))
TABLE = b"certificates".ljust(4096, b"c")

Answer = Callable[["Rig", GhcbPage], None]


def served(rig: Rig, ghcb: GhcbPage) -> None:
    """The firmware answers; an extended request gets a table."""
    request = rig.memory.read(ghcb.get(Field.SW_EXITINFO1), 4096)
    if ghcb.get(Field.SW_EXITCODE) == ExitCode.SNP_EXT_GUEST_REQUEST and ghcb.get(Field.RBX):
        rig.memory.write(ghcb.get(Field.RAX), TABLE)
    try:
        page = rig.firmware.guest_request(rig.context, request)
        rig.memory.write(ghcb.get(Field.SW_EXITINFO2), page)
        status = 0
    except FirmwareError as refused:
        status = refused.status
    ghcb.put(Field.SW_EXITINFO1, 0)
    ghcb.put(Field.SW_EXITINFO2, status)


def says(info2: int, *, info1: int = 0, rbx: int | None = None) -> Answer:
    """The host answers without the firmware."""

    def answer(_: Rig, ghcb: GhcbPage) -> None:
        ghcb.put(Field.SW_EXITINFO1, info1)
        ghcb.put(Field.SW_EXITINFO2, info2)
        if rbx is not None:
            ghcb.put(Field.RBX, rbx)

    return answer


def spoilt(change: Callable[[bytearray], None]) -> Answer:
    """The firmware answers, and the response is then altered."""

    def answer(rig: Rig, ghcb: GhcbPage) -> None:
        response = ghcb.get(Field.SW_EXITINFO2)
        served(rig, ghcb)
        page = bytearray(rig.memory.read(response, 4096))
        change(page)
        rig.memory.write(response, bytes(page))

    return answer


def change_page_states(page: bytearray) -> list[tuple[str, int, int]]:
    """Do what the list in a GHCB page asks for: operation, GPA and pages of each entry."""
    last = int.from_bytes(page[0x802:0x804], "little")
    page[0x800:0x802] = (last + 1).to_bytes(2, "little")
    ghcb = GhcbPage(page)
    ghcb.put(Field.SW_EXITINFO1, 0)
    ghcb.put(Field.SW_EXITINFO2, 0)
    found = []
    for at in range(0x808, 0x808 + 8 * (last + 1), 8):
        entry = int.from_bytes(page[at : at + 8], "little")
        operation = PageStateOperation(entry >> 52 & 0xF).name.lower()
        found.append((operation, entry & (1 << 52) - 1 & ~0xFFF, 512 if entry >> 56 & 1 else 1))
    return found


@dataclass
class Vm:
    """A launched VM as the guest and its device know it."""

    slots: MemorySlots
    secrets_page: bytes | None
    name: str = "vm"
    creator: int = 1
    processors: int = 1
    guest: Guest | None = None
    alive: bool = True
    exits_for_page_state: bool = True


@dataclass
class Rig:
    """One guest on a host that answers as the test says, with the real firmware."""

    answers: list[Answer] = field(default_factory=list)
    now: float = 0.0
    page_states: list[tuple[str, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        platform = make_platform()
        self.firmware: Firmware = platform.firmware
        self.context: GuestContext = self.firmware.launch_start(1 << 16 | 1 << 17)
        secrets = self.firmware.launch_update(self.context, 0, PageType.SECRETS, bytes(4096))
        self.firmware.launch_finish(self.context)
        guest_arena = Arena(0x10000, base=0)
        slots = MemorySlots(protected=False)
        slots.set(UserspaceMemoryRegion2(0, 0, 0, 0x10000, 0))
        self.memory = SlotMemory(slots, guest_arena)
        self.vm = Vm(slots, secrets)
        self.guest = LinuxGuest(self.vm)
        self.vm.guest = self.guest
        self.cpu = GuestCpu(0, lambda: self.now)
        self.cpu.memory = self.memory
        self.program: Program = self.guest.program(self.cpu)
        self.user = Arena(0x10000)
        self.device = SevGuestDevice(self.vm)
        self.requests: list[tuple[int, bytes, int, int]] = []  # code, page, RAX, RBX
        self.boot()

    def boot(self) -> None:
        event = next(self.program)
        while isinstance(event, Vmgexit):
            event = self.program.send(self.booting(event.msr))
        assert isinstance(event, WaitUntil)
        self.waits = event

    def booting(self, msr: int) -> int:
        """Answer as the host does during boot: every page becomes what the guest asks for."""
        if msr & 0xFFF == MsrCode.PSC_REQ:
            return MsrCode.PSC_RSP
        if msr & 0xFFF:
            return msr | 1
        self.answer(msr)
        return 0

    def serve(self) -> None:
        """Run the guest until it waits for requests again."""
        event: Any = self.waits
        while True:
            if isinstance(event, WaitUntil):
                if not event.ready():
                    self.waits = event
                    return
            elif isinstance(event, Sleep):
                self.now += event.seconds
            else:
                assert isinstance(event, Vmgexit)
                self.answer(event.msr)
            event = self.program.send(0)

    def answer(self, gpa: int) -> None:
        page = bytearray(self.memory.read(gpa, 4096))
        ghcb = GhcbPage(page)
        if ghcb.get(Field.SW_EXITCODE) == ExitCode.PSC:
            changed = change_page_states(page)
            self.page_states += changed
            self.memory.write(gpa, bytes(page))
            return
        self.requests.append(
            (
                ghcb.get(Field.SW_EXITCODE),
                self.memory.read(ghcb.get(Field.SW_EXITINFO1), 4096),
                ghcb.get(Field.RAX),
                ghcb.get(Field.RBX),
            )
        )
        (self.answers.pop(0) if self.answers else served)(self, ghcb)
        self.memory.write(gpa, bytes(page))

    def ioctl(self, request: int, argument: int = OUTER) -> int:
        pending = self.device.ioctl(caller_with(self.user), request, argument)
        result = pending.poll()
        assert result is None
        self.serve()
        result = pending.poll()
        assert result is not None
        return result

    def report(self, **outer: Any) -> int:
        self.user.write(REQUEST, ReportRequest(report_data=REPORT_DATA).pack())
        self.put_outer(**outer)
        return self.ioctl(SNP_GET_REPORT)

    def extended(self, certs_len: int = 4096, certs_address: int = CERTS, **outer: Any) -> int:
        data = ReportRequest(report_data=REPORT_DATA).pack()
        self.user.write(REQUEST, ExtReportReq(data, certs_address, certs_len).pack())
        self.put_outer(**outer)
        return self.ioctl(SNP_GET_EXT_REPORT)

    def put_outer(self, **fields: Any) -> None:
        values = {"msg_version": 1, "req_data": REQUEST, "resp_data": RESPONSE, **fields}
        self.user.write(OUTER, GuestRequestIoctl(**values).pack())

    @property
    def exitinfo2(self) -> int:
        return GuestRequestIoctl.unpack(self.user.read(OUTER, 32)).exitinfo2

    @property
    def counter(self) -> int:
        return self.guest.vmpcks[0].counter

    @property
    def wiped(self) -> bool:
        return self.guest.vmpcks[0].disabled

    @property
    def report_bytes(self) -> bytes:
        return self.user.read(RESPONSE + 32, 1184)


@contextmanager
def raises(code: int) -> Iterator[None]:
    with pytest.raises(OSError) as raised:
        yield
    assert raised.value.errno == code


# Success.


def test_a_report_comes_back_as_the_firmware_made_it() -> None:
    rig = Rig()
    assert rig.report(exitinfo2=0x1234) == 0
    assert rig.report_bytes[0x50:0x90] == REPORT_DATA
    assert ReportResponse.unpack(rig.user.read(RESPONSE, 32)).report_size == 1184
    assert rig.user.read(RESPONSE + 1216, 4000 - 1216) == bytes(4000 - 1216)
    assert rig.exitinfo2 == 0x1234  # untouched on success
    assert (rig.counter, rig.wiped) == (2, False)
    assert rig.requests[0][0] == ExitCode.SNP_GUEST_REQUEST


def test_an_extended_report_copies_exactly_certs_len() -> None:
    rig = Rig()
    rig.user.write(CERTS, b"u" * 0x5000)
    assert rig.extended(certs_len=8192) == 0
    assert rig.user.read(CERTS, 4096) == TABLE
    assert rig.user.read(CERTS + 4096, 4096) == bytes(4096)
    assert rig.user.read(CERTS + 8192, 16) == b"u" * 16
    assert rig.requests[0][3] == 2
    assert ExtReportReq.unpack(rig.user.read(REQUEST, 112)).certs_len == 8192


@pytest.mark.parametrize(("length", "address"), [(0, CERTS), (4096, 0), (0, 0), (5, 0)])
def test_without_a_buffer_the_extended_exit_is_used_with_zeros(length: int, address: int) -> None:
    rig = Rig()
    assert rig.extended(length, address) == 0
    assert rig.requests[0][0] == ExitCode.SNP_EXT_GUEST_REQUEST
    assert rig.requests[0][2:] == (0, 0)
    assert rig.report_bytes[0x50:0x90] == REPORT_DATA


def test_a_derived_key() -> None:
    rig = Rig()
    rig.user.write(REQUEST, DerivedKeyReq().pack())
    rig.put_outer()
    assert rig.ioctl(SNP_GET_DERIVED_KEY) == 0
    assert rig.user.read(RESPONSE, 4) == bytes(4)
    assert rig.user.read(RESPONSE + 32, 32) != bytes(32)


def test_status_inside_the_response_is_success() -> None:
    rig = Rig()
    rig.user.write(REQUEST, ReportRequest(vmpl=9).pack())
    rig.put_outer()
    assert rig.ioctl(SNP_GET_REPORT) == 0
    assert ReportResponse.unpack(rig.user.read(RESPONSE, 32)).status == 0x16
    assert (rig.counter, rig.wiped) == (2, False)


# Bad arguments, in the order in which the driver checks them. No message is sent or counted.


def nothing_sent(rig: Rig) -> bool:
    return (rig.requests, rig.counter, rig.wiped) == ([], 0, False)


def test_unreadable_structure_is_efault() -> None:
    rig = Rig()
    with raises(errno.EFAULT):
        rig.ioctl(SNP_GET_REPORT, BAD)
    assert nothing_sent(rig)


def test_version_0_is_einval_and_goes_before_the_ioctl_number() -> None:
    rig = Rig()
    for request in (SNP_GET_REPORT, 0x5401):
        rig.put_outer(msg_version=0, exitinfo2=3)
        with raises(errno.EINVAL):
            rig.ioctl(request)
        assert rig.exitinfo2 == 3
    assert nothing_sent(rig)


def test_unknown_ioctl_is_enotty_with_the_preset() -> None:
    rig = Rig()
    rig.put_outer(req_data=0)
    with raises(errno.ENOTTY):
        rig.ioctl(0xC0205303)
    assert rig.exitinfo2 == 0xFF


@pytest.mark.parametrize("outer", [{"req_data": 0}, {"resp_data": 0}])
@pytest.mark.parametrize("request_", [SNP_GET_REPORT, SNP_GET_DERIVED_KEY, SNP_GET_EXT_REPORT])
def test_null_pointers_are_einval(request_: int, outer: dict[str, int]) -> None:
    rig = Rig()
    rig.put_outer(**outer)
    with raises(errno.EINVAL):
        rig.ioctl(request_)
    assert rig.exitinfo2 == 0xFF
    assert nothing_sent(rig)


@pytest.mark.parametrize("request_", [SNP_GET_REPORT, SNP_GET_DERIVED_KEY, SNP_GET_EXT_REPORT])
def test_unreadable_request_is_efault(request_: int) -> None:
    rig = Rig()
    rig.put_outer(req_data=BAD)
    with raises(errno.EFAULT):
        rig.ioctl(request_)
    assert rig.exitinfo2 == 0xFF
    assert nothing_sent(rig)


@pytest.mark.parametrize("length", [1, 4095, 4097, 16385, 20480, 2**32 - 4096])
def test_a_bad_certs_len_is_einval(length: int) -> None:
    rig = Rig()
    with raises(errno.EINVAL):
        rig.extended(length)
    assert rig.exitinfo2 == 0xFF
    assert nothing_sent(rig)


def test_a_buffer_beyond_user_space_is_efault_before_anything_is_sent() -> None:
    rig = Rig()
    with raises(errno.EFAULT):
        rig.extended(4096, 1 << 63)
    assert nothing_sent(rig)


# What the host answers.


def test_too_small_a_buffer_costs_one_plain_request_and_says_how_much() -> None:
    rig = Rig([says(INVALID_LEN, rbx=3)])
    with raises(errno.EIO):
        rig.extended()
    assert [request[0] for request in rig.requests] == [
        ExitCode.SNP_EXT_GUEST_REQUEST,
        ExitCode.SNP_GUEST_REQUEST,
    ]
    assert rig.requests[0][1] == rig.requests[1][1]  # the same ciphertext
    assert rig.exitinfo2 == INVALID_LEN
    assert ExtReportReq.unpack(rig.user.read(REQUEST, 112)).certs_len == 3 * 4096
    assert rig.context.counters[0] == 2
    assert (rig.counter, rig.wiped) == (2, False)
    assert rig.extended(3 * 4096) == 0


def test_a_firmware_error_behind_too_small_a_buffer_is_hidden_and_the_next_call_pays() -> None:
    rig = Rig([says(INVALID_LEN, rbx=3), says(0x16)])
    with raises(errno.EIO):
        rig.extended()
    assert rig.exitinfo2 == INVALID_LEN
    assert not rig.wiped
    with raises(errno.EIO):
        rig.extended()
    assert rig.exitinfo2 == 0x1D  # the counters are out of step
    assert rig.wiped


@pytest.mark.parametrize("rbx", [0, 2**20, 2**52 + 1, 2**64 - 1])
def test_an_absurd_page_count_is_cut_as_c_does(rbx: int) -> None:
    rig = Rig([says(INVALID_LEN, rbx=rbx)])
    with raises(errno.EIO):
        rig.extended()
    wanted = rbx * 4096 & 0xFFFFFFFF
    assert ExtReportReq.unpack(rig.user.read(REQUEST, 112)).certs_len == wanted


def test_invalid_len_for_a_plain_request_is_eio_and_keeps_the_key() -> None:
    rig = Rig([says(INVALID_LEN, rbx=3)])
    with raises(errno.EIO):
        rig.report()
    assert rig.exitinfo2 == INVALID_LEN
    assert (rig.counter, rig.wiped) == (2, False)
    assert rig.user.read(REQUEST, 96) == ReportRequest(report_data=REPORT_DATA).pack()


def test_busy_is_retried_every_two_seconds_with_the_same_bytes() -> None:
    rig = Rig([says(BUSY), says(BUSY), says(BUSY)])
    assert rig.extended() == 0
    assert rig.now == 6.0
    assert len({request[1] for request in rig.requests}) == 1
    assert (rig.counter, rig.wiped) == (2, False)


def test_busy_for_more_than_a_minute_times_out_and_wipes_the_key() -> None:
    rig = Rig([says(BUSY)] * 100)
    with raises(errno.ETIMEDOUT):
        rig.extended()
    assert rig.exitinfo2 == BUSY
    assert rig.now == 62.0
    assert len(rig.requests) == 32
    assert (rig.counter, rig.wiped) == (2, True)


def test_busy_applies_to_the_plain_retry_too() -> None:
    rig = Rig([says(INVALID_LEN, rbx=2), says(BUSY)])
    with raises(errno.EIO):
        rig.extended()
    assert rig.now == 2.0
    assert [request[0] & 0xF for request in rig.requests] == [2, 1, 1]
    assert not rig.wiped


@pytest.mark.parametrize(
    "info2", [GENERIC, 0x16, 0x1D, 1, 0x80000000 << 32, INVALID_LEN | 0x16, BUSY | 1, 3 << 32]
)
def test_any_other_answer_is_eio_and_wipes_the_key(info2: int) -> None:
    rig = Rig([says(info2)])
    with raises(errno.EIO):
        rig.extended()
    assert rig.exitinfo2 == info2
    assert (rig.counter, rig.wiped) == (2, True)
    for again in (rig.extended, rig.report):
        with raises(errno.ENOTTY):
            again(exitinfo2=7)
        assert rig.exitinfo2 == 7
    assert len(rig.requests) == 1


@pytest.mark.parametrize(
    ("info1", "info2", "result"),
    [
        (2, 5, 2),
        (2, 4, 2),
        (1, 1 << 31 | 3 << 8 | 13, 4),
        (1, 1 << 31 | 3 << 8 | 6, 4),
        (1, 1 << 31 | 3 << 8 | 14, 2),
        (1, 13, 2),
        (7, 0, 2),
    ],
)
def test_a_refused_exit_is_a_positive_result_and_wipes_the_key(
    info1: int, info2: int, result: int
) -> None:
    rig = Rig([says(info2, info1=info1)])
    assert rig.extended() == result
    assert rig.exitinfo2 == NOT_SENT
    assert (rig.counter, rig.wiped) == (2, True)


def test_only_the_low_half_of_info1_counts() -> None:
    def answer(rig: Rig, ghcb: GhcbPage) -> None:
        served(rig, ghcb)
        ghcb.put(Field.SW_EXITINFO1, 1 << 32)

    assert Rig([answer]).extended() == 0


def _set(offset: int, data: bytes) -> Callable[[bytearray], None]:
    def change(page: bytearray) -> None:
        page[offset : offset + len(data)] = data

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set(0x20, b"\x03"),  # sequence number
        _set(0x34, b"\x08"),  # type
        _set(0x35, b"\x02"),  # version
        _set(0x36, b"\xff\xff"),  # size
        _set(0x36, b"\xa1\x0f"),  # 4001
        _set(0x00, b"\xff\xff"),  # tag
        _set(0x60, b"\xff\xff"),  # ciphertext
        _set(0x3C, b"\x03"),  # authenticated, though not compared
        lambda page: page.__setitem__(slice(None), bytes(4096)),
    ],
)
def test_a_response_that_does_not_answer_is_ebadmsg_and_wipes_the_key(
    change: Callable[[bytearray], None],
) -> None:
    rig = Rig([spoilt(change)])
    with raises(errno.EBADMSG):
        rig.report(exitinfo2=5)
    assert rig.exitinfo2 == 5
    assert (rig.counter, rig.wiped) == (2, True)


def test_a_replayed_response_is_ebadmsg_though_its_tag_is_good() -> None:
    rig = Rig()
    rig.report()
    old = rig.memory.read(0x10000 - 5 * 4096, 4096)
    rig.answers = [spoilt(_set(0, old))]
    with raises(errno.EBADMSG):
        rig.report()
    assert rig.wiped


@pytest.mark.parametrize("wrong", [{"msg_type": 4}, {"msg_version": 2}, {"msg_seqno": 4}])
def test_a_sealed_response_to_something_else_is_ebadmsg(wrong: dict[str, int]) -> None:
    rig = Rig()
    sound = {"msg_type": 6, "msg_version": 1, "msg_seqno": 2}

    def sealed(**fields: Any) -> Answer:
        header = replace(header_for(0, 0, 0), **{**sound, **fields})
        return spoilt(_set(0, seal(rig.context.vmpcks[0], header, bytes(1216))))

    rig.answers = [sealed()]
    assert rig.report() == 0
    rig = Rig()
    rig.answers = [sealed(**wrong)]
    with raises(errno.EBADMSG):
        rig.report()
    assert rig.wiped


def test_counter_overflow_is_eio_and_keeps_the_key() -> None:
    rig = Rig()
    rig.guest.vmpcks[0].counter = 0xFFFFFFFE
    with raises(errno.EIO):
        rig.report(exitinfo2=5)
    assert rig.exitinfo2 == 5
    assert (rig.requests, rig.counter, rig.wiped) == ([], 0xFFFFFFFE, False)


@pytest.mark.parametrize("resp_data", [BAD, 0x20000 - 100])
def test_an_unwritable_buffer_is_efault_and_the_report_is_lost(resp_data: int) -> None:
    rig = Rig()
    with raises(errno.EFAULT):
        rig.report(resp_data=resp_data)
    assert (rig.counter, rig.wiped) == (2, False)
    with raises(errno.EFAULT):
        rig.extended(4096, BAD)
    assert (rig.counter, rig.wiped) == (4, False)


def test_the_response_page_is_cleared_for_each_request_but_not_each_resend() -> None:
    seen: list[bytes] = []

    def look(rig: Rig, ghcb: GhcbPage) -> None:
        seen.append(rig.memory.read(ghcb.get(Field.SW_EXITINFO2), 1))
        rig.memory.write(ghcb.get(Field.SW_EXITINFO2), b"x")
        says(BUSY)(rig, ghcb)

    rig = Rig([look, look])
    assert rig.report() == 0
    rig.answers = [look]
    assert rig.report() == 0
    assert seen == [b"\0", b"x", b"\0"]


# Outside the driver.


def test_calls_wait_for_the_guest_to_start_and_end_with_it() -> None:
    rig = Rig()
    rig.user.write(REQUEST, ReportRequest().pack())
    rig.put_outer()
    rig.vm.guest = None
    pending: Pending = rig.device.ioctl(caller_with(rig.user), SNP_GET_REPORT, OUTER)
    assert pending.poll() is None
    rig.vm.guest = rig.guest
    assert pending.poll() is None
    rig.program.close()
    with raises(errno.ENODEV):
        pending.poll()


def test_a_cancelled_call_is_not_sent() -> None:
    rig = Rig()
    rig.user.write(REQUEST, ReportRequest().pack())
    rig.put_outer()
    pending = rig.device.ioctl(caller_with(rig.user), SNP_GET_REPORT, OUTER)
    assert pending.poll() is None
    pending.cancel()
    rig.serve()
    assert rig.requests == []


def test_a_guest_without_a_secrets_page_has_no_device() -> None:
    rig = Rig()
    guest = LinuxGuest(Vm(rig.vm.slots, None))
    program = guest.program(rig.cpu)
    with pytest.raises(StopIteration):
        next(program)
    assert guest.gone


@pytest.mark.parametrize("index", [0, 1])
def test_shared_pages_lie_at_the_top_of_memory_and_apart(index: int) -> None:
    pages = Rig().guest.shared_pages(index)
    assert pages is not None
    assert pages.data + 4 * 4096 == 0x10000 - index * 7 * 4096
    assert Rig().guest.shared_pages(2) is None
