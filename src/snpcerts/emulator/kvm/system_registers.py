# SPDX-License-Identifier: Apache-2.0
"""KVM_SET_SREGS and KVM_SET_SREGS2: segments, control registers, EFER and the APIC base.

Source: Linux ``arch/x86/kvm/regs.c`` (``__set_sregs_common``, ``kvm_is_valid_sregs``,
``__set_sregs``, ``kvm_vcpu_ioctl_x86_set_sregs2``), ``lapic.c`` (``kvm_apic_set_base``), ``msrs.c``
(``kvm_valid_efer``), and ``svm/svm.c`` (``svm_get_segment``, ``init_vmcb``) for returned values.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any, Final

from snpcerts.abi.vcpu_registers import (
    SREGS2_FLAGS_PDPTRS_VALID,
    DescriptorTable,
    Segment,
    Sregs,
    Sregs2,
)
from snpcerts.emulator.kvm.host_cpuid import HOST, CpuidTable, has, physical_bits

_AT: Final = {name: offset for name, (offset, _) in Sregs.layout().items()}
SHARED: Final = _AT["interrupt_bitmap"]  # bytes that kvm_sregs and kvm_sregs2 begin with
_SEGMENTS: Final = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_TABLES: Final = ("gdt", "idt")

_CR0_PE, _CR0_NW, _CR0_CD, _CR0_PG = 1 << 0, 1 << 29, 1 << 30, 1 << 31
_CR4_PAE: Final = 1 << 5
# Bits of CR4 that every processor with SVM has: VME to PCE, OSFXSR, OSXMMEXCPT.
_CR4_ALWAYS: Final = 0x7FF
# The other bits of CR4. Each may be set only if the guest has one of the features listed with it:
# CPUID function, register, bit, subleaf.
_ECX_1, _EBX_7, _ECX_7 = (0x1, 2), (0x7, 1), (0x7, 2)
_CR4_OF_FEATURES: Final = (
    (1 << 11, ((*_ECX_7, 2, 0),)),  # UMIP
    (1 << 12, ((*_ECX_7, 16, 0),)),  # LA57
    (1 << 13, ((*_ECX_1, 5, 0),)),  # VMXE
    (1 << 16, ((*_EBX_7, 0, 0),)),  # FSGSBASE
    (1 << 17, ((*_ECX_1, 17, 0),)),  # PCIDE
    (1 << 18, ((*_ECX_1, 26, 0),)),  # OSXSAVE
    (1 << 20, ((*_EBX_7, 7, 0),)),  # SMEP
    (1 << 21, ((*_EBX_7, 20, 0),)),  # SMAP
    (1 << 22, ((*_ECX_7, 3, 0),)),  # PKE
    (1 << 23, ((*_ECX_7, 7, 0), (0x7, 3, 20, 0))),  # CET: SHSTK or IBT
    (1 << 28, ((0x7, 0, 26, 1),)),  # LAM_SUP
)
_LAM: Final = (0x7, 0, 26, 1)
_CR3_LAM: Final = 1 << 62 | 1 << 61
_EFER_SCE, _EFER_LME, _EFER_LMA = 1 << 0, 1 << 8, 1 << 10
_EFER_OF_FEATURES: Final = (
    (_EFER_LME | _EFER_LMA, (0x8000_0001, 3, 29, 0)),  # LM
    (1 << 11, (0x8000_0001, 3, 20, 0)),  # NX
    (1 << 12, (0x8000_0001, 2, 2, 0)),  # SVME
    (1 << 14, (0x8000_0001, 3, 25, 0)),  # FFXSR
    (1 << 21, (0x8000_0021, 0, 8, 0)),  # AUTOIBRS
)
_CR8_MAX: Final = 15
_APIC_RESERVED: Final = 0x2FF
_APIC_X2APIC, _APIC_ENABLE, _APIC_BOOT = 1 << 10, 1 << 11, 1 << 8
_X2APIC: Final = (0x1, 2, 21, 0)
_APIC_DEFAULT: Final = 0xFEE0_0000

_RESET_CR0: Final = 0x6000_0010
_RESET_LIMIT: Final = 0xFFFF
# Type and S at reset: a code segment, data segments, a busy 16-bit TSS, an LDT.
_RESET_TYPES: Final = {"cs": (10, 1), "tr": (3, 0), "ldt": (2, 0)}
_DATA_TYPE: Final = (2, 1)


class SystemRegisters:
    """The system registers of one vCPU. ``boot`` says whether the vCPU is the boot processor.

    ``host`` has the features that KVM supports.
    """

    def __init__(self, *, boot: bool, host: CpuidTable = HOST) -> None:
        self._host = host
        self._shared = _reset(boot=boot)
        self._pdptrs = bytes(32)
        self._pending: int | None = None  # the interrupt that a VMM has queued

    @property
    def shared(self) -> bytes:
        """The bytes that ``kvm_sregs`` and ``kvm_sregs2`` both begin with, as the VMM has set
        them.
        """
        return self._shared

    @property
    def apic_base(self) -> int:
        """The address and flags of the local APIC."""
        return self._parsed().apic_base

    @property
    def efer(self) -> int:
        """The value of EFER (Extended Feature Enable Register)."""
        return self._parsed().efer

    def base(self, segment: str) -> int:
        """Return the base address of a segment."""
        return Segment.unpack(self._shared[_AT[segment] :]).base

    def set_efer(self, value: int) -> bool:
        """Set EFER, except for LMA, if the host has the features that ``value`` enables; return
        whether it has.
        """
        if value & ~_efer_bits(self._host, self._host):
            return False
        self._put("efer", value & ~_EFER_LMA | self.efer & _EFER_LMA)
        return True

    def set_apic_base(self, value: int, guest: CpuidTable) -> bool:
        """Set the APIC base MSR if the value is valid; return whether it is."""
        if not _is_apic_base(value, self.apic_base, self._host, guest):
            return False
        self._put("apic_base", value)
        return True

    def set_base(self, segment: str, value: int) -> None:
        """Set the base address of a segment."""
        self._put(segment, value)  # a segment begins with its base

    def set(self, sregs: bytes, guest: CpuidTable) -> None:
        """Handle KVM_SET_SREGS for a guest with this CPUID table; raise EINVAL as KVM does."""
        self._set_shared(sregs, guest, bytes(32))
        bitmap = int.from_bytes(sregs[SHARED:], "little")
        if bitmap:
            self._pending = (bitmap & -bitmap).bit_length() - 1

    def set2(self, sregs2: bytes, guest: CpuidTable) -> None:
        """Handle KVM_SET_SREGS2 for a guest with this CPUID table; raise EINVAL as KVM does."""
        tail = Sregs2.unpack(sregs2)
        if tail.flags & ~SREGS2_FLAGS_PDPTRS_VALID:
            raise OSError(errno.EINVAL, f"unknown KVM_SET_SREGS2 flags: {tail.flags:#x}")
        if tail.flags and not _has_pae_paging(sregs2):
            raise OSError(errno.EINVAL, "the VMM set PDPTRs without PAE paging")
        self._set_shared(sregs2, guest, tail.pdptrs if tail.flags else bytes(32))

    def get(self) -> bytes:
        """Return the registers as ``struct kvm_sregs``."""
        bitmap = 0 if self._pending is None else 1 << self._pending
        return self._given_back() + bitmap.to_bytes(Sregs.SIZE - SHARED, "little")

    def get2(self) -> bytes:
        """Return the registers as ``struct kvm_sregs2``.

        PDPTRs that the VMM has not set are zero here; KVM reads them from the guest's memory.
        """
        paging = _has_pae_paging(self._shared)
        pdptrs = self._pdptrs if paging else bytes(32)
        tail = Sregs2(flags=SREGS2_FLAGS_PDPTRS_VALID if paging else 0, pdptrs=pdptrs)
        return tail.pack(onto=self._given_back())

    def _set_shared(self, sregs: bytes, guest: CpuidTable, pdptrs: bytes) -> None:
        """Set the PDPTRs, and the registers that ``kvm_sregs`` and ``kvm_sregs2`` share."""
        shared = sregs[:SHARED]
        _check(shared, self._host, guest, self.apic_base)
        cr8 = self._parsed().cr8
        self._shared = shared
        self._pdptrs = pdptrs
        if self._parsed().cr8 > _CR8_MAX:  # ignored
            self._put("cr8", cr8)

    def _parsed(self) -> Sregs:
        return _parsed(self._shared)

    def _put(self, name: str, value: int) -> None:
        at = _AT[name]
        self._shared = self._shared[:at] + value.to_bytes(8, "little") + self._shared[at + 8 :]

    def _given_back(self) -> bytes:
        sregs = self._parsed()
        given: dict[str, Any] = {
            name: _segment(name, Segment.unpack(getattr(sregs, name))).pack() for name in _SEGMENTS
        }
        for name in _TABLES:  # without their padding
            given[name] = DescriptorTable.unpack(getattr(sregs, name)).pack()
        return replace(sregs, **given).pack()[:SHARED]


def _parsed(shared: bytes) -> Sregs:
    return Sregs.unpack(shared.ljust(Sregs.SIZE, b"\0"))


def _reset(*, boot: bool) -> bytes:
    """Return the system registers of a new vCPU: the bytes that ``kvm_sregs`` and ``kvm_sregs2``
    share.
    """
    parts: dict[str, Any] = {}
    for name in _SEGMENTS:
        base, selector = (0xFFFF_0000, 0xF000) if name == "cs" else (0, 0)
        kind, s = _RESET_TYPES.get(name, _DATA_TYPE)
        segment = Segment(base, _RESET_LIMIT, selector, type=kind, present=1, s=s)
        parts[name] = segment.pack()
    for name in _TABLES:
        parts[name] = DescriptorTable(limit=_RESET_LIMIT).pack()
    apic = _APIC_DEFAULT | _APIC_ENABLE | (_APIC_BOOT if boot else 0)
    return Sregs(**parts, cr0=_RESET_CR0, apic_base=apic).pack()[:SHARED]


def _segment(name: str, given: Segment) -> Segment:
    """Return a segment as KVM reports it: the VMCB's copy, with the adjustments that KVM makes for
    VMMs.
    """
    kind, db = given.type & 15, given.db & 1
    present = int(given.present & 1 and not given.unusable)
    if name == "tr":
        kind |= 2  # busy
    elif name in ("ds", "es", "fs", "gs") and present:
        kind |= 1  # accessed
    elif name == "ss" and not present:
        db = 0
    return Segment(
        base=given.base,
        limit=given.limit,
        selector=given.selector,
        type=kind,
        present=present,
        dpl=given.dpl & 3,
        db=db,
        s=given.s & 1,
        long=given.long & 1,
        g=int(given.limit > 0xF_FFFF),
        avl=given.avl & 1,
        unusable=int(not present),
    )


def _has_pae_paging(sregs: bytes) -> bool:
    found = _parsed(sregs[:SHARED])
    return bool(found.cr0 & _CR0_PG and found.cr4 & _CR4_PAE and not found.efer & _EFER_LMA)


def _check(sregs: bytes, host: CpuidTable, guest: CpuidTable, apic_base: int) -> None:
    """Raise EINVAL for register values that no processor with the guest's CPUID table can have."""
    found = _parsed(sregs)
    cr0, cr3, cr4, efer = found.cr0, found.cr3, found.cr4, found.efer
    long_code = Segment.unpack(found.cs).long
    beyond = -1 << physical_bits(guest)
    if efer & _EFER_LME and cr0 & _CR0_PG:
        if not cr4 & _CR4_PAE or not efer & _EFER_LMA:
            raise OSError(errno.EINVAL, "the VMM enabled 64-bit mode without CR4.PAE or EFER.LMA")
        if cr3 & ~(_CR3_LAM if has(host, guest, *_LAM) else 0) & beyond:
            raise OSError(errno.EINVAL, f"CR3 {cr3:#x} is not a physical address of the guest")
    elif efer & _EFER_LMA or long_code:
        raise OSError(
            errno.EINVAL, "the VMM set EFER.LMA or a 64-bit code segment without 64-bit mode"
        )
    if cr4 & ~_cr4_bits(host, guest):
        raise OSError(errno.EINVAL, f"CR4 {cr4:#x} sets a bit for a feature that the guest lacks")
    if cr0 >> 32 or (cr0 & _CR0_NW and not cr0 & _CR0_CD) or (cr0 & _CR0_PG and not cr0 & _CR0_PE):
        raise OSError(errno.EINVAL, f"CR0 {cr0:#x} is not a valid combination of bits")
    if efer & ~_efer_bits(host, guest):
        raise OSError(errno.EINVAL, f"EFER {efer:#x} sets a bit for a feature that the guest lacks")
    if not _is_apic_base(found.apic_base, apic_base, host, guest):
        raise OSError(
            errno.EINVAL,
            f"the APIC base {found.apic_base:#x} has reserved bits set or an invalid mode",
        )


def _is_apic_base(value: int, current: int, host: CpuidTable, guest: CpuidTable) -> bool:
    """Whether a VMM may set the APIC's base to ``value``; it may always set the current value."""
    reserved = -1 << physical_bits(guest) | _APIC_RESERVED
    if not has(host, guest, *_X2APIC):
        reserved |= _APIC_X2APIC
    valid = not value & reserved and value & (_APIC_ENABLE | _APIC_X2APIC) != _APIC_X2APIC
    return value == current or valid


def _cr4_bits(host: CpuidTable, guest: CpuidTable) -> int:
    bits = _CR4_ALWAYS
    for bit, features in _CR4_OF_FEATURES:
        if any(has(host, guest, *feature) for feature in features):
            bits |= bit
    return bits


def _efer_bits(host: CpuidTable, guest: CpuidTable) -> int:
    bits = _EFER_SCE
    for bit, feature in _EFER_OF_FEATURES:
        if has(host, guest, *feature):
            bits |= bit
    return bits
