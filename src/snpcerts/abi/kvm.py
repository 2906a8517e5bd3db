# SPDX-License-Identifier: Apache-2.0
"""The part of KVM's userspace API that SNP guests and certificate requests need.

Source: ``linux/kvm.h`` and ``asm/kvm.h`` of released kernels, 7.0 and later. ``tests/kernel``
compares every number here with those headers. KVM has no capability number for certificate
requests. Only the device attribute :data:`ATTR_SNP_REQ_CERTS` shows whether KVM supports them.
"""

from __future__ import annotations

import ctypes
import enum
import struct
from dataclasses import dataclass
from typing import ClassVar

from snpcerts.abi.cstruct import CStruct, raw, u8, u16, u32, u64
from snpcerts.abi.ioctl import KVMIO, io, ior, iow, iowr

API_VERSION = 12


class VmType(enum.IntEnum):
    """VM types on x86 (KVM_X86_*_VM), the argument of KVM_CREATE_VM."""

    DEFAULT = 0
    SW_PROTECTED = 1
    SEV = 2
    SEV_ES = 3
    SNP = 4
    TDX = 5


class Cap(enum.IntEnum):
    """Capability numbers (KVM_CAP_*), the argument of KVM_CHECK_EXTENSION."""

    IRQCHIP = 0
    HLT = 1
    MMU_SHADOW_CACHE_CONTROL = 2
    USER_MEMORY = 3
    SET_TSS_ADDR = 4
    VAPIC = 6
    EXT_CPUID = 7
    CLOCKSOURCE = 8
    NR_VCPUS = 9
    NR_MEMSLOTS = 10
    PIT = 11
    NOP_IO_DELAY = 12
    MP_STATE = 14
    COALESCED_MMIO = 15
    SYNC_MMU = 16
    DESTROY_MEMORY_REGION_WORKS = 21
    USER_NMI = 22
    SET_GUEST_DEBUG = 23
    REINJECT_CONTROL = 24
    IRQ_ROUTING = 25
    IRQ_INJECT_STATUS = 26
    JOIN_MEMORY_REGIONS_WORKS = 30
    MCE = 31
    IRQFD = 32
    PIT2 = 33
    SET_BOOT_CPU_ID = 34
    PIT_STATE2 = 35
    IOEVENTFD = 36
    SET_IDENTITY_MAP_ADDR = 37
    ADJUST_CLOCK = 39
    INTERNAL_ERROR_DATA = 40
    VCPU_EVENTS = 41
    PCI_SEGMENT = 47
    DEBUGREGS = 50
    X86_ROBUST_SINGLESTEP = 51
    ENABLE_CAP = 54
    XSAVE = 55
    XCRS = 56
    ASYNC_PF = 59
    TSC_CONTROL = 60
    GET_TSC_KHZ = 61
    MAX_VCPUS = 66
    TSC_DEADLINE_TIMER = 72
    SYNC_REGS = 74
    KVMCLOCK_CTRL = 76
    SIGNAL_MSI = 77
    READONLY_MEM = 81
    IRQFD_RESAMPLE = 82
    DEVICE_CTRL = 89
    EXT_EMUL_CPUID = 95
    IOAPIC_POLARITY_IGNORED = 97
    ENABLE_CAP_VM = 98
    IOEVENTFD_NO_LENGTH = 100
    CHECK_EXTENSION_VM = 105
    DISABLE_QUIRKS = 116
    SPLIT_IRQCHIP = 121
    IOEVENTFD_ANY_LENGTH = 122
    MAX_VCPU_ID = 128
    X2APIC_API = 129
    IMMEDIATE_EXIT = 136
    GET_MSR_FEATURES = 153
    MSR_PLATFORM_INFO = 159
    COALESCED_PIO = 162
    EXCEPTION_PAYLOAD = 164
    HALT_POLL = 182
    ASYNC_PF_INT = 183
    X86_USER_SPACE_MSR = 188
    X86_MSR_FILTER = 189
    SREGS2 = 200
    EXIT_HYPERCALL = 201
    EXIT_ON_EMULATION_FAILURE = 204
    XSAVE2 = 208
    SYS_ATTRIBUTES = 209
    VM_TSC_CONTROL = 214
    SYSTEM_EVENT_DATA = 215
    X86_TRIPLE_FAULT_EVENT = 218
    USER_MEMORY2 = 231
    MEMORY_FAULT_INFO = 232
    MEMORY_ATTRIBUTES = 233
    GUEST_MEMFD = 234
    VM_TYPES = 235
    X86_APIC_BUS_CYCLES_NS = 237
    X86_GUEST_MODE = 238


