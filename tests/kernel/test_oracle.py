# SPDX-License-Identifier: Apache-2.0
"""The emulator answers as the released kernels' own code does.

``make test-kernel`` fetches the sources and runs these tests.
``python -m tests.kernel.oracle`` makes the same comparison with any number of sequences.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from . import headers
from .oracle import build
from .oracle.cut import CutError, Cutter, definitions, selected
from .oracle.difference import EXPLAINED
from .oracle.judge import judge

SEQUENCES = 30_000  # of all parts and releases together
# Changes to the kernel that a few sequences must notice: part of the kernel, text, replacement.
MUTANTS = [
    (
        "kvm",
        "case EAGAIN:\n\t\treturn snp_req_certs_err(svm, SNP_GUEST_VMM_ERR_BUSY);",
        "case EAGAIN:\n\t\treturn snp_req_certs_err(svm, SNP_GUEST_VMM_ERR_GENERIC);",
    ),
    (
        "kvm",
        "vcpu->run->snp_req_certs.ret = 0;",
        "",
    ),
    ("kvm", "kvm_clear_guest(kvm, data_gpa, 24)", "kvm_clear_guest(kvm, data_gpa, 32)"),
    ("launch", "if (sev->snp_context)\n\t\treturn -EINVAL;", ""),
    ("launch", "argp->error = sev_populate_args.fw_error;", ""),
    ("capability", "case KVM_CAP_USER_NMI:", ""),
    ("capability", "r = KVM_MAX_VCPU_IDS;", "r = KVM_MAX_VCPU_IDS + 1;"),
    ("capability", "if (kvm->created_vcpus)\n\t\t\tgoto split_irqchip_unlock;", ""),
    ("memory", "mem->guest_phys_addr & (PAGE_SIZE - 1)", "false"),
    ("memory", "(new->base_gfn + new->npages - 1) > kvm_mmu_max_gfn()", "false"),
    ("memory", "return -EEXIST;", "return -EINVAL;"),
    ("registers", "cr3 &= ~(X86_CR3_LAM_U48 | X86_CR3_LAM_U57);", "cr3 &= ~X86_CR3_LAM_U48;"),
    ("registers", "load_pdptrs(vcpu, kvm_read_cr3(vcpu));", ""),
    ("registers", "return best->eax & 0xff;", "return best->eax;"),
    ("guest", "ret = -EAGAIN;", "ret = -EIO;"),
    ("guest", "\tsnp_inc_msg_seqno(mdesc);", ""),
    (
        "guest",
        "pfn = __pa(vaddr) >> PAGE_SHIFT;\n\t\t\tuse_large_entry = true;",
        "pfn = __pa(vaddr) >> PAGE_SHIFT;\n\t\t\tuse_large_entry = false;",
    ),
    ("guest", "ret || ghcb->save.sw_exit_info_2", "ret"),
    ("guest", "\tstate->read_generation = state->write_generation;", ""),
    ("guest", " || val > TSM_REPORT_PRIVLEVEL_MAX", ""),
    ("sev", "input.vlek_wrapped_version != 0", "false"),
    ("sev", "if (!sev->snp_initialized)\n\t\treturn -ENODEV;", ""),
]

RELEASES = build.releases() if os.environ.get("SNPCERTS_KERNEL_TESTS") else {}
needs_source = pytest.mark.skipif(
    not os.environ.get("SNPCERTS_KERNEL_TESTS"), reason="make test-kernel fetches the sources"
)


@needs_source
def test_the_fetched_sources_are_of_every_series() -> None:
    found = {".".join(version.split(".")[:2]) for version in build.releases()}
    assert found == set(headers.SERIES)


@needs_source
@pytest.mark.parametrize("part", build.PARTS)
@pytest.mark.parametrize("release", RELEASES)
def test_the_emulator_answers_as_the_kernels_code(part: str, release: str) -> None:
    share = SEQUENCES // (len(build.PARTS) * len(RELEASES))
    outcome = judge(part, release, share)
    assert outcome.faults() == []
    assert outcome.sequences == share


@needs_source
@pytest.mark.parametrize(("part", "text", "instead"), MUTANTS)
@pytest.mark.parametrize("release", RELEASES)
def test_a_changed_kernel_is_noticed(part: str, text: str, instead: str, release: str) -> None:
    mutant = build.build(build.PARTS[part], release, (text, instead))
    try:
        outcome = judge(part, release, 600, jobs=1, library=mutant)
        assert outcome.differences
        assert outcome.died == []
    finally:
        mutant.unlink()
        mutant.with_suffix(".c").unlink()


@needs_source
def test_a_kernel_without_a_function_is_named(tmp_path: Path) -> None:
    release = next(iter(RELEASES.values()))
    part = build.KVM
    changed = tmp_path / "changed"
    for file in (*part.roots, *part.files):
        if (release / file).is_file():
            copy = changed / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            text = (release / file).read_text(encoding="utf-8")
            copy.write_text(text.replace("sev_handle_vmgexit(", "sev_vmgexit("), encoding="utf-8")
    with pytest.raises(CutError, match=r"sev_handle_vmgexit should be in .* and is nowhere"):
        build.cut(part, changed)


def test_every_explanation_is_of_a_part_and_a_series_that_are_run() -> None:
    assert {each.part for each in EXPLAINED} <= set(build.PARTS)
    assert {each for known in EXPLAINED for each in known.series} <= set(headers.SERIES)


SOURCE = """
#define TWICE(x) \\
\t((x) * 2)
struct inner { int a; };
/* an old one: struct outer { int b; }; */
struct outer {
\tstruct inner inner;
\tstruct unseen *later;
};
#ifdef CONFIG_YES
static int helper(struct outer *o)
{
\treturn TWICE(o->inner.a);
}
#else
static inline int helper(struct outer *o) { return 0; }
#endif
static int stranger(void) { return 7; }
int root(struct outer *o)
{
\treturn helper(o);
}
"""


@pytest.mark.parametrize(("configuration", "real"), [({"CONFIG_YES"}, True), (set(), False)])
def test_a_cut_has_what_its_root_needs_as_the_configuration_says(
    tmp_path: Path, configuration: set[str], real: bool
) -> None:
    (tmp_path / "a.c").write_text(SOURCE, encoding="utf-8")
    cutter = Cutter(configuration)
    cutter.add(tmp_path, "a.c")
    names = [each.names[0] for each in cutter.cut({"a.c": ["root"]}, set())]
    structures = ["struct inner", "struct outer"]
    assert names == (["TWICE"] if real else []) + structures + ["helper", "root"]
    assert [each.names[0] for each in cutter.cut({"a.c": ["root"]}, {"helper"})] == [
        *structures,
        "root",
    ]


def test_conditions_are_judged_by_the_configuration_alone() -> None:
    text = (
        "#if defined(CONFIG_A) && !defined(CONFIG_B)\none\n#elif 1\ntwo\n#else\nthree\n#endif\n"
        "#if IS_ENABLED(CONFIG_B) || 0\nfour\n#endif\n#ifndef CONFIG_A\nfive\n#endif\n"
    )
    assert selected(text, {"CONFIG_A"}).split() == ["one"]
    assert selected(text, {"CONFIG_B"}).split() == ["two", "four", "five"]


def test_functions_made_by_a_macro_are_found_by_their_names() -> None:
    (made,) = definitions("MAKE(rax)\n", "a.h", {"MAKE": ("get_{}", "set_{}")})
    assert made.names == ("get_rax", "set_rax")
