# SPDX-License-Identifier: Apache-2.0
"""What KVM_CHECK_EXTENSION answers, on ``/dev/kvm`` and on a VM."""

from __future__ import annotations

from typing import Final

from snpcerts.abi.kvm import MEMORY_ATTRIBUTE_PRIVATE, Cap, VmType
from snpcerts.emulator.platform import Platform

HYPERCALLS: Final = 1 << 12  # KVM_HC_MAP_GPA_RANGE

_FIXED: Final = {
    Cap.USER_MEMORY: 1,
    Cap.DEVICE_CTRL: 1,
    Cap.IMMEDIATE_EXIT: 1,
    Cap.EXIT_HYPERCALL: HYPERCALLS,
    Cap.SYS_ATTRIBUTES: 1,
    Cap.USER_MEMORY2: 1,
    Cap.MEMORY_FAULT_INFO: 1,
    Cap.GUEST_MEMFD: 1,  # since Linux 6.18 for every type of VM
    0: 1,  # IRQCHIP
    4: 1,  # SET_TSS_ADDR
    7: 1,  # EXT_CPUID
    9: 2,  # NR_VCPUS: recommended
    10: 32764,  # NR_MEMSLOTS
    14: 1,  # MP_STATE
    16: 1,  # SYNC_MMU
    21: 1,  # DESTROY_MEMORY_REGION_WORKS
    24: 1,  # REINJECT_CONTROL
    25: 4096,  # IRQ_ROUTING
    30: 1,  # JOIN_MEMORY_REGIONS_WORKS
    32: 1,  # IRQFD
    33: 1,  # PIT2
    35: 1,  # PIT_STATE2
    36: 1,  # IOEVENTFD
    37: 1,  # SET_IDENTITY_MAP_ADDR
    31: 32,  # MCE
    39: 14,  # ADJUST_CLOCK
    40: 1,  # INTERNAL_ERROR_DATA
    41: 1,  # VCPU_EVENTS
    50: 1,  # DEBUGREGS
    51: 1,  # X86_ROBUST_SINGLESTEP
    54: 1,  # ENABLE_CAP
    55: 1,  # XSAVE
    56: 1,  # XCRS
    77: 1,  # SIGNAL_MSI
    100: 1,  # IOEVENTFD_NO_LENGTH
    122: 1,  # IOEVENTFD_ANY_LENGTH
    66: 1024,  # MAX_VCPUS
    98: 1,  # ENABLE_CAP_VM
    121: 1,  # SPLIT_IRQCHIP
    128: 4096,  # MAX_VCPU_ID
    129: 3,  # X2APIC_API
}
_READONLY_MEM = 81


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
        case n if n == _READONLY_MEM:
            return int(kind != VmType.SNP)
        case _:
            return _FIXED.get(number, 0)
