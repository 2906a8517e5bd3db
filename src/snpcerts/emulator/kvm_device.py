# SPDX-License-Identifier: Apache-2.0
"""``/dev/kvm``: what the kernel can do, device attributes, and new VMs."""

from __future__ import annotations

import errno
import logging
import struct
from typing import Final

from snpcerts.abi.ioctl import iowr, type_of
from snpcerts.abi.kvm import (
    API_VERSION,
    ATTR_SEV_VMSA_FEATURES,
    ATTR_SNP_POLICY_BITS,
    ATTR_SNP_REQ_CERTS,
    GROUP_SEV,
    KVMIO,
    VCPU_MMAP_SIZE,
    DeviceAttr,
    Ioctl,
    VmType,
)
from snpcerts.emulator.device import Caller, NewDescriptor, Result
from snpcerts.emulator.ghcb_request import C_BIT
from snpcerts.emulator.kvm_capability import capability, vm_types
from snpcerts.emulator.kvm_vm import Vm
from snpcerts.emulator.platform import Platform

log = logging.getLogger(__name__)

GROUP_X86 = 0
ATTR_XCOMP_GUEST_SUPP = 0
XCR0_SUPPORTED = 0b111  # x87, SSE, AVX

GET_SUPPORTED_CPUID: Final = iowr(KVMIO, 0x05, 8)
_CPUID_ENTRY: Final = struct.Struct("<7I12x")
# Enough for a VMM to fill in what it needs: vendor, signature, SEV's own leaf.
_CPUID: Final = (
    (0x0000_0000, 0, 0, 0x10, 0x68747541, 0x444D4163, 0x69746E65),
    (0x0000_0001, 0, 0, 0x00A1_0F11, 0, 0, 0),
    (0x8000_0000, 0, 0, 0x8000_001F, 0x68747541, 0x444D4163, 0x69746E65),
    (0x8000_001F, 0, 0, 0b11011, 5 << 6 | C_BIT, 0, 0),
)


class KvmDevice:
    """An open ``/dev/kvm``."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def close(self) -> None:
        """VMs live on without it."""

    def ioctl(self, caller: Caller, request: int, argument: int) -> Result:
        """Serve a system ioctl; EINVAL for every one not known, as the kernel has it."""
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
            case r if r == GET_SUPPORTED_CPUID:
                return _supported_cpuid(caller, argument)
            case _:
                if type_of(request) == KVMIO:
                    log.info("/dev/kvm ioctl %#x is not emulated", request)
                raise OSError(errno.EINVAL, "unknown system ioctl")

    def _create_vm(self, caller: Caller, argument: int) -> NewDescriptor:
        if argument >= 64 or not vm_types(self._platform) >> argument & 1:
            raise OSError(errno.EINVAL, f"VM type {argument}")
        return NewDescriptor(Vm(self._platform, VmType(argument), caller.pid))

    def _attribute(self, wanted: DeviceAttr) -> int:
        """An attribute's value; ENXIO for one that is not there."""
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
        raise OSError(errno.ENXIO, f"no attribute {wanted.attr} in group {wanted.group}")


def _no_argument(argument: int) -> None:
    if argument:
        raise OSError(errno.EINVAL, "takes no argument")


def _supported_cpuid(caller: Caller, argument: int) -> int:
    """``struct kvm_cpuid2``: a count and room for that many entries of 40 bytes."""
    room = int(struct.unpack("<I4x", caller.memory.read(argument, 8))[0])
    if room < len(_CPUID):
        raise OSError(errno.E2BIG, "too little room for the CPUID table")
    caller.memory.write(
        argument,
        struct.pack("<I4x", len(_CPUID)) + b"".join(_CPUID_ENTRY.pack(*each) for each in _CPUID),
    )
    return 0
