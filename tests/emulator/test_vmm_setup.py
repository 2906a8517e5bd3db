# SPDX-License-Identifier: Apache-2.0
"""What VMMs set up before a guest runs is kept, can be read back, and is bounded."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.kvm import Ioctl
from snpcerts.emulator.kvm.board import IGNORED as BOARD_IGNORED
from snpcerts.emulator.kvm.processor_state import GETS, IGNORED, SETS, SIZES

from .kvm_calls import COMMAND, DATA, Process

GET_CPUID2, SET_CPUID2 = 0xC008AE91, 0x4008AE90
GET_MSRS, SET_MSRS = 0xC008AE88, 0x4008AE89
GET_IRQCHIP, SET_IRQCHIP = 0xC208AE62, 0x8208AE63
GET_PIT2, SET_PIT2 = 0x8070AE9F, 0x4070AEA0
GET_CLOCK = 0x8030AE7C
MSR_INDEX_LIST, FEATURE_MSR_LIST = 0xC004AE02, 0xC004AE0A


def fails(code: int, call: object) -> None:
    with pytest.raises(OSError) as raised:
        call()  # type: ignore[operator]  # a function
    assert raised.value.errno == code


@pytest.mark.parametrize("name", SIZES)
def test_state_of_a_vcpu_is_given_back_as_it_was_set(name: str) -> None:
    process = Process()
    vcpu = process.create_vcpu(process.create_vm())
    get = next(number for number, each in GETS.items() if each == name)
    put = next(number for number, each in SETS.items() if each == name)
    state = bytes(byte % 251 for byte in range(SIZES[name]))
    if name in ("sregs", "sregs2"):  # some of which KVM refuses, and changes
        assert vcpu.ioctl(process.caller(), get, COMMAND) == 0
        state = process.arena.read(COMMAND, 224) + state[224:]
        state = state[:224] + struct.pack("<7Q", 0x11, 2, 3, 0x20, 5, 0, 0xFEED_0800)
        state = state.ljust(SIZES[name], b"\0")
    process.arena.write(COMMAND, state)
    assert vcpu.ioctl(process.caller(), put, COMMAND) == 0
    assert vcpu.ioctl(process.caller(), get, DATA) == 0
    assert process.arena.read(DATA, SIZES[name]) == state


def test_a_new_vcpu_has_the_registers_of_a_processor_after_reset() -> None:
    """KVM's vCPUs have them, and many VMMs read the registers, change some, and set them."""
    process = Process()
    vm = process.create_vm()
    boot, other = process.create_vcpu(vm), process.create_vcpu(vm, 1)
    found = []
    for vcpu in (boot, other):
        assert vcpu.ioctl(process.caller(), Ioctl.GET_SREGS, COMMAND) == 0
        sregs = process.arena.read(COMMAND, SIZES["sregs"])
        base, limit, selector = struct.unpack_from("<QIH", sregs)
        assert (base, limit, selector) == (0xFFFF_0000, 0xFFFF, 0xF000)
        cr0, *_, apic_base = struct.unpack_from("<7Q", sregs, 224)
        assert cr0 == 0x6000_0010
        found.append(apic_base)
        assert vcpu.ioctl(process.caller(), Ioctl.GET_REGS, COMMAND) == 0
        regs = struct.unpack("<18Q", process.arena.read(COMMAND, 144))
        assert regs == (0, 0, 0, 0x600, *[0] * 12, 0xFFF0, 2)
    assert found == [0xFEE0_0900, 0xFEE0_0800]


