# SPDX-License-Identifier: Apache-2.0
"""Checks whether KVM can exit for certificates, and enables the exit.

Source: Linux ``x86/amd-memory-encryption.rst``, KVM_SEV_SNP_ENABLE_REQ_CERTS and "Device attribute
API". For the exit, KVM has a device attribute instead of a capability number. KVM_HAS_DEVICE_ATTR
succeeds even if SNP is off, so this module reads the attribute's value.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable

from snpcerts import device_ioctl
from snpcerts.abi import kvm
from snpcerts.errors import RefusedError

IoctlCall = Callable[[int, int, bytearray], object]


def supports_req_certs(kvm_fd: int, ioctl: IoctlCall = device_ioctl.ioctl) -> bool:
    """Whether KVM on this host can exit with KVM_EXIT_SNP_REQ_CERTS.

    ``kvm_fd`` is a file descriptor for ``/dev/kvm``. The answer is False on kernels before 7.0 and
    if SNP is off. Other failures raise ``OSError``.
    """
    value = ctypes.c_uint64()
    attr = kvm.DeviceAttr(
        group=kvm.GROUP_SEV, attr=kvm.ATTR_SNP_REQ_CERTS, addr=ctypes.addressof(value)
    )
    try:
        ioctl(kvm_fd, kvm.Ioctl.GET_DEVICE_ATTR, bytearray(attr.pack()))
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOTTY, errno.EINVAL):
            return False
        raise
    return value.value == 1


def enable_req_certs(vm_fd: int, ioctl: IoctlCall = device_ioctl.ioctl) -> None:
    """Enable KVM_EXIT_SNP_REQ_CERTS for an SNP VM, after INIT2 and before its first vCPU is
    created.

    Raises :class:`RefusedError` if KVM fails with EINVAL: the order of calls or the VM's type is
    wrong, or Linux is older than 7.0.
    """
    command = bytearray(kvm.SevCmd(id=kvm.SevCommand.SNP_ENABLE_REQ_CERTS).pack())
    try:
        ioctl(vm_fd, kvm.Ioctl.MEMORY_ENCRYPT_OP, command)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise RefusedError(
            "KVM_SEV_SNP_ENABLE_REQ_CERTS: KVM refused with EINVAL",
            hint=(
                "use a VM of type SNP that is initialised with INIT2 and has no vCPU yet, on "
                "Linux 7.0 or later"
            ),
        ) from None
