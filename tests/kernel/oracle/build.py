# SPDX-License-Identifier: Apache-2.0
"""The kernel's parts as shared objects, one for each part and release.

The extracted sources and the shared objects stay in the cache directory of ``fetch.sh``. The
kernel is under the GPL: nothing of it is committed, shipped, or put into a public cache.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .. import headers
from .cut import CutError, Cutter, Definition, definitions, selected, source

STUBS: Final = Path(__file__).with_name("stubs")
SOURCES: Final = headers.FETCHED / "source"
BUILT: Final = headers.FETCHED / "oracle"

CONFIGURATION: Final = frozenset(
    (
        "CONFIG_KVM_AMD_SEV",
        "CONFIG_AMD_MEM_ENCRYPT",
        "CONFIG_X86_64",
        "CONFIG_64BIT",
        "CONFIG_X86",
        "CONFIG_HAVE_KVM_ARCH_GMEM_POPULATE",
        "CONFIG_HAVE_KVM_GMEM_POPULATE",
    )
)
# Macros that define functions when invoked.
_MAKERS: Final[Mapping[str, Sequence[str]]] = {
    "DEFINE_KVM_GHCB_ACCESSORS": (
        "kvm_ghcb_get_{}",
        "kvm_ghcb_{}_is_valid",
        "kvm_ghcb_get_{}_if_valid",
    ),
    "DEFINE_GHCB_ACCESSORS": (
        "ghcb_{}_is_valid",
        "ghcb_get_{}",
        "ghcb_get_{}_if_valid",
        "ghcb_set_{}",
    ),
    "BUILD_KVM_GPR_ACCESSORS": (
        "kvm_e{}_read",
        "kvm_e{}_write",
        "kvm_r{}_read",
        "kvm_r{}_read_raw",
        "kvm_r{}_write_raw",
    ),
}


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the kernel. ``roots`` are the functions to compare, by file. The definitions that
    they need are in the same files or in ``files``.

    A release may lack some of ``files``, but no root.
    """

    name: str
    roots: Mapping[str, Sequence[str]]
    files: Sequence[str]
    also: Mapping[str, Sequence[str]] = field(default_factory=dict)  # what the stubs need
    stubs: Sequence[str] = ()  # besides those that have its name
    configuration: frozenset[str] = frozenset()  # besides that of all


_KVM: Final = "arch/x86/kvm"
_ASM: Final = "arch/x86/include/asm"

KVM: Final = Part(
    "kvm",
    {
        f"{_KVM}/svm/sev.c": (
            "sev_handle_vmgexit",
            "sev_es_unmap_ghcb",
            "sev_snp_init_protected_guest_state",
        ),
        f"{_KVM}/x86.c": ("kvm_arch_vcpu_ioctl_run", "kvm_emulate_hypercall"),
        f"{_KVM}/svm/svm.c": (
            "io_interception",
            "msr_interception",
            "svm_complete_emulated_msr",
        ),
        f"{_KVM}/cpuid.c": ("kvm_emulate_cpuid",),
    },
    (
        f"{_KVM}/svm/svm.h",
        f"{_KVM}/x86.h",
        f"{_KVM}/msrs.c",
        f"{_KVM}/msrs.h",
        f"{_KVM}/regs.c",
        f"{_KVM}/regs.h",
        f"{_ASM}/svm.h",
        f"{_ASM}/sev-common.h",
        f"{_ASM}/sev.h",
        f"{_ASM}/trapnr.h",
        f"{_ASM}/kvm_host.h",
        "include/linux/psp-sev.h",
    ),
)
LAUNCH: Final = Part(
    "launch",
    {
        f"{_KVM}/svm/sev.c": ("sev_mem_enc_ioctl", "sev_dev_get_attr"),
        "virt/kvm/guest_memfd.c": ("kvm_gmem_populate",),
    },
    KVM.files,
    stubs=("kvm.h", "user.c"),
)

