# SPDX-License-Identifier: Apache-2.0
"""The digest of an emulated launch is the one that sev-snp-measure, an independent tool, computes.

The VMM does what QEMU does: through KVM's structures, it sets the registers as QEMU's
reset leaves them, and it launches pages of every type.
"""

from __future__ import annotations

import os
import struct

import pytest

from snpcerts.abi.kvm import Ioctl
from snpcerts.emulator.kvm.processor_state import SETS
from snpcerts.emulator.kvm.vcpu import Vcpu
from tests.emulator.kvm_calls import MEMORY, Process

_WHY = "sev-snp-measure is not installed: pip install '.[dev]'"
gctx = pytest.importorskip("sevsnpmeasure.gctx", reason=_WHY)
sev_mode = pytest.importorskip("sevsnpmeasure.sev_mode", reason=_WHY)
vmsa = pytest.importorskip("sevsnpmeasure.vmsa", reason=_WHY)

BSP, AP = 0xFFFF_FFF0, 0x80_B004
SIGNATURE = 0x800F12  # EPYC-v4
SET = {name: number for number, name in SETS.items()}
BUFFER = 0x12000  # user memory for structures
SECURE_TSC = 1 << 9


def segment(kind: int, *, s: int, base: int = 0, selector: int = 0, limit: int = 0xFFFF) -> bytes:
    """``struct kvm_segment`` of a present segment."""
    return struct.pack("<QIH9Bx", base, limit, selector, kind, 1, 0, 0, s, 0, 0, 0, 0)


def reset_like_qemu(process: Process, vcpu: Vcpu, eip: int) -> None:
    """QEMU: target/i386/cpu.c, x86_cpu_reset_hold; the reset vector of target/i386/sev.c."""
    regs = [0] * 18
    regs[3], regs[16], regs[17] = SIGNATURE, eip & 0xFFFF, 0x2  # rdx, rip, rflags
    data = segment(3, s=1)
    code = segment(11, s=1, base=eip & 0xFFFF_0000, selector=0xF000)
    table = struct.pack("<QH6x", 0, 0xFFFF)
    segments = code + data * 5 + segment(11, s=0) + segment(2, s=0)  # cs ds es fs gs ss tr ldt
    control = struct.pack("<6Q", 0x6000_0010, 0, 0, 0, 0, 0)
    sregs = (segments + table * 2 + control).ljust(312, b"\0")
    for name, content in (("regs", struct.pack("<18Q", *regs)), ("sregs", sregs)):
        process.arena.write(BUFFER, content)
        assert process.ioctl(vcpu, SET[name], BUFFER) == 0
    xsave = struct.pack("<HHHHQQI", 0x37F, 0, 0, 0, 0, 0, 0x1F80).ljust(512, b"\0")
    process.arena.write(BUFFER, (xsave + (3).to_bytes(8, "little")).ljust(4096, b"\0"))
    assert process.ioctl(vcpu, SET["xsave"], BUFFER) == 0
    pat = struct.pack("<I4xI4xQ", 1, 0x277, 0x0007_0406_0007_0406)
    process.arena.write(BUFFER, pat)
    assert process.ioctl(vcpu, Ioctl.SET_MSRS, BUFFER) == 1


@pytest.mark.parametrize("features", [0, SECURE_TSC])
@pytest.mark.parametrize("vcpus", [1, 4])
def test_the_launch_digest_is_what_others_compute(vcpus: int, features: int) -> None:
    process = Process()
    vm = process.create_vm()
    process.init2(vm, vmsa_features=features)
    process.give_memory(vm)
    made = [process.create_vcpu(vm, number) for number in range(vcpus)]
    process.start(vm)
    expected = gctx.GCTX()
    normal = os.urandom(0x2000)
    process.arena.write(MEMORY + 0x4000, normal)
    process.update(vm, gfn_start=4, uaddr=MEMORY + 0x4000, len=0x2000)
    expected.update_normal_pages(0x4000, normal)
    for kind, gfn, measure in (
        (3, 6, expected.update_zero_pages),
        (4, 7, expected.update_unmeasured_pages),
    ):
        process.update(vm, gfn_start=gfn, uaddr=MEMORY, type=kind)
        measure(gfn * 0x1000, 0x1000)
    process.update(vm, gfn_start=8, type=5)
    expected.update_secrets_page(0x8000)
    process.arena.write(MEMORY, struct.pack("<IIQ", 1, 0, 0) + struct.pack("<II40x", 3, 0))
    process.update(vm, gfn_start=9, type=6)
    expected.update_cpuid_page(0x9000)
    for number, vcpu in enumerate(made):
        reset_like_qemu(process, vcpu, AP if number else BSP)
    process.finish(vm)
    # KVM adds SNP_ACTIVE to the features of the VMSA.
    pages = vmsa.VMSA(sev_mode.SevMode.SEV_SNP, AP, SIGNATURE, features | 1)
    for page in pages.pages(vcpus):
        expected.update_vmsa_page(page)
    assert vm.context is not None
    assert vm.context.measurement == expected.ld()


def test_each_register_that_a_vmm_sets_changes_the_digest() -> None:
    """The digest covers what VMMs set, down to a byte of an XMM register."""
    digests = set()
    for spoilt in (None, 0, 40, 170):
        process = Process()
        vm = process.create_vm()
        process.init2(vm)
        vcpu = process.create_vcpu(vm)
        process.start(vm)
        reset_like_qemu(process, vcpu, BSP)
        if spoilt is not None:
            area = bytearray(4096)
            struct.pack_into("<HHHHQQI", area, 0, 0x37F, 0, 0, 0, 0, 0, 0x1F80)
            area[512:520] = (3).to_bytes(8, "little")
            area[spoilt] ^= 1
            process.arena.write(BUFFER, bytes(area))
            assert process.ioctl(vcpu, SET["xsave"], BUFFER) == 0
        process.finish(vm)
        assert vm.context is not None
        digests.add(vm.context.measurement)
    assert len(digests) == 4
