# SPDX-License-Identifier: Apache-2.0
"""The running kernel's numbers, from headers and BTF that are right, wrong, absent or damaged."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.kvm import RUN_SNP_GPA
from snpcerts.errors import FormatError
from snpcerts.host.btf import KERNEL, Btf
from snpcerts.host.claim_report import Showing
from snpcerts.host.kernel_numbers import observe

TYPES = """
enum sev_cmd_id { KVM_SEV_INIT, KVM_SEV_SNP_ENABLE_REQ_CERTS = 103 };
struct kvm_run {
	char before[%d];
	unsigned bits : 3;
	union {
		struct { unsigned long long data; } other;
		struct { unsigned long long gpa, npages, ret; } snp_req_certs;
	};
};
struct kvm_run run;
enum sev_cmd_id command;
"""


def btf(folder: Path, before: int) -> Path:
    """Make a directory like /sys/kernel/btf, with the BTF that gcc writes for ``TYPES``."""
    compiler, objcopy = shutil.which("gcc"), shutil.which("objcopy")
    if compiler is None or objcopy is None:
        pytest.skip("gcc or objcopy is not on this machine")
    source, made = folder / "types.c", folder / "types.o"
    source.write_text(TYPES % before)
    done = subprocess.run([compiler, "-gbtf", "-c", "-o", str(made), str(source)], check=False)
    if done.returncode:
        pytest.skip("this gcc does not write BTF")
    types = folder / "btf"
    types.mkdir()
    section = f".BTF={types / 'vmlinux'}"
    subprocess.run([objcopy, "-O", "binary", "--dump-section", section, str(made)], check=True)
    return types


def header(folder: Path, line: str) -> Path:
    path = folder / "modules" / "7.9.0" / "build" / "include" / "uapi" / "linux" / "kvm.h"
    path.parent.mkdir(parents=True)
    path.write_text(f"#define KVM_EXIT_MEMORY_FAULT     39\n{line}\n")
    return folder / "modules"


def shown(modules: Path, types: Path) -> dict[str, Showing]:
    return {each.id: each.showing for each in observe("7.9.0", modules=modules, btf=types)}


def test_headers_and_types_that_agree_are_seen(tmp_path: Path) -> None:
    modules = header(tmp_path, "#define KVM_EXIT_SNP_REQ_CERTS     43")
    found = shown(modules, btf(tmp_path, RUN_SNP_GPA - 8))
    assert set(found.values()) == {Showing.SEEN}
    assert found.keys() == {"header-exit-number", "btf-kvm-run", "btf-command"}


def test_another_number_and_another_layout_differ(tmp_path: Path) -> None:
    modules = header(tmp_path, "#define KVM_EXIT_SNP_REQ_CERTS     42")
    found = shown(modules, btf(tmp_path, RUN_SNP_GPA))
    assert found["header-exit-number"] is Showing.DIFFERS
    assert found["btf-kvm-run"] is Showing.DIFFERS
    assert found["btf-command"] is Showing.SEEN


def test_what_is_not_there_is_not_tried(tmp_path: Path) -> None:
    assert set(shown(tmp_path / "none", tmp_path / "none").values()) == {Showing.NOT_TRIED}
    older = header(tmp_path, "")
    assert shown(older, tmp_path / "none")["header-exit-number"] is Showing.NOT_TRIED


def test_the_running_kernels_types_are_read() -> None:
    """Every kernel has ``struct task_struct``, in which ``pid`` is not the first member."""
    if not (KERNEL / "vmlinux").exists():
        pytest.skip("this kernel has no BTF")
    types = Btf.of_kernel()
    assert types.offset_of("list_head", "prev") == 8
    assert (types.offset_of("task_struct", "pid") or 0) > 0
    assert types.constant("PIDTYPE_TGID") == 1


@given(data=st.binary(max_size=200), head=st.booleans())
def test_damaged_types_raise_nothing_but_a_format_error(data: bytes, head: bool) -> None:
    start = b"\x9f\xeb\x01\x00\x18\x00\x00\x00" if head else b""
    with contextlib.suppress(FormatError):
        Btf().add(start + data)
