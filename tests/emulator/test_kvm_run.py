# SPDX-License-Identifier: Apache-2.0
"""KVM_RUN: the order of its checks, what EINTR leaves behind, and what waits."""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.ghcb import Field, GhcbPage
from snpcerts.abi.kvm import (
    RUN_DIRTY_REGS,
    RUN_VALID_REGS,
    VCPU_MMAP_SIZE,
    ExitReason,
    Ioctl,
    MemoryAttributes,
    RunView,
)
from snpcerts.emulator.guest.program import (
    GuestCpu,
    LaunchedVm,
    Program,
    Sleep,
    StartProcessors,
    Vmgexit,
    WaitUntil,
)
from snpcerts.emulator.kvm.vcpu import Vcpu
from snpcerts.emulator.syscall.device import Pending
from tests.emulator.kvm_calls import BAD, COMMAND, MEMORY, SEV_FD, Process
from tests.emulator.kvm_rig import make_platform

GHCB, REQUEST, RESPONSE, DATA = 0x8000, 0x9000, 0xA000, 0xB000
EXTENDED = 0x80000012
STALE = 0xAAAAAAAA


@dataclass
class Clock:
    now: float = 50.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Written:
    """A guest whose vCPUs execute a test's ``script``."""

    script: Callable[[GuestCpu], Program]
    started: list[int] = field(default_factory=list)

    def __call__(self, _: LaunchedVm) -> Written:
        return self

    def program(self, cpu: GuestCpu) -> Program:
        self.started.append(cpu.index)
        return self.script(cpu)


def register(cpu: GuestCpu) -> Program:
    yield Vmgexit(GHCB + cpu.index * 0x4000 | 0x012)


def ask(cpu: GuestCpu, *, npages: int = 4) -> Program:
    """One extended request whose message type is that of a report request; it is not sealed."""
    at = cpu.index * 0x4000
    yield from cpu.write(REQUEST + at, b"\0" * 0x34 + b"\5" + b"\0" * (4096 - 0x35))
    page = bytearray(4096)
    ghcb = GhcbPage(page)
    for which, value in (
        (Field.RAX, DATA + at),
        (Field.RBX, npages),
        (Field.SW_EXITCODE, EXTENDED),
        (Field.SW_EXITINFO1, REQUEST + at),
        (Field.SW_EXITINFO2, RESPONSE + at),
    ):
        ghcb.put(which, value)
    yield from cpu.write(GHCB + at, bytes(page))
    yield Vmgexit(GHCB + at)


def asking(times: int = 1) -> Callable[[GuestCpu], Program]:
    def script(cpu: GuestCpu) -> Program:
        yield from register(cpu)
        for _ in range(times):
            yield from ask(cpu)

    return script


def launch(
    script: Callable[[GuestCpu], Program], *, vcpus: int = 1
) -> tuple[Process, list[Vcpu], Clock]:
    clock = Clock()
    process = Process(make_platform(clock=clock), Written(script))
    vm, made = process.launch(vcpus=vcpus)
    vm.private.remove(GHCB, GHCB + vcpus * 0x4000 + 4 * 4096)  # what the guest shares
    return process, made, clock


def run_fails(process: Process, vcpu: Vcpu, argument: int = 0) -> int:
    with pytest.raises(OSError) as raised:
        process.run(vcpu, argument)
    assert raised.value.errno is not None
    return raised.value.errno


def waiting(process: Process, vcpu: Vcpu) -> Pending:
    result = process.run(vcpu)
    assert not isinstance(result, int)
    return result


def ghcb_field(process: Process, which: Field) -> int:
    return int.from_bytes(process.arena.read(MEMORY + GHCB + which, 8), "little")


# Order.


def test_the_shared_memory_is_the_run_structure() -> None:
    process, (vcpu,), _ = launch(asking())
    mapped = mmap.mmap(vcpu.run_memfd, VCPU_MMAP_SIZE)
    assert process.run(vcpu) == 0
    assert RunView(memoryview(mapped)).snp_req_certs == (DATA, 4, 0)


@pytest.mark.parametrize("size", [0, 4096, 1 << 20])
def test_the_shared_memory_cannot_be_resized(size: int) -> None:
    _, (vcpu,), _ = launch(asking())
    with pytest.raises(PermissionError):
        os.ftruncate(vcpu.run_memfd, size)


