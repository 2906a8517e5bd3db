# SPDX-License-Identifier: Apache-2.0
"""KVM's selftests of released kernels run on the emulated host until they need guest code.

The tables say which selftests pass, and what stops the others. Any change makes a test fail: if
another selftest begins to pass, move it to :data:`PASSES`.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

from ..emulated import SNPCERTS
from . import headers, selftests
from .oracle.build import SOURCES
from .test_numbers import needs_compiler, needs_headers

pytestmark = [needs_compiler, needs_headers]

_SKIPPED, _FAILED = 4, 254  # exit codes of the selftests
SECONDS: Final = 500

PASSES: Final = (
    "irqfd_test",  # 10,000 times in two threads: most of this module's time
    "kvm_create_max_vcpus",
    "vm_types_test",
    "x86/max_vcpuid_cap_test",
    "x86/hwcr_msr_test",
    "x86/recalc_apic_map_test",
    "x86/set_sregs_test",
)
# Selftests that do not pass: exit code, a line of the output, and why they get no further.
STOPPED: Final = {
    "x86/sev_init2_tests": (
        _SKIPPED,
        "Requirement not met: have_sev",
        "it begins with VMs of the type SEV, which are not emulated; its part about SNP passes",
    ),
    "x86/sev_smoke_test": (
        _FAILED,
        "Wanted SYSTEM_EVENT, got SHUTDOWN",
        "it launches its SNP guest, but then expects an exit from code that runs in the guest",
    ),
    "set_memory_region_test": (
        _FAILED,
        "Unexpected suberror = 1",
        "it runs code in a guest of the default type",
    ),
    "guest_memfd_test": (
        _FAILED,
        "read on a guest_mem fd should fail",
        "the descriptor is a memory file of the real kernel's, which can be read",
    ),
    "x86/set_boot_cpu_id": (
        _FAILED,
        "Unexpected exit: INTERNAL_ERROR",
        "it runs code in a guest of the default type",
    ),
    "x86/cpuid_test": (
        _FAILED,
        "Unexpected exit: INTERNAL_ERROR",
        "it runs code in a guest of the default type",
    ),
    "x86/feature_msrs_test": (
        _FAILED,
        "KVM_GET_MSRS failed",
        "the values of feature MSRs, which depend on the processor, are not emulated",
    ),
    "x86/nested_set_state_test": (
        _SKIPPED,
        "Requirement not met: kvm_cpu_has(X86_FEATURE_VMX) || kvm_cpu_has(X86_FEATURE_SVM)",
        "nested guests are not emulated",
    ),
    "x86/xss_msr_test": (
        _SKIPPED,
        "Requirement not met: kvm_cpu_has(X86_FEATURE_XSAVES)",
        "the emulated processor has no XSAVES",
    ),
    "kvm_binary_stats_test": (
        _SKIPPED,
        "Requirement not met: kvm_has_cap(KVM_CAP_BINARY_STATS_FD)",
        "statistics are not emulated",
    ),
    "x86/sev_migrate_tests": (
        _SKIPPED,
        "Requirement not met: kvm_has_cap(KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM)",
        "migration is not emulated",
    ),
}
# Selftests that would prove nothing here.
NOT_RUN: Final = {
    "get-reg-list": "it is for other architectures",
    "x86/sev_dbg_test": "it is about SEV and SEV-ES, and returns at once where there is neither",
    "x86/vmx_msrs_test": "it is for Intel's processors",
}
# Matches the source of a selftest that runs code in a guest.
_GUEST_CODE: Final = re.compile(r"\b(guest_code|guest_main|_*vcpu_run)\b")
RELEASES: Final = headers.releases() if os.environ.get("SNPCERTS_KERNEL_TESTS") else {}


def run(version: str, name: str) -> subprocess.CompletedProcess[str]:
    return run_program(version, selftests.build(version, name))


def run_program(version: str, program: Path) -> subprocess.CompletedProcess[str]:
    series = ".".join(version.split(".")[:2])
    argv = [*SNPCERTS, "emulate", "host", "--kernel", series, "--", str(program)]
    return subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS
    )


def has(version: str, name: str) -> bool:
    """Whether a release has the selftest; some are only in newer releases."""
    return (SOURCES / version / "tools/testing/selftests/kvm" / f"{name}.c").is_file()


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("version", RELEASES)
def test_a_selftest_passes(version: str, name: str) -> None:
    if not has(version, name) and name in NOT_IN_EVERY_RELEASE:
        pytest.skip(f"Linux {version} has no {name}")
    done = run(version, name)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", STOPPED)
@pytest.mark.parametrize("version", RELEASES)
def test_a_selftest_gets_as_far_as_it_can(version: str, name: str) -> None:
    code, said, _ = STOPPED[name]
    done = run(version, name)
    assert said in done.stdout
    assert done.returncode == code, done.stdout


@pytest.mark.parametrize("version", RELEASES)
def test_every_selftest_that_runs_no_code_in_a_guest_is_in_a_table(version: str) -> None:
    place = SOURCES / version / "tools/testing/selftests/kvm"
    found = {
        each.relative_to(place).with_suffix("").as_posix()
        for folder in (place, place / "x86")
        for each in folder.glob("*.c")
        if not _GUEST_CODE.search(each.read_text(encoding="utf-8"))
    }
    assert len(found) > 10
    assert found <= {*PASSES, *STOPPED, *NOT_RUN}


@pytest.mark.parametrize("version", RELEASES)
def test_the_snp_part_of_sev_init2_tests_passes(version: str) -> None:
    source = Path(__file__).with_name("snp_init2.c")
    done = run_program(version, selftests.build_part(version, source))
    assert done.returncode == 0, done.stdout


# Selftests that some of the fetched releases lack.
NOT_IN_EVERY_RELEASE: Final = {"vm_types_test"}
