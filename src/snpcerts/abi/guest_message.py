# SPDX-License-Identifier: Apache-2.0
"""Guest messages, which a guest and the firmware exchange.

Source: SNP ABI (56860) chapter 7 "Guest Messages"; Linux ``arch/x86/include/asm/sev.h`` (struct
snp_guest_msg_hdr). A message is one page: a plain 96-byte header, then the payload encrypted with
AES-256-GCM. This module has the layouts and the inputs of the cipher. The code that holds a VMPCK
does the encryption.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar

from snpcerts.abi.cstruct import CStruct, raw, u8, u16, u32, u64

MESSAGE_SIZE = 4096
HEADER_SIZE = 0x60
MAX_PAYLOAD = MESSAGE_SIZE - HEADER_SIZE
ALGO_AES_256_GCM = 1
HEADER_VERSION = 1
TAG_SIZE = 16
VMPCK_SIZE = 32
VMPCK_COUNT = 4
VMPL_MAX = 3

# What AES-GCM authenticates but does not encrypt: the header from ALGO on.
AAD_START, AAD_END = 0x30, 0x60

# KVM reads this byte to decide whether the guest wants certificates.
MSG_TYPE_OFFSET = 0x34


class MessageType(enum.IntEnum):
    """MSG_TYPE values. The type of a response is the type of its request plus one."""

    INVALID = 0
    CPUID_REQ = 1
    CPUID_RSP = 2
    KEY_REQ = 3
    KEY_RSP = 4
    REPORT_REQ = 5
    REPORT_RSP = 6
    EXPORT_REQ = 7
    EXPORT_RSP = 8
    IMPORT_REQ = 9
    IMPORT_RSP = 10
    ABSORB_REQ = 11
    ABSORB_RSP = 12
    VMRK_REQ = 13
    VMRK_RSP = 14
    ABSORB_NOMA_REQ = 15
    ABSORB_NOMA_RSP = 16
    TSC_INFO_REQ = 17
    TSC_INFO_RSP = 18


@dataclass(frozen=True, slots=True)
class MessageHeader(CStruct):
    """The header of a guest message: struct snp_guest_msg_hdr without the payload."""

    SIZE: ClassVar[int] = HEADER_SIZE
    C_NAME: ClassVar[str] = "struct snp_guest_msg_hdr"
    authtag: bytes = raw(0x00, 32)  # the tag in the first 16 bytes
    msg_seqno: int = u64(0x20)
    rsvd1: bytes = raw(0x28, 8)
    algo: int = u8(0x30)
    hdr_version: int = u8(0x31)
    hdr_sz: int = u16(0x32)
    msg_type: int = u8(MSG_TYPE_OFFSET)
    msg_version: int = u8(0x35)
    msg_sz: int = u16(0x36)  # payload bytes without the tag
    rsvd2: int = u32(0x38)
    msg_vmpck: int = u8(0x3C)
    rsvd3: bytes = raw(0x3D, 35)


def iv_of(seqno: int) -> bytes:
    """Return the 12-byte GCM nonce for a sequence number: a little-endian u64, then four zero
    bytes.
    """
    return seqno.to_bytes(8, "little") + bytes(4)


class KeySelect(enum.IntEnum):
    """KEY_SEL: which key signs a report or is the root of a derived key."""

    DEFAULT = 0  # VLEK if one is loaded, otherwise VCEK
    VCEK = 1
    VLEK = 2


class ResponseStatus(enum.IntEnum):
    """STATUS values. The field is at the start of a response's payload."""

    SUCCESS = 0
    BAD_MEASUREMENT = 0x0B
    INVALID_GUEST = 0x10
    INVALID_PARAM = 0x16
    INVALID_KEY = 0x27


@dataclass(frozen=True, slots=True)
class ReportRequest(CStruct):
    """The payload of MSG_REPORT_REQ."""

    SIZE: ClassVar[int] = 0x60
    report_data: bytes = raw(0x00, 64)
    vmpl: int = u32(0x40)
    key_sel: int = u32(0x44)  # bits 1:0
    rsvd: bytes = raw(0x48, 24)


@dataclass(frozen=True, slots=True)
class ReportResponse(CStruct):
    """The payload of MSG_REPORT_RSP up to the report, which starts at :data:`REPORT_AT`."""

    SIZE: ClassVar[int] = 0x20
    status: int = u32(0x00)
    report_size: int = u32(0x04)
    rsvd: bytes = raw(0x08, 24)


REPORT_AT = ReportResponse.SIZE


@dataclass(frozen=True, slots=True)
class KeyRequest(CStruct):
    """The payload of MSG_KEY_REQ, version 1."""

    SIZE: ClassVar[int] = 0x20
    root_key_select: int = u32(0x00)  # bit 0: 0 VCEK or VLEK, 1 VMRK; bits 2:1 KEY_SEL
    rsvd: int = u32(0x04)
    guest_field_select: int = u64(0x08)
    vmpl: int = u32(0x10)
    guest_svn: int = u32(0x14)
    tcb_version: bytes = raw(0x18, 8)


# Bits of guest_field_select.
GUEST_FIELD_GUEST_SVN = 1 << 4
GUEST_FIELD_TCB_VERSION = 1 << 5
GUEST_FIELD_SELECT_KNOWN = (1 << 6) - 1  # version 1


@dataclass(frozen=True, slots=True)
class KeyResponse(CStruct):
    """The payload of MSG_KEY_RSP."""

    SIZE: ClassVar[int] = 0x40
    status: int = u32(0x00)
    rsvd: bytes = raw(0x04, 28)
    key: bytes = raw(0x20, 32)


@dataclass(frozen=True, slots=True)
class TscInfoResponse(CStruct):
    """The payload of MSG_TSC_INFO_RSP. The scale is fixed-point with 32 fractional bits."""

    SIZE: ClassVar[int] = 0x80
    status: int = u32(0x00)
    rsvd: int = u32(0x04)
    guest_tsc_scale: int = u64(0x08)
    guest_tsc_offset: int = u64(0x10)
    tsc_factor: int = u32(0x18)  # mean TSC frequency below nominal, in 0.001 %


@dataclass(frozen=True, slots=True)
class SecretsPage(CStruct):
    """The fields of the secrets page that guest messages need. The page is in guest memory."""

    SIZE: ClassVar[int] = 4096
    C_NAME: ClassVar[str] = "struct snp_secrets_page"
    version: int = u32(0x00)
    flags: int = u32(0x04)
    fms: int = u32(0x08)
    gosvw: bytes = raw(0x10, 16)
    vmpck0: bytes = raw(0x20, VMPCK_SIZE)
    vmpck1: bytes = raw(0x40, VMPCK_SIZE)
    vmpck2: bytes = raw(0x60, VMPCK_SIZE)
    vmpck3: bytes = raw(0x80, VMPCK_SIZE)
    msg_seqno_0: int = u32(0xA0)  # written by the guest's kernel
    msg_seqno_1: int = u32(0xA4)
    msg_seqno_2: int = u32(0xA8)
    msg_seqno_3: int = u32(0xAC)
    vmsa_tweak_bitmap: bytes = raw(0x100, 64)
    tsc_factor: int = u32(0x160)
