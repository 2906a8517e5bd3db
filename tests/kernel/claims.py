# SPDX-License-Identifier: Apache-2.0
"""What this project says about Linux's interfaces: C expressions, and the value we give each.

The values are gathered from ``snpcerts.abi``, from ``native/kvm_abi.h`` and from the modules
in ``OTHERS``. So that no new number of ``snpcerts.abi`` is left out, :func:`unclaimed` names
every constant, enum and structure there that has neither an expression nor another source here.
"""

from __future__ import annotations

import enum
import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from snpcerts.abi import ghcb, guest_message, kvm, psp, vcpu_registers
from snpcerts.abi.cstruct import CStruct
from snpcerts.emulator.frontdoor import bpf, file_watch, fuse_messages

NATIVE: Final = Path(__file__).parents[2] / "native" / "kvm_abi.h"
MODULES: Final = (
    *("ghcb", "guest_message", "ioctl", "kvm", "lock", "psp", "sev_guest", "cert_table"),
    "vcpu_registers",
)

# How the kernel spells the members of each enum; {} is our name.
ENUMS: Final[Mapping[type[enum.IntEnum], str]] = {
    kvm.Cap: "KVM_CAP_{}",
    kvm.ExitReason: "KVM_EXIT_{}",
    kvm.Ioctl: "KVM_{}",
    kvm.PageType: "KVM_SEV_SNP_PAGE_TYPE_{}",
    kvm.SevCommand: "KVM_SEV_{}",
    kvm.VmType: "KVM_X86_{}_VM",
    psp.Command: "SEV_{}",
    psp.SevStatus: "SEV_RET_{}",
    ghcb.ExitCode: "SVM_VMGEXIT_{}",
    ghcb.Field: "offsetof(struct ghcb, save.{})",
    ghcb.InputErrorCode: "GHCB_ERR_{}",
    ghcb.Instruction: "SVM_EXIT_{}",
    ghcb.PageStateError: "VMGEXIT_PSC_ERROR_{}",
    ghcb.PageStateOperation: "VMGEXIT_PSC_OP_{}",
    ghcb.ProcessorRequest: "SVM_VMGEXIT_AP_{}",
    ghcb.MsrCode: "GHCB_MSR_{}",
    ghcb.ResponseCode: "GHCB_HV_RESP_{}",
    ghcb.VmmError: "SNP_GUEST_VMM_ERR_{}",
    guest_message.MessageType: "SNP_MSG_{}",
    vcpu_registers.Msr: "MSR_{}",
}
# Members whose names in the kernel do not follow ``ENUMS``.
SPELLED: Final[Mapping[enum.IntEnum, str]] = {
    kvm.VmType.SW_PROTECTED: "KVM_X86_SW_PROTECTED_VM",
    kvm.PageType.UNMEASURED: "KVM_SEV_SNP_PAGE_TYPE_UNMEASURED",
    psp.Command.SNP_PLATFORM_STATUS: "SNP_PLATFORM_STATUS",
    psp.Command.SNP_COMMIT: "SNP_COMMIT",
    psp.Command.SNP_SET_CONFIG: "SNP_SET_CONFIG",
    psp.Command.SNP_VLEK_LOAD: "SNP_VLEK_LOAD",
    psp.SevStatus.HWERROR_PLATFORM: "SEV_RET_HWSEV_RET_PLATFORM",
    psp.SevStatus.HWERROR_UNSAFE: "SEV_RET_HWSEV_RET_UNSAFE",
    ghcb.Field.RAX: "offsetof(struct ghcb, save.rax)",
    ghcb.Field.RBX: "offsetof(struct ghcb, save.rbx)",
    ghcb.Field.RSI: "offsetof(struct ghcb, save.rsi)",
    ghcb.Field.XCR0: "offsetof(struct ghcb, save.xcr0)",
    ghcb.Field.RCX: "offsetof(struct ghcb, save.rcx)",
    ghcb.Field.RDX: "offsetof(struct ghcb, save.rdx)",
    ghcb.Field.SW_EXITCODE: "offsetof(struct ghcb, save.sw_exit_code)",
    ghcb.Field.SW_EXITINFO1: "offsetof(struct ghcb, save.sw_exit_info_1)",
    ghcb.Field.SW_EXITINFO2: "offsetof(struct ghcb, save.sw_exit_info_2)",
    ghcb.Field.SW_SCRATCH: "offsetof(struct ghcb, save.sw_scratch)",
    ghcb.ExitCode.SNP_GUEST_REQUEST: "SVM_VMGEXIT_GUEST_REQUEST",
    ghcb.ExitCode.SNP_EXT_GUEST_REQUEST: "SVM_VMGEXIT_EXT_GUEST_REQUEST",
    ghcb.ExitCode.AP_CREATION: "SVM_VMGEXIT_AP_CREATION",
    ghcb.MsrCode.SEV_INFO_RSP: "GHCB_MSR_SEV_INFO_RESP",
    ghcb.MsrCode.CPUID_RSP: "GHCB_MSR_CPUID_RESP",
    ghcb.MsrCode.AP_RESET_HOLD_RSP: "GHCB_MSR_AP_RESET_HOLD_RESP",
    ghcb.MsrCode.PREFERRED_GPA_REQ: "GHCB_MSR_PREF_GPA_REQ",
    ghcb.MsrCode.PREFERRED_GPA_RSP: "GHCB_MSR_PREF_GPA_RESP",
    ghcb.MsrCode.REGISTER_GPA_REQ: "GHCB_MSR_REG_GPA_REQ",
    ghcb.MsrCode.REGISTER_GPA_RSP: "GHCB_MSR_REG_GPA_RESP",
    ghcb.MsrCode.PSC_RSP: "GHCB_MSR_PSC_RESP",
    ghcb.MsrCode.HV_FEATURES_REQ: "GHCB_MSR_HV_FT_REQ",
    ghcb.MsrCode.HV_FEATURES_RSP: "GHCB_MSR_HV_FT_RESP",
    ghcb.MsrCode.TERMINATE: "GHCB_MSR_TERM_REQ",
    guest_message.MessageType.INVALID: "SNP_MSG_TYPE_INVALID",
}

