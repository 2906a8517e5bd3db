# SPDX-License-Identifier: Apache-2.0
"""``/dev/sev-guest``: how programs in a guest request reports from the guest's kernel.

Source: Linux ``include/uapi/linux/sev-guest.h`` and
``drivers/virt/coco/sev-guest/sev-guest.c``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from snpcerts.abi.cstruct import CStruct, raw, u8, u32, u64
from snpcerts.abi.ioctl import iowr

SEV_GUEST_IOC_TYPE = ord("S")

CERTS_MAX_SIZE = 0x4000  # SEV_FW_BLOB_MAX_SIZE
REPORT_RESPONSE_SIZE = 4000
KEY_RESPONSE_SIZE = 64

EXITINFO2_PRESET = 0xFF  # older drivers return this if nothing was sent
EXITINFO2_NOT_SENT = 0xFFFF_FFFF_FFFF_FFFF  # the VMGEXIT itself failed


@dataclass(frozen=True, slots=True)
class GuestRequestIoctl(CStruct):
    """Argument of all three ioctls of ``/dev/sev-guest``."""

    SIZE: ClassVar[int] = 32
    C_NAME: ClassVar[str] = "struct snp_guest_request_ioctl"
    msg_version: int = u8(0x00)
    req_data: int = u64(0x08)
    resp_data: int = u64(0x10)
    exitinfo2: int = u64(0x18)  # fw_error in the low half, vmm_error in the high half


@dataclass(frozen=True, slots=True)
class ReportReq(CStruct):
    """Request of SNP_GET_REPORT. The kernel passes the request to the firmware unchanged."""

    SIZE: ClassVar[int] = 96
    C_NAME: ClassVar[str] = "struct snp_report_req"
    user_data: bytes = raw(0x00, 64)
    vmpl: int = u32(0x40)
    rsvd: bytes = raw(0x44, 28)


@dataclass(frozen=True, slots=True)
class DerivedKeyReq(CStruct):
    """Request of SNP_GET_DERIVED_KEY."""

    SIZE: ClassVar[int] = 32
    C_NAME: ClassVar[str] = "struct snp_derived_key_req"
    root_key_select: int = u32(0x00)
    rsvd: int = u32(0x04)
    guest_field_select: int = u64(0x08)
    vmpl: int = u32(0x10)
    guest_svn: int = u32(0x14)
    tcb_version: int = u64(0x18)


@dataclass(frozen=True, slots=True)
class ExtReportReq(CStruct):
    """Request of SNP_GET_EXT_REPORT."""

    SIZE: ClassVar[int] = 112
    C_NAME: ClassVar[str] = "struct snp_ext_report_req"
    data: bytes = raw(0x00, ReportReq.SIZE)
    certs_address: int = u64(0x60)
    certs_len: int = u32(0x68)  # bytes; if this is too small, the kernel writes the size needed


SNP_GET_REPORT = iowr(SEV_GUEST_IOC_TYPE, 0x0, GuestRequestIoctl.SIZE)
SNP_GET_DERIVED_KEY = iowr(SEV_GUEST_IOC_TYPE, 0x1, GuestRequestIoctl.SIZE)
SNP_GET_EXT_REPORT = iowr(SEV_GUEST_IOC_TYPE, 0x2, GuestRequestIoctl.SIZE)
