# SPDX-License-Identifier: Apache-2.0
"""The emulator has exactly the MSRs for which released kernels' functions have a ``case``."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest

from snpcerts.emulator.kvm.model_registers import ONLY_READ, ONLY_WRITTEN, WRITTEN

from .oracle import build
from .oracle.cut import definitions, selected

RELEASES: Final = build.releases() if os.environ.get("SNPCERTS_KERNEL_TESTS") else {}
# MSRs that the emulated host does not have, by how their names begin. Ignore their cases.
ABSENT: Final = (
    "HV_X64_",  # Hyper-V's enlightenments
    "APIC_BASE_MSR",  # the registers of an x2APIC
    "MSR_IA32_S_CET",  # control-flow enforcement
    "MSR_IA32_U_CET",
    "MSR_IA32_INT_SSP_TAB",
    "MSR_IA32_PL0_SSP",
    "MSR_KVM_INTERNAL_GUEST_SSP",
    "MSR_IA32_ARCH_CAPABILITIES",
    "MSR_IA32_PERF_CAPABILITIES",
    "MSR_IA32_FLUSH_CMD",  # Intel's
    "MSR_AMD64_OSVW",  # workarounds of old processors
)
DEFINED: Final = (
    "arch/x86/include/asm/msr-index.h",
    "arch/x86/include/uapi/asm/kvm_para.h",
    "arch/x86/include/uapi/asm/mtrr.h",
    "arch/x86/include/asm/mtrr.h",
    "arch/x86/include/asm/kvm_host.h",
    "arch/x86/kvm/x86.h",
)
SETTERS: Final = ("svm_set_msr", "kvm_set_msr_common", "find_mtrr")
GETTERS: Final = ("svm_get_msr", "kvm_get_msr_common", "find_mtrr")


def numbers(ranges: Iterable[tuple[int, int]]) -> set[int]:
    return {each for first, last in ranges for each in range(first, last + 1)}


def cases(release: Path, functions: Iterable[str], folder: Path) -> set[int]:
    """The numbers of the MSRs in the functions' cases. A compiler evaluates the names."""
    labels = set()
    for file in ("svm/svm.c", "msrs.c", "x86.c", "mtrr.c"):
        path = release / "arch/x86/kvm" / file
        text = path.read_text() if path.exists() else ""  # msrs.c is a part of x86.c in 7.2
        for each in definitions(selected(text, build.CONFIGURATION), file):
            if set(each.names) & set(functions):
                labels.update(re.findall(r"case ([^:]+):", each.text))
    labels = {each for each in labels if not each.startswith(ABSENT)}
    # Not every number in this range is an MSR. find_mtrr has a case for those that are.
    labels = {each for each in labels if not each.endswith("... MSR_MTRRfix4K_F8000")}
    assert len(labels) > 60
    macro = re.compile(r"#\s*define\s+\w*(MSR|MTRR|MCE)\w*[( \t]")
    text = "".join(
        line + "\n"
        for file in DEFINED
        if (release / file).is_file()
        for line in selected((release / file).read_text(), build.CONFIGURATION).splitlines()
        if macro.match(line)
    )
    text = f"#include <stdio.h>\n{text}\nint main(void)\n{{\n"
    for label in sorted(labels):
        first, _, last = label.partition("...")
        text += (
            f'\tprintf("%lu %lu\\n", (unsigned long)({first}), (unsigned long)({last or first}));\n'
        )
    source = folder / "cases.c"
    source.write_text(text + "}\n")
    subprocess.run(["gcc", "-w", "-o", folder / "cases", source], check=True)
    said = subprocess.check_output([folder / "cases"], text=True)
    return numbers((int(a), int(b)) for a, b in (line.split() for line in said.splitlines()))


@pytest.mark.parametrize("release", RELEASES.values(), ids=RELEASES)
def test_the_emulator_has_the_msrs_of_a_released_kernel(release: Path, tmp_path: Path) -> None:
    written, only_read, only_written = map(numbers, (WRITTEN, ONLY_READ, ONLY_WRITTEN))
    assert cases(release, SETTERS, tmp_path) == written
    assert cases(release, GETTERS, tmp_path) == written - only_written | only_read


def test_the_tables_contain_each_msr_once() -> None:
    for table in (WRITTEN, ONLY_READ, ONLY_WRITTEN):
        assert len(numbers(table)) == sum(last - first + 1 for first, last in table)
    assert not numbers(WRITTEN) & numbers(ONLY_READ)
    assert numbers(ONLY_WRITTEN) <= numbers(WRITTEN)
