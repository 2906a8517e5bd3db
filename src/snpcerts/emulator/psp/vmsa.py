# SPDX-License-Identifier: Apache-2.0
"""Builds a vCPU's register page (VMSA), which the firmware measures and the vCPU starts from.

Source: AMD64 Architecture Programmer's Manual volume 2, table B-4, for the page; Linux
``arch/x86/kvm/svm/sev.c`` (``sev_es_sync_vmsa``) and ``svm.c`` (``init_vmcb``, ``svm_set_segment``,
``svm_set_cr0``, ``svm_set_cr4``, ``svm_set_efer``) for the values that KVM writes, including its
defaults for what the VMM has not set.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from snpcerts.abi.ghcb import PAGE_SIZE
from snpcerts.abi.vcpu_registers import PAT_RESET, DescriptorTable, Msr, Segment, Sregs

INITIAL_VMSA_GPA: Final = 0xFFFF_FFFF_F000

_SEGMENT: Final = struct.Struct("<HHIQ")  # selector, attributes, limit, base

# The offset of each segment in the page.
_SEGMENTS: Final = {
    "cs": 0x10,
    "ds": 0x30,
    "es": 0x00,
    "fs": 0x40,
    "gs": 0x50,
    "ss": 0x20,
    "tr": 0x90,
    "ldt": 0x70,
}
_TABLES: Final = {"gdt": 0x60, "idt": 0x80}

# Offsets of the general registers, in the order of ``struct kvm_regs``.
_GENERAL: Final = (
    *(0x1F8, 0x318, 0x308, 0x310, 0x330, 0x338, 0x1D8, 0x328),  # rax rbx rcx rdx rsi rdi rsp rbp
    *range(0x340, 0x380, 8),  # r8 to r15
    0x178,  # rip
    0x170,  # rflags
)
_REGS: Final = struct.Struct("<18Q")

_CPL, _EFER, _XSS, _CR4, _CR3, _CR0 = 0xCB, 0xD0, 0x140, 0x148, 0x150, 0x158
_DR7, _DR6, _CR2, _G_PAT, _SEV_FEATURES, _XCR0 = 0x160, 0x168, 0x240, 0x268, 0x3B0, 0x3E8
_X87_DP, _MXCSR, _X87_RIP, _X87, _XMM, _YMM = 0x400, 0x408, 0x418, 0x420, 0x470, 0x570

_MSRS: Final = {
    Msr.IA32_XSS: _XSS,
    Msr.IA32_CR_PAT: _G_PAT,
    Msr.STAR: 0x200,
    Msr.LSTAR: 0x208,
    Msr.CSTAR: 0x210,
    Msr.SYSCALL_MASK: 0x218,
    Msr.KERNEL_GS_BASE: 0x220,
    Msr.IA32_SYSENTER_CS: 0x228,
    Msr.IA32_SYSENTER_ESP: 0x230,
    Msr.IA32_SYSENTER_EIP: 0x238,
}

_EFER_SVME, _CR4_MCE, _CR0_CACHE_OFF = 1 << 12, 1 << 6, 0b11 << 29
_RESET_DR6, _RESET_DR7 = 0xFFFF_0FF0, 0x400
_RESET_MXCSR, _RESET_FCW = 0x1F80, 0x37F
_SNP_ACTIVE: Final = 1 << 0
_XSTATE_BV, _XSAVE_YMM = 512, 576


def debugged(states: Mapping[str, bytes]) -> bool:
    """Return whether DR7 has more bits set than at reset. If so, KVM does not launch the vCPU."""
    return "debugregs" in states and bool(_u64(states["debugregs"], 40) & ~_RESET_DR7)


def build(
    states: Mapping[str, bytes], sregs: bytes, msrs: Mapping[int, int], features: int
) -> bytes:
    """Return the VMSA (4096 bytes) for one vCPU of an SNP guest.

    ``states`` holds the KVM structures that were set, keyed by their names in
    :mod:`snpcerts.emulator.kvm.processor_state`; "regs" is always there. ``sregs`` is the common
    beginning of struct kvm_sregs and struct kvm_sregs2. ``features`` is what KVM_SEV_INIT2
    requested (``vmsa_features``).
    """
    page = bytearray(PAGE_SIZE)

    def put(at: int, value: int) -> None:
        page[at : at + 8] = value.to_bytes(8, "little")

    for at, value in zip(_GENERAL, _REGS.unpack(states["regs"]), strict=True):
        put(at, value)
    _put_system(page, sregs)
    put(_DR6, _u64(states["debugregs"], 32) if "debugregs" in states else _RESET_DR6)
    put(_DR7, _RESET_DR7)
    put(_G_PAT, PAT_RESET)
    for number, at in _MSRS.items():
        if number in msrs:
            put(at, msrs[number])
    put(_SEV_FEATURES, features | _SNP_ACTIVE)
    put(_XCR0, _xcr0(states.get("xcrs")))
    _put_floating_point(page, states)
    return bytes(page)


def _put_system(page: bytearray, sregs: bytes) -> None:
    """Write segments, descriptor tables, control registers and EFER into ``page``."""
    found = Sregs.unpack(sregs.ljust(Sregs.SIZE, b"\0"))
    for name, at in _SEGMENTS.items():
        each = Segment.unpack(getattr(found, name))
        attributes = (
            (each.type & 15)
            | (each.s & 1) << 4
            | (each.dpl & 3) << 5
            | (bool(each.present & 1) and not each.unusable) << 7
            | (each.avl & 1) << 8
            | (each.long & 1) << 9
            | (each.db & 1) << 10
            | (each.g & 1) << 11
        )
        _SEGMENT.pack_into(page, at, each.selector, attributes, each.limit, each.base)
    for name, at in _TABLES.items():
        table = DescriptorTable.unpack(getattr(found, name))
        _SEGMENT.pack_into(page, at, 0, 0, table.limit, table.base)
    page[_CPL] = Segment.unpack(found.ss).dpl & 3
    for at, value in (
        (_EFER, found.efer | _EFER_SVME),
        (_CR4, found.cr4 | _CR4_MCE),
        (_CR3, found.cr3),
        (_CR0, found.cr0 & ~_CR0_CACHE_OFF),
        (_CR2, found.cr2),
    ):
        page[at : at + 8] = value.to_bytes(8, "little")


def _put_floating_point(page: bytearray, states: Mapping[str, bytes]) -> None:
    """Write x87, SSE and AVX state into ``page``. Parts that the VMM did not set get the values
    that FNINIT sets.
    """
    control, status, tags, opcode, rip, rdp = _RESET_FCW, 0, 0, 0, 0, 0
    mxcsr, stack, xmm, ymm = _RESET_MXCSR, bytes(128), bytes(256), bytes(256)
    if "xsave" in states:
        area = states["xsave"]
        present = _u64(area, _XSTATE_BV)
        if present & 1:
            control, status, tags, opcode, rip, rdp = struct.unpack_from("<HHHHQQ", area)
            stack = area[32:160]
        if present & 0b110:
            (mxcsr,) = struct.unpack_from("<I", area, 24)
        if present & 0b010:
            xmm = area[160:416]
        if present & 0b100:
            ymm = area[_XSAVE_YMM : _XSAVE_YMM + 256]
    elif "fpu" in states:
        area = states["fpu"]
        stack, xmm = area[:128], area[152:408]
        control, status, tags, opcode, rip, rdp = struct.unpack_from("<HHBxHQQ", area, 128)
        (mxcsr,) = struct.unpack_from("<I", area, 408)
    struct.pack_into("<QIHHHH", page, _X87_DP, rdp, mxcsr, tags, status, control, opcode)
    page[_X87_RIP : _X87_RIP + 8] = rip.to_bytes(8, "little")
    for register in range(8):
        value = stack[register * 16 : register * 16 + 10]
        page[_X87 + register * 8 : _X87 + register * 8 + 8] = value[:8]
        page[_X87 + 64 + register * 2 : _X87 + 66 + register * 2] = value[8:]
    page[_XMM : _XMM + 256] = xmm
    page[_YMM : _YMM + 256] = ymm


def _xcr0(xcrs: bytes | None) -> int:
    """Return XCR0 from ``struct kvm_xcrs``, or its reset value 1 if the structure does not hold
    XCR0.

    The structure has a count and flags, then each register's number, a reserved word and its value.
    """
    if xcrs is not None:
        (count,) = struct.unpack_from("<I", xcrs)
        for place in range(min(count, 16)):
            number, value = struct.unpack_from("<I4xQ", xcrs, 8 + place * 16)
            if number == 0:
                return int(value)
    return 1


def _u64(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")
