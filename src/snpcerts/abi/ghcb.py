# SPDX-License-Identifier: Apache-2.0
"""The GHCB page, its exit codes, and the GHCB MSR protocol.

Source: GHCB (56421) sections 2.3, 2.6 and 4; Linux ``arch/x86/include/asm/svm.h``
(struct ghcb_save_area), ``asm/sev-common.h`` and ``uapi/asm/svm.h``.
"""

from __future__ import annotations

import enum
from typing import Final

PAGE_SIZE = 4096
MSR_GHCB = 0xC001_0130

SHARED_BUFFER = 0x800
SHARED_BUFFER_SIZE = 2032
PROTOCOL_VERSION = 0xFFA  # u16
USAGE = 0xFFC  # u32; 0 is the standard layout, and KVM accepts no other
VALID_BITMAP = 0x3F0
VALID_BITMAP_SIZE = 16


class Field(enum.IntEnum):
    """Offsets of those eight-byte fields of the save area that a certificate request uses."""

    RAX = 0x1F8
    RCX = 0x308
    RDX = 0x310
    RBX = 0x318
    RSI = 0x330
    SW_EXITCODE = 0x390
    SW_EXITINFO1 = 0x398
    SW_EXITINFO2 = 0x3A0
    SW_SCRATCH = 0x3A8
    XCR0 = 0x3E8

    @property
    def valid_byte(self) -> int:
        """The page offset of the byte that holds this field's bit in the valid bitmap."""
        return VALID_BITMAP + self // 64

    @property
    def valid_mask(self) -> int:
        """This field's bit in the byte at :attr:`valid_byte`."""
        return 1 << (self // 8 % 8)


CPL = 0x0CB  # one byte; the valid bitmap has one bit for the eight bytes that contain it


class Instruction(enum.IntEnum):
    """SW_EXITCODE values for instructions that the guest asks the hypervisor to emulate."""

    READ_DR7 = 0x27
    WRITE_DR7 = 0x37
    RDTSC = 0x6E
    RDPMC = 0x6F
    CPUID = 0x72
    INVD = 0x76
    IOIO = 0x7B
    MSR = 0x7C
    VMMCALL = 0x81
    RDTSCP = 0x87
    WBINVD = 0x89
    MONITOR = 0x8A
    MWAIT = 0x8B


class ExitCode(enum.IntEnum):
    """SW_EXITCODE values that the GHCB specification defines, all above 0x8000_0000."""

    MMIO_READ = 0x8000_0001
    MMIO_WRITE = 0x8000_0002
    NMI_COMPLETE = 0x8000_0003
    AP_HLT_LOOP = 0x8000_0004
    AP_JUMP_TABLE = 0x8000_0005
    PSC = 0x8000_0010
    SNP_GUEST_REQUEST = 0x8000_0011
    SNP_EXT_GUEST_REQUEST = 0x8000_0012
    AP_CREATION = 0x8000_0013
    HV_FEATURES = 0x8000_FFFD
    TERM_REQUEST = 0x8000_FFFE
    UNSUPPORTED_EVENT = 0x8000_FFFF


class ResponseCode(enum.IntEnum):
    """The hypervisor's response to an exit: the low half of SW_EXITINFO1."""

    NO_ACTION = 0
    ISSUE_EXCEPTION = 1
    MALFORMED_INPUT = 2


class ProcessorRequest(enum.IntEnum):
    """The action that AP_CREATION requests: the low half of SW_EXITINFO1. The high half is the APIC
    ID.
    """

    CREATE_ON_INIT = 0
    CREATE = 1
    DESTROY = 2


class PageStateOperation(enum.IntEnum):
    """The operations of page state changes that KVM supports."""

    PRIVATE = 1
    SHARED = 2


class PageStateError(enum.IntEnum):
    """SW_EXITINFO2 values after a failed page state change. Success is 0."""

    GENERIC = 0x100 << 32
    INVALID_HDR = 1 << 32 | 1
    INVALID_ENTRY = 1 << 32 | 2


PSC_HEADER_SIZE = 8  # cur_entry u16, end_entry u16, reserved u32
PSC_ENTRY_SIZE = 8  # cur_page 12 bits, gfn 40, operation 4, pagesize 1, reserved 7


class InputErrorCode(enum.IntEnum):
    """SW_EXITINFO2 values (GHCB_ERR_*) when SW_EXITINFO1 reports malformed input."""

    NOT_REGISTERED = 1
    INVALID_USAGE = 2
    INVALID_SCRATCH_AREA = 3
    MISSING_INPUT = 4
    INVALID_INPUT = 5
    INVALID_EVENT = 6


class VmmError(enum.IntEnum):
    """The VMM's error after a guest request: the high half of SW_EXITINFO2."""

    NONE = 0
    INVALID_LEN = 1
    BUSY = 2
    GENERIC = 0xFFFF_FFFF  # KVM's value for "any other error"


def guest_err(vmm: int, firmware: int) -> int:
    """Return SW_EXITINFO2 for a guest request: the VMM error in the high half, the firmware status
    in the low half.
    """
    return vmm << 32 | firmware & 0xFFFF_FFFF


# GHCB MSR protocol: the low 12 bits are the information code, the rest is data.
MSR_CODE_MASK: Final = 0xFFF
HV_FEATURES_SUPPORTED = 0b11  # SNP and AP creation, the features that KVM reports


class MsrCode(enum.IntEnum):
    """Information codes of the GHCB MSR protocol (GHCB section 2.3.1)."""

    SEV_INFO_RSP = 0x001
    SEV_INFO_REQ = 0x002
    CPUID_REQ = 0x004
    CPUID_RSP = 0x005
    AP_RESET_HOLD_REQ = 0x006
    AP_RESET_HOLD_RSP = 0x007
    PREFERRED_GPA_REQ = 0x010
    PREFERRED_GPA_RSP = 0x011
    REGISTER_GPA_REQ = 0x012
    REGISTER_GPA_RSP = 0x013
    PSC_REQ = 0x014
    PSC_RSP = 0x015
    HV_FEATURES_REQ = 0x080
    HV_FEATURES_RSP = 0x081
    TERMINATE = 0x100


class GhcbPage:
    """A view of one GHCB page: 4096 bytes of writable memory.

    Reads and writes access the memory directly, so a field may change between two reads.
    """

    __slots__ = ("_page",)

    def __init__(self, page: bytearray | memoryview) -> None:
        self._page = memoryview(page)

    def get(self, field: Field) -> int:
        """Return the field's value, whether or not its bit in the valid bitmap is set."""
        return int.from_bytes(self._page[field : field + 8], "little")

    def put(self, field: Field, value: int) -> None:
        """Set the field's value and its bit in the valid bitmap."""
        self._page[field : field + 8] = value.to_bytes(8, "little")
        self._page[field.valid_byte] |= field.valid_mask

    def is_valid(self, field: Field) -> bool:
        """Whether the field's bit in the valid bitmap is set."""
        return bool(self._page[field.valid_byte] & field.valid_mask)

    def clear_valid_bitmap(self) -> None:
        """Clear every bit of the valid bitmap."""
        self._page[VALID_BITMAP : VALID_BITMAP + VALID_BITMAP_SIZE] = bytes(VALID_BITMAP_SIZE)

    @property
    def usage(self) -> int:
        """The page's GHCB_USAGE field."""
        return int.from_bytes(self._page[USAGE : USAGE + 4], "little")

    @usage.setter
    def usage(self, value: int) -> None:
        self._page[USAGE : USAGE + 4] = value.to_bytes(4, "little")

    @property
    def protocol_version(self) -> int:
        """The page's PROTOCOL_VERSION field."""
        return int.from_bytes(self._page[PROTOCOL_VERSION : PROTOCOL_VERSION + 2], "little")

    @protocol_version.setter
    def protocol_version(self, value: int) -> None:
        self._page[PROTOCOL_VERSION : PROTOCOL_VERSION + 2] = value.to_bytes(2, "little")
