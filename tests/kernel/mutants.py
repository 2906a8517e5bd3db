# SPDX-License-Identifier: Apache-2.0
"""Measures the oracle: it must notice changed kernels and changed emulators.

``python -m tests.kernel.mutants LOG`` makes mutants. In each, one thing is changed: an operator,
a constant, the order of two checks, or a write or call that is left out. Kernel mutants change
the functions that are cut out of a release ("the cut"); emulator mutants change the emulator's
code for the same functions. The command runs some sequences against each mutant and lists the
mutants that no sequence noticed. Such a survivor shows that a sequence is missing, or that the
change has no effect. If a kernel mutant compiles to the same code as the unchanged kernel, the
command itself finds this out; :data:`EXPLAINED` explains the other changes without an effect.

LOG has a JSON line for each mutant. Started again with the same LOG, the command goes on with
the mutants that are not in it. With ``--again``, it also repeats those that survived without an
explanation. ``--shard K/N`` runs one of N parts: start N commands, each with its own LOG.
``--say`` runs nothing: it prints the figures of the LOGs, and the explanations that no survivor
needs or that a noticed mutant contradicts.
"""

from __future__ import annotations

import argparse
import ast
import copy
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from ..run_log import append, interruptible, lines, shard
from .oracle import build
from .oracle.cut import CutError
from .oracle.judge import ROOT, Stop, judge