def test_another_process_gets_eio_before_anything_else() -> None:
    process, (vcpu,), _ = launch(asking())
    vcpu.run.immediate_exit = 1
    with pytest.raises(OSError) as raised:
        vcpu.ioctl(process.caller(pid=2), Ioctl.RUN, 1)
    assert raised.value.errno == errno.EIO


def test_an_argument_is_einval_and_leaves_the_completion_armed() -> None:
    process, (vcpu,), _ = launch(asking())
    process.run(vcpu)
    vcpu.run.answer_req_certs(5)
    assert run_fails(process, vcpu, argument=1) == errno.EINVAL
    assert process.run(vcpu) == 0
    assert ghcb_field(process, Field.SW_EXITINFO2) == 0xFFFFFFFF << 32


@pytest.mark.parametrize("offset", [RUN_VALID_REGS, RUN_DIRTY_REGS])
@pytest.mark.parametrize("bits", [1, 8, 1 << 63])
def test_sync_registers_of_a_protected_guest_are_einval_before_the_completion(
    offset: int, bits: int
) -> None:
    process, (vcpu,), _ = launch(asking())
    process.run(vcpu)
    vcpu.run.answer_req_certs(11)
    struct.pack_into("<Q", vcpu.page, offset, bits)
    assert run_fails(process, vcpu) == errno.EINVAL
    assert ghcb_field(process, Field.SW_EXITINFO2) == 0
    struct.pack_into("<Q", vcpu.page, offset, 0)
    assert process.run(vcpu) == 0
    assert ghcb_field(process, Field.SW_EXITINFO2) == 2 << 32


@pytest.mark.parametrize(("bits", "allowed"), [(7, True), (8, False)])
def test_sync_registers_of_an_ordinary_guest(bits: int, allowed: bool) -> None:
    process = Process()
    vcpu = process.create_vcpu(process.create_vm(0))
    struct.pack_into("<Q", vcpu.page, RUN_VALID_REGS, bits)
    if allowed:
        assert process.run(vcpu) == 0
        assert vcpu.run.exit_reason == 17  # nothing here executes instructions
    else:
        assert run_fails(process, vcpu) == errno.EINVAL


@pytest.mark.parametrize("ret", [0, 28, 11, 5])
def test_immediate_exit_runs_the_completion_and_not_the_guest(ret: int) -> None:
    """This is the hand-shake: with it, a VMM can hold its lock until the firmware has signed."""
    process, (vcpu,), _ = launch(asking(times=2))
    process.run(vcpu)
    vcpu.run.answer_req_certs(ret, 9)
    vcpu.run.immediate_exit = 1
    before = process.arena.read(MEMORY + GHCB, 4096)
    for _ in range(2):  # it is never cleared, and the completion never repeated
        assert run_fails(process, vcpu) == errno.EINTR
        assert vcpu.run.exit_reason == 43  # stale
        assert vcpu.run.immediate_exit == 1
    after = process.arena.read(MEMORY + GHCB, 4096)
    assert after[0x318:0x320] == before[0x318:0x320]  # RBX comes at the next entry
    assert (after[0x3A0:0x3A8] != bytes(8)) or ret == 0
    vcpu.run.immediate_exit = 0
    assert process.run(vcpu) == 0
    assert vcpu.run.exit_reason == 43


def test_immediate_exit_leaves_a_sentinel_in_exit_reason() -> None:
    process, (vcpu,), _ = launch(asking())
    vcpu.run.immediate_exit = 1
    vcpu.run.exit_reason = STALE
    assert run_fails(process, vcpu) == errno.EINTR
    assert vcpu.run.exit_reason == STALE


@pytest.mark.parametrize("immediate_exit", [0, 1])
def test_a_failing_completion_wins_over_immediate_exit(immediate_exit: int) -> None:
    process, (vcpu,), _ = launch(asking())
    process.run(vcpu)
    vcpu.run.answer_req_certs(12)
    vcpu.run.immediate_exit = immediate_exit
    assert run_fails(process, vcpu) == errno.EINVAL
    vcpu.run.immediate_exit = 0
    assert process.run(vcpu) == 0
    assert vcpu.run.exit_reason == 8  # the guest went on as if it had been served
    assert ghcb_field(process, Field.SW_EXITINFO2) == 0


