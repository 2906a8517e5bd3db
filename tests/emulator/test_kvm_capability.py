# SPDX-License-Identifier: Apache-2.0
"""Capabilities that x86 KVM always reports, and what enabling them takes.

Expected values are from Linux 7.3: ``kvm_vm_ioctl_check_extension`` and
``kvm_vm_ioctl_enable_cap`` in ``arch/x86/kvm/x86.c``, their generic counterparts in
``virt/kvm/kvm_main.c``.
"""

from __future__ import annotations

import errno
import struct

import pytest

from snpcerts.abi.kvm import ENABLE_CAP_SIZE, Cap, Ioctl
from snpcerts.emulator.kvm.vm import Vm
from tests.emulator.kvm_calls import BAD, COMMAND, DATA, Process


@pytest.fixture
def process() -> Process:
    return Process()


def enable(process: Process, vm: Vm, cap: Cap, value: int, *, flags: int = 0) -> int:
    """Enable the capability; return 0 or the errno."""
    data = struct.pack("<IIQ", cap, flags, value).ljust(ENABLE_CAP_SIZE, b"\0")
    process.arena.write(COMMAND, data)
    return called(process, vm, Ioctl.ENABLE_CAP, COMMAND)


def called(process: Process, vm: Vm, request: int, argument: int) -> int:
    """Call the VM's ioctl; return 0 or the errno."""
    try:
        process.ioctl(vm, request, argument)
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.mark.parametrize(
    ("cap", "value"),
    [
        (1, 1),  # HLT
        (2, 1),  # MMU_SHADOW_CACHE_CONTROL
        (15, 2),  # COALESCED_MMIO: the page
        (22, 1),  # USER_NMI
        (61, 1),  # GET_TSC_KHZ
        (72, 1),  # TSC_DEADLINE_TIMER
        (105, 1),  # CHECK_EXTENSION_VM
        (128, 4096),  # MAX_VCPU_ID
        (200, 1),  # SREGS2
        (208, 4096),  # XSAVE2: bytes
        (215, 1),  # SYSTEM_EVENT_DATA
    ],
)
def test_what_x86_kvm_always_reports_is_reported(process: Process, cap: int, value: int) -> None:
    for device in (process.kvm, process.create_vm(0), process.create_vm(4)):
        assert process.ioctl(device, Ioctl.CHECK_EXTENSION, cap) == value


def test_registers_in_kvm_run_are_not_for_protected_vms(process: Process) -> None:
    assert process.ioctl(process.kvm, Ioctl.CHECK_EXTENSION, Cap.SYNC_REGS) == 7
    assert process.ioctl(process.create_vm(0), Ioctl.CHECK_EXTENSION, Cap.SYNC_REGS) == 7
    assert process.ioctl(process.create_vm(4), Ioctl.CHECK_EXTENSION, Cap.SYNC_REGS) == 0


def test_every_capability_that_can_be_enabled_is_reported(process: Process) -> None:
    vm = process.create_vm()
    for cap in Cap:
        if enable(process, vm, cap, 0) == 0:
            assert process.ioctl(vm, Ioctl.CHECK_EXTENSION, cap), cap.name


@pytest.mark.parametrize(
    ("cap", "value", "answer"),
    [
        (Cap.X86_USER_SPACE_MSR, 7, 0),
        (Cap.X86_USER_SPACE_MSR, 8, errno.EINVAL),
        (Cap.EXIT_ON_EMULATION_FAILURE, 1, 0),
        (Cap.EXIT_ON_EMULATION_FAILURE, 2, errno.EINVAL),
        (Cap.HALT_POLL, 0xFFFFFFFF, 0),
        (Cap.HALT_POLL, 1 << 32, errno.EINVAL),
        (Cap.EXCEPTION_PAYLOAD, 1, 0),
        (Cap.X86_TRIPLE_FAULT_EVENT, 1, 0),
        (Cap.SPLIT_IRQCHIP, 4097, errno.EINVAL),
        (Cap.MAX_VCPU_ID, 4096, 0),
        (Cap.MAX_VCPU_ID, 4097, errno.EINVAL),
        (Cap.X2APIC_API, 0b11, 0),
        (Cap.X2APIC_API, 0b1000, 0),
        (Cap.X2APIC_API, 0b100, errno.EINVAL),  # only with a split irqchip
        (Cap.X2APIC_API, 0b10000, errno.EINVAL),
        (Cap.USER_MEMORY, 1, errno.EINVAL),
    ],
)
def test_enabling_judges_its_argument(process: Process, cap: Cap, value: int, answer: int) -> None:
    assert enable(process, process.create_vm(), cap, value) == answer
    assert enable(process, process.create_vm(), cap, value, flags=1) == errno.EINVAL


def test_the_split_irqchip_brings_another_x2apic_flag(process: Process) -> None:
    vm = process.create_vm()
    assert process.ioctl(process.kvm, Ioctl.CHECK_EXTENSION, Cap.X2APIC_API) == 0b1111
    assert process.ioctl(vm, Ioctl.CHECK_EXTENSION, Cap.X2APIC_API) == 0b1011
    assert enable(process, vm, Cap.SPLIT_IRQCHIP, 24) == 0
    assert process.ioctl(vm, Ioctl.CHECK_EXTENSION, Cap.X2APIC_API) == 0b1111
    assert enable(process, vm, Cap.X2APIC_API, 0b0100) == 0
    assert enable(process, vm, Cap.X2APIC_API, 0b1100) == errno.EINVAL
    assert enable(process, vm, Cap.SPLIT_IRQCHIP, 24) == errno.EEXIST