LONG_MODE = (1 << 31 | 1, 0, 0x1000, 1 << 5, 0, 1 << 10 | 1 << 8, 0xFEE0_0900)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 1 << 31),  # CR0: paging without protected mode
        (0, 1 << 29 | 1),  # NW without CD
        (0, 1 << 32 | 1),
        (2, 1 << 60),  # CR3 is no physical address
        (3, 0),  # CR4: long mode without PAE
        (3, 1 << 5 | 1 << 13),  # VMXE
        (5, 1 << 8),  # EFER: LME and paging without LMA
        (5, 1 << 10),
        (5, 1 << 10 | 1 << 8 | 1 << 1),  # a reserved bit
        (6, 0xFEE0_0901),  # reserved bits of the APIC's base
        (6, 0xFEE0_0400),  # x2APIC mode of an APIC that is off
    ],
)
@pytest.mark.parametrize("request_", [Ioctl.SET_SREGS, Ioctl.SET_SREGS2])
def test_registers_that_no_processor_could_have_are_refused(
    request_: Ioctl, place: int, value: int
) -> None:
    """The rules are those of kvm_is_valid_sregs and kvm_apic_set_base, which tests/kernel runs."""
    process = Process()
    vcpu = process.create_vcpu(process.create_vm())
    long_mode = struct.pack("<7I12x", 0x8000_0001, 0, 0, 0, 0, 0, 1 << 29)
    process.arena.write(COMMAND, struct.pack("<I4x", 1) + long_mode)
    assert vcpu.ioctl(process.caller(), SET_CPUID2, COMMAND) == 0
    for control, code in ((LONG_MODE, 0), (LONG_MODE, errno.EINVAL)):
        changed = list(control)
        if code:
            changed[place] = value
        state = bytes(224) + struct.pack("<7Q", *changed)
        process.arena.write(COMMAND, state.ljust(SIZES["sregs2"], b"\0"))
        if code:
            fails(code, lambda: vcpu.ioctl(process.caller(), request_, COMMAND))
        else:
            assert vcpu.ioctl(process.caller(), request_, COMMAND) == 0
    assert vcpu.ioctl(process.caller(), Ioctl.GET_SREGS, DATA) == 0
    assert process.arena.read(DATA + 224, 56) == struct.pack("<7Q", *LONG_MODE)


@pytest.mark.parametrize("name", ["regs", "sregs", "sregs2"])
def test_registers_are_out_of_reach_once_launched(name: str) -> None:
    process = Process()
    _, (vcpu,) = process.launch()
    for number, each in (*GETS.items(), *SETS.items()):
        if each == name:
            fails(errno.EINVAL, lambda n=number: vcpu.ioctl(process.caller(), n, COMMAND))


# MSRs whose value KVM does not judge: SYSENTER_CS, STAR, MTRRs, KVM's own.
PLAIN_MSRS = st.sampled_from([0x174, 0xC000_0081, 0x200, 0x26F, 0x4B56_4D00, 0x4B56_4D04])


def put_msrs(process: Process, entries: list[tuple[int, int]]) -> None:
    written = struct.pack("<I4x", len(entries))
    written += b"".join(struct.pack("<I4xQ", index, value) for index, value in entries)
    process.arena.write(COMMAND, written)


def msrs(process: Process, count: int) -> list[tuple[int, int]]:
    return list(struct.iter_unpack("<I4xQ", process.arena.read(COMMAND + 8, 16 * count)))