def test_enospc_with_immediate_exit_shows_rbx_only_after_the_next_run() -> None:
    process, (vcpu,), _ = launch(asking())
    process.run(vcpu)
    vcpu.run.answer_req_certs(28, 9)
    vcpu.run.immediate_exit = 1
    run_fails(process, vcpu)
    assert ghcb_field(process, Field.SW_EXITINFO2) == 1 << 32
    assert ghcb_field(process, Field.RBX) == 4
    vcpu.run.immediate_exit = 0
    process.run(vcpu)
    assert ghcb_field(process, Field.RBX) == 9


def test_closing_dev_sev_makes_the_answered_request_fail_with_ebadf() -> None:
    process, (vcpu,), _ = launch(asking())
    process.run(vcpu)
    sev = process.devices.pop(SEV_FD)
    assert run_fails(process, vcpu) == errno.EBADF
    process.devices[SEV_FD] = process.kvm  # open, but something else
    process.devices[SEV_FD] = sev
    assert process.run(vcpu) == 0


def test_the_number_and_not_the_file_is_remembered() -> None:
    process, (vcpu,), _ = launch(asking())
    process.run(vcpu)
    process.devices[SEV_FD] = process.kvm
    assert run_fails(process, vcpu) == errno.EBADF


@pytest.mark.parametrize("code", [errno.ENODEV, errno.EBUSY, errno.ETIMEDOUT])
def test_a_psp_that_does_not_answer_fails_kvm_run(code: int) -> None:
    process, (vcpu,), _ = launch(asking())
    process.run(vcpu)
    process.platform.psp_errno = code
    assert run_fails(process, vcpu) == code


def test_firmware_status_does_not_stop_the_vcpu() -> None:
    """The request of this test is not a sealed message, so the firmware refuses it."""
    process, (vcpu,), _ = launch(asking())
    process.run(vcpu)
    assert process.run(vcpu) == 0
    assert vcpu.run.exit_reason == 8
    assert ghcb_field(process, Field.SW_EXITINFO2) == 0x16


# Before the guest can run.


def test_a_vm_without_init2_fails_with_einval_after_immediate_exit() -> None:
    process = Process()
    vcpu = process.create_vcpu(process.create_vm())
    vcpu.run.immediate_exit = 1
    assert run_fails(process, vcpu) == errno.EINTR
    vcpu.run.immediate_exit = 0
    assert run_fails(process, vcpu) == errno.EINVAL


def test_a_vm_that_was_not_launched_fails_to_enter() -> None:
    process = Process()
    vm = process.create_vm()
    process.init2(vm)
    vcpu = process.create_vcpu(vm)
    assert process.run(vcpu) == 0
    assert vcpu.run.exit_reason == 9


def test_registers_are_out_of_reach_once_launched() -> None:
    process = Process()
    vm = process.create_vm()
    vcpu = process.create_vcpu(vm)
    process.arena.write(COMMAND, b"r" * 144)
    assert vcpu.ioctl(process.caller(), Ioctl.RUN + 2 | 0x40900000, COMMAND) == 0
    process.arena.write(COMMAND, bytes(144))
    assert vcpu.ioctl(process.caller(), 0x8090AE81, COMMAND) == 0
    assert process.arena.read(COMMAND, 144) == b"r" * 144
    process, (vcpu,), _ = launch(asking())
    for request in (0x8090AE81, 0x4090AE82):
        with pytest.raises(OSError) as raised:
            vcpu.ioctl(process.caller(), request, COMMAND)
        assert raised.value.errno == errno.EINVAL


# Waiting.


def test_sleep_waits_on_the_clock() -> None:
    def script(_: GuestCpu) -> Program:
        yield Sleep(2.0)

    process, (vcpu,), clock = launch(script)
    run = waiting(process, vcpu)
    assert run.deadline == 52.0
    clock.now = 51.9
    assert run.poll() is None
    clock.now = 52.0
    assert run.poll() == 0
    assert vcpu.run.exit_reason == 8


def test_a_signal_is_eintr_with_exit_reason_intr_and_the_sleep_continues() -> None:
    def script(_: GuestCpu) -> Program:
        yield Sleep(2.0)

    process, (vcpu,), clock = launch(script)
    run = waiting(process, vcpu)
    process.signal = True
    with pytest.raises(OSError) as raised:
        run.poll()
    assert raised.value.errno == errno.EINTR
    assert vcpu.run.exit_reason == 10
    process.signal = False
    assert waiting(process, vcpu).deadline == 52.0
    clock.now = 60