class ExitReason(enum.IntEnum):
    """Values of kvm_run.exit_reason (KVM_EXIT_*)."""

    UNKNOWN = 0
    EXCEPTION = 1
    IO = 2
    HYPERCALL = 3
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    INTERNAL_ERROR = 17
    SYSTEM_EVENT = 24
    AP_RESET_HOLD = 32
    MEMORY_FAULT = 39
    TDX = 40
    ARM_SEA = 41
    ARM_LDST64B = 42
    SNP_REQ_CERTS = 43


# The exits that a VMM on x86-64 must treat as a request for certificates. Released kernels use 43,
# SNP_REQ_CERTS. The series posted on the mailing list used 42, and kernels with that series still
# do. In released kernels only arm64 uses 42, so on x86-64 it has no other meaning.
SNP_REQ_CERTS_AS_POSTED = 42
SNP_REQ_CERTS_EXITS = frozenset((int(ExitReason.SNP_REQ_CERTS), SNP_REQ_CERTS_AS_POSTED))

SYSTEM_EVENT_SEV_TERM = 6
INTERNAL_ERROR_EMULATION = 1
INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 4
HC_VAPIC_POLL_IRQ = 1
HC_CLOCK_PAIRING = 9
HC_MAP_GPA_RANGE = 12
MAP_GPA_RANGE_ENCRYPTED = 1 << 4
MAP_GPA_RANGE_PAGE_SZ_2M = 1
MEMORY_EXIT_FLAG_PRIVATE = 1 << 3
HYPERCALL_ENOSYS = 1000  # KVM_ENOSYS, the result of a hypercall that KVM does not implement


class SevCommand(enum.IntEnum):
    """Values of kvm_sev_cmd.id: the commands of KVM_MEMORY_ENCRYPT_OP."""

    INIT = 0
    ES_INIT = 1
    LAUNCH_START = 2
    GUEST_STATUS = 16
    GET_ATTESTATION_REPORT = 20
    SEND_CANCEL = 21
    INIT2 = 22
    SNP_LAUNCH_START = 100
    SNP_LAUNCH_UPDATE = 101
    SNP_LAUNCH_FINISH = 102
    SNP_ENABLE_REQ_CERTS = 103


SEV_COMMAND_SNP_FIRST = 100

# Device attributes of /dev/kvm.
GROUP_SEV = 1  # KVM_X86_GRP_SEV
ATTR_SEV_VMSA_FEATURES = 0
ATTR_SNP_POLICY_BITS = 1
ATTR_SNP_REQ_CERTS = 2  # KVM_X86_SEV_SNP_REQ_CERTS

MEM_LOG_DIRTY_PAGES = 1
MEM_READONLY = 2
MEM_GUEST_MEMFD = 4
MEMORY_ATTRIBUTE_PRIVATE = 8

# Flags in args[0] of KVM_ENABLE_CAP for KVM_CAP_X2APIC_API.
X2APIC_API_USE_32BIT_IDS = 1 << 0
X2APIC_API_DISABLE_BROADCAST_QUIRK = 1 << 1
X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST = 1 << 2
X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST = 1 << 3