# C expressions for the constants of ``snpcerts.abi``, by module and name.
CONSTANTS: Final[Mapping[str, str]] = {
    "ioctl.KVMIO": "KVMIO",
    "kvm.KVMIO": "KVMIO",  # imported from ioctl
    "kvm.API_VERSION": "KVM_API_VERSION",
    "kvm.SYSTEM_EVENT_SEV_TERM": "KVM_SYSTEM_EVENT_SEV_TERM",
    "kvm.INTERNAL_ERROR_EMULATION": "KVM_INTERNAL_ERROR_EMULATION",
    "kvm.HC_MAP_GPA_RANGE": "KVM_HC_MAP_GPA_RANGE",
    "kvm.HC_VAPIC_POLL_IRQ": "KVM_HC_VAPIC_POLL_IRQ",
    "kvm.HC_CLOCK_PAIRING": "KVM_HC_CLOCK_PAIRING",
    "kvm.HYPERCALL_ENOSYS": "KVM_ENOSYS",
    "kvm.MAP_GPA_RANGE_PAGE_SZ_2M": "KVM_MAP_GPA_RANGE_PAGE_SZ_2M",
    "kvm.MEMORY_EXIT_FLAG_PRIVATE": "KVM_MEMORY_EXIT_FLAG_PRIVATE",
    "kvm.INTERNAL_ERROR_UNEXPECTED_EXIT_REASON": "KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON",
    "kvm.MAP_GPA_RANGE_ENCRYPTED": "KVM_MAP_GPA_RANGE_ENCRYPTED",
    "kvm.SNP_REQ_CERTS_AS_POSTED": "KVM_EXIT_ARM_LDST64B",
    "kvm.SEV_COMMAND_SNP_FIRST": "KVM_SEV_SNP_LAUNCH_START",
    "kvm.GROUP_SEV": "KVM_X86_GRP_SEV",
    "kvm.ATTR_SEV_VMSA_FEATURES": "KVM_X86_SEV_VMSA_FEATURES",
    "kvm.ATTR_SNP_POLICY_BITS": "KVM_X86_SNP_POLICY_BITS",
    "kvm.ATTR_SNP_REQ_CERTS": "KVM_X86_SEV_SNP_REQ_CERTS",
    "kvm.MEM_LOG_DIRTY_PAGES": "KVM_MEM_LOG_DIRTY_PAGES",
    "kvm.MEM_READONLY": "KVM_MEM_READONLY",
    "kvm.MEM_GUEST_MEMFD": "KVM_MEM_GUEST_MEMFD",
    "kvm.MEMORY_ATTRIBUTE_PRIVATE": "KVM_MEMORY_ATTRIBUTE_PRIVATE",
    "kvm.X2APIC_API_USE_32BIT_IDS": "KVM_X2APIC_API_USE_32BIT_IDS",
    "kvm.X2APIC_API_DISABLE_BROADCAST_QUIRK": "KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK",
    "kvm.X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST": "KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST",
    "kvm.X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST": "KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST",
    "kvm.SYNC_X86_VALID_FIELDS": "KVM_SYNC_X86_VALID_FIELDS",
    "kvm.COALESCED_MMIO_PAGE_OFFSET": "KVM_COALESCED_MMIO_PAGE_OFFSET",
    "kvm.MSR_EXIT_REASON_VALID_MASK": "KVM_MSR_EXIT_REASON_VALID_MASK",
    "kvm.MSR_FILTER_MAX_RANGES": "KVM_MSR_FILTER_MAX_RANGES",
    "kvm.MSR_FILTER_MAX_BITMAP_SIZE": "KVM_MSR_FILTER_MAX_BITMAP_SIZE",
    "kvm.MSR_FILTER_DEFAULT_DENY": "KVM_MSR_FILTER_DEFAULT_DENY",
    "kvm.MSR_FILTER_READ": "KVM_MSR_FILTER_READ",
    "kvm.MSR_FILTER_WRITE": "KVM_MSR_FILTER_WRITE",
    "kvm.IRQFD_FLAG_DEASSIGN": "KVM_IRQFD_FLAG_DEASSIGN",
    "kvm.IRQFD_FLAG_RESAMPLE": "KVM_IRQFD_FLAG_RESAMPLE",
    "kvm.CLOCK_DATA_SIZE": "sizeof(struct kvm_clock_data)",
    "kvm.DEBUGREGS_SIZE": "sizeof(struct kvm_debugregs)",
    "kvm.ENABLE_CAP_SIZE": "sizeof(struct kvm_enable_cap)",
    "kvm.FPU_SIZE": "sizeof(struct kvm_fpu)",
    "kvm.GUEST_DEBUG_SIZE": "sizeof(struct kvm_guest_debug)",
    "kvm.IOEVENTFD_SIZE": "sizeof(struct kvm_ioeventfd)",
    "kvm.IRQCHIP_SIZE": "sizeof(struct kvm_irqchip)",
    "kvm.LAPIC_STATE_SIZE": "sizeof(struct kvm_lapic_state)",
    "kvm.MSR_FILTER_SIZE": "sizeof(struct kvm_msr_filter)",
    "kvm.MSR_FILTER_RANGE_SIZE": "sizeof(struct kvm_msr_filter_range)",
    "kvm.MSI_SIZE": "sizeof(struct kvm_msi)",
    "kvm.PIT_CONFIG_SIZE": "sizeof(struct kvm_pit_config)",
    "kvm.PIT_STATE2_SIZE": "sizeof(struct kvm_pit_state2)",
    "kvm.REGS_SIZE": "sizeof(struct kvm_regs)",
    "kvm.SREGS_SIZE": "sizeof(struct kvm_sregs)",
    "kvm.SREGS2_SIZE": "sizeof(struct kvm_sregs2)",
    "kvm.VCPU_EVENTS_SIZE": "sizeof(struct kvm_vcpu_events)",
    "kvm.XCRS_SIZE": "sizeof(struct kvm_xcrs)",
    "kvm.XSAVE_SIZE": "sizeof(struct kvm_xsave)",
    "kvm.RUN_SIZE": "sizeof(struct kvm_run)",
    "kvm.RUN_REQUEST_INTERRUPT_WINDOW": "offsetof(struct kvm_run, request_interrupt_window)",
    "kvm.RUN_IMMEDIATE_EXIT": "offsetof(struct kvm_run, immediate_exit)",
    "kvm.RUN_EXIT_REASON": "offsetof(struct kvm_run, exit_reason)",
    "kvm.RUN_IF_FLAG": "offsetof(struct kvm_run, if_flag)",
    "kvm.RUN_FLAGS": "offsetof(struct kvm_run, flags)",
    "kvm.RUN_CR8": "offsetof(struct kvm_run, cr8)",
    "kvm.RUN_READY_FOR_INJECTION": "offsetof(struct kvm_run, ready_for_interrupt_injection)",
    "kvm.RUN_EXIT": "offsetof(struct kvm_run, hw)",
    "kvm.RUN_EXIT_SIZE": "sizeof(((struct kvm_run *)0)->padding)",
    "kvm.RUN_VALID_REGS": "offsetof(struct kvm_run, kvm_valid_regs)",
    "kvm.RUN_DIRTY_REGS": "offsetof(struct kvm_run, kvm_dirty_regs)",
    "kvm.RUN_HYPERCALL_ARGS": "offsetof(struct kvm_run, hypercall.args)",
    "kvm.RUN_HYPERCALL_RET": "offsetof(struct kvm_run, hypercall.ret)",
    "kvm.RUN_SNP_GPA": "offsetof(struct kvm_run, snp_req_certs.gpa)",
    "kvm.RUN_SNP_NPAGES": "offsetof(struct kvm_run, snp_req_certs.npages)",
    "kvm.RUN_SNP_RET": "offsetof(struct kvm_run, snp_req_certs.ret)",
    "vcpu_registers.SREGS2_FLAGS_PDPTRS_VALID": "KVM_SREGS2_FLAGS_PDPTRS_VALID",
    "lock.F_SETLK": "F_SETLK",
    "lock.F_SETLKW": "F_SETLKW",
    "lock.F_OFD_GETLK": "F_OFD_GETLK",
    "lock.F_OFD_SETLK": "F_OFD_SETLK",
    "lock.F_OFD_SETLKW": "F_OFD_SETLKW",
    "lock.F_RDLCK": "F_RDLCK",
    "lock.F_WRLCK": "F_WRLCK",
    "lock.F_UNLCK": "F_UNLCK",
    "psp.NO_FW_CALL": "(unsigned)SEV_RET_NO_FW_CALL",
    "psp.FW_BLOB_MAX_SIZE": "SEV_FW_BLOB_MAX_SIZE",
    "ioctl.SEV_IOC_TYPE": "SEV_IOC_TYPE",
    "psp.SEV_IOC_TYPE": "SEV_IOC_TYPE",
    "psp.SEV_ISSUE_CMD": "SEV_ISSUE_CMD",
    "psp.STATUS_RMP_INITIALIZED": "MASK(struct sev_user_data_snp_status, 3, is_rmp_initialized)",
    "psp.STATUS_MASK_CHIP_ID": "MASK(struct sev_user_data_snp_status, 8, mask_chip_id)",
    "psp.STATUS_MASK_CHIP_KEY": "MASK(struct sev_user_data_snp_status, 8, mask_chip_key)",
    "psp.STATUS_VLEK_EN": "MASK(struct sev_user_data_snp_status, 8, vlek_en)",
    "psp.FEATURE_X86_SNP_SHUTDOWN": "SNP_X86_SHUTDOWN_SUPPORTED",
    "psp.FEATURE_VERIFY_MITIGATION": "SNP_VERIFY_MITIGATION_SUPPORTED",
    "psp.STATUS_FEATURE_INFO": "MASK(struct sev_user_data_snp_status, 8, feature_info)",
    "psp.CONFIG_MASK_CHIP_ID": "MASK(struct sev_user_data_snp_config, 8, mask_chip_id)",
    "psp.CONFIG_MASK_CHIP_KEY": "MASK(struct sev_user_data_snp_config, 8, mask_chip_key)",
    "sev_guest.SEV_GUEST_IOC_TYPE": "SNP_GUEST_REQ_IOC_TYPE",
    "sev_guest.SNP_GET_REPORT": "SNP_GET_REPORT",
    "sev_guest.SNP_GET_DERIVED_KEY": "SNP_GET_DERIVED_KEY",
    "sev_guest.SNP_GET_EXT_REPORT": "SNP_GET_EXT_REPORT",
    "sev_guest.REPORT_RESPONSE_SIZE": "sizeof(struct snp_report_resp)",
    "sev_guest.KEY_RESPONSE_SIZE": "sizeof(struct snp_derived_key_resp)",
    "sev_guest.CERTS_MAX_SIZE": "SEV_FW_BLOB_MAX_SIZE",
    "cert_table.LINUX_GUEST_LIMIT": "SEV_FW_BLOB_MAX_SIZE",
    "cert_table.PAGE_SIZE": "sizeof(struct ghcb)",
    "ghcb.PAGE_SIZE": "sizeof(struct ghcb)",
    "ghcb.MSR_GHCB": "MSR_AMD64_SEV_ES_GHCB",
    "ghcb.SHARED_BUFFER": "offsetof(struct ghcb, shared_buffer)",
    "ghcb.SHARED_BUFFER_SIZE": "GHCB_SHARED_BUF_SIZE",
    "ghcb.PROTOCOL_VERSION": "offsetof(struct ghcb, protocol_version)",
    "ghcb.USAGE": "offsetof(struct ghcb, ghcb_usage)",
    "ghcb.VALID_BITMAP": "offsetof(struct ghcb, save.valid_bitmap)",
    "ghcb.VALID_BITMAP_SIZE": "sizeof(((struct ghcb_save_area *)0)->valid_bitmap)",
    "ghcb.CPL": "offsetof(struct ghcb, save.cpl)",
    "ghcb.PSC_HEADER_SIZE": "sizeof(struct psc_hdr)",
    "ghcb.PSC_ENTRY_SIZE": "sizeof(struct psc_entry)",
    "ghcb.MSR_CODE_MASK": "GHCB_MSR_INFO_MASK",
    "ghcb.HV_FEATURES_SUPPORTED": "GHCB_HV_FT_SNP | GHCB_HV_FT_SNP_AP_CREATION",
    "guest_message.MESSAGE_SIZE": "sizeof(struct snp_guest_msg)",
    "guest_message.HEADER_SIZE": "sizeof(struct snp_guest_msg_hdr)",
    "guest_message.MAX_PAYLOAD": "sizeof(((struct snp_guest_msg *)0)->payload)",
    "guest_message.ALGO_AES_256_GCM": "SNP_AEAD_AES_256_GCM",
    "guest_message.HEADER_VERSION": "MSG_HDR_VER",
    "guest_message.TAG_SIZE": "AUTHTAG_LEN",
    "guest_message.VMPCK_SIZE": "VMPCK_KEY_LEN",
    "guest_message.AAD_START": "offsetof(struct snp_guest_msg_hdr, algo)",
    "guest_message.AAD_END": "offsetof(struct snp_guest_msg_hdr, algo) + AAD_LEN",
    "guest_message.MSG_TYPE_OFFSET": "offsetof(struct snp_guest_msg_hdr, msg_type)",
}

