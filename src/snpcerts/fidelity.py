# SPDX-License-Identifier: Apache-2.0
"""Lists where the emulator claims to behave like released software, and what supports each claim.

Claim identifiers are stable. ``docs/fidelity.md`` shows the table. The test suites compare
each claim with the tests that they run, so no claim outlives its test.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final


class SourceKind(enum.Enum):
    """The kinds of evidence that can support a claim."""

    HEADER = "header"
    KERNEL = "kernel function"
    SELFTEST = "kernel selftest"
    AMD = "AMD function"
    DOCUMENT = "document"
    OBSERVER = "observer"
    PROGRAM = "program"
    NOTHING = "nothing yet"


@dataclass(frozen=True, slots=True)
class ClaimSource:
    """Evidence of one kind for a claim, with the names of its sources."""

    kind: SourceKind
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim about the emulator, with its evidence and the releases it was compared with."""

    id: str
    text: str
    held: tuple[ClaimSource, ...]
    releases: tuple[str, ...] = ()

    @property
    def checked(self) -> bool:
        """Whether anything outside this project supports the claim."""
        return all(each.kind is not SourceKind.NOTHING for each in self.held)


LINUX: Final = ("Linux 7.2", "Linux 7.3")
_GENOA: Final = ("SEV firmware 1.55.25 (Genoa)",)
_QEMU: Final = ("QEMU 10.0", "QEMU 11.1")


def _kernel(*names: str) -> ClaimSource:
    return ClaimSource(SourceKind.KERNEL, names)


def _selftests(*names: str) -> ClaimSource:
    return ClaimSource(SourceKind.SELFTEST, names)


def _programs(*names: str) -> ClaimSource:
    return ClaimSource(SourceKind.PROGRAM, names)


_NOTHING: Final = (ClaimSource(SourceKind.NOTHING),)