SOURCE: Final = ROOT / "src"
# The emulator's code for each part of the kernel: files. If names follow a file, only these
# functions and classes of the file are meant.
EMULATOR: Final = {
    "kvm": (
        "emulator/kvm/ghcb_exit.py",
        "emulator/kvm/ghcb_page.py",
        "emulator/kvm/page_state.py",
        "emulator/kvm/guest_instruction.py",
        "emulator/guest/memory_slots.py SlotMemory find",
    ),
    "launch": ("emulator/kvm/sev_commands.py",),
    "memory": (
        "emulator/guest/memory_slots.py GuestMemfd MemorySlots",
        "emulator/kvm/private_ranges.py",
        "emulator/kvm/vm.py _set_region _set_region2 _create_memfd _set_attributes",
    ),
    "capability": (
        "emulator/kvm/capability.py",
        "emulator/kvm/vm.py _enable_cap _split_irqchip _limit_vcpu_ids _set_apic_bus _set_x2apic",
    ),
    "registers": ("emulator/kvm/system_registers.py", "emulator/kvm/host_cpuid.py entry has"),
    "guest": (
        "emulator/guest/sev_guest_device.py",
        "emulator/guest/linux.py",
        "emulator/guest/page_state_calls.py",
        "emulator/guest/tsm_reports.py",
    ),
    "sev": ("emulator/psp/sev_device.py",),
}
# Mutants that may survive: a pattern for the beginning of their description, and the reason.
EXPLAINED: Final[tuple[tuple[str, str], ...]] = (
    (r"kernel dump_ghcb", "only writes to the log"),
    (r"kernel sev_irq_handler", "no interrupt reaches the cut: the PSP's stub answers at once"),
    (
        r"kernel kvm_msr_user_space",
        "no VMM has asked for exits on MSRs, so the function returns at its first check",
    ),
    (
        r"kernel kvm_arch_vcpu_ioctl_run: without kvm_",
        "the stubs of FPU, SRCU and signals do nothing",
    ),
    (
        r"kernel (snp_do_psc|kvm_set_memslot): without BUG\(\)",
        "is never reached: every possible case is handled before it",
    ),
    (r"kernel \w+: .*(print_hex_dump|pr_warn|dev_err|dev_dbg)", "only writes to the log"),
    (r"kernel \w+: (without|.* in) (kv?free|__free_pages)\(", "frees memory, which no caller sees"),
    (
        r"kernel \w+: (-ENOMEM becomes \S+ in (?!return -ENOMEM; after if \(\(hdr)"
        r"|without ret = -ENOMEM)|kernel tsm_report_make_item: without return ERR_PTR\(-ENOMEM",
        "no allocation fails in the stubs",
    ),
    (r"kernel \w+: without mutex_(un)?lock", "the cut runs in one thread"),
    (
        r"kernel sev_(version_greater_or_equal|ioctl): checks swapped"
        r"|kernel (psp_copy_user_blob|sev_ioctl_do_pdh_export): checks swapped",
        "both checks have the same result",
    ),
    (r"kernel sev_ioctl: > becomes >= in if \(input.cmd > SEV_MAX", "SEV_MAX is no command either"),
    (
        r"kernel __sev_do_cmd_locked: .*(cmdbuff_|cmd_buf_backup|cmd_buf_active|psp_master|psp->sev"
        r"|-ENODEV|-EBUSY|psp_dead|psp_timeout|irqs_disabled)",
        "the cut has a PSP that works, and gives it one command at a time",
    ),
    (
        r"kernel __sev_do_cmd_locked: .*(phys_[lm]sb|int_rcvd|SEV_CMDRESP_IOC)",
        "the PSP's stub takes buffer and command where the kernel hands them over, not from "
        "registers",
    ),
    (
        r"kernel __sev_do_cmd_locked: .*(snp_prep_cmd_buf|sev_write_init_ex|cmd_buf = sev->cmd_buf;"
        r"|desc_list)",
        "INIT_EX and the pages that the firmware owns are outside the cut",
    ),
    (
        r"kernel (__sev_do_cmd_locked|sev_ioctl): (-EINVAL|-EFAULT|without ret = -EFAULT)",
        "in one thread, no access to a buffer fails if the buffer has just been read",
    ),
    (
        r"kernel sev_move_to_init_state"
        r"|kernel sev_ioctl_do_\w+: .*(sev_move_to_init_state|__sev_firmware_shutdown"
        r"|__sev_platform_shutdown_locked)",
        "initialising SEV and shutting it down are stubs without an effect",
    ),
    (
        r"kernel \w+: \|\| becomes && in if \(ret \|\| WARN_ON_ONCE\(argp->error",
        "the PSP's stub sets both ret and argp->error, or neither",
    ),
    (r"kernel sev_ioctl: (\|\| becomes && in if \(!psp_master|-ENODEV)", "the cut has a PSP"),
    (
        r"kernel sev_ioctl_do_(pek_import|pek_csr|get_id2): .*(data\.|without ret = -EFAULT"
        r"|input_address)",
        "neither the PSP's stub nor the emulated firmware reads these buffers",
    ),
    (
        r"kernel __sev_do_snp_platform_status: .*(rmp_mark_pages|snp_reclaim_pages|-EFAULT)",
        "the RMP is a stub: pages change owner without an effect",
    ),
    (
        r"kernel sev_cmd_buffer_len: ",
        "the cut gives no command of SEV-TIO, and none without a buffer",
    ),
    (
        r"kernel __sev_do_cmd_locked: (0 becomes 1 in int ret|.*\*psp_ret = 0)",
        "set again before it is used",
    ),
    (
        r"kernel sev_ioctl_do_(reset|pek_\w+): (==|!=) becomes \S+ in if \(.*state",
        "leads to initialising SEV or shutting it down, which are stubs without an effect",
    ),
    (r"kernel sev_ioctl_do_reset: checks swapped", "the two states exclude each other"),
    (r"kernel sev_ioctl_do_platform_status: .*memset", "the firmware fills the whole structure"),
    (r"kernel sev_ioctl_do_get_id: 8 becomes 9", "there is room beyond the ID either way"),
    (
        r"kernel sev_ioctl_do_pdh_export: without ret = -EFAULT",
        "in one thread, no access to a buffer fails if the buffer has just been read",
    ),
    (
        r"kernel kvm_vm_ioctl_check_extension\w*: .*\(case KVM_CAP_(DIRTY_LOG_RING\w*"
        r"|HYPERV_ENLIGHTENED_VMCS|HYPERV_DIRECT_TLBFLUSH|SMALLER_MAXPHYADDR|X86_NOTIFY_VMEXIT"
        r"|PMU_CAPABILITY|X86_BUS_LOCK_EXIT)\)"
        r"|kernel kvm_(get_allowed_disable_exits|arch_supports_gmem_init_shared): ",
        "the emulator does not report the capability, and then the sequences check only whether "
        "KVM reports it; or the cut's host does not have the feature",
    ),
    (
        r"kernel kvm_prepare_memory_region: (! becomes nothing in if \(!\(new->flags & KVM_MEM_LOG"
        r"|without kvm_destroy_dirty_bitmap)"
        r"|kernel kvm_set_memslot: \|\| becomes && in if \(change == KVM_MR_DELETE",
        "the stubs for dirty logs and for slots in a transition have no effect",
    ),
    (
        r"kernel \w+: -E\w+ becomes -E\w+ in return -E\w+; after (else )?if \(WARN_ON_ONCE\(",
        "the code before it has excluded this case",
    ),
    (
        r"kernel kvm_set_memory_region: without (slots = __kvm_memslots|new->as_id = )",
        "a VM of the emulator has one address space",
    ),
    (
        r"kernel kvm_set_memory_region: < becomes <= in if \(id < KVM_USER_MEM_SLOTS"
        r"|kernel kvm_vm_ioctl_set_mem_attributes: < becomes <= in if \(attrs->size == 0"
        r"|kernel kvm_gmem_create: 0 becomes 1 in if \(size <= 0",
        "equal: another condition excludes the one value that matters",
    ),
    (
        r"kernel (kvm_set_memory_region|kvm_vm_ioctl_set_mem_attributes|kvm_gmem_create): checks "
        r"swapped: (?!if \(WARN)|emulator emulator/guest/memory_slots\.py:\d+: checks swapped: "
        r"(region\.(?!flags)|beyond)",
        "both checks have the same result",
    ),
    (
        r"emulator emulator/guest/memory_slots\.py:\d+: (without os\.close|0 becomes 1 in (flags: "
        r"|if index < 0)|LtE in (index < 0|gpa < slot\.end)|1 becomes 2 in index = .* gpa\) - 1)",
        "leaves a descriptor open, changes the default of an argument that is always given, or is "
        "in code for reads and writes, which only the sequences of part kvm make",
    ),
    (
        r"emulator emulator/guest/memory_slots\.py:\d+: ([12] becomes \d in for start in self\."
        r"|Gt in region\.guest_phys_addr)"
        r"|emulator emulator/kvm/private_ranges\.py:\d+: (LtE in low < high|Lt in end <= self"
        r"|1 becomes 2 in return self\.covers)"
        r"|emulator emulator/kvm/vm\.py:\d+: 0 becomes 1 in if wanted\.flags",
        "equal: one more neighbour is looked at, an empty range is kept, addresses and sizes are "
        "multiples of a page, or the next check has the same result",
    ),
    (
        r"emulator emulator/kvm/vm\.py:\d+: Gt in len\(self\.private\)",
        "a limit that KVM does not have, and that no sequence reaches",
    ),
    (
        r"emulator emulator/guest/memory_slots\.py:\d+: without memfd\.unbind\(new\.number\)",
        "only Linux 7.2 binds a guest_memfd before it checks the end of a slot",
    ),
    (
        r"kernel kvm_vm_ioctl_enable_cap\w*: .*\(case KVM_CAP_(DISABLE_QUIRKS2|X86_DISABLE_EXITS"
        r"|X86_BUS_LOCK_EXIT|SGX_ATTRIBUTE|VM_COPY_ENC_CONTEXT_FROM|VM_MOVE_ENC_CONTEXT_FROM"
        r"|PMU_CAPABILITY|X86_NOTIFY_VMEXIT|VM_DISABLE_NX_HUGE_PAGES|MANUAL_DIRTY_LOG_PROTECT2"
        r"|DIRTY_LOG_RING\w*)\)",
        "concerns a capability that the emulator does not have",
    ),
    (
        r"kernel kvm_vm_ioctl_enable_cap: 0 becomes 1 in (WRITE_ONCE|kvm->arch\.disabled_quirks)"
        r"|kernel kvm_vm_ioctl_enable_cap\w*: (without|0 becomes 1 in) kvm->(arch\.)?("
        r"nr_reserved_ioapic_pins|guest_can_read_msr_platform_info|exception_payload_enabled"
        r"|triple_fault_event|user_space_msr_mask|exit_on_emulation_error"
        r"|x2apic_format|x2apic_broadcast_quirk_disabled|suppress_eoi_broadcast_mode"
        r"|max_halt_poll_ns|override_halt_poll_ns) = "
        r"|kernel kvm_vm_ioctl_enable_cap: 0 becomes 1 in if \(cap->args\[0\] & KVM_X2APIC_"
        r"(API_USE_32BIT_IDS|API_DISABLE_BROADCAST_QUIRK|ENABLE_SUPPRESS_EOI_BROADCAST"
        r"|DISABLE_SUPPRESS_EOI_BROADCAST)\) ",
        "only code in a guest, exits on MSRs, or a working interrupt controller would use the "
        "stored value: the emulator has none of these",
    ),
    (
        r"kernel kvm_vm_ioctl_enable_cap: checks swapped: if \(kvm->created_vcpus\) \(case "
        r"KVM_CAP_SPLIT_IRQCHIP\)",
        "both checks have the same result",
    ),
    (
        r"kernel sev_ioctl_do_snp_commit: without buf.len",
        "the PSP's stub does not check the length that the kernel gives",
    ),
    (
        r"emulator emulator/kvm/capability\.py:\d+: (Or in platform\.sev and platform\.snp"
        r"|\d+ becomes \d+ in (_ANY: |return min\(os\.cpu_count))",
        "equal: the oracle's host has SEV and SNP, no argument has more than 64 bits, and the "
        "number of processors is known",
    ),
    (
        r"kernel (__set_sregs(_common)?|kvm_vcpu_ioctl_x86_set_sregs2): "
        r".*mmu_reset_needed(?!, !valid)",
        "resets of the MMU have no effect in the stubs",
    ),
    (
        r"kernel (kvm_is_valid_(cr0|sregs)|kvm_vcpu_ioctl_x86_set_sregs2): checks swapped",
        "both checks have the same result",
    ),
    (r"kernel kvm_set_cr8: [01] becomes [012] in return [01];", "the result is not looked at"),
    (
        r"kernel kvm_arch_vcpu_ioctl_[gs]et_sregs: (&& becomes|-EINVAL becomes)"
        r"|kernel __set_sregs_common: (0 becomes 1 in return 0;|checks swapped: if \(vcpu->arch)",
        "concerns a vCPU that the firmware has taken over; the emulator's calls end earlier for it",
    ),
    (
        r"kernel kvm_vcpu_ioctl_x86_set_sregs2: without vcpu->arch\.pdptrs_from_userspace"
        r"|kernel init_(sys_)?seg: without seg->(selector|base) = 0"
        r"|kernel svm_get_segment: without var->dpl = to_svm\(vcpu\)->vmcb->save\.cpl",
        "sets a field to the value that it has until code runs in the guest",
    ),
    (
        r"kernel kvm_apic_set_base: (.*(old_mode == |1 becomes [02] in return 1;)"
        r"|0 becomes 1 in \(guest_cpu)",
        "concerns a guest that sets its APIC base; any result but 0 is an error; bit 0 is reserved "
        "anyway",
    ),
    (
        r"kernel kvm_vcpu_reserved_gpa_bits_raw: 63 becomes 64"
        r"|kernel __kvm_valid_efer: checks swapped"
        r"|emulator emulator/kvm/system_registers\.py:\d+: checks swapped",
        "equal: there is no bit 64; or both checks have the same result",
    ),
    (
        r"emulator emulator/kvm/system_registers\.py:\d+: without self\._put\("
        r"('efer', |'apic_base', |segment)",
        "concerns MSRs, which the tests in tests/emulator set and read",
    ),
    (
        r"emulator emulator/kvm/system_registers\.py:\d+: "
        r"(without|32 becomes 33 in) self\._pdptrs = bytes\(",
        "equal: each call that may lead to PAE paging sets PDPTRs",
    ),
    (
        r"emulator emulator/kvm/host_cpuid\.py:\d+: 0 becomes 1 in host: CpuidTable",
        "equal: every feature is named with its subleaf",
    ),
    (
        r"kernel kvm_gmem_bind: without (WRITE_ONCE\(slot->gmem\.file|slot->gmem\.pgoff)",
        "only accesses by the guest need to know where the memory of a slot is",
    ),
    # The guest's driver.
    (
        r"kernel get_\w+: without req.vmpck_id|kernel get_vmpck: .*\(case [123]\)"
        r"|kernel snp_msg_init: (.* in if \(vmpck_id == -1|-EINVAL|0 becomes 1 in if \(!memchr_inv"
        r"|without mdesc->vmpck_id)|kernel enc_payload: without hdr->msg_vmpck",
        "the driver is given VMPCK 0, which exists, as in the emulated guest",
    ),
    (
        r"kernel (get_report|get_ext_report): checks swapped: if \(copy_from_",
        "no allocation fails in the stubs",
    ),
    (
        r"kernel \w+: without (guard\(|free_shared_pages|sev_es_wr_ghcb_msr"
        r"|ret = set_memory_encrypted|pfn = PHYS_PFN)"
        r"|kernel free_shared_pages: ! becomes nothing",
        "freeing pages, locking, and writing the MSR have no effect in the stubs",
    ),
    (
        r"kernel __set_pages_state: without (use_large_entry = false|e->pagesize = RMP_PG_SIZE_4K)",
        "sets a variable to 0 that is 0 already",
    ),
    (
        r"kernel set_pages_state: without (return early_set_pages_state|vaddr = vaddr & PAGE_MASK)",
        "the guest has a GHCB, and addresses are multiples of a page",
    ),
    (
        r"kernel vmgexit_psc: (1 becomes 2 in ret = 1|0 becomes 1 in int cur_entry"
        r"|without cur_entry = )",
        "any result but 0 ends the guest, and the value is read again before it is used",
    ),
    (
        r"kernel snp_guest_ioctl: -EFAULT becomes -EIO in .* after if \(input\.exitinfo2",
        "a structure that has just been read can also be written",
    ),
    (
        r"kernel enc_payload: (> becomes >=|-ENOSR|-EBADMSG)",
        "the driver's messages fit, and encryption does not fail",
    ),
    (
        r"kernel snp_disable_vmpck: without mdesc->vmpck = NULL"
        r"|kernel snp_send_guest_request: 0 becomes 1 in if \(!mdesc->vmpck",
        "the driver recognises a wiped key by its null pointer and by its zeros; either is enough",
    ),
    (
        r"kernel __handle_guest_request: without override_npages = req->input.data_npages",
        "the second exit is for a plain request, and leaves the number of pages that the first one "
        "set",
    ),
    (
        r"kernel sev_report_new: (< becomes <= in for|0xff becomes|0 becomes 1 in return 0"
        r"|checks swapped: if \((hdr\.status ==|\(hdr\.report_size)|-EINVAL becomes .* after if "
        r"\(strcmp|without return sev_svsm_report_new)",
        "equal (682 entries fit, only results below 0 are errors), changes only the log, or "
        "concerns an SVSM, which the guest does not have",
    ),
    (
        r"kernel verify_exception_info: (without ctxt->fi\.vector|32 becomes)",
        "only the VC handler uses the exception itself; the driver uses only the result",
    ),
    (
        r"kernel snp_issue_guest_request: without ret = -EIO;$",
        "every case that reaches a use of ret sets it first",
    ),
    (
        r"kernel try_advance_write_generation: (-EBUSY|1 becomes 2 in if \(state->write_gen)",
        "no sequence makes 2^64 writes",
    ),
    (
        r"kernel tsm_report_\w+: -ENXIO"
        r"|kernel tsm_report_is_(bin_)?visible: checks swapped: if \(!provider\.ops->"
        r"|kernel tsm_report_privlevel_store: checks swapped: if \(provider\.ops->"
        r"|kernel tsm_report_read: checks swapped: if \(!report->desc"
        r"|kernel tsm_report_make_item: without atomic_inc\(&provider\.count",
        "the driver stays registered",
    ),
    (
        r"kernel tsm_report_read: \|\| becomes && in if \(rc >= 0 \|\| rc != -EWOULDBLOCK",
        "the check that follows refuses an empty inblob as well",
    ),
    (r"kernel tsm_report_read: without report->manifestblob = NULL", "only an SVSM has a manifest"),
    (
        r"kernel _parse_integer_fixup_radix: && becomes \|\| in if \(\*base == 16"
        r"|kernel _parse_integer_limit: (< becomes <= in for|without res = init)"
        r"|kernel _kstrtoull: checks swapped: if \(rv == 0\)",
        "equal: the base is 16 exactly if the text begins with 0x; no text is long enough to "
        "matter; an unset variable is 0 in the cut; no number is both too large and missing",
    ),
    (
        r"kernel _parse_integer_limit: without res = ULLONG_MAX"
        r"|kernel _kstrtoull: 0 becomes 1 in return 0",
        "the value of a number that is too large is not used; only results below 0 are errors",
    ),
    (
        r"kernel tsm_report_read: -EINVAL becomes -EIO in return -EINVAL; after if "
        r"\(!report->desc\.inblob_len\)",
        "an empty inblob was refused before",
    ),
    (
        r"kernel kvm_set_memory_region: (-EINVAL becomes -EIO in return -EINVAL; after"
        r"|< becomes <= in) if \(\(kvm->nr_memslot_pages"
        r"|kernel kvm_set_memslot: without kvm_commit_memory_region",
        "counts pages, and no VM has 2^64",
    ),
    (
        r"emulator emulator/guest/page_state_calls\.py:\d+: 4 becomes 5 in int\.from_bytes\("
        r"header\[2:4"
        r"|emulator emulator/guest/tsm_reports\.py:\d+: 4 becomes 5 in offset, length",
        "equal: the next byte is reserved, and refused unless it is 0; the sum has 32 bits",
    ),
    (
        r"emulator emulator/guest/sev_guest_device\.py:\d+: (checks swapped: (self\._call\.response"
        r"|not self\._vm\.alive|guest is None|not isinstance)|without self\._guest( = |\.withdraw)"
        r"|And in not self\._vm\.alive|(Or|Is) in self\._guest is not None"
        r"(?! and self\._guest\.gone)"
        r"|Is in self\._call is not None)"
        r"|emulator emulator/guest/tsm_reports\.py:\d+: And in not (isinstance|self\.vm\.alive)",
        "the oracle's guest does not end or reboot while a program waits, and no program is killed",
    ),
    (
        r"emulator emulator/guest/sev_guest_device\.py:\d+: checks swapped: "
        r"(request == SNP_GET_REPORT|fault is not None|result < 0|extended is not None and)",
        "the two checks exclude each other, or neither changes what the other depends on",
    ),
    (
        r"emulator emulator/guest/sev_guest_device\.py:\d+: (Or in extended is not None"
        r"|0 becomes 1 in (fault, result = |too_small = ))",
        "equal: without a buffer there is no data; 1 >> 32 is 0; the result of a fault is not used",
    ),
    (
        r"emulator emulator/guest/linux\.py:\d+: (without vmpck\.busy|without sending\.exits"
        r"|without self\._calls\.remove|NotIn in call in self\._calls"
        r"|.* in (busy: |exits: |sending\.exits))",
        "the oracle makes one call at a time; only the demo needs the number of the guest's exits",
    ),
    (
        r"emulator emulator/guest/linux\.py:\d+: (And in (slot is None or slot\.size < \("
        r"|pages is None)|NotEq in cpu\.index|IsNot in slot|LtE in slot\.size < LARGE"
        r"|\d+ becomes \d+ in (LARGE_MEMORY|_VCPU_PAGES|_TERMINATE_REGISTRATION"
        r"|if cpu\.index == 0|.*page_state_refused))",
        "memory too small for shared pages, the bounce buffer and registering the GHCB are part of "
        "the boot, after which the cut begins; how many pages were refused is only logged",
    ),
    (
        r"emulator emulator/guest/linux\.py:\d+: 0 becomes 1 in (counter|pages|exitinfo2): int"
        r" = 0$",
        "the default of a field that is always given, or set before it is read",
    ),
    (
        r"emulator emulator/guest/tsm_reports\.py:\d+: (without self\.(_provider|_held = True)"
        r"|.* in (INBLOB_MAX|OUTBLOB_MAX|self\.root = |if self\.write_generation)"
        r"|1 becomes 2 in for at in range)",
        "the driver stays registered; one program reads at a time; configfs, which limits sizes, "
        "is not in the cut; 682 entries fit either way; no sequence makes 2^64 writes",
    ),
    (
        r"emulator emulator/guest/tsm_reports\.py:\d+: checks swapped: not report\.is_current",
        "both checks refuse an empty inblob with EINVAL",
    ),
    (
        r"emulator emulator/guest/page_state_calls\.py:\d+: 52 becomes 53 in answer = ",
        "concerns page state changes before there is a GHCB; the cut begins after that",
    ),
)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change. ``old`` is the text of a kernel function, or the name of an emulator file."""

    side: str
    where: str
    change: str
    old: str
    new: Callable[[], str]  # makes the changed text of the function or file

    def __str__(self) -> str:
        return f"{self.side} {self.where}: {self.change}"

    @property
    def explained(self) -> str:
        """The pattern in :data:`EXPLAINED` that this mutant matches; "" if there is none."""
        return next((start for start, _ in EXPLAINED if re.match(start, str(self))), "")


_SWAPS: Final = (
    (r"(?<![<>=!])==(?!=)", "!="),
    (r"!=", "=="),
    (r"(?<![<-])<(?![<=])(?= )", "<="),
    (r"(?<![>-])>(?![>=])(?= )", ">="),
    (r"&&", "||"),
    (r"\|\|", "&&"),
    (r"(?<=[(\s])!(?=[\w(])", ""),
    (r"(?<=return )-E(?!IO\b)[A-Z]+", "-EIO"),
    (r"(?<=return )-EIO", "-EINVAL"),
    (r"(?<=return )1(?=;)", "0"),
)
_NUMBER: Final = re.compile(r"(?<![\w.])(?:0x[0-9a-fA-F]+|\d+)(?![\w.])")
_DROPPED: Final = re.compile(
    r"^\t+(?!return\b|goto\b|break\b|case\b|if\b|else\b)[^\n;{}]*(?:=|\()[^\n{}]*;$", re.M
)
_CHECK: Final = re.compile(r"^(\t+)if \([^\n{}]*\)\n\1\t(?:return|goto)[^\n]*;\n", re.M)


def kernel_mutants(part: build.Part, release: Path) -> Iterator[Mutant]:
    """The mutants of every function that is cut out of a .c file."""
    for each in build.cut_definitions(part, release):
        if each.kind == "function" and each.file.endswith(".c"):
            for change, new in _changed_c(each.text):
                yield Mutant("kernel", each.names[0], change, each.text, partial(str, new))


_CASE: Final = re.compile(r"^\t+case (\w+):", re.M)


def _changed_c(text: str) -> Iterator[tuple[str, str]]:
    """For each change, its description and the changed text.

    Within a switch, the description ends with "(case X)".
    """
    cases = list(_CASE.finditer(text))
    for at, change, new in _changes_c(text):
        before = [each for each in cases if each.start() < at]
        yield f"{change} (case {before[-1][1]})" if before else change, new


def _changes_c(text: str) -> Iterator[tuple[int, str, str]]:
    body = text.index("{")

    def line_of(at: int, sign: str = "") -> str:
        """The line at ``at``.

        "#2" is added if ``at`` is at the line's second ``sign``, and "after" with the line before
        if this one returns an error.
        """
        start = text.rindex("\n", 0, at) + 1 if "\n" in text[:at] else 0
        line = text[start : text.find("\n", at)].strip()
        if sign and text.count(sign, start, at):
            line += f" #{text.count(sign, start, at) + 1}"
        if line.startswith("return -"):
            line += f" after {text[:start].rstrip().rpartition(chr(10))[2].strip()}"
        return line

    for pattern, instead in _SWAPS:
        for found in re.finditer(pattern, text):
            if found.start() > body:
                new = text[: found.start()] + instead + text[found.end() :]
                line = line_of(found.start(), found[0])
                yield found.start(), f"{found[0]} becomes {instead or 'nothing'} in {line}", new
    for found in _NUMBER.finditer(text):
        if found.start() > body:
            more = str(int(found[0], 0) + 1)
            new = text[: found.start()] + more + text[found.end() :]
            line = line_of(found.start(), found[0])
            yield found.start(), f"{found[0]} becomes {more} in {line}", new
    for found in _DROPPED.finditer(text):
        if found.start() > body and not re.match(
            r"\s*(?:struct|const|u\d+|int|bool|void|long|unsigned|gpa_t|__u\d+)\b", found[0]
        ):
            new = text[: found.start()] + text[found.end() :]
            yield found.start(), f"without {found[0].strip()}", new
    checks = list(_CHECK.finditer(text))
    for first, second in pairwise(checks):
        between = text[first.end() : second.start()]
        if not between.strip():
            new = text[: first.start()] + second[0] + between + first[0] + text[second.end() :]
            yield first.start(), f"checks swapped: {line_of(second.start())}", new


_COMPARE: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}


def emulator_mutants(where: str) -> Iterator[Mutant]:
    """The mutants of an emulator file.

    If ``where`` also names functions and classes, only those are changed.
    """
    file, *functions = where.split()
    text = (SOURCE / "snpcerts" / file).read_text(encoding="utf-8")
    lines = text.splitlines()
    tree = ast.parse(text)
    asked: list[ast.AST] = [
        each
        for each in ast.walk(tree)
        if isinstance(each, ast.FunctionDef | ast.ClassDef) and each.name in functions
    ]
    mutated = {node for each in asked or [tree] for node in ast.walk(each)}
    for number, node in enumerate(ast.walk(tree)):
        if node not in mutated:
            continue
        for change, edit in _changes(node):

            def changed(number: int = number, edit: Callable[[ast.AST], None] = edit) -> str:
                other = copy.deepcopy(tree)
                edit(next(each for at, each in enumerate(ast.walk(other)) if at == number))
                return ast.unparse(other)

            line = getattr(node, "lineno", 0)
            if isinstance(node, ast.Constant):
                change = f"{change} in {lines[line - 1].strip()[:70]}"
            yield Mutant("emulator", f"{file}:{line}", change, file, changed)


def _changes(node: ast.AST) -> Iterator[tuple[str, Callable[[ast.AST], None]]]:
    match node:
        case ast.Compare(ops=[operator]) if type(operator) in _COMPARE:
            instead = _COMPARE[type(operator)]

            def compare(each: ast.AST) -> None:
                assert isinstance(each, ast.Compare)
                each.ops = [instead()]

            yield f"{instead.__name__} in {ast.unparse(node)[:70]}", compare
        case ast.BoolOp(op=operator):
            other: ast.boolop = ast.Or() if isinstance(operator, ast.And) else ast.And()

            def boolean(each: ast.AST) -> None:
                assert isinstance(each, ast.BoolOp)
                each.op = other

            yield f"{type(other).__name__} in {ast.unparse(node)[:70]}", boolean
        case ast.Constant(value=int() as value) if not isinstance(value, bool):

            def constant(each: ast.AST) -> None:
                assert isinstance(each, ast.Constant)
                each.value = value + 1

            yield f"{value} becomes {value + 1}", constant
        case ast.FunctionDef(body=body) | ast.If(body=body) | ast.For(body=body):
            yield from _without_one(body)


def _without_one(body: Sequence[ast.stmt]) -> Iterator[tuple[str, Callable[[ast.AST], None]]]:
    for at, statement in enumerate(body):
        written = isinstance(statement, ast.Assign | ast.AugAssign) and not isinstance(
            getattr(statement, "target", None) or getattr(statement, "targets", [None])[0], ast.Name
        )
        called = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
        if (written or called) and "log." not in ast.unparse(statement):

            def drop(each: ast.AST, at: int = at) -> None:
                body_of(each)[at] = ast.Pass()

            yield f"without {ast.unparse(statement)[:70]}", drop
        after = body[at + 1] if at + 1 < len(body) else None
        if isinstance(statement, ast.If) and isinstance(after, ast.If) and not statement.orelse:

            def swap(each: ast.AST, at: int = at) -> None:
                statements = body_of(each)
                statements[at], statements[at + 1] = statements[at + 1], statements[at]

            yield f"checks swapped: {ast.unparse(after.test)[:70]}", swap


def body_of(node: ast.AST) -> list[ast.stmt]:
    """The body of a node, which must be a function, an ``if`` or a ``for``."""
    assert isinstance(node, ast.FunctionDef | ast.If | ast.For)
    return node.body


# A mutant may loop forever. Each gets so many seconds of processor time: several times what all
# sequences need.
SECONDS: Final = 10
_EARLY: Final = 30


@dataclass(frozen=True, slots=True)
class Trial:
    """A mutant of a part of a release. ``number`` tells mutants with the same description apart."""

    release: str
    part: str
    mutant: Mutant
    number: int

    @property
    def name(self) -> str:
        return f"{self.release} {self.part} {self.number} {self.mutant}"

    @property
    def group(self) -> tuple[str, str, str]:
        return self.release, self.part, self.mutant.side


def every_trial(
    releases: Mapping[str, Path], parts: Sequence[str], sides: Sequence[str]
) -> list[Trial]:
    """All mutants of the given sides of these parts, for each release."""
    found = []
    for release, source in releases.items():
        for part in parts:
            mutants: list[Mutant] = []
            if "kernel" in sides:
                mutants += kernel_mutants(build.PARTS[part], source)
            if "emulator" in sides:
                mutants += (each for file in EMULATOR[part] for each in emulator_mutants(file))
            numbers: Counter[str] = Counter()
            for mutant in mutants:
                numbers[str(mutant)] += 1
                found.append(Trial(release, part, mutant, numbers[str(mutant)]))
    return found


class Course:
    """Tries mutants. Those of the emulator change the copy of ``snpcerts`` in ``folder``."""

    def __init__(self, folder: Path, sequences: int, known: Iterable[dict[str, Any]]) -> None:
        self._product = folder
        self._built = folder / "built"
        self._sequences = sequences
        # The sequences that noticed earlier mutants of a part; they notice most of the next ones.
        self._killers: dict[str, Counter[int]] = {each: Counter() for each in build.PARTS}
        for line in known:
            self._killers[line["part"]].update(line["by"])

    def outcome(self, trial: Trial) -> dict[str, Any]:
        """Try a mutant. Return its line for the log.

        The outcome is "unbuilt" if the compiler refuses the mutant, "killed" if the sequences in
        ``by`` noticed it or a run hung or crashed, "equal" if no sequence noticed it and it
        compiles to the same code as the unchanged kernel, and otherwise "survived".
        """
        began = time.monotonic()
        result, by = self._tried(trial)
        return {
            "run": trial.name,
            "part": trial.part,
            "outcome": result,
            "by": by,
            "seconds": round(time.monotonic() - began, 1),
        }

    def _tried(self, trial: Trial) -> tuple[str, list[int]]:
        mutant = trial.mutant
        if mutant.side == "emulator":
            file = self._product / "snpcerts" / mutant.old
            kept = file.read_text(encoding="utf-8")
            file.write_text(mutant.new(), encoding="utf-8")
            try:
                return self._judged(trial, product=self._product)
            finally:
                file.write_text(kept, encoding="utf-8")
        part = build.PARTS[trial.part]
        text = build.cut(part, build.SOURCES / trial.release)
        changed = text.replace(mutant.old, mutant.new(), 1)
        try:
            library = build.compiled(part, trial.release, changed, into=self._built)
        except CutError:
            return "unbuilt", []
        try:
            found = self._judged(trial, library=library)
        finally:
            library.unlink()
        if found[0] == "survived":
            same = {build.code(part, trial.release, each, self._built) for each in (text, changed)}
            if len(same) == 1:
                return "equal", []
        return found

    def _judged(
        self, trial: Trial, *, library: Path | None = None, product: Path | None = None
    ) -> tuple[str, list[int]]:
        killers = self._killers[trial.part]
        outcome = judge(
            trial.part,
            trial.release,
            self._sequences,
            jobs=1,
            library=library,
            product=product,
            stop=Stop(SECONDS, [number for number, _ in killers.most_common(_EARLY)]),
        )
        by = [each["number"] for each in outcome.differences.values()]
        killers.update(by)
        return ("killed" if outcome.differences or outcome.died else "survived"), by


def go_on(log: Path, trials: Sequence[Trial], sequences: int, *, again: bool) -> None:
    """Try the mutants that the log lacks; with ``again``, also the unexplained survivors."""
    last = {line["run"]: line for line in lines(log)}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, log.open("a") as file:
        shutil.copytree(SOURCE / "snpcerts", Path(folder, "snpcerts"))
        course = Course(Path(folder), sequences, last.values())
        for trial in trials:
            known = last.get(trial.name, {}).get("outcome")
            if known is None or (again and known == "survived" and not trial.mutant.explained):
                append(file, course.outcome(trial))


def say(logs: Sequence[Path], trials: Sequence[Trial]) -> int:
    """Print the figures; return how many mutants survived unexplained."""
    last = {line["run"]: line["outcome"] for log in logs for line in lines(log)}
    counts: dict[tuple[str, str, str], Counter[str]] = {}
    unexplained, needed, missing = [], set(), 0
    for trial in trials:
        outcome = last.get(trial.name)
        if outcome == "survived" and trial.mutant.explained:
            needed.add(trial.mutant.explained)
            outcome = "explained"
        elif outcome == "survived":
            unexplained.append(trial)
        missing += outcome is None
        counts.setdefault(trial.group, Counter())[outcome or "not tried"] += 1
    for group, count in counts.items():
        words = ("unbuilt", "killed", "equal", "explained", "survived", "not tried")
        print(f"{' '.join(group)}: {count.total()} mutants", end="")
        print(*(f", {count[each]} {each}" for each in words if count[each]), sep="")
    for trial in unexplained:
        print(f"survives: {trial.name}")
    for pattern, _ in EXPLAINED:
        mine = [each.name for each in trials if re.match(pattern, str(each.mutant))]
        if mine and not missing and pattern not in needed:
            print(f"explains no survivor: {pattern}")
        for name in mine:
            if last.get(name) == "killed":
                print(f"explained, but noticed: {name}")
    return len(unexplained)


def main() -> int:
    """Run the mutants. Return 1 if an unexplained one survives, 2 if there is no source."""
    parser = argparse.ArgumentParser(prog="python -m tests.kernel.mutants", description=__doc__)
    parser.add_argument("log", type=Path, nargs="+", metavar="LOG")
    parser.add_argument("--part", choices=build.PARTS, action="append")
    parser.add_argument("--side", choices=("kernel", "emulator"), action="append")
    parser.add_argument("--release", default="", help="how the version begins [default: all]")
    parser.add_argument("--sequences", type=int, default=1500, help="how many to run for each")
    parser.add_argument("--limit", type=int, help="use so many mutants, chosen at random")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shard", default="0/1", metavar="K/N")
    parser.add_argument("--again", action="store_true", help="retry unexplained survivors")
    parser.add_argument("--say", action="store_true", help="only print the figures of the LOGs")
    options = parser.parse_args()
    releases = build.releases()
    asked = {each: releases[each] for each in releases if each.startswith(options.release)}
    if not asked:
        print("no kernel source: run tests/kernel/fetch.sh", file=sys.stderr)
        return 2
    sides = options.side or ("kernel", "emulator")
    trials = every_trial(asked, options.part or tuple(build.PARTS), sides)
    if options.limit is not None and options.limit < len(trials):
        trials = random.Random(options.seed).sample(trials, options.limit)
    trials = shard(trials, options.shard)
    if not options.say:
        (log,) = options.log
        with interruptible():
            go_on(log, trials, options.sequences, again=options.again)
    return int(bool(say(options.log, trials)))


if __name__ == "__main__":
    sys.exit(main())