# C expressions for system call numbers and arguments in other modules of the project.
OTHERS: Final[Mapping[str, Mapping[str, str]]] = {
    "snpcerts.emulator.frontdoor.seccomp": {
        "SYS_SECCOMP": "__NR_seccomp",
        "PR_SET_NO_NEW_PRIVS": "PR_SET_NO_NEW_PRIVS",
        "SECCOMP_SET_MODE_FILTER": "SECCOMP_SET_MODE_FILTER",
        "SECCOMP_GET_ACTION_AVAIL": "SECCOMP_GET_ACTION_AVAIL",
        "SECCOMP_GET_NOTIF_SIZES": "SECCOMP_GET_NOTIF_SIZES",
        "SECCOMP_FILTER_FLAG_NEW_LISTENER": "SECCOMP_FILTER_FLAG_NEW_LISTENER",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
        "SECCOMP_RET_ERRNO": "SECCOMP_RET_ERRNO",
        "SECCOMP_RET_USER_NOTIF": "SECCOMP_RET_USER_NOTIF",
        "SECCOMP_RET_ALLOW": "SECCOMP_RET_ALLOW",
        "SECCOMP_USER_NOTIF_FLAG_CONTINUE": "SECCOMP_USER_NOTIF_FLAG_CONTINUE",
        "SECCOMP_ADDFD_FLAG_SEND": "SECCOMP_ADDFD_FLAG_SEND",
        "SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP": "SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP",
        "_NOTIF_RECV": "SECCOMP_IOCTL_NOTIF_RECV",
        "_NOTIF_SEND": "SECCOMP_IOCTL_NOTIF_SEND",
        "_NOTIF_ID_VALID": "SECCOMP_IOCTL_NOTIF_ID_VALID",
        "_NOTIF_ADDFD": "SECCOMP_IOCTL_NOTIF_ADDFD",
        "_NOTIF_SET_FLAGS": "SECCOMP_IOCTL_NOTIF_SET_FLAGS",
    },
    "snpcerts.emulator.frontdoor.bpf": {
        "AUDIT_ARCH_X86_64": "AUDIT_ARCH_X86_64",
        "X32_BIT": "__X32_SYSCALL_BIT",
        "USERFAULTFD_IOC_NEW": "USERFAULTFD_IOC_NEW",
        "AT_EMPTY_PATH": "AT_EMPTY_PATH",
        "MAP_ANONYMOUS": "MAP_ANONYMOUS",
        "_LOAD": "BPF_LD | BPF_W | BPF_ABS",
        "_AND": "BPF_ALU | BPF_AND | BPF_K",
        "_IF_EQUAL": "BPF_JMP | BPF_JEQ | BPF_K",
        "_IF_AT_LEAST": "BPF_JMP | BPF_JGE | BPF_K",
        "_IF_BITS": "BPF_JMP | BPF_JSET | BPF_K",
        "_RETURN": "BPF_RET | BPF_K",
        "_NR": "offsetof(struct seccomp_data, nr)",
        "_ARCH": "offsetof(struct seccomp_data, arch)",
    },
    "snpcerts.emulator.frontdoor.descriptors": {
        "_IN_CLOSE": "IN_CLOSE",
        "_IN_Q_OVERFLOW": "IN_Q_OVERFLOW",
        "_F_ADD_SEALS": "F_ADD_SEALS",
    },
    "snpcerts.emulator.frontdoor.exchange": {"RENAME_EXCHANGE": "RENAME_EXCHANGE"},
    "snpcerts.conformance.served_file": {"FALLOC_FL_KEEP_SIZE": "FALLOC_FL_KEEP_SIZE"},
    "snpcerts.emulator.frontdoor.file_watch": {
        "IOCB_CMD_PREAD": "IOCB_CMD_PREAD",
        "IOCB_CMD_PREADV": "IOCB_CMD_PREADV",
        "UIO_MAXIOV": "UIO_MAXIOV",
    },
    "snpcerts.emulator.frontdoor.fuse_messages": {
        "MAJOR": "FUSE_KERNEL_VERSION",
        "FOPEN_DIRECT_IO": "FOPEN_DIRECT_IO",
        "FUSE_BIG_WRITES": "FUSE_BIG_WRITES",
        "FATTR_SIZE": "FATTR_SIZE",
        "FATTR_FH": "FATTR_FH",
        "FATTR_LOCKOWNER": "FATTR_LOCKOWNER",
        "FUSE_ROOT_ID": "FUSE_ROOT_ID",
        "MIN_READ_BUFFER": "FUSE_MIN_READ_BUFFER",
    },
    "snpcerts.emulator.frontdoor.namespace": {
        "CLONE_NEWNS": "CLONE_NEWNS",
        "CLONE_NEWUSER": "CLONE_NEWUSER",
        "MS_RDONLY": "MS_RDONLY",
        "MS_NOSUID": "MS_NOSUID",
        "MS_NOEXEC": "MS_NOEXEC",
        "MS_REMOUNT": "MS_REMOUNT",
        "MS_BIND": "MS_BIND",
        "MS_REC": "MS_REC",
        "MS_SLAVE": "MS_SLAVE",
        "OPEN_TREE_CLONE": "OPEN_TREE_CLONE",
        "MOVE_MOUNT_F_EMPTY_PATH": "MOVE_MOUNT_F_EMPTY_PATH",
        "_AT_RECURSIVE": "AT_RECURSIVE",
        "_SYS_OPEN_TREE": "__NR_open_tree",
        "_SYS_MOVE_MOUNT": "__NR_move_mount",
    },
    "snpcerts.emulator.frontdoor.namespace_devices": {
        "_IN_DELETE": "IN_DELETE",
        "_IN_Q_OVERFLOW": "IN_Q_OVERFLOW",
    },
    "snpcerts.emulator.frontdoor.path_calls": {
        "_RESOLVE_IN_ROOT": "RESOLVE_IN_ROOT",
        "_AT_SYMLINK_NOFOLLOW": "AT_SYMLINK_NOFOLLOW",
    },
    "snpcerts.emulator.frontdoor.stat": {
        "_STATX_BASIC_STATS": "STATX_BASIC_STATS",
        "_MISC_MAJOR": "MISC_MAJOR",
    },
    "snpcerts.emulator.frontdoor.take_fd": {"_SYS_PIDFD_GETFD": "__NR_pidfd_getfd"},
    "snpcerts.conformance.description": {
        "_SYS_PIDFD_GETFD": "__NR_pidfd_getfd",
        "_F_SETSIG": "F_SETSIG",
        "_F_GETSIG": "F_GETSIG",
    },
    "snpcerts.conformance.suite": {
        "_CLONE_NEWNS": "CLONE_NEWNS",
        "_MS_PRIVATE_REC": "MS_PRIVATE | MS_REC",
    },
}

