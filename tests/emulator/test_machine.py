# SPDX-License-Identifier: Apache-2.0
"""The whole path in one process: a VMM's exit loop, KVM, firmware, and guests that ask."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from snpcerts.abi.cert_table import VCEK_GUID, CertTable, TableEntry, pages_of
from snpcerts.abi.guest_message import ReportRequest
from snpcerts.abi.kvm import ExitReason, Ioctl
from snpcerts.abi.report import Report
from snpcerts.abi.sev_guest import (
    EXITINFO2_NOT_SENT,
    SNP_GET_EXT_REPORT,
    ExtReportReq,
    GuestRequestIoctl,
)
from snpcerts.emulator.guest.linux import LinuxGuest
from snpcerts.emulator.guest.program import GuestCpu, LaunchedVm, Program, WaitUntil
from snpcerts.emulator.guest.scripted import ReportOutcome, ScriptedGuest
from snpcerts.emulator.guest.sev_guest_device import SevGuestDevice
from snpcerts.emulator.kvm.vm import Vm
from snpcerts.emulator.machine.in_process import Machine
from snpcerts.emulator.machine.reference_vmm import MEMORY_SIZE, ReferenceVm, build_vm
from tests.emulator.firmware_guest import verify
from tests.emulator.kvm_rig import VirtualClock, make_machine, make_platform

TABLE = CertTable((TableEntry(VCEK_GUID, os.urandom(5000)),)).encode()
Reply = Callable[[ReferenceVm, int], None]


def scripted(outcomes: list[ReportOutcome], **script: Any) -> tuple[Machine, VirtualClock]:
    return make_machine(guest=lambda vm: ScriptedGuest(vm, on_report=outcomes.append, **script))


def with_table(vm: ReferenceVm, vcpu: int) -> None:
    """What a correct VMM does with exit 43."""
    gpa, npages, ret = vm.runs[vcpu].snp_req_certs
    assert ret == 0
    if npages < pages_of(len(TABLE)):
        vm.runs[vcpu].answer_req_certs(errno.ENOSPC, pages_of(len(TABLE)))
        return
    vm.write(gpa, TABLE)


def saying(ret: int, npages: int | None = None) -> Reply:
    return lambda vm, vcpu: vm.runs[vcpu].answer_req_certs(ret, npages)


def serve(vm: ReferenceVm, vcpu: int = 0, reply: Reply = with_table) -> int:
    """Run a vCPU until it shuts down; return how many certificate exits there were."""
    exits = 0
    while True:
        vm.run(vcpu)
        if vm.runs[vcpu].exit_reason == ExitReason.SHUTDOWN:
            return exits
        assert vm.runs[vcpu].exit_reason == ExitReason.SNP_REQ_CERTS
        exits += 1
        reply(vm, vcpu)


def failure(call: Callable[[], object]) -> int:
    with pytest.raises(OSError) as raised:
        call()
    assert raised.value.errno is not None
    return raised.value.errno


# End to end.


def test_the_guest_gets_the_table_verbatim_and_a_report_that_verifies() -> None:
    outcomes: list[ReportOutcome] = []
    machine, _ = scripted(outcomes, reports=3)
    vm = build_vm(machine, host_data=b"H" * 32)
    assert serve(vm) == 3
    assert [outcome.number for outcome in outcomes] == [0, 1, 2]
    key = machine.platform.firmware.signing_public_key()
    assert key is not None
    for outcome in outcomes:
        assert outcome.table == TABLE.ljust(4 * 4096, b"\0")
        assert (outcome.errno, outcome.exitinfo2, outcome.tries, outcome.exits) == (0, 0, 1, 1)
        assert outcome.report[0x50:0x90] == outcome.report_data
        verify(Report.unpack(outcome.report), key)
    vm.close()
    assert machine.platform.vms == {}


def test_the_guest_learns_the_size_and_asks_again() -> None:
    outcomes: list[ReportOutcome] = []
    machine, _ = scripted(outcomes, reports=2, first_pages=0)
    assert serve(build_vm(machine)) == 3
    first, second = outcomes
    assert (first.tries, first.exits) == (2, 3)  # too small, plain, enough
    assert (second.tries, second.exits) == (1, 1)
    assert first.table == TABLE.ljust(2 * 4096, b"\0")


@pytest.mark.parametrize("certs", [True, False])
def test_without_certificates_the_guest_gets_the_empty_table(certs: bool) -> None:
    outcomes: list[ReportOutcome] = []
    machine, _ = scripted(outcomes)
    vm = build_vm(machine, certs=certs)
    if certs:
        serve(vm, reply=saying(0))
    else:
        assert serve(vm) == 0
    assert outcomes[0].table == bytes(4 * 4096)
    assert outcomes[0].succeeded


def test_a_table_larger_than_the_driver_takes_is_out_of_reach() -> None:
    outcomes: list[ReportOutcome] = []
    machine, _ = scripted(outcomes)
    serve(build_vm(machine), reply=saying(errno.ENOSPC, 5))
    (outcome,) = outcomes
    assert (outcome.errno, outcome.exitinfo2, outcome.pages_wanted) == (errno.EINVAL, 0xFF, 5)


def test_busy_costs_two_seconds_each_and_the_same_report() -> None:
    outcomes: list[ReportOutcome] = []
    machine, clock = scripted(outcomes)
    replies = iter([saying(errno.EAGAIN), saying(errno.EAGAIN), with_table])
    vm, started = build_vm(machine), clock()

    def in_turn(vm: ReferenceVm, vcpu: int) -> None:
        next(replies)(vm, vcpu)

    assert serve(vm, reply=in_turn) == 3
    assert outcomes[0].seconds == clock() - started == 4.0
    assert outcomes[0].table.startswith(TABLE)


def test_busy_for_a_minute_costs_the_guest_its_key() -> None:
    outcomes: list[ReportOutcome] = []
    machine, clock = scripted(outcomes, reports=5)
    vm, started = build_vm(machine), clock()
    assert serve(vm, reply=saying(errno.EAGAIN)) == 32
    assert clock() - started == 62.0
    assert [outcome.errno for outcome in outcomes] == [errno.ETIMEDOUT]


def test_eio_costs_the_guest_its_key_at_once() -> None:
    outcomes: list[ReportOutcome] = []
    machine, _ = scripted(outcomes, reports=5)
    assert serve(build_vm(machine), reply=saying(errno.EIO)) == 1
    assert [(o.errno, o.exitinfo2) for o in outcomes] == [(errno.EIO, 0xFFFFFFFF << 32)]


def test_reports_are_paused_between() -> None:
    outcomes: list[ReportOutcome] = []
    machine, clock = scripted(outcomes, reports=3, pause=7.0)
    vm, started = build_vm(machine), clock()
    serve(vm)
    assert clock() - started == 14.0


def test_report_data_is_the_users() -> None:
    outcomes: list[ReportOutcome] = []
    machine, _ = scripted(outcomes, reports=2, report_data=lambda cpu, n: bytes([cpu, n]) * 32)
    serve(build_vm(machine))
    assert [outcome.report[0x50:0x90] for outcome in outcomes] == [
        b"\0\0" * 32,
        b"\0\1" * 32,
    ]


def test_a_vcpu_that_has_its_reports_waits_for_the_others() -> None:
    """The first vCPU to end would shut the machine down before the others have reports."""
    outcomes: list[ReportOutcome] = []

    def guest(vm: LaunchedVm) -> ScriptedGuest:
        return ScriptedGuest(vm, reports=2, on_report=outcomes.append)

    vm = build_vm(Machine(make_platform(), guest=guest), vcpus=2)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(serve, vm, 0)
        while len(outcomes) < 2:
            assert not first.done()
        second = pool.submit(serve, vm, 1)
        assert (first.result(), second.result()) == (2, 2)
    assert sorted((each.vcpu, each.number) for each in outcomes) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_guest_with_no_reports_left_calls_when_done() -> None:
    """Reports are counted across resets of the machine. A guest that made all of them waits."""
    outcomes: list[ReportOutcome] = []
    made: dict[int, int] = {}
    done = threading.Event()
    machine, _ = scripted(outcomes, reports=2, made=made, when_done=done.set)
    assert serve(build_vm(machine)) == 2
    assert made == {0: 2}
    assert not done.is_set()
    again = build_vm(machine)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(failure, again.run)
        assert done.wait(30)
        while not machine.kick(again.vcpus[0]):
            assert not ended.done()
        assert ended.result() == errno.EINTR
    assert len(outcomes) == 2


def test_plain_reports_never_reach_the_vmm() -> None:
    outcomes: list[ReportOutcome] = []
    machine, _ = scripted(outcomes, reports=2, extended=False)
    assert serve(build_vm(machine)) == 0
    assert all(outcome.succeeded and not outcome.table for outcome in outcomes)


def next_page_states(vm: ReferenceVm) -> list[tuple[str, int, int]]:
    """Serve page state changes until another exit; return state, GPA and pages of each."""
    found = []
    vm.run_once()
    while vm.runs[0].exit_reason == ExitReason.HYPERCALL:
        gpa, pages, attributes = vm.runs[0].map_gpa_range
        size = " 2M" if attributes & 1 else ""
        found.append((("private" if attributes & 16 else "shared") + size, gpa, pages))
        vm.change_page_state()
        vm.run_once()
    return found


def test_a_guest_shares_its_buffer_for_a_request_and_takes_it_back() -> None:
    outcomes: list[ReportOutcome] = []
    machine, _ = scripted(outcomes, reports=2, first_pages=2)
    vm = build_vm(machine)
    top = MEMORY_SIZE - 7 * 4096
    assert next_page_states(vm) == [
        ("shared", top, 1),  # GHCB
        ("private", top + 4096, 6),
        ("shared", top + 4096, 1),
        ("shared", top + 8192, 1),
        ("shared", top + 12288, 2),
    ]
    for again in (True, False):
        assert vm.runs[0].asks_for_certs
        with_table(vm, 0)
        changes = next_page_states(vm)
        assert changes[0] == ("private", top + 12288, 2)
        assert changes[1:] == [("shared", top + 12288, 2)] * again
    assert all(outcome.succeeded for outcome in outcomes)


def test_a_guest_with_room_for_it_shares_2_mib_at_once() -> None:
    machine, _ = scripted([])
    vm = build_vm(machine, memory_size=32 << 20, base=1 << 32)
    changes = next_page_states(vm)
    where = (1 << 32) + (22 << 20)
    assert [each for each in changes if each[0].endswith("2M")] == [
        ("private 2M", where, 512),
        ("shared 2M", where, 512),
    ]


@pytest.mark.parametrize("until", [0, 1, 4])
def test_a_vmm_that_refuses_a_page_state_change_ends_the_guest(until: int) -> None:
    """Whether it asked by MSR or by list, Linux then terminates itself with the reason PSC."""
    machine, _ = scripted([])
    vm = build_vm(machine)
    for _ in range(until):
        vm.run_once()
        vm.change_page_state()
    vm.run_once()
    vm.runs[0].answer_hypercall(errno.EINVAL)
    vm.run_once()
    assert vm.runs[0].exit_reason == ExitReason.SYSTEM_EVENT
    page = machine.mmap_run(vm.vcpus[0])
    assert int.from_bytes(page[40:48], "little") == 1 << 16 | 1 << 12 | 0x100
    vm.run_once()
    assert vm.runs[0].exit_reason == ExitReason.SHUTDOWN


def test_without_the_exit_for_hypercalls_a_page_state_change_fails() -> None:
    machine, _ = scripted([])
    vm = build_vm(machine)
    (kvm_vm,) = machine.platform.vms.values()
    assert isinstance(kvm_vm, Vm)
    kvm_vm.hypercalls = 0
    vm.run_once()
    assert vm.runs[0].exit_reason == ExitReason.SYSTEM_EVENT


def test_a_vmm_that_says_yes_and_changes_nothing_has_a_memory_fault() -> None:
    """The VMM may still make the change after the fault."""
    outcomes: list[ReportOutcome] = []
    machine, _ = scripted(outcomes)
    vm = build_vm(machine)
    vm.run_once()
    gpa, _, _ = vm.runs[0].map_gpa_range
    assert failure(vm.run_once) == errno.EFAULT
    assert vm.runs[0].exit_reason == ExitReason.MEMORY_FAULT
    page = machine.mmap_run(vm.vcpus[0])
    assert struct.unpack_from("<QQQ", page, 32) == (0, gpa, 4096)
    vm.set_private(gpa, 4096, private=False)
    assert serve(vm) == 1
    assert outcomes[0].succeeded


def test_five_vcpus_ask_at_once_on_four_keys() -> None:
    """The fifth shares VMPCK 0 with the first and waits for its turn in the guest."""
    outcomes: list[ReportOutcome] = []
    machine, _ = scripted(outcomes, reports=5)
    vm = build_vm(machine, vcpus=5)
    for vcpu in range(1, 4):
        vm.run(vcpu)
    vm.run(0)
    assert [run.exit_reason for run in vm.runs[:4]] == [ExitReason.SNP_REQ_CERTS] * 4
    with ThreadPoolExecutor(5) as pool:
        fifth = pool.submit(serve, vm, 4)
        others = []
        for vcpu in range(4):
            with_table(vm, vcpu)
            others.append(pool.submit(serve, vm, vcpu))
        assert fifth.result(30) == 5
        assert [each.result(30) for each in others] == [4] * 4
    assert len(outcomes) == 25
    assert all(outcome.succeeded for outcome in outcomes)
    assert {outcome.report[0x30] for outcome in outcomes} == {0, 1, 2, 3}  # VMPL


def test_the_lock_recipe_signs_within_the_first_run() -> None:
    outcomes: list[ReportOutcome] = []
    machine, _ = scripted(outcomes)
    vm = build_vm(machine)
    vm.run()
    with_table(vm, 0)
    vm.runs[0].immediate_exit = 1
    (kvm_vm,) = machine.platform.vms.values()
    assert isinstance(kvm_vm, Vm)
    context = kvm_vm.context
    assert context is not None
    assert context.counters[0] == 0
    assert failure(vm.run) == errno.EINTR
    assert context.counters[0] == 2
    assert outcomes == []
    vm.runs[0].immediate_exit = 0
    serve(vm)
    assert outcomes[0].table.startswith(TABLE)


# /dev/sev-guest of a VM that a VMM runs.


def test_a_program_in_the_guest_gets_its_table() -> None:
    machine, _ = make_machine()
    vm = build_vm(machine)
    (kvm_vm,) = machine.platform.vms.values()
    assert isinstance(kvm_vm, Vm)
    machine.attach("/dev/sev-guest", lambda: SevGuestDevice(kvm_vm))
    fd = machine.open("/dev/sev-guest")
    certs, response = bytearray(8192), bytearray(4000)

    def address(buffer: bytearray) -> int:
        return ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))

    data = ReportRequest(report_data=b"N" * 64).pack()
    request = bytearray(ExtReportReq(data, address(certs), len(certs)).pack())
    outer = bytearray(GuestRequestIoctl(1, address(request), address(response)).pack())

    def run() -> None:
        vm.run()
        with_table(vm, 0)
        while failure(vm.run) != errno.EINTR:
            pass

    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(machine.ioctl, fd, SNP_GET_EXT_REPORT, outer)
        ran = pool.submit(run)
        assert asked.result(30) == 0
        while not machine.kick(vm.vcpus[0]):  # the vCPU has gone back into the guest
            pass
        ran.result(30)
    assert bytes(certs) == TABLE.ljust(8192, b"\0")
    assert response[32 + 0x50 : 32 + 0x90] == b"N" * 64
    vm.close()
    assert failure(lambda: machine.ioctl(fd, SNP_GET_EXT_REPORT, outer)) == errno.ENODEV


def test_a_scripted_guest_has_no_sev_guest_device() -> None:
    machine, _ = scripted([])
    vm = build_vm(machine)
    vm.run()
    (kvm_vm,) = machine.platform.vms.values()
    machine.attach("/dev/sev-guest", lambda: SevGuestDevice(kvm_vm))
    fd = machine.open("/dev/sev-guest")
    buffer = bytearray(4096)
    place = ctypes.addressof((ctypes.c_char * 4096).from_buffer(buffer))
    outer = bytearray(GuestRequestIoctl(1, place, place, EXITINFO2_NOT_SENT).pack())
    assert failure(lambda: machine.ioctl(fd, SNP_GET_EXT_REPORT, outer)) == errno.ENODEV


# The machine.


def test_kick_interrupts_a_vcpu_that_waits_in_the_guest() -> None:
    machine, _ = make_machine(guest=LinuxGuest)
    vm = build_vm(machine)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(failure, vm.run)
        while not machine.kick(vm.vcpus[0]):
            pass
        assert running.result(30) == errno.EINTR
    assert vm.runs[0].exit_reason == ExitReason.INTR
    assert not machine.kick(vm.vcpus[0])


def test_descriptors_are_those_of_the_machine() -> None:
    machine = Machine(make_platform())
    assert failure(lambda: machine.open("/dev/null")) == errno.ENOENT
    assert failure(lambda: machine.ioctl(3, Ioctl.GET_API_VERSION)) == errno.EBADF
    fd = machine.open("/dev/kvm")
    assert machine.ioctl(fd, Ioctl.GET_API_VERSION) == 12
    assert failure(lambda: machine.mmap_run(fd)) == errno.ENODEV
    machine.close(fd)
    assert failure(lambda: machine.close(fd)) == errno.EBADF


def test_a_vm_closed_during_a_run_lives_until_the_run_is_done() -> None:
    entered, released = threading.Event(), threading.Event()

    class Patient:
        def program(self, _: GuestCpu) -> Program:
            entered.set()
            yield WaitUntil(released.is_set)

    machine, _ = make_machine(guest=lambda _: Patient())
    vm = build_vm(machine)
    (kvm_vm,) = machine.platform.vms.values()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(vm.run)
        assert entered.wait(30)
        vm.close()
        assert kvm_vm.alive
        assert failure(lambda: machine.kick(vm.vcpus[0])) == errno.EBADF
        released.set()
        machine.wake()
        running.result(30)
    assert vm.runs[0].exit_reason == ExitReason.SHUTDOWN
    assert not kvm_vm.alive


def test_two_vms_of_one_process_have_names_of_their_own() -> None:
    machine, _ = make_machine()
    first, second = build_vm(machine), build_vm(machine)
    assert list(machine.platform.vms) == [f"vm-{os.getpid()}", f"vm-{os.getpid()}-2"]
    first.close()
    second.close()
    assert machine.platform.firmware.snp_platform_status().guest_count == 0