CLAIMS: Final = (
    Claim(
        "numbers",
        "Numbers, sizes and offsets in KVM, /dev/sev, /dev/sev-guest, GHCB and guest messages",
        (ClaimSource(SourceKind.HEADER, ("linux-libc-dev", "linux-headers")),),
        LINUX,
    ),
    Claim(
        "vmgexit",
        "VMGEXIT: order of checks, GHCB and MSR protocols, every exit that KVM handles itself",
        (
            _kernel(
                "sev_handle_vmgexit",
                "sev_es_unmap_ghcb",
                "sev_snp_init_protected_guest_state",
                "kvm_emulate_hypercall",
                "io_interception",
                "msr_interception",
                "svm_complete_emulated_msr",
                "kvm_emulate_cpuid",
            ),
        ),
        LINUX,
    ),
    Claim(
        "kvm-run",
        "KVM_RUN: order of checks, immediate_exit, completion of the previous exit",
        (_kernel("kvm_arch_vcpu_ioctl_run"),),
        LINUX,
    ),
    Claim(
        "system-registers",
        "KVM_SET_SREGS and KVM_SET_SREGS2: which values KVM accepts, and what "
        "KVM_GET_SREGS then returns",
        (
            _kernel(
                "kvm_arch_vcpu_ioctl_set_sregs",
                "kvm_vcpu_ioctl_x86_set_sregs2",
                "kvm_arch_vcpu_ioctl_get_sregs",
                "kvm_vcpu_ioctl_x86_get_sregs2",
                "svm_set_segment",
                "svm_get_segment",
            ),
            _selftests("x86/set_sregs_test"),
        ),
        LINUX,
    ),
    Claim(
        "model-registers",
        "KVM_SET_MSRS and KVM_GET_MSRS: which MSRs exist; the values of EFER, HWCR, PAT and the "
        "MSRs that hold addresses. Values for machine checks, memory types and counters are not "
        "checked",
        (
            _selftests("x86/hwcr_msr_test"),
            ClaimSource(SourceKind.DOCUMENT, ("arch/x86/kvm/msrs.c, svm/svm.c (read)",)),
        ),
        LINUX,
    ),
    Claim(
        "launch",
        "KVM_MEMORY_ENCRYPT_OP: argument checks, errors, device attributes",
        (_kernel("sev_mem_enc_ioctl", "sev_dev_get_attr", "kvm_gmem_populate"),),
        LINUX,
    ),
    Claim(
        "memory",
        "Memory slots, guest_memfds and page attributes: checks, their order, errors",
        (
            _kernel(
                "kvm_vm_ioctl_set_memory_region",
                "kvm_vm_ioctl_set_mem_attributes",
                "kvm_gmem_create",
                "kvm_arch_prepare_memory_region",
            ),
        ),
        LINUX,
    ),
    Claim(
        "guest-driver",
        "/dev/sev-guest and the guest driver: messages, retries, loss of a VMPCK",
        (
            _kernel(
                "snp_guest_ioctl",
                "snp_send_guest_request",
                "snp_msg_alloc",
                "snp_msg_init",
                "sev_es_ghcb_hv_call",
                "__access_ok",
            ),
            _programs("snpguest", "go-sev-guest"),
        ),
        LINUX,
    ),
    Claim(
        "guest-tsm",
        "configfs-tsm: files, generations, reports, certificates, errors. The configfs code "
        "was only read, not compiled",
        (
            _kernel(
                "sev_tsm_report_ops",
                "tsm_report_make_item",
                "tsm_report_item_release",
                "tsm_report_privlevel_store",
                "tsm_report_privlevel_floor_show",
                "tsm_report_inblob_write",
                "tsm_report_generation_show",
                "tsm_report_provider_show",
                "tsm_report_outblob_read",
                "tsm_report_auxblob_read",
                "tsm_report_is_visible",
                "tsm_report_is_bin_visible",
                "kstrtouint",
            ),
            _programs("go-sev-guest"),
        ),
        LINUX,
    ),
    Claim(
        "guest-page-state",
        "How a guest makes pages shared and private: lists of page state changes, 2 MiB pages, a "
        "host that refuses",
        (_kernel("snp_set_memory_shared", "snp_set_memory_private"), _programs("QEMU", "libvirt")),
        LINUX,
    ),
    Claim(
        "memory-fault",
        "An access that contradicts a page's attribute: EFAULT and KVM_EXIT_MEMORY_FAULT",
        (ClaimSource(SourceKind.DOCUMENT, ("Linux api.rst", "arch/x86/kvm/mmu/mmu.c (read)")),),
        LINUX,
    ),
    Claim(
        "dev-sev",
        "/dev/sev: ioctls, their checks and errors",
        (_kernel("sev_ioctl", "__sev_do_cmd_locked"), _programs("snphost")),
        LINUX,
    ),
    Claim(
        "vm-setup",
        "Creation of VMs and vCPUs, limits, VM types, APIC IDs",
        (
            _selftests(
                "kvm_create_max_vcpus",
                "vm_types_test",
                "x86/max_vcpuid_cap_test",
                "x86/recalc_apic_map_test",
            ),
            _programs("QEMU"),
        ),
        LINUX,
    ),
    Claim(
        "irqfd",
        (
            "KVM_IRQFD: duplicates, closed descriptors and VMs, calls from two "
            "threads at the same time"
        ),
        (_selftests("irqfd_test"),),
        LINUX,
    ),
    Claim(
        "capabilities",
        "The capabilities and other calls that VMMs make before the guest runs",
        (
            _kernel(
                "kvm_vm_ioctl_check_extension_generic",
                "kvm_vm_ioctl_check_extension",
                "kvm_vm_ioctl_enable_cap_generic",
                "kvm_vm_ioctl_enable_cap",
            ),
            _programs("QEMU", "libvirt"),
        ),
        (*LINUX, *_QEMU),
    ),
    Claim(
        "firmware-messages",
        "The firmware's answers to guest messages: status, order of checks, sizes, derived keys",
        (ClaimSource(SourceKind.AMD, ("sev_mcmd.c: snp_mcmd_guest_request",)),),
        _GENOA,
    ),
    Claim(
        "firmware-platform",
        "COMMIT, SET_CONFIG, VLEK_LOAD and SHUTDOWN, and how they change the signing key",
        (
            ClaimSource(SourceKind.AMD, ("sev_mcmd.c", "sev_plat.c")),
            ClaimSource(SourceKind.DOCUMENT, ("SNP ABI 56860, as others quote it",)),
            ClaimSource(SourceKind.OBSERVER, ("linux-svsm issue 22",)),
        ),
        _GENOA,
    ),
    Claim(
        "firmware-launch",
        "What the firmware accepts at launch: policy, page types, CPUID pages, ID blocks and keys",
        (
            ClaimSource(
                SourceKind.AMD,
                (
                    "sev_mcmd.c: snp_mcmd_launch_start",
                    "sev_mcmd.c: snp_mcmd_launch_update",
                    "sev_mcmd.c: snp_mcmd_launch_finish",
                    "cpuid_lookup.c",
                ),
            ),
        ),
        _GENOA,
    ),
    Claim(
        "launch-digest",
        "The launch measurement, for every page type and for VMSAs",
        (_programs("sev-snp-measure"),),
    ),
    Claim(
        "certificates",
        "Extensions, names and chains of the emulated VCEK, VLEK, ASK and ARK certificates",
        (
            _programs("snpguest", "snphost"),
            ClaimSource(SourceKind.OBSERVER, ("AMD's genuine evidence",)),
        ),
    ),
    Claim(
        "certificate-path",
        "One request through agent, VMM, KVM and guest: lock, BUSY, an update during the request",
        _NOTHING,
    ),
    Claim("concurrency", "Two vCPUs, signals and timeouts at the same time", _NOTHING),
    Claim("hardware", "A real SNP host behaves as the emulator does", _NOTHING),
)

BY_ID: Final = {claim.id: claim for claim in CLAIMS}