def test_a_cancelled_run_is_as_an_interrupted_one() -> None:
    flag: list[int] = []

    def script(_: GuestCpu) -> Program:
        yield WaitUntil(lambda: bool(flag))

    process, (vcpu,), _ = launch(script)
    run = waiting(process, vcpu)
    assert run.deadline is None
    run.cancel()
    assert vcpu.run.exit_reason == 10
    flag.append(1)
    assert process.run(vcpu) == 0
    assert vcpu.run.exit_reason == 8


def test_a_signal_before_the_guest_is_entered_is_eintr_too() -> None:
    process, (vcpu,), _ = launch(asking())
    process.signal = True
    assert run_fails(process, vcpu) == errno.EINTR
    assert vcpu.run.exit_reason == 10


def test_immediate_exit_is_sampled_once() -> None:
    def script(_: GuestCpu) -> Program:
        yield Sleep(2.0)

    process, (vcpu,), clock = launch(script)
    run = waiting(process, vcpu)
    vcpu.run.immediate_exit = 1
    assert run.poll() is None
    clock.now = 52
    assert run.poll() == 0


def test_exit_reason_is_unknown_while_the_guest_runs() -> None:
    def script(_: GuestCpu) -> Program:
        yield Sleep(2.0)

    process, (vcpu,), _ = launch(script)
    vcpu.run.exit_reason = STALE
    waiting(process, vcpu)
    assert vcpu.run.exit_reason == 0


def test_a_second_run_of_a_vcpu_waits_for_the_first() -> None:
    process, (vcpu,), clock = launch(sleepy)
    first = waiting(process, vcpu)
    second = waiting(process, vcpu)
    assert second.deadline is None
    assert second.poll() is None
    clock.now = 52
    assert second.poll() is None
    assert first.poll() == 0
    assert vcpu.run.exit_reason == 43
    assert second.poll() == 0
    assert vcpu.run.exit_reason == 8


def sleepy(cpu: GuestCpu) -> Program:
    yield Sleep(2.0)
    yield from register(cpu)
    yield from ask(cpu)


def test_vcpus_are_independent() -> None:
    """Both wait in their exits; the one answered first resumes first."""
    process, (first, second), _ = launch(asking(), vcpus=2)
    assert process.run(first) == 0
    assert process.run(second) == 0
    assert second.run.snp_req_certs == (DATA + 0x4000, 4, 0)
    second.run.answer_req_certs(5)
    assert process.run(second) == 0
    assert second.run.exit_reason == 8
    assert first.run.exit_reason == 43
    first.run.answer_req_certs(11)
    assert process.run(first) == 0
    assert ghcb_field(process, Field.SW_EXITINFO2) == 2 << 32


def test_a_guest_that_never_waits_lets_others_have_their_turn() -> None:
    def script(_: GuestCpu) -> Program:
        while True:
            yield Vmgexit(0x002)

    process, (vcpu,), clock = launch(script)
    run = waiting(process, vcpu)
    assert run.deadline is not None
    assert run.deadline <= clock.now
    assert run.poll() is None


def test_a_guest_that_ended_keeps_shutting_down() -> None:
    process, (vcpu,), _ = launch(ended)
    for _ in range(2):
        assert process.run(vcpu) == 0
        assert vcpu.run.exit_reason == 8


def ended(_: GuestCpu) -> Program:
    yield from ()


def test_guest_memory_that_went_away_is_a_memory_fault() -> None:
    process, (vcpu,), _ = launch(asking())
    process.arena.holes.add(MEMORY + REQUEST)
    assert run_fails(process, vcpu) == errno.EFAULT
    assert vcpu.run.exit_reason == 39
    assert struct.unpack_from("<QQQ", vcpu.page, 32) == (0, REQUEST, 4096)
    assert run_fails(process, vcpu) == errno.EFAULT  # the guest tries again
    process.arena.holes.clear()
    assert process.run(vcpu) == 0
    assert vcpu.run.exit_reason == 43


