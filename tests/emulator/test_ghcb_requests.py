# SPDX-License-Identifier: Apache-2.0
"""VMGEXIT, from the bytes in the GHCB page to the bytes that come back."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.ghcb import USAGE, Field, GhcbPage
from snpcerts.abi.kvm import VCPU_MMAP_SIZE, RunView, UserspaceMemoryRegion2
from snpcerts.emulator.guest.memory_slots import MemorySlots, SlotMemory
from snpcerts.emulator.kvm.ghcb_exit import EXIT, HALT, RESUME, GhcbRequests
from snpcerts.emulator.kvm.release import NEWEST, KernelRelease
from snpcerts.emulator.syscall.device import Caller
from tests.emulator.kvm_rig import Arena, caller_with

GHCB, REQUEST, RESPONSE, DATA = 0x1000, 0x2000, 0x3000, 0x4000
READ_ONLY = 0x10000
UNMAPPED = 0x100000
PLAIN, EXTENDED = 0x80000011, 0x80000012
INVALID_LEN, BUSY, GENERIC = 1 << 32, 2 << 32, 0xFFFFFFFF << 32
ANSWER = b"answer of the firmware".ljust(4096, b"!")
BASE = 0x10000


@dataclass
class Host:
    """A VM as the requests see it, with firmware that gives the prepared answers."""

    snp: bool = True
    certs_enabled: bool = True
    kernel: KernelRelease = NEWEST
    ghcb_version: int = 2
    irqchip: bool = False
    exits_for_page_state: bool = True
    jump_table: int = 0
    request_page: bytes = bytes(4096)
    response_page: bytes = bytes(4096)
    status: int = 0
    failure: int = 0
    answer: bytes | None = ANSWER
    seen: list[bytes] = field(default_factory=list)

    sev_features: int = 1
    processors: tuple[int, ...] = (0, 1)
    asked: list[tuple[int, int]] = field(default_factory=list)
    msrs: dict[int, int] = field(default_factory=dict)

    def has_processor(self, apic_id: int) -> bool:
        return apic_id in self.processors

    def processor_requested(self, apic_id: int, request: int) -> None:
        self.asked.append((apic_id, request))

    def read_msr(self, index: int) -> int | None:
        return self.msrs.get(index)

    def write_msr(self, index: int, value: int) -> bool:
        known = index in self.msrs
        self.msrs[index] = value
        return known

    def cpuid(self, function: int, index: int = 0) -> tuple[int, int, int, int]:  # noqa: ARG002 - Machine
        return (0xA0, 0xB1, 0xC2, 0xD3) if function == 7 else (0, 0, 0, 0)

    def issue_guest_request(self, _: Caller) -> int:
        if self.failure:
            raise OSError(self.failure, "on purpose")
        self.seen.append(self.request_page)
        if self.answer is not None:
            self.response_page = self.answer
        return self.status


class Bench:
    """One vCPU's requests on 128 KiB of guest memory, the upper half read-only."""

    def __init__(self, host: Host | None = None, *, registered: int = GHCB) -> None:
        self.host = host or Host()
        self.arena = Arena()
        slots = MemorySlots(protected=False)
        slots.set(UserspaceMemoryRegion2(0, 0, 0, 0x10000, BASE))
        slots.set(UserspaceMemoryRegion2(1, 2, READ_ONLY, 0x10000, BASE + 0x10000))
        self.memory = SlotMemory(slots, self.arena)
        self.page = memoryview(bytearray(VCPU_MMAP_SIZE))
        self.run = RunView(self.page)
        self.requests = GhcbRequests(self.host, self.host, self.page)
        self.requests.registered = registered
        self.caller = caller_with(self.arena)
        self.set_request(5)

    def set_request(self, msg_type: int) -> None:
        page = bytearray(b"R" * 4096)
        page[0x34] = msg_type
        self.poke(REQUEST, page)

    def poke(self, gpa: int, data: bytes | bytearray) -> None:
        self.arena.bytes[gpa : gpa + len(data)] = data

    def peek(self, gpa: int, size: int = 4096) -> bytes:
        return bytes(self.arena.bytes[gpa : gpa + size])

    def fill(
        self,
        code: int = PLAIN,
        info1: int = REQUEST,
        info2: int = RESPONSE,
        *,
        rax: int | None = None,
        rbx: int | None = None,
        usage: int = 0,
        drop: Field | None = None,
    ) -> None:
        ghcb = GhcbPage(page := bytearray(4096))
        ghcb.put(Field.SW_EXITCODE, code)
        ghcb.put(Field.SW_EXITINFO1, info1)
        ghcb.put(Field.SW_EXITINFO2, info2)
        if rax is not None:
            ghcb.put(Field.RAX, rax)
        if rbx is not None:
            ghcb.put(Field.RBX, rbx)
        ghcb.usage = usage
        if drop is not None:
            page[drop.valid_byte] &= ~drop.valid_mask
        self.poke(GHCB, page)

    def vmgexit(self, msr: int = GHCB) -> int:
        self.requests.msr = msr
        return self.requests.vmgexit(self.memory, self.caller)

    def complete(self) -> int:
        return self.requests.complete(self.memory, self.caller)

    def enter(self) -> None:
        self.requests.enter_guest(self.memory)

    def get(self, which: Field) -> int:
        return GhcbPage(bytearray(self.peek(GHCB))).get(which)

    @property
    def infos(self) -> tuple[int, int]:
        return self.get(Field.SW_EXITINFO1), self.get(Field.SW_EXITINFO2)

    @property
    def bitmap(self) -> bytes:
        return self.peek(GHCB + 0x3F0, 16)