CAPABILITY: Final = Part(
    "capability",
    {
        f"{_KVM}/x86.c": ("kvm_vm_ioctl_check_extension", "kvm_vm_ioctl_enable_cap"),
        "virt/kvm/kvm_main.c": (
            "kvm_vm_ioctl_check_extension_generic",
            "kvm_vm_ioctl_enable_cap_generic",
        ),
    },
    (
        f"{_KVM}/x86.h",
        f"{_KVM}/lapic.h",
        f"{_ASM}/kvm_host.h",
        "include/linux/kvm_host.h",
    ),
    configuration=frozenset(
        (
            "CONFIG_HAVE_KVM_DIRTY_RING_ACQ_REL",
            "CONFIG_HAVE_KVM_DIRTY_RING_TSO",
            "CONFIG_HAVE_KVM_IRQCHIP",
            "CONFIG_HAVE_KVM_IRQ_ROUTING",
            "CONFIG_HAVE_KVM_MSI",
            "CONFIG_KVM_GENERIC_DIRTYLOG_READ_PROTECT",
            "CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES",
            "CONFIG_KVM_GUEST_MEMFD",
            "CONFIG_KVM_HYPERV",
            "CONFIG_KVM_IOAPIC",
            "CONFIG_KVM_MMIO",
            "CONFIG_KVM_SMM",
            "CONFIG_KVM_XEN",
            "CONFIG_X86_SGX_KVM",
        )
    ),
)

MEMORY: Final = Part(
    "memory",
    {
        "virt/kvm/kvm_main.c": (
            "kvm_vm_ioctl_set_memory_region",
            "kvm_vm_ioctl_set_mem_attributes",
        ),
        "virt/kvm/guest_memfd.c": ("kvm_gmem_create",),
        f"{_KVM}/x86.c": ("kvm_arch_prepare_memory_region",),
    },
    (f"{_ASM}/kvm_host.h", "include/linux/kvm_host.h"),
    configuration=frozenset(("CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES", "CONFIG_KVM_GUEST_MEMFD")),
)

_CCP: Final = "drivers/crypto/ccp"

SEV: Final = Part(
    "sev",
    {f"{_CCP}/sev-dev.c": ("sev_ioctl", "__sev_do_cmd_locked")},
    (f"{_CCP}/sev-dev.h", f"{_CCP}/psp-dev.h", "include/linux/psp-sev.h", "include/linux/psp.h"),
)
_COCO: Final = "arch/x86/coco/sev"
_DRIVER: Final = "drivers/virt/coco/sev-guest/sev-guest.c"

GUEST: Final = Part(
    "guest",
    {
        _DRIVER: ("snp_guest_ioctl", "sev_tsm_report_ops"),
        f"{_COCO}/core.c": (
            "snp_send_guest_request",
            "snp_msg_alloc",
            "snp_msg_init",
            "snp_set_memory_shared",
            "snp_set_memory_private",
        ),
        f"{_COCO}/vc-shared.c": ("sev_es_ghcb_hv_call",),
        f"{_ASM}/uaccess_64.h": ("__access_ok",),
        "drivers/virt/coco/guest/report.c": (
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
        ),
        "lib/kstrtox.c": ("kstrtouint",),
    },
    (
        "include/linux/tsm.h",
        "lib/kstrtox.h",
        f"{_ASM}/sev.h",
        f"{_ASM}/sev-common.h",
        f"{_ASM}/svm.h",
        f"{_COCO}/internal.h",
        "include/linux/sockptr.h",
        "include/linux/psp-sev.h",
    ),
)
REGISTERS: Final = Part(
    "registers",
    {
        f"{_KVM}/regs.c": (
            "kvm_arch_vcpu_ioctl_set_sregs",
            "kvm_vcpu_ioctl_x86_set_sregs2",
            "kvm_arch_vcpu_ioctl_get_sregs",
            "kvm_vcpu_ioctl_x86_get_sregs2",
        ),
        f"{_KVM}/svm/svm.c": ("svm_set_segment", "svm_get_segment"),
    },
    (
        f"{_KVM}/cpuid.h",
        f"{_KVM}/lapic.c",
        f"{_KVM}/lapic.h",
        f"{_KVM}/mmu.h",
        f"{_KVM}/msrs.c",
        f"{_KVM}/x86.h",
        f"{_ASM}/cpufeatures.h",
        f"{_ASM}/kvm_host.h",
        f"{_ASM}/kvm_vcpu_regs.h",
        f"{_ASM}/svm.h",
    ),
    also={
        f"{_KVM}/x86.c": ("kvm_setup_efer_caps",),
        f"{_KVM}/svm/svm.c": ("init_seg", "init_sys_seg"),
        f"{_KVM}/regs.h": ("__cr4_reserved_bits",),
        f"{_KVM}/cpuid.c": ("kvm_vcpu_reserved_gpa_bits_raw", "cpuid_query_maxphyaddr"),
        f"{_ASM}/apicdef.h": ("APIC_DEFAULT_PHYS_BASE",),
        f"{_ASM}/msr-index.h": ("MSR_IA32_APICBASE_BSP",),
        "arch/x86/include/uapi/asm/processor-flags.h": ("X86_CR0_ET",),
    },
)
PARTS: Final = {
    each.name: each for each in (KVM, LAUNCH, CAPABILITY, MEMORY, REGISTERS, GUEST, SEV)
}