SYNC_X86_VALID_FIELDS = 0b111  # registers, special registers, events
COALESCED_MMIO_PAGE_OFFSET = 2  # the page's index in a vCPU's mapping
MSR_EXIT_REASON_VALID_MASK = 0b111
MSR_FILTER_MAX_RANGES = 16
MSR_FILTER_MAX_BITMAP_SIZE = 0x600  # bytes
MSR_FILTER_DEFAULT_DENY = 1 << 0
MSR_FILTER_READ = 1 << 0
MSR_FILTER_WRITE = 1 << 1
IRQFD_FLAG_DEASSIGN = 1 << 0
IRQFD_FLAG_RESAMPLE = 1 << 1


class PageType(enum.IntEnum):
    """Values of kvm_sev_snp_launch_update.type."""

    NORMAL = 1
    ZERO = 3
    UNMEASURED = 4
    SECRETS = 5
    CPUID = 6


@dataclass(frozen=True, slots=True)
class SevCmd(CStruct):
    """Argument of KVM_MEMORY_ENCRYPT_OP."""

    SIZE: ClassVar[int] = 24
    C_NAME: ClassVar[str] = "struct kvm_sev_cmd"
    id: int = u32(0)
    data: int = u64(8)  # user pointer to the command's own structure
    error: int = u32(16)  # out: firmware status
    sev_fd: int = u32(20)


@dataclass(frozen=True, slots=True)
class SevInit(CStruct):
    """Data of KVM_SEV_INIT2."""

    SIZE: ClassVar[int] = 48
    C_NAME: ClassVar[str] = "struct kvm_sev_init"
    vmsa_features: int = u64(0)
    flags: int = u32(8)
    ghcb_version: int = u16(12)


@dataclass(frozen=True, slots=True)
class SnpLaunchStart(CStruct):
    """Data of KVM_SEV_SNP_LAUNCH_START."""

    SIZE: ClassVar[int] = 64
    C_NAME: ClassVar[str] = "struct kvm_sev_snp_launch_start"
    policy: int = u64(0)
    gosvw: bytes = raw(8, 16)
    flags: int = u16(24)


@dataclass(frozen=True, slots=True)
class SnpLaunchUpdate(CStruct):
    """Data of KVM_SEV_SNP_LAUNCH_UPDATE. The kernel updates gfn_start, len and uaddr to
    describe the part that remains.
    """

    SIZE: ClassVar[int] = 64
    C_NAME: ClassVar[str] = "struct kvm_sev_snp_launch_update"
    gfn_start: int = u64(0)
    uaddr: int = u64(8)
    len: int = u64(16)
    type: int = u8(24)
    flags: int = u16(26)


@dataclass(frozen=True, slots=True)
class SnpLaunchFinish(CStruct):
    """Data of KVM_SEV_SNP_LAUNCH_FINISH."""

    SIZE: ClassVar[int] = 88
    C_NAME: ClassVar[str] = "struct kvm_sev_snp_launch_finish"
    id_block_uaddr: int = u64(0)
    id_auth_uaddr: int = u64(8)
    id_block_en: int = u8(16)
    auth_key_en: int = u8(17)
    vcek_disabled: int = u8(18)
    host_data: bytes = raw(19, 32)
    flags: int = u16(54)


@dataclass(frozen=True, slots=True)
class UserspaceMemoryRegion(CStruct):
    """Argument of KVM_SET_USER_MEMORY_REGION."""

    SIZE: ClassVar[int] = 32
    C_NAME: ClassVar[str] = "struct kvm_userspace_memory_region"
    slot: int = u32(0)
    flags: int = u32(4)
    guest_phys_addr: int = u64(8)
    memory_size: int = u64(16)
    userspace_addr: int = u64(24)


@dataclass(frozen=True, slots=True)
class UserspaceMemoryRegion2(CStruct):
    """Argument of KVM_SET_USER_MEMORY_REGION2."""

    SIZE: ClassVar[int] = 160
    C_NAME: ClassVar[str] = "struct kvm_userspace_memory_region2"
    slot: int = u32(0)
    flags: int = u32(4)
    guest_phys_addr: int = u64(8)
    memory_size: int = u64(16)
    userspace_addr: int = u64(24)
    guest_memfd_offset: int = u64(32)
    guest_memfd: int = u32(40)