def bitmap_of(**bytes_at: int) -> bytes:
    out = bytearray(16)
    for name, value in bytes_at.items():
        out[int(name[1:], 16) - 0x3F0] = value
    return bytes(out)


# Entry.


def test_msr_zero_resumes_and_writes_nothing() -> None:
    bench = Bench(registered=0)
    assert bench.vmgexit(0) == RESUME
    assert bench.arena.written == []


@pytest.mark.parametrize("gpa", [UNMAPPED, READ_ONLY, 0xFFFF_FFFF_FFFF_F000])
def test_a_ghcb_that_cannot_be_mapped_resumes_and_writes_nothing(gpa: int) -> None:
    bench = Bench(registered=gpa)
    assert bench.vmgexit(gpa) == RESUME
    assert bench.arena.written == []


@pytest.mark.parametrize("registered", [0, GHCB + 0x1000])
def test_an_unregistered_ghcb_is_malformed_input(registered: int) -> None:
    bench = Bench(registered=registered)
    bench.fill()
    assert bench.vmgexit() == RESUME
    assert bench.infos == (2, 1)


def test_ghcb_at_address_zero_of_an_unregistered_guest_is_not_a_page() -> None:
    bench = Bench(registered=0)
    assert bench.vmgexit(0) == RESUME
    assert bench.host.seen == []


BAD = [
    ("usage", {"usage": 1}, 2),
    ("no exit code", {"drop": Field.SW_EXITCODE}, 4),
    ("no info1", {"drop": Field.SW_EXITINFO1}, 4),
    ("no info2", {"drop": Field.SW_EXITINFO2}, 4),
    ("unknown code", {"code": 0x80000099}, 6),
    ("code beyond 32 bits", {"code": 1 << 32 | PLAIN}, 6),
    ("request unaligned", {"info1": REQUEST + 8}, 5),
    ("response unaligned", {"info2": RESPONSE + 1}, 5),
    ("request is response", {"info2": REQUEST}, 5),
    ("usage goes first", {"usage": 7, "drop": Field.SW_EXITCODE, "code": 1}, 2),
    ("missing field goes before unknown code", {"drop": Field.SW_EXITINFO2, "code": 1}, 4),
]