# The sources of values that are not compared with Linux's headers.
ELSEWHERE: Final[Mapping[str, str]] = {
    "kvm.VCPU_MMAP_SIZE": "KVM_GET_VCPU_MMAP_SIZE returns it; no header has it",
    "vcpu_registers.PAT_RESET": "arch/x86/kvm/msrs.h, MSR_IA32_CR_PAT_DEFAULT",
    "lock.PID_OF_OFD_OWNER": "fcntl_locking(2)",
    "psp.STATUS_ALIAS_CHECK_COMPLETE": "SNP ABI (56860), SNP_PLATFORM_STATUS",
    "psp.WrappedVlekHashstick": "SNP ABI (56860), SNP_VLEK_LOAD",
    "ghcb.VmmError.NONE": "zero, for no error",
    "ghcb.VmmError.GENERIC": "arch/x86/kvm/svm/sev.c, SNP_GUEST_VMM_ERR_GENERIC",
    "ghcb.ExitCode.AP_JUMP_TABLE": "arch/x86/include/uapi/asm/svm.h, SVM_VMGEXIT_AP_JUMP_TABLE",
    "guest_message.VMPCK_COUNT": "SNP ABI (56860), guest messages: VMPCK0 to VMPCK3",
    "guest_message.VMPL_MAX": "SNP ABI (56860), MSG_REPORT_REQ",
    "guest_message.KeySelect": "SNP ABI (56860), MSG_REPORT_REQ",
    "guest_message.ResponseStatus": "SNP ABI (56860), MSG_REPORT_RSP",
    "guest_message.ReportRequest": "SNP ABI (56860), MSG_REPORT_REQ",
    "guest_message.ReportResponse": "SNP ABI (56860), MSG_REPORT_RSP",
    "guest_message.REPORT_AT": "SNP ABI (56860), MSG_REPORT_RSP",
    "guest_message.MessageType.ABSORB_NOMA_REQ": "AMD-ASPFW, sev_rmp.h",
    "guest_message.MessageType.ABSORB_NOMA_RSP": "AMD-ASPFW, sev_rmp.h",
    "guest_message.GUEST_FIELD_GUEST_SVN": "SNP ABI (56860), MSG_KEY_REQ",
    "guest_message.GUEST_FIELD_TCB_VERSION": "SNP ABI (56860), MSG_KEY_REQ",
    "psp.FEATURE_VLEK": "SNP ABI (56860), SNP_FEATURE_INFO",
    "guest_message.TscInfoResponse": "SNP ABI (56860), MSG_TSC_INFO_RSP",
    "guest_message.KeyRequest": "SNP ABI (56860), MSG_KEY_REQ",
    "guest_message.KeyResponse": "SNP ABI (56860), MSG_KEY_RSP",
    "guest_message.GUEST_FIELD_SELECT_KNOWN": "SNP ABI (56860), MSG_KEY_REQ",
    "sev_guest.EXITINFO2_PRESET": "drivers/virt/coco/sev-guest/sev-guest.c before 5.19",
    "sev_guest.EXITINFO2_NOT_SENT": "arch/x86/coco/sev/core.c, SEV_RET_NO_FW_CALL as 64 bits",
    "cert_table.ENTRY_SIZE": "GHCB (56421), SNP Extended Guest Request",
    "cert_table.MAX_ENTRIES": "our own bound",
    "cert_table.MAX_SIZE": "our own bound",
}
# Names that older releases lack, and the first series that has them.
SINCE: Final[Mapping[str, str]] = {"SNP_VERIFY_MITIGATION_SUPPORTED": "7.3"}
# Fields that Linux has under another name, or as bit fields, which have no offset (None).
FIELDS: Final[Mapping[tuple[str, str], str | None]] = {
    ("struct kvm_segment", "long"): "l",
    ("struct sev_user_data_snp_status", "rmp"): None,
    ("struct sev_user_data_snp_status", "flags"): None,
    ("struct sev_user_data_snp_status", "current_tcb"): "current_tcb_version",
    ("struct sev_user_data_snp_status", "reported_tcb"): "reported_tcb_version",
    ("struct sev_user_data_snp_config", "flags"): None,
    ("struct sev_user_data_snp_config", "rsvd"): None,
    ("struct snp_secrets_page", "flags"): None,
    ("struct snp_secrets_page", "msg_seqno_0"): "os_area.msg_seqno_0",
    ("struct snp_secrets_page", "msg_seqno_1"): "os_area.msg_seqno_1",
    ("struct snp_secrets_page", "msg_seqno_2"): "os_area.msg_seqno_2",
    ("struct snp_secrets_page", "msg_seqno_3"): "os_area.msg_seqno_3",
}