def test_the_limit_of_vcpu_ids_is_set_once_and_holds(process: Process) -> None:
    """As in Linux's selftest max_vcpuid_cap_test."""
    vm = process.create_vm()
    assert enable(process, vm, Cap.MAX_VCPU_ID, 100) == 0
    assert enable(process, vm, Cap.MAX_VCPU_ID, 100) == 0
    assert enable(process, vm, Cap.MAX_VCPU_ID, 101) == errno.EINVAL
    assert called(process, vm, Ioctl.SET_BOOT_CPU_ID, 101) == errno.EINVAL
    assert called(process, vm, Ioctl.CREATE_VCPU, 100) == errno.EINVAL
    process.create_vcpu(vm, 99)


def test_the_cycle_of_the_apics_bus_is_set_before_vcpus(process: Process) -> None:
    vm = process.create_vm()
    cap = Cap.X86_APIC_BUS_CYCLES_NS
    assert enable(process, vm, cap, 10) == errno.ENXIO
    assert called(process, vm, Ioctl.CREATE_IRQCHIP, 0) == 0
    assert [enable(process, vm, cap, value) for value in (0, 1 << 25, 1 << 63)] == [
        errno.EINVAL,
        0,
        errno.EINVAL,
    ]
    assert process.ioctl(vm, Ioctl.CHECK_EXTENSION, cap) == 1 << 25
    assert process.ioctl(process.kvm, Ioctl.CHECK_EXTENSION, cap) == 1
    process.create_vcpu(vm)
    assert enable(process, vm, cap, 10) == errno.EINVAL


def test_the_limit_of_vcpu_ids_comes_before_vcpus(process: Process) -> None:
    vm = process.create_vm()
    process.create_vcpu(vm)
    assert enable(process, vm, Cap.MAX_VCPU_ID, 100) == errno.EINVAL


def test_the_boot_vcpu_is_chosen_before_vcpus(process: Process) -> None:
    vm = process.create_vm()
    assert called(process, vm, Ioctl.CREATE_IRQCHIP, 0) == 0
    assert called(process, vm, Ioctl.SET_BOOT_CPU_ID, 4097) == errno.EINVAL
    assert called(process, vm, Ioctl.SET_BOOT_CPU_ID, 1) == 0
    assert enable(process, vm, Cap.MAX_VCPU_ID, 0) == errno.EINVAL
    assert [process.create_vcpu(vm, number).mp_state for number in (0, 1)] == [1, 0]
    assert called(process, vm, Ioctl.SET_BOOT_CPU_ID, 0) == errno.EBUSY


def test_the_tsc_that_a_vmm_sets_is_the_vcpus_and_the_guests(process: Process) -> None:
    """KVM keeps it as ``default_tsc_khz`` and passes it to SNP_LAUNCH_START as desired_tsc_freq."""
    vm = process.create_vm()
    process.init2(vm, vmsa_features=1 << 9)
    assert called(process, vm, Ioctl.SET_TSC_KHZ, 512_000_000) == errno.EINVAL  # 256 times
    assert called(process, vm, Ioctl.SET_TSC_KHZ, 1_500_000) == 0
    assert process.ioctl(vm, Ioctl.GET_TSC_KHZ) == 1_500_000
    vcpu = process.create_vcpu(vm)
    assert process.ioctl(vcpu, Ioctl.GET_TSC_KHZ) == 1_500_000
    with pytest.raises(OSError):  # of a protected TSC
        process.ioctl(vcpu, Ioctl.SET_TSC_KHZ, 1_000_000)
    assert called(process, vm, Ioctl.SET_TSC_KHZ, 1_000_000) == errno.EINVAL
    process.start(vm)
    assert vm.context is not None
    assert vm.context.desired_tsc_khz == 1_500_000
    plain = process.create_vcpu(process.create_vm())
    assert process.ioctl(plain, Ioctl.SET_TSC_KHZ, 1_000_000) == 0
    assert process.ioctl(plain, Ioctl.GET_TSC_KHZ) == 1_000_000


def test_page_tables_get_a_least_number_of_pages(process: Process) -> None:
    vm = process.create_vm()
    assert called(process, vm, Ioctl.SET_NR_MMU_PAGES, 63) == errno.EINVAL
    assert called(process, vm, Ioctl.SET_NR_MMU_PAGES, 64) == 0


@pytest.mark.parametrize(
    ("flags", "kind", "count", "bitmap", "answer"),
    [
        (0, 0, 0, 0, 0),  # no filter
        (1, 3, 0x600 * 8, DATA, 0),
        (1, 3, 0x600 * 8 + 1, DATA, errno.EINVAL),
        (1, 0, 0, 0, errno.EINVAL),  # would deny everything
        (2, 3, 1, DATA, errno.EINVAL),
        (0, 4, 1, DATA, errno.EINVAL),
        (0, 1, 1, BAD, errno.EFAULT),
    ],
)
def test_an_msr_filter_is_judged(
    process: Process, flags: int, kind: int, count: int, bitmap: int, answer: int
) -> None:
    first = struct.pack("<III4xQ", kind, count, 0x35, bitmap)
    process.arena.write(COMMAND, struct.pack("<I4x", flags) + first + bytes(15 * 24))
    assert called(process, process.create_vm(), Ioctl.X86_SET_MSR_FILTER, COMMAND) == answer


def test_xsave2_gives_what_xsave_has_set(process: Process) -> None:
    vm = process.create_vm()
    vcpu = process.create_vcpu(vm)
    state = bytes(range(256)) * 16
    process.arena.write(DATA, state)
    process.ioctl(vcpu, Ioctl.SET_XSAVE, DATA)
    process.arena.write(DATA, bytes(len(state)))
    process.ioctl(vcpu, Ioctl.GET_XSAVE2, DATA)
    assert process.arena.read(DATA, len(state)) == state
