# SPDX-License-Identifier: Apache-2.0
"""The special registers that KVM's ioctls read and write, and the numbers of MSRs.

Source: Linux ``arch/x86/include/uapi/asm/kvm.h`` and ``arch/x86/include/asm/msr-index.h``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar

from snpcerts.abi.cstruct import CStruct, raw, u8, u16, u32, u64


class Msr(enum.IntEnum):
    """Numbers of model-specific registers (MSR_*)."""

    IA32_TSC = 0x10
    IA32_APICBASE = 0x1B
    IA32_PRED_CMD = 0x49
    MISC_FEATURES_ENABLES = 0x140
    IA32_SYSENTER_CS = 0x174
    IA32_SYSENTER_ESP = 0x175
    IA32_SYSENTER_EIP = 0x176
    IA32_XFD = 0x1C4
    IA32_XFD_ERR = 0x1C5
    IA32_CR_PAT = 0x277
    IA32_XSS = 0xDA0
    KVM_POLL_CONTROL = 0x4B56_4D05
    EFER = 0xC000_0080
    STAR = 0xC000_0081
    LSTAR = 0xC000_0082
    CSTAR = 0xC000_0083
    SYSCALL_MASK = 0xC000_0084
    FS_BASE = 0xC000_0100
    GS_BASE = 0xC000_0101
    KERNEL_GS_BASE = 0xC000_0102
    K7_HWCR = 0xC001_0015
    FAM10H_MMIO_CONF_BASE = 0xC001_0058
    AMD64_VIRT_SPEC_CTRL = 0xC001_011F
    AMD64_DE_CFG = 0xC001_1029


@dataclass(frozen=True, slots=True)
class Segment(CStruct):
    """A segment register."""

    SIZE: ClassVar[int] = 24
    C_NAME: ClassVar[str] = "struct kvm_segment"
    base: int = u64(0)
    limit: int = u32(8)
    selector: int = u16(12)
    type: int = u8(14)
    present: int = u8(15)
    dpl: int = u8(16)
    db: int = u8(17)
    s: int = u8(18)
    long: int = u8(19)  # l: a 64-bit code segment
    g: int = u8(20)
    avl: int = u8(21)
    unusable: int = u8(22)


@dataclass(frozen=True, slots=True)
class DescriptorTable(CStruct):
    """A descriptor table register: GDTR or IDTR."""

    SIZE: ClassVar[int] = 16
    C_NAME: ClassVar[str] = "struct kvm_dtable"
    base: int = u64(0)
    limit: int = u16(8)


@dataclass(frozen=True, slots=True)
class Sregs(CStruct):
    """Argument of KVM_GET_SREGS and KVM_SET_SREGS. ``struct kvm_sregs2`` is the same up to
    ``apic_base``.

    ``cs`` to ``ldt`` are packed :class:`Segment`, ``gdt`` and ``idt`` packed
    :class:`DescriptorTable`.
    """

    SIZE: ClassVar[int] = 312
    C_NAME: ClassVar[str] = "struct kvm_sregs"
    cs: bytes = raw(0, Segment.SIZE)
    ds: bytes = raw(24, Segment.SIZE)
    es: bytes = raw(48, Segment.SIZE)
    fs: bytes = raw(72, Segment.SIZE)
    gs: bytes = raw(96, Segment.SIZE)
    ss: bytes = raw(120, Segment.SIZE)
    tr: bytes = raw(144, Segment.SIZE)
    ldt: bytes = raw(168, Segment.SIZE)
    gdt: bytes = raw(192, DescriptorTable.SIZE)
    idt: bytes = raw(208, DescriptorTable.SIZE)
    cr0: int = u64(224)
    cr2: int = u64(232)
    cr3: int = u64(240)
    cr4: int = u64(248)
    cr8: int = u64(256)
    efer: int = u64(264)
    apic_base: int = u64(272)
    interrupt_bitmap: bytes = raw(280, 32)


@dataclass(frozen=True, slots=True)
class Sregs2(CStruct):
    """Argument of KVM_GET_SREGS2 and KVM_SET_SREGS2. Declares only the fields after ``apic_base``;
    the others are those of :class:`Sregs`.
    """

    SIZE: ClassVar[int] = 320
    C_NAME: ClassVar[str] = "struct kvm_sregs2"
    flags: int = u64(280)
    pdptrs: bytes = raw(288, 32)


SREGS2_FLAGS_PDPTRS_VALID = 1
PAT_RESET = 0x7_0406_0007_0406  # IA32_CR_PAT after RESET