def claims_of(release: str) -> dict[str, int]:
    """The claims that apply to a release such as ``7.2.13-1``."""
    return {name: value for name, value in claims().items() if is_in(name, release)}


def is_in(expression: str, release: str) -> bool:
    """Whether a release is new enough for an expression."""
    since = SINCE.get(expression)
    return since is None or _series(release) >= _series(since)


def _series(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split(".")[:2])


def claims() -> dict[str, int]:
    """Every expression with our value. Raises AssertionError if we give one two values."""
    found: dict[str, int] = {}
    for expression, value in (*_of_abi(), *_of_native(), *_of_others()):
        known = found.setdefault(expression, value)
        assert known == value, f"{expression} is {known} in one place and {value} in another"
    return found


def _of_abi() -> Iterator[tuple[str, int]]:
    for place, value in _constants():
        if place in CONSTANTS:
            yield CONSTANTS[place], value
    for members, spelling in ENUMS.items():
        for member in members:
            if _place(member) not in ELSEWHERE:
                yield SPELLED.get(member, spelling.format(member.name)), int(member)
    for structure in _structures():
        if structure.C_NAME:
            yield from _layout(structure)


def _layout(structure: type[CStruct]) -> Iterator[tuple[str, int]]:
    yield f"sizeof({structure.C_NAME})", structure.SIZE
    for name, (offset, _) in structure.layout().items():
        field = FIELDS.get((structure.C_NAME, name), name)
        if field is not None:
            yield f"offsetof({structure.C_NAME}, {field})", offset


