# SPDX-License-Identifier: Apache-2.0
"""The answers to KVM_CHECK_EXTENSION on ``/dev/kvm`` and on a VM, and the capabilities that a VMM
can enable.

Source: ``kvm_vm_ioctl_check_extension_generic`` in Linux 7.3 ``virt/kvm/kvm_main.c``,
``kvm_vm_ioctl_check_extension`` and ``kvm_vm_ioctl_enable_cap`` in ``arch/x86/kvm/x86.c``. A
capability is reported only if its calls are emulated.
"""

from __future__ import annotations

import os
from typing import Final

from snpcerts.abi.kvm import (
    COALESCED_MMIO_PAGE_OFFSET,
    HC_MAP_GPA_RANGE,
    MEMORY_ATTRIBUTE_PRIVATE,
    MSR_EXIT_REASON_VALID_MASK,
    SYNC_X86_VALID_FIELDS,
    X2APIC_API_DISABLE_BROADCAST_QUIRK,
    X2APIC_API_USE_32BIT_IDS,
    X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST,
    X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST,
    XSAVE_SIZE,
    Cap,
    VmType,
)
from snpcerts.emulator.kvm.platform import Platform

HYPERCALLS: Final = 1 << HC_MAP_GPA_RANGE
IRQ_ROUTES_MAX: Final = 4096  # KVM_MAX_IRQ_ROUTES
VCPUS_MAX: Final = 1024  # KVM_MAX_VCPUS
VCPU_IDS_MAX: Final = 4 * VCPUS_MAX  # KVM_MAX_VCPU_IDS
X2APIC_FLAGS: Final = (
    X2APIC_API_USE_32BIT_IDS
    | X2APIC_API_DISABLE_BROADCAST_QUIRK
    | X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST
    | X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST
)
_ANY: Final = (1 << 64) - 1
# Capabilities that a VMM can enable but that have no effect here, and the bits that each accepts.
WITHOUT_EFFECT: Final[dict[int, int]] = {
    Cap.DISABLE_QUIRKS: _ANY,
    Cap.MSR_PLATFORM_INFO: _ANY,
    Cap.EXCEPTION_PAYLOAD: _ANY,
    Cap.X86_TRIPLE_FAULT_EVENT: _ANY,
    Cap.X86_USER_SPACE_MSR: MSR_EXIT_REASON_VALID_MASK,
    Cap.EXIT_ON_EMULATION_FAILURE: 1,
    Cap.HALT_POLL: (1 << 32) - 1,
}