@pytest.mark.parametrize(("given_", "reason"), [row[1:] for row in BAD], ids=[r[0] for r in BAD])
@pytest.mark.parametrize("code", [PLAIN, EXTENDED])
def test_malformed_input_is_answered_in_the_page(
    code: int, given_: dict[str, int], reason: int
) -> None:
    bench = Bench()
    filled: dict[str, Any] = {"code": code, "rax": DATA, "rbx": 1, **given_}
    bench.fill(**filled)
    assert bench.vmgexit() == RESUME
    assert bench.infos == (2, reason)
    assert bench.host.seen == []
    assert bench.peek(RESPONSE) == bytes(4096)


def test_guest_requests_of_a_guest_that_is_not_snp_are_unknown_events() -> None:
    bench = Bench(Host(snp=False), registered=0)
    bench.fill(drop=Field.SW_EXITINFO1)
    assert bench.vmgexit() == RESUME
    assert bench.infos == (2, 6)


def test_protocol_version_is_not_looked_at() -> None:
    bench = Bench()
    bench.fill()
    bench.poke(GHCB + 0xFFA, b"\x63\x00")
    assert bench.vmgexit() == RESUME
    assert bench.infos == (0, 0)


def test_request_at_guest_address_zero_is_taken() -> None:
    bench = Bench()
    bench.poke(0, b"Z" * 4096)
    bench.fill(info1=0)
    assert bench.vmgexit() == RESUME
    assert bench.host.seen == [b"Z" * 4096]


def test_the_bitmap_after_a_plain_request_holds_what_kvm_stored_and_nothing_else() -> None:
    bench = Bench()
    bench.fill()
    page = bytearray(bench.peek(GHCB))
    page[0x3F0:0x400] = b"\xff" * 16
    struct.pack_into("<QQQ", page, 0x308, 0x11, 0x22, 0x33)  # RCX, RDX, RBX
    bench.poke(GHCB, page)
    assert bench.vmgexit() == RESUME
    assert bench.bitmap == bitmap_of(x3FE=0x18)  # registers come later
    bench.enter()
    assert bench.bitmap == bitmap_of(x3F7=0x80, x3FC=0x0E, x3FE=0x18)
    assert [bench.get(each) for each in (Field.RCX, Field.RDX, Field.RBX)] == [0x11, 0x22, 0x33]


def test_registers_that_were_not_valid_come_back_as_zero() -> None:
    bench = Bench()
    bench.fill(rax=None)
    bench.poke(GHCB + Field.RAX, b"\xaa" * 8)
    bench.vmgexit()
    bench.enter()
    assert bench.get(Field.RAX) == 0


def test_only_the_named_parts_of_the_page_change() -> None:
    bench = Bench()
    bench.fill()
    page = bytearray(b"\x5a" * 4096)
    page[0x390:0x400] = bench.peek(GHCB)[0x390:0x400]
    page[USAGE : USAGE + 4] = bytes(4)
    bench.poke(GHCB, page)
    bench.vmgexit()
    bench.enter()
    after = bench.peek(GHCB)
    allowed = {*range(0x1F8, 0x200), *range(0x308, 0x320), *range(0x398, 0x3A8)}
    allowed |= set(range(0x3F0, 0x400))
    assert {at for at in range(4096) if page[at] != after[at]} <= allowed


# Other exit codes.


def test_hv_features_are_two() -> None:
    bench = Bench()
    bench.fill(code=0x8000FFFD)
    assert bench.vmgexit() == RESUME
    assert bench.infos == (0, 3)


def test_termination_goes_to_userspace_with_the_msr() -> None:
    bench = Bench()
    bench.fill(code=0x8000FFFE)
    assert bench.vmgexit() == EXIT
    assert bench.run.exit_reason == 24
    assert struct.unpack_from("<IIQ", bench.page, 32) == (6, 1, GHCB)


def test_unsupported_event_fails_kvm_run() -> None:
    bench = Bench()
    bench.fill(code=0x8000FFFF)
    with pytest.raises(OSError) as raised:
        bench.vmgexit()
    assert raised.value.errno == errno.EINVAL


def test_jump_table_is_kept_and_given_back() -> None:
    bench = Bench()
    bench.fill(code=0x80000005, info1=0, info2=0x7000)
    bench.vmgexit()
    bench.fill(code=0x80000005, info1=1)
    bench.vmgexit()
    assert bench.infos == (0, 0x7000)
    bench.fill(code=0x80000005, info1=2)
    bench.vmgexit()
    assert bench.infos == (2, 5)