@given(entries=st.lists(st.tuples(PLAIN_MSRS, st.integers(0, 2**64 - 1))))
def test_msrs_are_given_back(entries: list[tuple[int, int]]) -> None:
    process = Process()
    vcpu = process.create_vcpu(process.create_vm())
    put_msrs(process, entries)
    assert vcpu.ioctl(process.caller(), SET_MSRS, COMMAND) == len(entries)
    put_msrs(process, [(index, 0) for index, _ in entries])
    assert vcpu.ioctl(process.caller(), GET_MSRS, COMMAND) == len(entries)
    last = dict(entries)
    assert msrs(process, len(entries)) == [(index, last[index]) for index, _ in entries]


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0x12345, 0),  # KVM has no such MSR
        (0xC001_0015, 1 << 4),  # HWCR
        (0x277, 2),  # PAT: no memory type
        (0xC000_0080, 1 << 1),  # EFER
        (0xC000_0082, 1 << 63),  # LSTAR: no canonical address
        (0xC000_0100, 1 << 47),
        (0x1B, 1),  # APIC_BASE: reserved
        (0xC001_0058, 1),  # MMIO_CONF_BASE
        (0xC001_1029, 1),  # DE_CFG
    ],
)
def test_the_number_of_msrs_before_one_that_kvm_refuses_is_returned(index: int, value: int) -> None:
    process = Process()
    vcpu = process.create_vcpu(process.create_vm())
    put_msrs(process, [(0x174, 1), (0x175, 2), (index, value), (0x176, 3)])
    assert vcpu.ioctl(process.caller(), SET_MSRS, COMMAND) == 2
    put_msrs(process, [(0x174, 9), (0x175, 9), (0x176, 9), (0x12345, 9), (0x174, 9)])
    assert vcpu.ioctl(process.caller(), GET_MSRS, COMMAND) == 3
    assert msrs(process, 5) == [(0x174, 1), (0x175, 2), (0x176, 0), (0x12345, 9), (0x174, 9)]


def test_msrs_and_special_registers_are_the_same_registers() -> None:
    process = Process()
    vcpu = process.create_vcpu(process.create_vm())
    entries = [(0xC000_0080, 1 << 8), (0xC000_0100, 0x1000), (0xC000_0101, 0x2000)]
    put_msrs(process, [*entries, (0x1B, 0xFEE0_0800)])
    assert vcpu.ioctl(process.caller(), SET_MSRS, COMMAND) == 4
    assert vcpu.ioctl(process.caller(), Ioctl.GET_SREGS, DATA) == 0
    sregs = process.arena.read(DATA, SIZES["sregs"])
    assert struct.unpack_from("<2Q", sregs, 264) == (1 << 8, 0xFEE0_0800)
    assert struct.unpack_from("<Q", sregs, 72) == (0x1000,)
    assert struct.unpack_from("<Q", sregs, 96) == (0x2000,)


def test_msrs_and_cpuid_are_bounded() -> None:
    process = Process()
    vcpu = process.create_vcpu(process.create_vm())
    process.arena.write(COMMAND, struct.pack("<I4x", 1 << 31))
    for request in (GET_MSRS, SET_MSRS, SET_CPUID2):
        fails(errno.E2BIG, lambda r=request: vcpu.ioctl(process.caller(), r, COMMAND))


def test_cpuid_is_given_back_where_there_is_room() -> None:
    process = Process()
    vm = process.create_vm()
    vcpu = process.create_vcpu(vm)
    entry = struct.pack("<7I12x", 0x8000_001F, 0, 0, 1, 2, 3, 4)
    process.arena.write(COMMAND, struct.pack("<I4x", 1) + entry)
    assert vcpu.ioctl(process.caller(), SET_CPUID2, COMMAND) == 0
    assert vm.cpuid(0x8000_001F) == (1, 2, 3, 4)
    process.arena.write(COMMAND, struct.pack("<I4x", 0))
    fails(errno.E2BIG, lambda: vcpu.ioctl(process.caller(), GET_CPUID2, COMMAND))
    process.arena.write(COMMAND, struct.pack("<I4x", 9))
    assert vcpu.ioctl(process.caller(), GET_CPUID2, COMMAND) == 0
    assert process.arena.read(COMMAND, 48) == struct.pack("<I4x", 1) + entry


@pytest.mark.parametrize("request_", [MSR_INDEX_LIST, FEATURE_MSR_LIST])
def test_lists_of_msrs_tell_how_much_room_they_need(request_: int) -> None:
    process = Process()
    process.arena.write(COMMAND, struct.pack("<I", 0))
    fails(errno.E2BIG, lambda: process.ioctl(process.kvm, request_, COMMAND))
    (count,) = struct.unpack("<I", process.arena.read(COMMAND, 4))
    assert count > 0
    assert process.ioctl(process.kvm, request_, COMMAND) == 0
    indices = struct.unpack(f"<{count}I", process.arena.read(COMMAND + 4, 4 * count))
    assert len(set(indices)) == count