_FIXED: Final[dict[int, int]] = {
    Cap.USER_MEMORY: 1,
    Cap.DEVICE_CTRL: 1,
    Cap.IMMEDIATE_EXIT: 1,
    Cap.EXIT_HYPERCALL: HYPERCALLS,
    Cap.SYS_ATTRIBUTES: 1,
    Cap.USER_MEMORY2: 1,
    Cap.MEMORY_FAULT_INFO: 1,
    Cap.GUEST_MEMFD: 1,  # since Linux 6.18 for every type of VM
    Cap.IRQCHIP: 1,
    Cap.SET_TSS_ADDR: 1,
    Cap.EXT_CPUID: 1,
    Cap.HLT: 1,
    Cap.MMU_SHADOW_CACHE_CONTROL: 1,
    Cap.VAPIC: 1,
    Cap.CLOCKSOURCE: 1,
    Cap.PIT: 1,
    Cap.NOP_IO_DELAY: 1,
    Cap.COALESCED_MMIO: COALESCED_MMIO_PAGE_OFFSET,
    Cap.USER_NMI: 1,
    Cap.SET_GUEST_DEBUG: 1,
    Cap.IRQ_INJECT_STATUS: 1,
    Cap.SET_BOOT_CPU_ID: 1,
    Cap.PCI_SEGMENT: 1,
    Cap.ASYNC_PF: 1,
    Cap.TSC_CONTROL: 1,
    Cap.GET_TSC_KHZ: 1,
    Cap.TSC_DEADLINE_TIMER: 1,
    Cap.KVMCLOCK_CTRL: 1,
    Cap.IRQFD_RESAMPLE: 1,
    Cap.EXT_EMUL_CPUID: 1,
    Cap.IOAPIC_POLARITY_IGNORED: 1,
    Cap.CHECK_EXTENSION_VM: 1,
    Cap.DISABLE_QUIRKS: 1,
    Cap.GET_MSR_FEATURES: 1,
    Cap.MSR_PLATFORM_INFO: 1,
    Cap.COALESCED_PIO: 1,
    Cap.EXCEPTION_PAYLOAD: 1,
    Cap.HALT_POLL: 1,
    Cap.ASYNC_PF_INT: 1,
    Cap.X86_USER_SPACE_MSR: 1,
    Cap.X86_MSR_FILTER: 1,
    Cap.SREGS2: 1,
    Cap.EXIT_ON_EMULATION_FAILURE: 1,
    Cap.XSAVE2: XSAVE_SIZE,  # the minimum, which is enough for x87, SSE and AVX
    Cap.VM_TSC_CONTROL: 1,
    Cap.SYSTEM_EVENT_DATA: 1,
    Cap.X86_TRIPLE_FAULT_EVENT: 1,
    Cap.X86_APIC_BUS_CYCLES_NS: 1,
    Cap.X86_GUEST_MODE: 1,
    Cap.NR_MEMSLOTS: 32764,
    Cap.MP_STATE: 1,
    Cap.SYNC_MMU: 1,
    Cap.DESTROY_MEMORY_REGION_WORKS: 1,
    Cap.REINJECT_CONTROL: 1,
    Cap.IRQ_ROUTING: IRQ_ROUTES_MAX,
    Cap.JOIN_MEMORY_REGIONS_WORKS: 1,
    Cap.IRQFD: 1,
    Cap.PIT2: 1,
    Cap.PIT_STATE2: 1,
    Cap.IOEVENTFD: 1,
    Cap.SET_IDENTITY_MAP_ADDR: 1,
    Cap.MCE: 32,
    Cap.ADJUST_CLOCK: 14,
    Cap.INTERNAL_ERROR_DATA: 1,
    Cap.VCPU_EVENTS: 1,
    Cap.DEBUGREGS: 1,
    Cap.X86_ROBUST_SINGLESTEP: 1,
    Cap.ENABLE_CAP: 1,
    Cap.XSAVE: 1,
    Cap.XCRS: 1,
    Cap.SIGNAL_MSI: 1,
    Cap.IOEVENTFD_NO_LENGTH: 1,
    Cap.IOEVENTFD_ANY_LENGTH: 1,
    Cap.MAX_VCPUS: VCPUS_MAX,
    Cap.ENABLE_CAP_VM: 1,
    Cap.SPLIT_IRQCHIP: 1,
    Cap.MAX_VCPU_ID: VCPU_IDS_MAX,
}


def vm_types(platform: Platform) -> int:
    """Return the value of KVM_CAP_VM_TYPES: one bit for each VM type that can be created."""
    types = 1 << VmType.DEFAULT
    if platform.sev and platform.snp:
        types |= 1 << VmType.SNP
    return types


def capability(
    platform: Platform, number: int, kind: VmType | None = None, *, split_irqchip: bool = False
) -> int:
    """Return the value of the capability ``number``, or 0 if it is not supported.

    ``kind`` is the type of the VM that the value applies to, or None for ``/dev/kvm``.
    ``split_irqchip`` says whether the VMM has enabled KVM_CAP_SPLIT_IRQCHIP for that VM.
    """
    has_private = kind == VmType.SNP or (kind is None and platform.sev and platform.snp)
    match number:
        case Cap.VM_TYPES:
            return vm_types(platform)
        case Cap.MEMORY_ATTRIBUTES:
            return MEMORY_ATTRIBUTE_PRIVATE if has_private else 0
        case Cap.READONLY_MEM:
            return int(kind != VmType.SNP)
        case Cap.SYNC_REGS:
            return SYNC_X86_VALID_FIELDS if kind != VmType.SNP else 0
        case Cap.NR_VCPUS:  # the recommended maximum
            return min(os.cpu_count() or 1, VCPUS_MAX)
        case Cap.X2APIC_API:
            without = kind is not None and not split_irqchip
            return X2APIC_FLAGS & ~(X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST if without else 0)
        case _:
            return _FIXED.get(number, 0)