@pytest.mark.parametrize(("irqchip", "result"), [(False, EXIT), (True, HALT)])
def test_ap_halt_loop_waits_where_the_apic_is(irqchip: bool, result: int) -> None:
    bench = Bench(Host(irqchip=irqchip))
    bench.fill(code=0x80000004)
    assert bench.vmgexit() == result
    assert (bench.run.exit_reason == 32) is (result == EXIT)


# Extended requests.


def test_unreadable_request_page_fails_extended_request_with_eio() -> None:
    bench = Bench()
    bench.fill(EXTENDED, info1=UNMAPPED, rax=DATA, rbx=1)
    with pytest.raises(OSError) as raised:
        bench.vmgexit()
    assert raised.value.errno == errno.EIO
    assert bench.infos == (0, 0)


@pytest.mark.parametrize("msg_type", [0, 1, 2, 3, 4, 6, 7, 17, 0x45, 0x85, 255])
def test_other_messages_take_no_certificates(msg_type: int) -> None:
    """RAX and RBX are wrong, but KVM ignores them and does not exit."""
    bench = Bench()
    bench.set_request(msg_type)
    bench.poke(DATA, b"D" * 4096)
    bench.fill(EXTENDED, rax=DATA + 1, rbx=1)
    assert bench.vmgexit() == RESUME
    assert bench.infos == (0, 0)
    assert bench.peek(RESPONSE) == ANSWER
    assert bench.peek(DATA) == b"D" * 4096


@pytest.mark.parametrize(
    ("rax", "rbx"), [(None, 1), (DATA, None), (None, None), (DATA + 1, 1), (DATA + 0x800, 0)]
)
@pytest.mark.parametrize("enabled", [True, False])
def test_missing_or_unaligned_buffer_is_invalid_input(
    enabled: bool, rax: int | None, rbx: int | None
) -> None:
    bench = Bench(Host(certs_enabled=enabled))
    bench.fill(EXTENDED, rax=rax, rbx=rbx)
    assert bench.vmgexit() == RESUME
    assert bench.infos == (2, 5)
    assert bench.host.seen == []


@pytest.mark.parametrize(
    ("rax", "rbx"), [(DATA, 4), (DATA, 0), (0, 0), (UNMAPPED, 1), (0xFFFFFFFFFFFFF000, 2**64 - 1)]
)
def test_enabled_certificates_exit_with_the_registers_verbatim(rax: int, rbx: int) -> None:
    bench = Bench()
    bench.fill(EXTENDED, rax=rax, rbx=rbx)
    bench.run.snp_req_certs = (1, 2, 3)
    assert bench.vmgexit() == EXIT
    assert bench.run.exit_reason == 43
    assert bench.run.snp_req_certs == (rax, rbx, 0)
    assert bench.infos == (0, 0)
    assert bench.host.seen == []
    assert bench.peek(DATA) == bytes(4096)


def test_disabled_certificates_give_the_empty_table() -> None:
    bench = Bench(Host(certs_enabled=False))
    bench.poke(DATA, b"D" * 4096)
    bench.fill(EXTENDED, rax=DATA, rbx=1)
    assert bench.vmgexit() == RESUME
    assert bench.peek(DATA) == bytes(24) + b"D" * (4096 - 24)
    assert bench.infos == (0, 0)
    assert bench.peek(RESPONSE) == ANSWER


def test_disabled_certificates_without_a_buffer_write_nothing() -> None:
    bench = Bench(Host(certs_enabled=False))
    bench.poke(DATA, b"D" * 4096)
    bench.fill(EXTENDED, rax=DATA, rbx=0)
    assert bench.vmgexit() == RESUME
    assert bench.peek(DATA) == b"D" * 4096
    assert len(bench.host.seen) == 1