def test_interrupt_controllers_and_timers_are_given_back() -> None:
    process = Process()
    vm = process.create_vm()
    assert process.ioctl(vm, Ioctl.CREATE_IRQCHIP) == 0
    assert process.ioctl(vm, Ioctl.CREATE_PIT2, COMMAND) == 0
    for chip in range(3):
        process.arena.write(COMMAND, struct.pack("<II512s", chip, 0, bytes([chip + 1]) * 512))
        assert process.ioctl(vm, SET_IRQCHIP, COMMAND) == 0
    for chip in range(3):
        process.arena.write(COMMAND, struct.pack("<I", chip))
        assert process.ioctl(vm, GET_IRQCHIP, COMMAND) == 0
        assert process.arena.read(COMMAND + 8, 512) == bytes([chip + 1]) * 512
    process.arena.write(COMMAND, b"p" * 112)
    assert process.ioctl(vm, SET_PIT2, COMMAND) == 0
    assert process.ioctl(vm, GET_PIT2, DATA) == 0
    assert process.arena.read(DATA, 112) == b"p" * 112


def test_controllers_and_timers_that_are_not_there_are_refused() -> None:
    """As in Linux 7.3, arch/x86/kvm/x86.c: KVM_CREATE_PIT2, KVM_GET_IRQCHIP and their kin."""
    process = Process()
    vm = process.create_vm()

    def refused(request: int, argument: int = COMMAND) -> int:
        with pytest.raises(OSError) as raised:
            process.ioctl(vm, request, argument)
        return raised.value.errno or 0

    process.arena.write(COMMAND, struct.pack("<I", 3))
    chips, timers = (GET_IRQCHIP, SET_IRQCHIP), (GET_PIT2, SET_PIT2)
    assert [refused(each) for each in (*chips, *timers)] == [errno.ENXIO] * 4
    assert refused(Ioctl.CREATE_PIT2) == errno.ENOENT
    assert refused(Ioctl.SET_TSS_ADDR, 0xFFFF_D001) == errno.EINVAL
    assert process.ioctl(vm, Ioctl.SET_TSS_ADDR, 0xFFFF_D000) == 0
    assert process.ioctl(vm, Ioctl.SET_IDENTITY_MAP_ADDR, COMMAND) == 0
    assert process.ioctl(vm, Ioctl.CREATE_IRQCHIP) == 0
    assert [refused(each) for each in chips] == [errno.EINVAL] * 2
    assert process.ioctl(vm, Ioctl.CREATE_PIT2, COMMAND) == 0
    assert refused(Ioctl.CREATE_PIT2) == errno.EEXIST
    process.create_vcpu(vm)
    assert refused(Ioctl.SET_IDENTITY_MAP_ADDR) == errno.EINVAL


def test_the_clock_keeps_running() -> None:
    process = Process()
    vm = process.create_vm()
    readings = []
    for _ in range(2):
        assert process.ioctl(vm, GET_CLOCK, COMMAND) == 0
        readings.append(struct.unpack("<Q", process.arena.read(COMMAND, 8))[0])
    assert readings[0] <= readings[1]


def test_calls_without_effect_are_accepted() -> None:
    process = Process()
    vm = process.create_vm()
    vcpu = process.create_vcpu(vm)
    assert all(process.ioctl(vm, request, COMMAND) == 0 for request in BOARD_IGNORED)
    assert all(vcpu.ioctl(process.caller(), request, COMMAND) == 0 for request in IGNORED)


@given(st.integers(0, 2**32 - 1) | st.sampled_from([*GETS, *SETS]), st.integers(0, 2**64 - 1))
def test_no_call_on_a_vcpu_raises_anything_but_oserror(request_: int, argument: int) -> None:
    process = Process()
    vcpu = process.create_vcpu(process.create_vm())
    try:
        vcpu.ioctl(process.caller(), request_, argument)
    except OSError:
        return