@pytest.mark.parametrize("private", [False, True])
def test_an_access_that_disagrees_with_the_pages_attribute_is_a_memory_fault(private: bool) -> None:
    """The guest repeats the access after the fault, so a VMM can change the attribute first."""

    def script(cpu: GuestCpu) -> Program:
        if private:
            yield from cpu.use_private(DATA, 2 * 4096)
        else:
            yield from cpu.write(DATA + 0x10, bytes(4096))
        yield Vmgexit(0x100)

    def set_private(page: int, attributes: int) -> None:
        wanted = MemoryAttributes(address=page, size=4096, attributes=attributes)
        process.arena.write(COMMAND, wanted.pack())
        assert process.ioctl(vm, Ioctl.SET_MEMORY_ATTRIBUTES, COMMAND) == 0

    process = Process(make_platform(), Written(script))
    vm, (vcpu,) = process.launch()
    set_private(DATA, 8 * (not private))
    set_private(DATA + 4096, 8 * (not private))
    for page in (DATA, DATA + 4096):
        for _ in range(2):
            assert run_fails(process, vcpu) == errno.EFAULT
            assert vcpu.run.exit_reason == ExitReason.MEMORY_FAULT
            assert struct.unpack_from("<QQQ", vcpu.page, 32) == (8 * private, page, 4096)
        set_private(page, 8 * private)
    assert process.run(vcpu) == 0
    assert vcpu.run.exit_reason == ExitReason.SYSTEM_EVENT


# Processors that were not started.


def test_with_an_irqchip_other_vcpus_wait_to_be_started() -> None:
    def script(cpu: GuestCpu) -> Program:
        if cpu.index == 0:
            yield StartProcessors()

    process = Process(make_platform(), Written(script))
    vm = process.create_vm()
    process.init2(vm)
    process.give_memory(vm)
    assert process.ioctl(vm, 0xAE60) == 0
    first, second = process.create_vcpu(vm), process.create_vcpu(vm, 1)
    process.start(vm)
    process.finish(vm)
    second.run.immediate_exit = 1
    assert run_fails(process, second) == errno.EINTR
    second.run.immediate_exit = 0
    run = waiting(process, second)
    assert run.deadline is None
    assert process.run(first) == 0
    with pytest.raises(OSError) as raised:
        run.poll()
    assert raised.value.errno == errno.EAGAIN
    assert process.run(second) == 0
    assert second.run.exit_reason == 8


def test_a_vcpu_that_was_not_started_can_be_interrupted() -> None:
    process = Process()
    vm = process.create_vm()
    process.ioctl(vm, 0xAE60)
    process.create_vcpu(vm)
    second = process.create_vcpu(vm, 1)
    run = waiting(process, second)
    process.signal = True
    with pytest.raises(OSError) as raised:
        run.poll()
    assert raised.value.errno == errno.EINTR


@given(
    st.sampled_from(list(Ioctl)) | st.integers(0, 2**32 - 1),
    st.binary(min_size=320, max_size=320),
    st.sampled_from([COMMAND, BAD, 0, 2**64 - 1]),
)
def test_hostile_vcpu_ioctls_raise_only_oserror(request_: int, data: bytes, argument: int) -> None:
    process, (vcpu,), _ = launch(asking())
    process.arena.write(COMMAND, data)
    try:
        vcpu.ioctl(process.caller(), request_, argument)
    except OSError:
        return
    finally:
        vcpu.close()


@given(st.binary(min_size=2352, max_size=2352))
def test_hostile_run_structures_raise_only_oserror(data: bytes) -> None:
    process, (vcpu,), _ = launch(asking())
    process.run(vcpu)
    vcpu.page[:] = data
    try:
        process.run(vcpu)
    except OSError:
        return
    finally:
        vcpu.close()


def test_a_signal_mask_replaces_that_of_the_thread_while_the_guest_runs() -> None:
    """SIGKILL and SIGSTOP cannot be blocked; NULL removes the mask."""

    def script(_: GuestCpu) -> Program:
        while True:
            yield Sleep(2.0)

    process, (vcpu,), _ = launch(script)
    run = waiting(process, vcpu)
    assert run.blocked is None
    run.cancel()
    process.arena.write(COMMAND, struct.pack("<IQ", 8, 2**64 - 1))
    process.ioctl(vcpu, Ioctl.SET_SIGNAL_MASK, COMMAND)
    run = waiting(process, vcpu)
    assert run.blocked == ~(1 << 8 | 1 << 18) & (2**64 - 1)
    run.cancel()
    process.ioctl(vcpu, Ioctl.SET_SIGNAL_MASK, 0)
    assert waiting(process, vcpu).blocked is None
    process.arena.write(COMMAND, struct.pack("<I", 16))
    with pytest.raises(OSError) as raised:
        process.ioctl(vcpu, Ioctl.SET_SIGNAL_MASK, COMMAND)
    assert raised.value.errno == errno.EINVAL
