# SPDX-License-Identifier: Apache-2.0
"""KVM_SET_MSRS and KVM_GET_MSRS: the model-specific registers (MSRs) that KVM knows.

Source: Linux ``arch/x86/kvm/msrs.c`` (``kvm_set_msr_common``, ``kvm_get_msr_common``,
``__kvm_set_msr``, ``set_efer``) and ``svm/svm.c`` (``svm_set_msr``, ``svm_get_msr``). Both calls
stop at the first MSR that KVM refuses, and return how many came before it. An MSR that needs a
feature is known only if the emulated host has that feature. The values of MTRRs and of the MSRs for
machine checks and performance counters are not checked.
"""

from __future__ import annotations

from typing import Final

from snpcerts.abi.vcpu_registers import PAT_RESET, Msr
from snpcerts.emulator.kvm.host_cpuid import CpuidTable
from snpcerts.emulator.kvm.system_registers import SystemRegisters

# The MSRs that a VMM can set: first and last of each range.
WRITTEN: Final = (
    (0x10, 0x12),  # TSC, KVM_WALL_CLOCK, KVM_SYSTEM_TIME
    (Msr.IA32_APICBASE, Msr.IA32_APICBASE),
    (0x34, 0x34),  # SMI_COUNT
    (0x3B, 0x3B),  # TSC_ADJUST
    (0x48, 0x49),  # SPEC_CTRL, PRED_CMD
    (0x79, 0x79),  # UCODE_WRITE
    (0x8B, 0x8B),  # UCODE_REV
    (0x9E, 0x9E),  # SMBASE
    (0xC1, 0xC2),  # P6_PERFCTR
    (0xCE, 0xCE),  # PLATFORM_INFO
    (0x11E, 0x11E),  # BBL_CR_CTL3
    (0x140, 0x140),  # MISC_FEATURES_ENABLES
    (Msr.IA32_SYSENTER_CS, Msr.IA32_SYSENTER_EIP),  # CS, ESP, EIP
    (0x17A, 0x17B),  # MCG_STATUS, MCG_CTL
    (0x186, 0x187),  # P6_EVNTSEL
    (0x1A0, 0x1A0),  # MISC_ENABLE
    (0x1C4, 0x1C5),  # XFD, XFD_ERR
    (0x1D9, 0x1D9),  # DEBUGCTL
    (0x1DB, 0x1DE),  # LASTBRANCH, LASTINT
    (0x1FC, 0x1FC),  # POWER_CTL
    (0x200, 0x20F),  # MTRRphysBase, MTRRphysMask
    (0x250, 0x250),  # MTRRfix64K
    (0x258, 0x259),  # MTRRfix16K
    (0x268, 0x26F),  # MTRRfix4K
    (Msr.IA32_CR_PAT, Msr.IA32_CR_PAT),
    (0x280, 0x29F),  # MC0_CTL2 to MC31_CTL2
    (0x2FF, 0x2FF),  # MTRRdefType
    (0x400, 0x47F),  # MC0_CTL to MC31_MISC
    (0x6E0, 0x6E0),  # TSC_DEADLINE
    (0xDA0, 0xDA0),  # XSS
    (0x4B56_4D00, 0x4B56_4D07),  # KVM's own
    (Msr.EFER, Msr.SYSCALL_MASK),  # EFER, STAR, LSTAR, CSTAR, SYSCALL_MASK
    (Msr.FS_BASE, 0xC000_0104),  # FS, GS, KERNEL_GS_BASE, TSC_AUX, TSC_RATIO
    (0xC001_0000, 0xC001_0007),  # K7_EVNTSEL, K7_PERFCTR
    (Msr.K7_HWCR, Msr.K7_HWCR),
    (0xC001_001B, 0xC001_001B),  # K7_CLK_CTL
    (0xC001_001F, 0xC001_0020),  # NB_CFG, PATCH_LOADER
    (Msr.FAM10H_MMIO_CONF_BASE, Msr.FAM10H_MMIO_CONF_BASE),
    (0xC001_0114, 0xC001_0115),  # VM_CR, VM_IGNNE
    (0xC001_0117, 0xC001_0117),  # VM_HSAVE_PA
    (0xC001_011F, 0xC001_011F),  # VIRT_SPEC_CTRL
    (0xC001_1022, 0xC001_1023),  # DC_CFG, TW_CFG
    (Msr.AMD64_DE_CFG, 0xC001_102A),  # DE_CFG, BU_CFG2
    (0xC001_102C, 0xC001_102C),  # F15H_EX_CFG
)
# The MSRs that a VMM can read but not set, and those that it can set but not read.
ONLY_READ: Final = (
    (0x0, 0x1),  # P5_MC_ADDR, P5_MC_TYPE
    (0x17, 0x17),  # PLATFORM_ID
    (0x2A, 0x2A),  # EBL_CR_POWERON
    (0x2C, 0x2C),  # EBC_FREQUENCY_ID
    (0xCD, 0xCD),
    (0xFE, 0xFE),  # MTRRcap
    (0x179, 0x179),  # MCG_CAP
    (0x198, 0x199),  # PERF_STATUS, PERF_CTL
    (0x606, 0x606),  # RAPL_POWER_UNIT
    (0x611, 0x611),  # PKG_ENERGY_STATUS
    (0x619, 0x619),  # DRAM_ENERGY_STATUS
    (0x639, 0x639),  # PP0_ENERGY_STATUS
    (0x641, 0x641),  # PP1_ENERGY_STATUS
    (0xC001_0010, 0xC001_0010),  # SYSCFG
    (0xC001_0055, 0xC001_0055),  # K8_INT_PENDING_MSG
    (0xC001_0112, 0xC001_0113),  # K8_TSEG_ADDR, K8_TSEG_MASK
    (0xC001_1021, 0xC001_1021),  # F15H_IC_CFG
)
ONLY_WRITTEN: Final = ((0x49, 0x49), (0x79, 0x79), (0xC001_0020, 0xC001_0020), (0xC001_0115,) * 2)