@pytest.mark.parametrize("rax", [UNMAPPED, READ_ONLY])
def test_disabled_certificates_with_unwritable_buffer_fail_kvm_run(rax: int) -> None:
    bench = Bench(Host(certs_enabled=False))
    bench.fill(EXTENDED, rax=rax, rbx=1)
    with pytest.raises(OSError) as raised:
        bench.vmgexit()
    assert raised.value.errno == errno.EIO
    assert bench.host.seen == []


# The firmware's part.


@pytest.mark.parametrize("msg_type", [0, 3, 5, 255])
def test_plain_request_never_asks_for_certificates(msg_type: int) -> None:
    bench = Bench()
    bench.set_request(msg_type)
    bench.fill(PLAIN)
    assert bench.vmgexit() == RESUME
    assert bench.host.seen == [bench.peek(REQUEST)]
    assert bench.peek(RESPONSE) == ANSWER
    assert bench.infos == (0, 0)


def test_unreadable_request_page_fails_with_eio_and_no_firmware() -> None:
    bench = Bench()
    bench.fill(PLAIN, info1=UNMAPPED)
    with pytest.raises(OSError) as raised:
        bench.vmgexit()
    assert raised.value.errno == errno.EIO
    assert bench.host.seen == []


@pytest.mark.parametrize("info2", [UNMAPPED, READ_ONLY])
def test_unwritable_response_page_fails_with_eio_after_the_firmware(info2: int) -> None:
    bench = Bench()
    bench.fill(PLAIN, info2=info2)
    with pytest.raises(OSError) as raised:
        bench.vmgexit()
    assert raised.value.errno == errno.EIO
    assert len(bench.host.seen) == 1
    assert bench.infos == (0, 0)


@pytest.mark.parametrize("status", [0x16, 0x1D, 0x27, 0x01])
def test_firmware_status_reaches_the_guest_and_the_old_response_is_copied(status: int) -> None:
    host = Host()
    bench = Bench(host)
    bench.fill(PLAIN)
    bench.vmgexit()
    bench.enter()
    bench.poke(RESPONSE, bytes(4096))
    host.status, host.answer = status, None
    bench.fill(PLAIN)
    assert bench.vmgexit() == RESUME
    assert bench.infos == (0, status)
    assert bench.peek(RESPONSE) == ANSWER  # the bounce page still held it


@pytest.mark.parametrize("code", [errno.EBADF, errno.ENODEV, errno.EBUSY, errno.ETIMEDOUT])
def test_a_firmware_that_is_not_reached_fails_kvm_run(code: int) -> None:
    bench = Bench(Host(failure=code))
    bench.fill(PLAIN)
    with pytest.raises(OSError) as raised:
        bench.vmgexit()
    assert raised.value.errno == code
    assert bench.peek(RESPONSE) == bytes(4096)


# Completion.


def exited(host: Host | None = None, npages: int = 4) -> Bench:
    bench = Bench(host)
    bench.fill(EXTENDED, rax=DATA, rbx=npages)
    assert bench.vmgexit() == EXIT
    return bench


def test_ret_0_runs_the_firmware() -> None:
    bench = exited()
    assert bench.complete() == RESUME
    assert bench.infos == (0, 0)
    assert bench.peek(RESPONSE) == ANSWER


def test_ret_0_uses_the_snapshots_addresses_and_the_current_request_page() -> None:
    """The guest rewrites GHCB and request page between exit and completion."""
    bench = exited()
    bench.fill(PLAIN, info1=DATA, info2=DATA + 0x1000)
    bench.set_request(3)
    assert bench.complete() == RESUME
    assert bench.host.seen[0][0x34] == 3
    assert bench.peek(RESPONSE) == ANSWER


@pytest.mark.parametrize(("ret", "info2"), [(28, INVALID_LEN), (11, BUSY), (5, GENERIC)])
def test_legal_errors_reach_the_guest_without_the_firmware(ret: int, info2: int) -> None:
    bench = exited()
    bench.run.answer_req_certs(ret, 9)
    assert bench.complete() == RESUME
    assert bench.infos == (0, info2)
    assert bench.host.seen == []
    assert bench.peek(RESPONSE) == bytes(4096)