@dataclass(frozen=True, slots=True)
class CreateGuestMemfd(CStruct):
    """Argument of KVM_CREATE_GUEST_MEMFD."""

    SIZE: ClassVar[int] = 64
    C_NAME: ClassVar[str] = "struct kvm_create_guest_memfd"
    size: int = u64(0)
    flags: int = u64(8)


@dataclass(frozen=True, slots=True)
class MemoryAttributes(CStruct):
    """Argument of KVM_SET_MEMORY_ATTRIBUTES."""

    SIZE: ClassVar[int] = 32
    C_NAME: ClassVar[str] = "struct kvm_memory_attributes"
    address: int = u64(0)
    size: int = u64(8)
    attributes: int = u64(16)
    flags: int = u64(24)


@dataclass(frozen=True, slots=True)
class DeviceAttr(CStruct):
    """Argument of KVM_HAS_DEVICE_ATTR and KVM_GET_DEVICE_ATTR."""

    SIZE: ClassVar[int] = 24
    C_NAME: ClassVar[str] = "struct kvm_device_attr"
    flags: int = u32(0)
    group: int = u32(4)
    attr: int = u64(8)
    addr: int = u64(16)  # user pointer to the attribute's value


@dataclass(frozen=True, slots=True)
class Irqfd(CStruct):
    """Argument of KVM_IRQFD."""

    SIZE: ClassVar[int] = 32
    C_NAME: ClassVar[str] = "struct kvm_irqfd"
    fd: int = u32(0)
    gsi: int = u32(4)
    flags: int = u32(8)
    resamplefd: int = u32(12)


@dataclass(frozen=True, slots=True)
class EncRegion(CStruct):
    """Argument of KVM_MEMORY_ENCRYPT_REG_REGION and KVM_MEMORY_ENCRYPT_UNREG_REGION."""

    SIZE: ClassVar[int] = 16
    C_NAME: ClassVar[str] = "struct kvm_enc_region"
    addr: int = u64(0)
    size: int = u64(8)


# Sizes of structures whose fields this module does not declare.
CLOCK_DATA_SIZE = 48  # struct kvm_clock_data
DEBUGREGS_SIZE = 128  # struct kvm_debugregs
ENABLE_CAP_SIZE = 104  # struct kvm_enable_cap
FPU_SIZE = 416  # struct kvm_fpu
GUEST_DEBUG_SIZE = 72  # struct kvm_guest_debug
IOEVENTFD_SIZE = 64  # struct kvm_ioeventfd
IRQCHIP_SIZE = 520  # struct kvm_irqchip
LAPIC_STATE_SIZE = 1024  # struct kvm_lapic_state
MSI_SIZE = 32  # struct kvm_msi
MSR_FILTER_SIZE = 392  # struct kvm_msr_filter
MSR_FILTER_RANGE_SIZE = 24  # struct kvm_msr_filter_range
PIT_CONFIG_SIZE = 64  # struct kvm_pit_config
PIT_STATE2_SIZE = 112  # struct kvm_pit_state2
REGS_SIZE = 144  # struct kvm_regs
SREGS_SIZE = 312  # struct kvm_sregs
SREGS2_SIZE = 320  # struct kvm_sregs2
VCPU_EVENTS_SIZE = 64  # struct kvm_vcpu_events
XCRS_SIZE = 392  # struct kvm_xcrs
XSAVE_SIZE = 4096  # struct kvm_xsave