def _of_others() -> Iterator[tuple[str, int]]:
    for name, constants in OTHERS.items():
        module = importlib.import_module(name)
        for attribute, expression in constants.items():
            yield expression, int(getattr(module, attribute))
    for call in bpf.Syscall:
        yield f"__NR_{call.name.lower()}", int(call)
    for opcode in fuse_messages.Opcode:
        yield f"FUSE_{opcode.name}", int(opcode)
    for value in (*vars(fuse_messages).values(), *vars(file_watch).values()):
        if isinstance(value, type) and value is not CStruct and issubclass(value, CStruct):
            yield from _layout(value)


def _of_native() -> Iterator[tuple[str, int]]:
    """The numbers of the shim and of the C programs of the tests."""
    text = NATIVE.read_text(encoding="utf-8")
    for name, value in re.findall(r"^#define (\w+) (0x[0-9A-F]+|\d+)u?$", text, re.M):
        yield name, int(value, 0)


# Expressions that must have the same value with native/kvm_abi.h as with Linux's headers.
NATIVE_LAYOUT: Final = (
    "offsetof(struct kvm_run, request_interrupt_window)",
    "offsetof(struct kvm_run, immediate_exit)",
    "offsetof(struct kvm_run, exit_reason)",
    "offsetof(struct kvm_run, io.direction)",
    "offsetof(struct kvm_run, io.port)",
    "offsetof(struct kvm_run, io.data_offset)",
    "offsetof(struct kvm_run, snp_req_certs.gpa)",
    "offsetof(struct kvm_run, snp_req_certs.npages)",
    "offsetof(struct kvm_run, snp_req_certs.ret)",
    "sizeof(struct kvm_userspace_memory_region)",
    "offsetof(struct kvm_userspace_memory_region, slot)",
    "offsetof(struct kvm_userspace_memory_region, flags)",
    "offsetof(struct kvm_userspace_memory_region, guest_phys_addr)",
    "offsetof(struct kvm_userspace_memory_region, memory_size)",
    "offsetof(struct kvm_userspace_memory_region, userspace_addr)",
    "sizeof(struct kvm_sev_cmd)",
    "offsetof(struct kvm_sev_cmd, id)",
    "offsetof(struct kvm_sev_cmd, data)",
    "offsetof(struct kvm_sev_cmd, error)",
    "offsetof(struct kvm_sev_cmd, sev_fd)",
    "sizeof(struct kvm_device_attr)",
    "offsetof(struct kvm_device_attr, flags)",
    "offsetof(struct kvm_device_attr, group)",
    "offsetof(struct kvm_device_attr, attr)",
    "offsetof(struct kvm_device_attr, addr)",
)