def test_needed_pages_reach_rbx_only_when_the_guest_is_entered() -> None:
    bench = exited(npages=1)
    bench.run.answer_req_certs(28, 0x123456789)
    bench.complete()
    assert bench.get(Field.SW_EXITINFO2) == INVALID_LEN
    assert bench.get(Field.RBX) == 1
    bench.enter()
    assert bench.get(Field.RBX) == 0x123456789
    assert bench.bitmap == bitmap_of(x3F7=0x80, x3FC=0x0E, x3FE=0x18)


@pytest.mark.parametrize("ret", [0, 11, 5])
def test_npages_is_consumed_only_with_enospc(ret: int) -> None:
    bench = exited(npages=2)
    bench.run.answer_req_certs(ret, 77)
    bench.complete()
    bench.enter()
    assert bench.get(Field.RBX) == 2


@pytest.mark.parametrize("ret", [1, 2, 12, 22, 4, 29, 2**64 - 5, 2**64 - 28, 2**32, 1 << 63])
def test_any_other_answer_fails_kvm_run_and_loses_the_request(ret: int) -> None:
    """The next KVM_RUN enters the guest, which sees success although no response was written."""
    bench = exited()
    bench.run.answer_req_certs(ret)
    written = len(bench.arena.written)
    with pytest.raises(OSError) as raised:
        bench.complete()
    assert raised.value.errno == errno.EINVAL
    assert len(bench.arena.written) == written
    assert bench.complete() == RESUME
    bench.enter()
    assert bench.infos == (0, 0)
    assert bench.host.seen == []
    assert bench.peek(RESPONSE) == bytes(4096)


def test_a_failed_firmware_call_in_the_completion_also_loses_the_request() -> None:
    bench = exited(Host(failure=errno.EBADF))
    with pytest.raises(OSError):
        bench.complete()
    bench.host.failure = 0
    assert bench.complete() == RESUME
    assert bench.host.seen == []


def test_a_second_completion_does_not_repeat_the_first() -> None:
    bench = exited()
    bench.complete()
    bench.complete()
    assert len(bench.host.seen) == 1


# The MSR protocol.

RESET = 2 << 48 | 1 << 32 | 51 << 24 | 1


def test_msr_resets_to_the_sev_information() -> None:
    assert Bench().requests.msr == RESET


@pytest.mark.parametrize(
    ("request_", "response"),
    [
        (0x002, RESET),
        (7 << 32 | 0 << 30 | 4, 0xA0 << 32 | 5),
        (7 << 32 | 2 << 30 | 4, 0xC2 << 32 | 2 << 30 | 5),
        (7 << 32 | 3 << 30 | 4, 0xD3 << 32 | 3 << 30 | 5),
        (0x010, 0xFFFFFFFFFFFFF << 12 | 0x011),
        (0x5000 | 0x012, 0x5000 | 0x013),
        (0x080, 3 << 12 | 0x081),
        (3 << 52 | 0x5000 | 0x014, 1 << 63 | 0x015),  # no such operation
        (0x016, 0x016),
        (0xABC123FFF, 0xABC123FFF),
        (0x001, 0x001),
    ],
)
def test_msr_requests_and_responses(request_: int, response: int) -> None:
    bench = Bench()
    assert bench.vmgexit(request_) == RESUME
    assert bench.requests.msr == response
    assert bench.arena.written == []


def test_later_exits_must_use_the_registered_ghcb() -> None:
    bench = Bench(registered=0)
    bench.vmgexit(GHCB | 0x012)
    bench.fill(PLAIN)
    assert bench.vmgexit() == RESUME
    assert bench.infos == (0, 0)


@pytest.mark.parametrize(("operation", "attributes"), [(1, 16), (2, 0)])
@pytest.mark.parametrize(("answer", "response"), [(0, 0x015), (11, 1 << 63 | 0x015)])
def test_page_state_change_asks_userspace(
    operation: int, attributes: int, answer: int, response: int
) -> None:
    bench = Bench()
    assert bench.vmgexit(operation << 52 | 0x7000 | 0x014) == EXIT
    assert bench.run.exit_reason == 3
    assert struct.unpack_from("<7QQ", bench.page, 32) == (12, 0x7000, 1, attributes, 0, 0, 0, 0)
    struct.pack_into("<Q", bench.page, 88, answer)
    assert bench.complete() == RESUME
    assert bench.requests.msr == response