class Ioctl(enum.IntEnum):
    """ioctl request numbers (KVM_*)."""

    GET_API_VERSION = io(KVMIO, 0x00)
    CREATE_VM = io(KVMIO, 0x01)
    GET_MSR_INDEX_LIST = iowr(KVMIO, 0x02, 4)
    CHECK_EXTENSION = io(KVMIO, 0x03)
    GET_VCPU_MMAP_SIZE = io(KVMIO, 0x04)
    GET_SUPPORTED_CPUID = iowr(KVMIO, 0x05, 8)
    GET_EMULATED_CPUID = iowr(KVMIO, 0x09, 8)
    GET_MSR_FEATURE_INDEX_LIST = iowr(KVMIO, 0x0A, 4)
    CREATE_VCPU = io(KVMIO, 0x41)
    SET_NR_MMU_PAGES = io(KVMIO, 0x44)
    SET_USER_MEMORY_REGION = iow(KVMIO, 0x46, UserspaceMemoryRegion.SIZE)
    SET_TSS_ADDR = io(KVMIO, 0x47)
    SET_IDENTITY_MAP_ADDR = iow(KVMIO, 0x48, 8)
    SET_USER_MEMORY_REGION2 = iow(KVMIO, 0x49, UserspaceMemoryRegion2.SIZE)
    CREATE_IRQCHIP = io(KVMIO, 0x60)
    IRQ_LINE = iow(KVMIO, 0x61, 8)
    GET_IRQCHIP = iowr(KVMIO, 0x62, IRQCHIP_SIZE)
    SET_IRQCHIP = ior(KVMIO, 0x63, IRQCHIP_SIZE)
    IRQ_LINE_STATUS = iowr(KVMIO, 0x67, 8)
    REGISTER_COALESCED_MMIO = iow(KVMIO, 0x67, 16)
    UNREGISTER_COALESCED_MMIO = iow(KVMIO, 0x68, 16)
    SET_GSI_ROUTING = iow(KVMIO, 0x6A, 8)
    REINJECT_CONTROL = io(KVMIO, 0x71)
    IRQFD = iow(KVMIO, 0x76, Irqfd.SIZE)
    CREATE_PIT2 = iow(KVMIO, 0x77, PIT_CONFIG_SIZE)
    SET_BOOT_CPU_ID = io(KVMIO, 0x78)
    IOEVENTFD = iow(KVMIO, 0x79, IOEVENTFD_SIZE)
    SET_CLOCK = iow(KVMIO, 0x7B, CLOCK_DATA_SIZE)
    GET_CLOCK = ior(KVMIO, 0x7C, CLOCK_DATA_SIZE)
    RUN = io(KVMIO, 0x80)
    GET_REGS = ior(KVMIO, 0x81, REGS_SIZE)
    SET_REGS = iow(KVMIO, 0x82, REGS_SIZE)
    GET_SREGS = ior(KVMIO, 0x83, SREGS_SIZE)
    SET_SREGS = iow(KVMIO, 0x84, SREGS_SIZE)
    GET_MSRS = iowr(KVMIO, 0x88, 8)
    SET_MSRS = iow(KVMIO, 0x89, 8)
    SET_SIGNAL_MASK = iow(KVMIO, 0x8B, 4)
    GET_FPU = ior(KVMIO, 0x8C, FPU_SIZE)
    SET_FPU = iow(KVMIO, 0x8D, FPU_SIZE)
    GET_LAPIC = ior(KVMIO, 0x8E, LAPIC_STATE_SIZE)
    SET_LAPIC = iow(KVMIO, 0x8F, LAPIC_STATE_SIZE)
    SET_CPUID2 = iow(KVMIO, 0x90, 8)
    GET_CPUID2 = iowr(KVMIO, 0x91, 8)
    TPR_ACCESS_REPORTING = iowr(KVMIO, 0x92, 40)
    SET_VAPIC_ADDR = iow(KVMIO, 0x93, 8)
    GET_MP_STATE = ior(KVMIO, 0x98, 4)
    SET_MP_STATE = iow(KVMIO, 0x99, 4)
    NMI = io(KVMIO, 0x9A)
    SET_GUEST_DEBUG = iow(KVMIO, 0x9B, GUEST_DEBUG_SIZE)
    X86_SETUP_MCE = iow(KVMIO, 0x9C, 8)
    X86_GET_MCE_CAP_SUPPORTED = ior(KVMIO, 0x9D, 8)
    GET_PIT2 = ior(KVMIO, 0x9F, PIT_STATE2_SIZE)
    GET_VCPU_EVENTS = ior(KVMIO, 0x9F, VCPU_EVENTS_SIZE)
    SET_PIT2 = iow(KVMIO, 0xA0, PIT_STATE2_SIZE)
    SET_VCPU_EVENTS = iow(KVMIO, 0xA0, VCPU_EVENTS_SIZE)
    GET_DEBUGREGS = ior(KVMIO, 0xA1, DEBUGREGS_SIZE)
    SET_DEBUGREGS = iow(KVMIO, 0xA2, DEBUGREGS_SIZE)
    SET_TSC_KHZ = io(KVMIO, 0xA2)
    ENABLE_CAP = iow(KVMIO, 0xA3, ENABLE_CAP_SIZE)
    GET_TSC_KHZ = io(KVMIO, 0xA3)
    GET_XSAVE = ior(KVMIO, 0xA4, XSAVE_SIZE)
    SET_XSAVE = iow(KVMIO, 0xA5, XSAVE_SIZE)
    SIGNAL_MSI = iow(KVMIO, 0xA5, MSI_SIZE)
    GET_XCRS = ior(KVMIO, 0xA6, XCRS_SIZE)
    SET_XCRS = iow(KVMIO, 0xA7, XCRS_SIZE)
    KVMCLOCK_CTRL = io(KVMIO, 0xAD)
    MEMORY_ENCRYPT_OP = iowr(KVMIO, 0xBA, 8)  # the number encodes size 8; SevCmd has 24 bytes
    MEMORY_ENCRYPT_REG_REGION = ior(KVMIO, 0xBB, EncRegion.SIZE)
    MEMORY_ENCRYPT_UNREG_REGION = ior(KVMIO, 0xBC, EncRegion.SIZE)
    X86_SET_MSR_FILTER = iow(KVMIO, 0xC6, MSR_FILTER_SIZE)
    GET_SREGS2 = ior(KVMIO, 0xCC, SREGS2_SIZE)
    SET_SREGS2 = iow(KVMIO, 0xCD, SREGS2_SIZE)
    GET_XSAVE2 = ior(KVMIO, 0xCF, XSAVE_SIZE)
    SET_MEMORY_ATTRIBUTES = iow(KVMIO, 0xD2, MemoryAttributes.SIZE)
    CREATE_GUEST_MEMFD = iowr(KVMIO, 0xD4, CreateGuestMemfd.SIZE)
    SET_DEVICE_ATTR = iow(KVMIO, 0xE1, DeviceAttr.SIZE)
    GET_DEVICE_ATTR = iow(KVMIO, 0xE2, DeviceAttr.SIZE)
    HAS_DEVICE_ATTR = iow(KVMIO, 0xE3, DeviceAttr.SIZE)


