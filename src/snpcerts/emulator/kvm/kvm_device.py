# SPDX-License-Identifier: Apache-2.0
"""``/dev/kvm``: capabilities, device attributes, and new VMs."""

from __future__ import annotations

import errno
import logging
import struct
from typing import Final

from snpcerts.abi.ioctl import KVMIO, type_of
from snpcerts.abi.kvm import (
    API_VERSION,
    ATTR_SEV_VMSA_FEATURES,
    ATTR_SNP_POLICY_BITS,
    ATTR_SNP_REQ_CERTS,
    GROUP_SEV,
    VCPU_MMAP_SIZE,
    DeviceAttr,
    Ioctl,
    VmType,
)
from snpcerts.abi.vcpu_registers import Msr
from snpcerts.emulator.guest.linux import LinuxGuest
from snpcerts.emulator.guest.program import GuestFactory
from snpcerts.emulator.kvm.capability import capability, vm_types
from snpcerts.emulator.kvm.host_cpuid import SUPPORTED
from snpcerts.emulator.kvm.platform import Platform
from snpcerts.emulator.kvm.release import NEWEST, KernelRelease
from snpcerts.emulator.kvm.vm import Vm
from snpcerts.emulator.syscall.device import Caller, NewDescriptor, Result

log = logging.getLogger(__name__)

GROUP_X86 = 0
ATTR_XCOMP_GUEST_SUPP = 0
XCR0_SUPPORTED = 0b111  # x87, SSE, AVX

# The MSRs that a VMM may save and restore, and the MSRs that list features.
_MSRS: Final[dict[int, tuple[int, ...]]] = {
    Ioctl.GET_MSR_INDEX_LIST: (
        Msr.IA32_TSC,
        Msr.IA32_SYSENTER_CS,
        Msr.IA32_SYSENTER_ESP,
        Msr.IA32_SYSENTER_EIP,
        Msr.IA32_CR_PAT,
        Msr.EFER,
        Msr.STAR,
    ),
    Ioctl.GET_MSR_FEATURE_INDEX_LIST: (Msr.AMD64_DE_CFG,),
}
_MCE_CAP: Final = 1 << 24 | 1 << 8 | 32  # SER_P, CTL_P, banks
_CPUID_ENTRY: Final = struct.Struct("<7I12x")


class KvmDevice:
    """An open ``/dev/kvm``.

    ``guest`` creates the guest of each VM. ``kernel`` is the Linux release.
    """

    def __init__(
        self,
        platform: Platform,
        guest: GuestFactory = LinuxGuest,
        kernel: KernelRelease = NEWEST,
    ) -> None:
        self._platform = platform
        self._guest = guest
        self._kernel = kernel

    def close(self) -> None:
        """Do nothing: VMs do not depend on this descriptor."""

    def ioctl(self, caller: Caller, request: int, argument: int) -> Result:
        """Serve a system ioctl; fail with EINVAL for an unknown one, as the kernel does."""
        match request:
            case Ioctl.GET_API_VERSION:
                _no_argument(argument)
                return API_VERSION
            case Ioctl.CREATE_VM:
                return self._create_vm(caller, argument)
            case Ioctl.CHECK_EXTENSION:
                return capability(self._platform, argument)
            case Ioctl.GET_VCPU_MMAP_SIZE:
                _no_argument(argument)
                return VCPU_MMAP_SIZE
            case Ioctl.HAS_DEVICE_ATTR:
                self._attribute(DeviceAttr.unpack(caller.memory.read(argument, DeviceAttr.SIZE)))
                return 0
            case Ioctl.GET_DEVICE_ATTR:
                attr = DeviceAttr.unpack(caller.memory.read(argument, DeviceAttr.SIZE))
                value = self._attribute(attr)
                caller.memory.write(attr.addr, value.to_bytes(8, "little"))
                return 0
            case Ioctl.GET_SUPPORTED_CPUID:
                return _supported_cpuid(caller, argument)
            case Ioctl.GET_EMULATED_CPUID:
                caller.memory.write(argument, bytes(8))
                return 0
            case r if r in _MSRS:
                return _msr_list(caller, argument, _MSRS[r])
            case Ioctl.GET_MSRS:
                return 0  # the number of MSRs read: the values of feature MSRs are not emulated
            case Ioctl.X86_GET_MCE_CAP_SUPPORTED:
                caller.memory.write(argument, _MCE_CAP.to_bytes(8, "little"))
                return 0
            case _:
                if type_of(request) == KVMIO:
                    log.info("/dev/kvm ioctl %#x is not emulated", request)
                raise OSError(errno.EINVAL, f"unknown system ioctl {request:#x}")

    def _create_vm(self, caller: Caller, argument: int) -> NewDescriptor:
        if argument >= 64 or not vm_types(self._platform) >> argument & 1:
            raise OSError(errno.EINVAL, f"cannot create a VM of type {argument}")
        vm = Vm(
            self._platform,
            VmType(argument),
            caller.pid,
            self._guest,
            self._kernel,
        )
        return NewDescriptor(vm)

    def _attribute(self, wanted: DeviceAttr) -> int:
        """Return the value of a device attribute; raise ENXIO if it is unknown."""
        platform = self._platform
        if (wanted.group, wanted.attr) == (GROUP_X86, ATTR_XCOMP_GUEST_SUPP):
            return XCR0_SUPPORTED
        if wanted.group == GROUP_SEV and platform.sev:
            if wanted.attr == ATTR_SEV_VMSA_FEATURES:
                return platform.vmsa_features
            if wanted.attr == ATTR_SNP_POLICY_BITS:
                return platform.policy_bits if platform.snp else 0
            if wanted.attr == ATTR_SNP_REQ_CERTS and platform.certs_supported:
                return int(platform.snp)
        raise OSError(
            errno.ENXIO, f"/dev/kvm has no attribute {wanted.attr} in group {wanted.group}"
        )


def _no_argument(argument: int) -> None:
    if argument:
        raise OSError(errno.EINVAL, f"argument of this ioctl: expected 0, found {argument:#x}")


def _supported_cpuid(caller: Caller, argument: int) -> int:
    """Write the supported CPUID functions into the caller's ``struct kvm_cpuid2``.

    The structure has a count, then that many entries of 40 bytes. In the call, the count says for
    how many entries there is room.
    """
    room = int(struct.unpack("<I4x", caller.memory.read(argument, 8))[0])
    if room < len(SUPPORTED):
        raise OSError(errno.E2BIG, "the buffer is too small for the CPUID table")
    caller.memory.write(
        argument,
        struct.pack("<I4x", len(SUPPORTED))
        + b"".join(_CPUID_ENTRY.pack(*each) for each in SUPPORTED),
    )
    return 0


def _msr_list(caller: Caller, argument: int, known: tuple[int, ...]) -> int:
    """Write the numbers of the ``known`` MSRs into the caller's ``struct kvm_msr_list``.

    The count is written even if the numbers do not fit.
    """
    room = int.from_bytes(caller.memory.read(argument, 4), "little")
    caller.memory.write(argument, len(known).to_bytes(4, "little"))
    if room < len(known):
        raise OSError(errno.E2BIG, "the buffer is too small for the list of MSRs")
    caller.memory.write(argument + 4, struct.pack(f"<{len(known)}I", *known))
    return 0
