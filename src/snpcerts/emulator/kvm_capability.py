# SPDX-License-Identifier: Apache-2.0
"""What KVM_CHECK_EXTENSION answers, on ``/dev/kvm`` and on a VM."""

from __future__ import annotations

from typing import Final

from snpcerts.abi.kvm import HC_MAP_GPA_RANGE, MEMORY_ATTRIBUTE_PRIVATE, Cap, VmType
from snpcerts.emulator.platform import Platform

HYPERCALLS: Final = 1 << HC_MAP_GPA_RANGE

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
    Cap.NR_VCPUS: 2,  # recommended
    Cap.NR_MEMSLOTS: 32764,
    Cap.MP_STATE: 1,
    Cap.SYNC_MMU: 1,
    Cap.DESTROY_MEMORY_REGION_WORKS: 1,
    Cap.REINJECT_CONTROL: 1,
    Cap.IRQ_ROUTING: 4096,
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
    Cap.MAX_VCPUS: 1024,
    Cap.ENABLE_CAP_VM: 1,
    Cap.SPLIT_IRQCHIP: 1,
    Cap.MAX_VCPU_ID: 4096,
    Cap.X2APIC_API: 3,
}


def vm_types(platform: Platform) -> int:
    """KVM_CAP_VM_TYPES: a bit for each type that can be created."""
    types = 1 << VmType.DEFAULT
    if platform.sev and platform.snp:
        types |= 1 << VmType.SNP
    return types


def capability(platform: Platform, number: int, kind: VmType | None = None) -> int:
    """The answer for a capability; 0 for one that is not there.

    ``kind`` is the type of the VM that was asked, None on ``/dev/kvm``.
    """
    has_private = kind == VmType.SNP or (kind is None and platform.sev and platform.snp)
    match number:
        case Cap.VM_TYPES:
            return vm_types(platform)
        case Cap.MEMORY_ATTRIBUTES:
            return MEMORY_ATTRIBUTE_PRIVATE if has_private else 0
        case Cap.READONLY_MEM:
            return int(kind != VmType.SNP)
        case _:
            return _FIXED.get(number, 0)