def releases() -> dict[str, Path]:
    """The source of the newest fetched release of each series, by version, if it is complete."""
    found: dict[str, Path] = {}
    for version in headers.releases():
        path = SOURCES / version
        if (path / "complete").exists():
            found[version] = path
    return found


def cut(part: Part, release: Path) -> str:
    """The part as one C source. Raises :class:`CutError` if the release lacks a root."""
    return source(cut_definitions(part, release))


def cut_definitions(part: Part, release: Path) -> list[Definition]:
    """The definitions that make up the part."""
    cutter = Cutter(CONFIGURATION | part.configuration, _MAKERS)
    roots = {
        file: (*part.roots.get(file, ()), *part.also.get(file, ()))
        for file in (*part.roots, *part.also)
    }
    cutter.add(release, *roots)
    cutter.add(release, *(each for each in part.files if (release / each).is_file()))
    return cutter.cut(roots, _stubbed(part))


def _stubbed(part: Part) -> set[str]:
    """The names that the stubs define or declare. What these names need is not cut out."""
    names: set[str] = set()
    for file in ("kernel.h", *part.stubs, f"{part.name}.h", f"{part.name}.c"):
        text = selected((STUBS / file).read_text(encoding="utf-8"), ())
        for each in definitions(text, file):
            names.update(each.names)
        names.update(re.findall(r"^[a-z][\w *]*?(\w+)\([^;{]*\);$", text, re.M))
    return names


def build(part: Part, version: str, mutate: tuple[str, str] | None = None) -> Path:
    """The shared object for one part of one release, rebuilt only if something has changed.

    ``mutate`` is a string in the extracted source, and its replacement.
    """
    text = cut(part, SOURCES / version)
    if mutate is not None:
        if mutate[0] not in text:
            raise CutError(f"cannot mutate: the extracted source has no {mutate[0]}")
        text = text.replace(*mutate, 1)
    return compiled(part, version, text)


def compiled(
    part: Part,
    version: str,
    text: str,
    flags: Sequence[str] = ("-O1", "-g"),
    into: Path = BUILT,
) -> Path:
    """Compile an extracted source, such as a mutant. Return the path of the shared object."""
    whole = f'#include "kernel.h"\n#include "{part.name}.h"\n{text}#include "{part.name}.c"\n'
    stubs = b"".join(
        (STUBS / file).read_bytes()
        for file in ("kernel.h", *part.stubs, f"{part.name}.h", f"{part.name}.c")
    )
    digest = hashlib.sha256(whole.encode() + stubs + repr(flags).encode()).hexdigest()[:16]
    made = into / f"{part.name}-{version}-{digest}.so"
    if made.exists():
        return made
    into.mkdir(parents=True, exist_ok=True)
    file = made.with_suffix(".c")
    file.write_text(whole, encoding="utf-8")
    user = headers.releases()[version] / "user" / "usr" / "include"
    argv = [
        "gcc",
        *("-shared", "-fPIC", *flags, "-std=gnu11", "-w", "-fno-strict-aliasing", "-fwrapv"),
        *("-Werror=implicit-function-declaration", "-Werror=incompatible-pointer-types"),
        *("-Werror=int-conversion", "-Wl,-z,defs"),
        f"-I{STUBS}",
        *("-isystem", str(user / "x86_64-linux-gnu"), "-isystem", str(user)),
        *("-o", str(made), str(file)),
    ]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        file.unlink()
        raise CutError(f"{part.name} of {version} does not build:\n{done.stderr[:6000]}")
    return made


def code(part: Part, version: str, text: str, folder: Path) -> bytes:
    """Compile a source without debug data. Sources with equal shared objects behave alike."""
    flags = ("-O2", "-s", "-Wl,--build-id=none")
    made = compiled(part, version, text, flags, folder)
    found = made.read_bytes()
    made.unlink()
    return found
