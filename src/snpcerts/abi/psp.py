# SPDX-License-Identifier: Apache-2.0
"""``/dev/sev``: the host's interface to the firmware.

Source: psp-sev.h and ``drivers/crypto/ccp/sev-dev.c`` of Linux 7.0. The header does not name all
bits of the SNP status; the other names are virtee/sev's.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar

from snpcerts.abi.cstruct import CStruct, raw, u8, u32, u64
from snpcerts.abi.ioctl import SEV_IOC_TYPE, iowr


class Command(enum.IntEnum):
    """Values of sev_issue_cmd.cmd."""

    FACTORY_RESET = 0
    PLATFORM_STATUS = 1
    PEK_GEN = 2
    PEK_CSR = 3
    PDH_GEN = 4
    PDH_CERT_EXPORT = 5
    PEK_CERT_IMPORT = 6
    GET_ID = 7
    GET_ID2 = 8
    SNP_PLATFORM_STATUS = 9
    SNP_COMMIT = 10
    SNP_SET_CONFIG = 11
    SNP_VLEK_LOAD = 12


class SevStatus(enum.IntEnum):
    """Firmware status codes (SEV_RET_*)."""

    SUCCESS = 0x00
    INVALID_PLATFORM_STATE = 0x01
    INVALID_GUEST_STATE = 0x02
    INVALID_CONFIG = 0x03
    INVALID_LEN = 0x04
    ALREADY_OWNED = 0x05
    INVALID_CERTIFICATE = 0x06
    POLICY_FAILURE = 0x07
    INACTIVE = 0x08
    INVALID_ADDRESS = 0x09
    BAD_SIGNATURE = 0x0A
    BAD_MEASUREMENT = 0x0B
    ASID_OWNED = 0x0C
    INVALID_ASID = 0x0D
    WBINVD_REQUIRED = 0x0E
    DFFLUSH_REQUIRED = 0x0F
    INVALID_GUEST = 0x10
    INVALID_COMMAND = 0x11
    ACTIVE = 0x12
    HWERROR_PLATFORM = 0x13
    HWERROR_UNSAFE = 0x14
    UNSUPPORTED = 0x15
    INVALID_PARAM = 0x16
    RESOURCE_LIMIT = 0x17
    SECURE_DATA_INVALID = 0x18
    INVALID_PAGE_SIZE = 0x19
    INVALID_PAGE_STATE = 0x1A
    INVALID_MDATA_ENTRY = 0x1B
    INVALID_PAGE_OWNER = 0x1C
    AEAD_OFLOW = 0x1D
    EXIT_RING_BUFFER = 0x1F
    RMP_INIT_REQUIRED = 0x20
    BAD_SVN = 0x21
    BAD_VERSION = 0x22
    SHUTDOWN_REQUIRED = 0x23
    UPDATE_FAILED = 0x24
    RESTORE_REQUIRED = 0x25
    RMP_INITIALIZATION_FAILED = 0x26
    INVALID_KEY = 0x27


NO_FW_CALL = 0xFFFF_FFFF  # the kernel's value for "the firmware was never called"


@dataclass(frozen=True, slots=True)
class IssueCmd(CStruct):
    """Argument of SEV_ISSUE_CMD. The structure is packed, so ``data`` is unaligned."""

    SIZE: ClassVar[int] = 16
    C_NAME: ClassVar[str] = "struct sev_issue_cmd"
    cmd: int = u32(0)
    data: int = u64(4)  # user pointer to the command's own structure
    error: int = u32(12)  # out: firmware status


SEV_ISSUE_CMD = iowr(SEV_IOC_TYPE, 0x00, IssueCmd.SIZE)


@dataclass(frozen=True, slots=True)
class PlatformStatus(CStruct):
    """Data of PLATFORM_STATUS, which is a command of SEV, not of SNP."""

    SIZE: ClassVar[int] = 12
    C_NAME: ClassVar[str] = "struct sev_user_data_status"
    api_major: int = u8(0)
    api_minor: int = u8(1)
    state: int = u8(2)  # 0 uninitialised, 1 initialised, 2 working
    flags: int = u32(3)
    build: int = u8(7)
    guest_count: int = u32(8)


@dataclass(frozen=True, slots=True)
class GetId2(CStruct):
    """Data of GET_ID2."""

    SIZE: ClassVar[int] = 12
    C_NAME: ClassVar[str] = "struct sev_user_data_get_id2"
    address: int = u64(0)
    length: int = u32(8)


@dataclass(frozen=True, slots=True)
class PdhCertExport(CStruct):
    """Data of PDH_CERT_EXPORT. The kernel always writes the lengths back."""

    SIZE: ClassVar[int] = 24
    C_NAME: ClassVar[str] = "struct sev_user_data_pdh_cert_export"
    pdh_cert_address: int = u64(0)
    pdh_cert_len: int = u32(8)
    cert_chain_address: int = u64(12)
    cert_chain_len: int = u32(20)


FW_BLOB_MAX_SIZE = 0x4000  # SEV_FW_BLOB_MAX_SIZE

# Bits of SnpPlatformStatus.flags.
STATUS_MASK_CHIP_ID = 1 << 0
STATUS_MASK_CHIP_KEY = 1 << 1
STATUS_VLEK_EN = 1 << 2
STATUS_FEATURE_INFO = 1 << 3
# Bits of SnpPlatformStatus.rmp.
STATUS_RMP_INITIALIZED = 1 << 0
STATUS_ALIAS_CHECK_COMPLETE = 1 << 1


@dataclass(frozen=True, slots=True)
class SnpPlatformStatus(CStruct):
    """Data of SNP_PLATFORM_STATUS. It does not contain the committed TCB; only reports do."""

    SIZE: ClassVar[int] = 32
    C_NAME: ClassVar[str] = "struct sev_user_data_snp_status"
    api_major: int = u8(0x00)
    api_minor: int = u8(0x01)
    state: int = u8(0x02)  # 0 uninitialised, 1 initialised
    rmp: int = u8(0x03)
    build_id: int = u32(0x04)
    flags: int = u32(0x08)
    guest_count: int = u32(0x0C)
    current_tcb: bytes = raw(0x10, 8)
    reported_tcb: bytes = raw(0x18, 8)


# Bits of SNP_FEATURE_INFO 0, ECX (Linux include/linux/psp-sev.h; bit 0 is from AMD-ASPFW).
FEATURE_VLEK = 1 << 0
FEATURE_X86_SNP_SHUTDOWN = 1 << 1
FEATURE_VERIFY_MITIGATION = 1 << 13
# Bits of SnpConfig.flags; the rest is reserved.
CONFIG_MASK_CHIP_ID = 1 << 0
CONFIG_MASK_CHIP_KEY = 1 << 1


@dataclass(frozen=True, slots=True)
class SnpConfig(CStruct):
    """Data of SNP_SET_CONFIG. All zeros in ``reported_tcb`` reset the reported TCB to the committed
    TCB.
    """

    SIZE: ClassVar[int] = 64
    C_NAME: ClassVar[str] = "struct sev_user_data_snp_config"
    reported_tcb: bytes = raw(0x00, 8)
    flags: int = u32(0x08)
    rsvd: bytes = raw(0x0C, 52)


@dataclass(frozen=True, slots=True)
class SnpVlekLoad(CStruct):
    """Data of SNP_VLEK_LOAD."""

    SIZE: ClassVar[int] = 16
    C_NAME: ClassVar[str] = "struct sev_user_data_snp_vlek_load"
    len: int = u32(0)  # must be 16
    vlek_wrapped_version: int = u8(4)  # must be 0
    rsvd: bytes = raw(5, 3)
    vlek_wrapped_address: int = u64(8)


@dataclass(frozen=True, slots=True)
class WrappedVlekHashstick(CStruct):
    """The wrapped hashstick at the address in :class:`SnpVlekLoad`.

    The inner layout follows virtee/sev's reading of the SNP ABI.
    """

    SIZE: ClassVar[int] = 432
    iv: bytes = raw(0x000, 12)
    rsvd1: bytes = raw(0x00C, 4)
    wrapped: bytes = raw(0x010, 384)
    tcb_version: bytes = raw(0x190, 8)
    rsvd2: bytes = raw(0x198, 8)
    tag: bytes = raw(0x1A0, 16)