def unclaimed() -> list[str]:
    """Declarations of ``abi`` without an entry above, and entries without a declaration."""
    here = {place for place, _ in _constants()}
    here |= {_place(structure) for structure in _structures()}
    here |= {_place(members) for members in _enums()}
    covered = set(CONSTANTS) | set(ELSEWHERE)
    covered |= {_place(members) for members in ENUMS}
    covered |= {_place(each) for each in _structures() if each.C_NAME}
    members = {_place(member) for each in _enums() for member in each}
    return sorted(here - covered) + sorted((set(CONSTANTS) | set(ELSEWHERE)) - here - members)


def _module_items() -> Iterator[tuple[str, str, object]]:
    for name in MODULES:
        module = importlib.import_module(f"snpcerts.abi.{name}")
        for attribute, value in vars(module).items():
            if not attribute.startswith("_"):
                yield name, attribute, value


def _constants() -> Iterator[tuple[str, int]]:
    for module, name, value in _module_items():
        if isinstance(value, int) and not isinstance(value, bool) and name.isupper():
            yield f"{module}.{name}", value


def _declared(kind: type) -> Iterator[type]:
    for module, _, value in _module_items():
        own = isinstance(value, type) and value.__module__ == f"snpcerts.abi.{module}"
        if own and isinstance(value, type) and issubclass(value, kind):
            yield value


def _structures() -> list[type[CStruct]]:
    return [each for each in _declared(CStruct) if issubclass(each, CStruct)]


def _enums() -> list[type[enum.IntEnum]]:
    return [each for each in _declared(enum.IntEnum) if issubclass(each, enum.IntEnum)]


def _place(what: type | enum.IntEnum) -> str:
    if isinstance(what, enum.IntEnum):
        return f"{_place(type(what))}.{what.name}"
    return f"{what.__module__.removeprefix('snpcerts.abi.')}.{what.__name__}"