def test_an_invalid_answer_to_a_page_state_change_fails_kvm_run() -> None:
    bench = Bench()
    request = 2 << 52 | 0x7000 | 0x014
    assert bench.vmgexit(request) == EXIT
    struct.pack_into("<Q", bench.page, 88, 12)
    with pytest.raises(OSError) as raised:
        bench.complete()
    assert raised.value.errno == errno.EINVAL
    assert bench.requests.msr == request


def test_page_state_change_is_refused_if_userspace_does_not_support_it() -> None:
    bench = Bench(Host(exits_for_page_state=False))
    assert bench.vmgexit(2 << 52 | 0x7000 | 0x014) == RESUME
    assert bench.requests.msr == 1 << 63 | 0x015


@pytest.mark.parametrize("msr", [0x100, 1 << 12 | 3 << 16 | 0x100])
def test_termination_by_msr(msr: int) -> None:
    bench = Bench()
    assert bench.vmgexit(msr) == EXIT
    assert bench.run.exit_reason == 24
    assert struct.unpack_from("<IIQ", bench.page, 32) == (6, 1, msr)


@pytest.mark.parametrize("code", [0x010, 0x012, 0x014])
def test_snp_requests_of_another_guest_end_it(code: int) -> None:
    bench = Bench(Host(snp=False))
    assert bench.vmgexit(0x5000 | code) == EXIT
    assert bench.run.exit_reason == 24


def test_ap_reset_hold() -> None:
    bench = Bench()
    assert bench.vmgexit(0x006) == EXIT
    assert bench.run.exit_reason == 32
    assert bench.requests.msr == 0x007


# Whatever a guest writes.

_u64 = st.one_of(
    st.integers(0, 2**64 - 1),
    st.sampled_from([0, REQUEST, RESPONSE, DATA, READ_ONLY, UNMAPPED, GHCB, 2**64 - 4096, 5]),
)


@given(
    st.sampled_from([PLAIN, EXTENDED, 0x80000010, 0x80000001, 0x8000FFFE, 0x80000013, 0]) | _u64,
    st.tuples(_u64, _u64, _u64, _u64),
    st.binary(min_size=16, max_size=16) | st.just(b"\xff" * 16),
    st.sampled_from([0, 0, 0, 1]),
    st.booleans(),
    st.sampled_from([0, 5, 11, 28, 22]) | _u64,
    st.sampled_from([GHCB, GHCB, GHCB, 0x012 | GHCB, 0x002, UNMAPPED]) | _u64,
)
def test_hostile_requests_end_in_an_answer_or_an_errno_and_touch_only_their_pages(
    code: int,
    values: tuple[int, int, int, int],
    bitmap: bytes,
    usage: int,
    certs: bool,
    ret: int,
    msr: int,
) -> None:
    bench = Bench(Host(certs_enabled=certs))
    info1, info2, rax, rbx = values
    bench.fill(code, info1, info2, rax=rax, rbx=rbx, usage=usage)
    bench.poke(GHCB + 0x3F0, bitmap)

    def attempt(step: Callable[[], object]) -> None:
        try:
            step()
        except OSError as failed:
            assert failed.errno in (errno.EINVAL, errno.EIO)  # noqa: PT017 - success is fine too

    attempt(lambda: bench.vmgexit(msr))
    bench.run.answer_req_certs(ret, rbx)
    attempt(bench.complete)
    attempt(bench.enter)
    allowed = [(GHCB, 4096), (info2, 4096), (rax, 24)]
    if msr & 0xFFF == 0:
        allowed.append((msr, 4096))
    for address, size in bench.arena.written:
        gpa = address - BASE
        assert any(low <= gpa and gpa + size <= low + room for low, room in allowed)
        assert gpa < READ_ONLY