_HWCR_IGNORED: Final = 1 << 3 | 1 << 6 | 1 << 8
# The bits that a VMM may set.
_BITS: Final[dict[int, int]] = {
    Msr.K7_HWCR: 1 << 18 | 1 << 24,
    Msr.IA32_PRED_CMD: 0x81,  # IBPB, SBPB
    Msr.MISC_FEATURES_ENABLES: 1,
    Msr.IA32_XFD: 0,
    Msr.IA32_XFD_ERR: 0,
    Msr.KVM_POLL_CONTROL: 1,
    Msr.FAM10H_MMIO_CONF_BASE: 0,
    Msr.AMD64_DE_CFG: 2,  # LFENCE_SERIALIZE
    Msr.AMD64_VIRT_SPEC_CTRL: 4,  # SSBD
}
_ADDRESSES: Final = frozenset((Msr.LSTAR, Msr.CSTAR, Msr.FS_BASE, Msr.GS_BASE, Msr.KERNEL_GS_BASE))
_BASES: Final[dict[int, str]] = {Msr.FS_BASE: "fs", Msr.GS_BASE: "gs"}
_SIGN_EXTENDED: Final = (0, 0x1FFFF)  # bits 63 to 47 of a canonical address


class ModelRegisters:
    """The MSRs of one vCPU.

    ``system`` holds those that KVM_SET_SREGS also sets: EFER, and the bases of the APIC, FS and GS.
    """

    def __init__(self, system: SystemRegisters) -> None:
        self._system = system
        self.values: dict[int, int] = {}  # the values that the VMM has set, by index

    def write(self, index: int, value: int, guest: CpuidTable) -> bool:
        """Set an MSR as KVM_SET_MSRS does for a guest with the CPUID table ``guest``.

        Returns False if KVM refuses the index or the value.
        """
        if not _within(index, WRITTEN):
            return False
        if index == Msr.K7_HWCR:
            value &= ~_HWCR_IGNORED
        if value & ~_BITS.get(index, value):
            return False
        if index == Msr.IA32_CR_PAT and not _is_pat(value):
            return False
        if index in _ADDRESSES and value >> 47 not in _SIGN_EXTENDED:
            return False
        if not self._write_shared(index, value, guest):
            return False
        self.values[index] = value
        return True

    def read(self, index: int) -> int | None:
        """Return the value of an MSR as KVM_GET_MSRS does, or None if KVM does not have the MSR."""
        system = self._system
        match index:
            case _ if _within(index, ONLY_WRITTEN):
                return None
            case _ if not _within(index, WRITTEN) and not _within(index, ONLY_READ):
                return None
            case Msr.IA32_APICBASE:
                return system.apic_base
            case Msr.EFER:
                return system.efer
            case Msr.FS_BASE | Msr.GS_BASE:
                return system.base(_BASES[index])
            case Msr.IA32_CR_PAT:
                return self.values.get(index, PAT_RESET)
            case _:
                return self.values.get(index, 0)

    def _write_shared(self, index: int, value: int, guest: CpuidTable) -> bool:
        if index == Msr.EFER:
            return self._system.set_efer(value)
        if index == Msr.IA32_APICBASE:
            return self._system.set_apic_base(value, guest)
        if index in _BASES:
            self._system.set_base(_BASES[index], value)
        return True


def _within(index: int, ranges: tuple[tuple[int, ...], ...]) -> bool:
    return any(first <= index <= last for first, last in ranges)


def _is_pat(value: int) -> bool:
    """Whether each of the eight memory types in ``value`` is 0, 1 or 4 to 7."""
    return all(kind in (0, 1, 4, 5, 6, 7) for kind in value.to_bytes(8, "little"))