# struct kvm_run, the first page of a vCPU's shared memory.
RUN_SIZE = 2352
VCPU_MMAP_SIZE = 12288  # three pages on x86: kvm_run, port I/O, coalesced MMIO
RUN_REQUEST_INTERRUPT_WINDOW = 0
RUN_IMMEDIATE_EXIT = 1
RUN_EXIT_REASON = 8
RUN_READY_FOR_INJECTION = 12
RUN_IF_FLAG = 13
RUN_FLAGS = 14
RUN_CR8 = 16
RUN_EXIT = 32  # the union of exit-specific data
RUN_EXIT_SIZE = 256
RUN_VALID_REGS = 288
RUN_DIRTY_REGS = 296

# Members of the exit union in struct kvm_run: hypercall, and snp_req_certs, which is a
# struct kvm_exit_snp_req_certs.
RUN_HYPERCALL_ARGS = RUN_EXIT + 8
RUN_HYPERCALL_RET = RUN_EXIT + 56
RUN_SNP_GPA = RUN_EXIT
RUN_SNP_NPAGES = RUN_EXIT + 8
RUN_SNP_RET = RUN_EXIT + 16


class RunView:
    """``struct kvm_run`` in shared memory, with the fields that a certificate request needs.

    ``memory`` is a writable buffer of at least :data:`RUN_SIZE` bytes, such as the mapping of a
    vCPU's file descriptor. Fields are read and written in place.
    """

    __slots__ = ("_memory", "_pointer")

    _U32 = struct.Struct("<I")
    _CERTS = struct.Struct("<QQQ")
    _U64 = struct.Struct("<Q")

    def __init__(self, memory: bytearray | memoryview) -> None:
        view = memoryview(memory)
        if view.readonly or view.nbytes < RUN_SIZE:
            raise ValueError(
                f"kvm_run needs at least {RUN_SIZE} writable bytes; the memory is smaller or "
                "read-only"
            )
        self._memory = view.cast("B")
        here = ctypes.c_char.from_buffer(self._memory)  # prevents the memory from being moved
        self._pointer = ctypes.cast(ctypes.pointer(here), ctypes.c_void_p)

    @property
    def pointer(self) -> ctypes.c_void_p:
        """The structure's address, for C functions. Valid as long as this object exists."""
        return self._pointer

    @property
    def immediate_exit(self) -> int:
        """The byte that makes KVM_RUN return early. Each call reads it once and never clears it."""
        return self._memory[RUN_IMMEDIATE_EXIT]

    @immediate_exit.setter
    def immediate_exit(self, value: int) -> None:
        self._memory[RUN_IMMEDIATE_EXIT] = value

    @property
    def exit_reason(self) -> int:
        """The reason for the exit. Valid only if KVM_RUN returned 0; stale after EINTR."""
        return int(self._U32.unpack_from(self._memory, RUN_EXIT_REASON)[0])

    @exit_reason.setter
    def exit_reason(self, value: int) -> None:
        self._U32.pack_into(self._memory, RUN_EXIT_REASON, value)

    @property
    def asks_for_certs(self) -> bool:
        """Whether this exit asks for certificates: its reason is in :data:`SNP_REQ_CERTS_EXITS`."""
        return self.exit_reason in SNP_REQ_CERTS_EXITS

    @property
    def snp_req_certs(self) -> tuple[int, int, int]:
        """The fields of KVM_EXIT_SNP_REQ_CERTS: (gpa, npages, ret)."""
        gpa, npages, ret = self._CERTS.unpack_from(self._memory, RUN_SNP_GPA)
        return gpa, npages, ret

    @snp_req_certs.setter
    def snp_req_certs(self, value: tuple[int, int, int]) -> None:
        self._CERTS.pack_into(self._memory, RUN_SNP_GPA, *value)

    def answer_req_certs(self, ret: int, npages: int | None = None) -> None:
        """Answer KVM_EXIT_SNP_REQ_CERTS: set ``ret`` (0 or a positive errno), and ``npages`` if
        that is not None.
        """
        if npages is not None:
            self._U64.pack_into(self._memory, RUN_SNP_NPAGES, npages)
        self._U64.pack_into(self._memory, RUN_SNP_RET, ret)

    @property
    def map_gpa_range(self) -> tuple[int, int, int]:
        """The arguments of the hypercall KVM_HC_MAP_GPA_RANGE: (GPA, number of 4 KiB pages,
        attributes).
        """
        gpa, pages, attributes = self._CERTS.unpack_from(self._memory, RUN_HYPERCALL_ARGS)
        return gpa, pages, attributes

    def answer_hypercall(self, ret: int) -> None:
        """Set the result of a hypercall: 0, or the error that the guest gets."""
        self._U64.pack_into(self._memory, RUN_HYPERCALL_RET, ret)

    def clear_exit(self) -> None:
        """Zero the union of exit-specific data, as KVM does for a new exit."""
        self._memory[RUN_EXIT : RUN_EXIT + RUN_EXIT_SIZE] = bytes(RUN_EXIT_SIZE)
