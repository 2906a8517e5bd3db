# SPDX-License-Identifier: Apache-2.0
"""Every declared structure against a compiler, and every number against figures of others."""

from __future__ import annotations

import importlib
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi import ghcb, guest_message, kvm, psp, report, sev_guest
from snpcerts.abi.cstruct import CStruct
from snpcerts.errors import FormatError, SnpCertsError

MODULES = ("guest_message", "kvm", "lock", "psp", "report", "sev_guest")
HERE = Path(__file__).parent
SYSTEM = "#include <linux/kvm.h>\n#include <linux/psp-sev.h>\n#include <fcntl.h>\n"
OWN = f'#include "{HERE / "kernel_structs.h"}"\n'


def _structures() -> list[type[CStruct]]:
    found: list[type[CStruct]] = []
    for name in MODULES:
        module = importlib.import_module(f"snpcerts.abi.{name}")
        found += [
            each
            for each in vars(module).values()
            if isinstance(each, type) and issubclass(each, CStruct) and each is not CStruct
        ]
    return found


STRUCTURES = _structures()


def _compiled(headers: str, structure: type[CStruct], folder: Path) -> dict[str, int] | None:
    """Sizes and offsets as the compiler has them; None when it does not know the structure."""
    expressions = {"": f"sizeof({structure.C_NAME})"} | {
        field: f"__builtin_offsetof({structure.C_NAME}, {field})" for field in structure.layout()
    }
    prints = "".join(f'printf("%zu\\n", (size_t){text});' for text in expressions.values())
    source = f"#include <stddef.h>\n#include <stdio.h>\n{headers}int main(void){{{prints}}}\n"
    program = folder / "layout"
    made = subprocess.run(
        ["gcc", "-x", "c", "-", "-o", program], input=source, text=True, capture_output=True
    )
    if made.returncode:
        return None
    lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    return dict(zip(expressions, map(int, lines), strict=True))


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler on this machine")
@pytest.mark.parametrize(
    "structure", [each for each in STRUCTURES if each.C_NAME], ids=lambda each: each.C_NAME
)
def test_compiler_agrees(structure: type[CStruct], tmp_path: Path) -> None:
    """The machine's own headers where they have the structure, ours in C where not."""
    figures = _compiled(SYSTEM, structure, tmp_path) or _compiled(OWN, structure, tmp_path)
    assert figures is not None, f"no C declaration of {structure.C_NAME} to compare with"
    expected = {"": structure.SIZE} | {
        field: offset for field, (offset, _) in structure.layout().items()
    }
    assert expected == figures


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler on this machine")
def test_compiler_agrees_on_kvm_run_and_requests(tmp_path: Path) -> None:
    expressions = {
        "sizeof(struct kvm_run)": kvm.RUN_SIZE,
        "__builtin_offsetof(struct kvm_run, immediate_exit)": kvm.RUN_IMMEDIATE_EXIT,
        "__builtin_offsetof(struct kvm_run, exit_reason)": kvm.RUN_EXIT_REASON,
        "__builtin_offsetof(struct kvm_run, if_flag)": kvm.RUN_IF_FLAG,
        "__builtin_offsetof(struct kvm_run, flags)": kvm.RUN_FLAGS,
        "__builtin_offsetof(struct kvm_run, padding)": kvm.RUN_EXIT,
        "__builtin_offsetof(struct kvm_run, kvm_valid_regs)": kvm.RUN_VALID_REGS,
        "__builtin_offsetof(struct kvm_run, kvm_dirty_regs)": kvm.RUN_DIRTY_REGS,
        "KVM_GET_API_VERSION": kvm.Ioctl.GET_API_VERSION,
        "KVM_CREATE_VM": kvm.Ioctl.CREATE_VM,
        "KVM_CHECK_EXTENSION": kvm.Ioctl.CHECK_EXTENSION,
        "KVM_GET_VCPU_MMAP_SIZE": kvm.Ioctl.GET_VCPU_MMAP_SIZE,
        "KVM_CREATE_VCPU": kvm.Ioctl.CREATE_VCPU,
        "KVM_SET_USER_MEMORY_REGION": kvm.Ioctl.SET_USER_MEMORY_REGION,
        "KVM_RUN": kvm.Ioctl.RUN,
        "KVM_ENABLE_CAP": kvm.Ioctl.ENABLE_CAP,
        "KVM_MEMORY_ENCRYPT_OP": kvm.Ioctl.MEMORY_ENCRYPT_OP,
        "KVM_MEMORY_ENCRYPT_REG_REGION": kvm.Ioctl.MEMORY_ENCRYPT_REG_REGION,
        "KVM_MEMORY_ENCRYPT_UNREG_REGION": kvm.Ioctl.MEMORY_ENCRYPT_UNREG_REGION,
        "KVM_SET_DEVICE_ATTR": kvm.Ioctl.SET_DEVICE_ATTR,
        "KVM_GET_DEVICE_ATTR": kvm.Ioctl.GET_DEVICE_ATTR,
        "KVM_HAS_DEVICE_ATTR": kvm.Ioctl.HAS_DEVICE_ATTR,
        "KVM_CAP_IMMEDIATE_EXIT": kvm.Cap.IMMEDIATE_EXIT,
        "KVM_CAP_SYS_ATTRIBUTES": kvm.Cap.SYS_ATTRIBUTES,
        "SEV_ISSUE_CMD": psp.SEV_ISSUE_CMD,
        "F_OFD_SETLK": 37,
    }
    prints = "".join(f'printf("%llu\\n", (unsigned long long)({each}));' for each in expressions)
    source = f"#define _GNU_SOURCE\n#include <stdio.h>\n#include <sys/ioctl.h>\n{SYSTEM}"
    source += f"int main(void){{{prints}}}\n"
    program = tmp_path / "numbers"
    subprocess.run(["gcc", "-x", "c", "-", "-o", program], input=source, text=True, check=True)
    lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    assert dict(zip(expressions, map(int, lines), strict=True)) == expressions


def test_requests_that_older_headers_lack() -> None:
    """Figures published with Linux 7.0 and its guest driver."""
    assert kvm.Ioctl.SET_USER_MEMORY_REGION2 == 0x40A0AE49
    assert kvm.Ioctl.CREATE_GUEST_MEMFD == 0xC040AED4
    assert kvm.Ioctl.SET_MEMORY_ATTRIBUTES == 0x4020AED2
    assert kvm.ExitReason.SNP_REQ_CERTS == 43
    assert kvm.SevCommand.SNP_ENABLE_REQ_CERTS == 103
    assert (kvm.RUN_SNP_GPA, kvm.RUN_SNP_NPAGES, kvm.RUN_SNP_RET) == (32, 40, 48)
    assert sev_guest.SNP_GET_REPORT == 0xC0205300
    assert sev_guest.SNP_GET_DERIVED_KEY == 0xC0205301
    assert sev_guest.SNP_GET_EXT_REPORT == 0xC0205302
    assert psp.SEV_ISSUE_CMD == 0xC0105300


@pytest.mark.parametrize(
    ("field", "bit", "byte", "mask"),
    [
        ("RAX", 63, 0x3F7, 0x80),
        ("RCX", 97, 0x3FC, 0x02),
        ("RDX", 98, 0x3FC, 0x04),
        ("RBX", 99, 0x3FC, 0x08),
        ("SW_EXITCODE", 114, 0x3FE, 0x04),
        ("SW_EXITINFO1", 115, 0x3FE, 0x08),
        ("SW_EXITINFO2", 116, 0x3FE, 0x10),
        ("SW_SCRATCH", 117, 0x3FE, 0x20),
    ],
)
def test_valid_bits_of_the_ghcb(field: str, bit: int, byte: int, mask: int) -> None:
    place = ghcb.Field[field]
    assert (place // 8, place.valid_byte, place.valid_mask) == (bit, byte, mask)


def test_ghcb_page_keeps_fields_where_the_specification_has_them() -> None:
    page = bytearray(4096)
    view = ghcb.GhcbPage(page)
    view.put(ghcb.Field.RBX, 0x1122334455667788)
    view.protocol_version = 2
    view.usage = 7
    assert page[0x318:0x320] == bytes.fromhex("8877665544332211")
    assert page[0xFFA:0x1000] == bytes.fromhex("020007000000")
    assert view.is_valid(ghcb.Field.RBX)
    assert not view.is_valid(ghcb.Field.RAX)
    view.clear_valid_bitmap()
    assert not view.is_valid(ghcb.Field.RBX)
    assert view.get(ghcb.Field.RBX) == 0x1122334455667788


def test_guest_err_combines_both_halves() -> None:
    assert ghcb.guest_err(ghcb.VmmError.INVALID_LEN, 0) == 0x1_0000_0000
    assert ghcb.guest_err(ghcb.VmmError.GENERIC, 0) == 0xFFFFFFFF_00000000
    assert ghcb.guest_err(0, 0x16) == 0x16


def test_message_iv_is_the_sequence_number_and_zeros() -> None:
    assert guest_message.iv_of(0x0102) == bytes.fromhex("020100000000000000000000")


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda each: each.__name__)
@given(
    seed=st.integers(0, 2**64), sparse=st.dictionaries(st.integers(0, 4095), st.integers(0, 255))
)
def test_structures_survive_a_round_trip(
    structure: type[CStruct], seed: int, sparse: dict[int, int]
) -> None:
    content = bytearray(random.Random(seed).randbytes(structure.SIZE))
    for place, byte in sparse.items():
        content[place % structure.SIZE] = byte
    value = structure.unpack(content)
    assert structure.unpack(value.pack()) == value
    for offset, size in structure.layout().values():
        assert value.pack()[offset : offset + size] == content[offset : offset + size]


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda each: each.__name__)
def test_short_input_is_refused(structure: type[CStruct]) -> None:
    with pytest.raises(SnpCertsError, match=f"needs {structure.SIZE} bytes"):
        structure.unpack(bytes(structure.SIZE - 1))


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda each: each.__name__)
def test_fields_do_not_overlap(structure: type[CStruct]) -> None:
    end = 0
    for offset, size in sorted(structure.layout().values()):
        assert offset >= end
        end = offset + size
    assert end <= structure.SIZE


def test_a_value_that_does_not_fit_names_its_field() -> None:
    with pytest.raises(FormatError, match="struct kvm_sev_cmd, id at offset 0x0"):
        kvm.SevCmd(id=1 << 32).pack()
    with pytest.raises(FormatError, match="gosvw"):
        kvm.SnpLaunchStart(gosvw=b"short").pack()


def test_run_view_writes_where_kvm_reads() -> None:
    memory = bytearray(kvm.VCPU_MMAP_SIZE)
    run = kvm.RunView(memory)
    run.immediate_exit = 1
    run.exit_reason = kvm.ExitReason.SNP_REQ_CERTS
    run.snp_req_certs = (0x1000, 4, 0)
    run.answer_req_certs(28, 2)
    assert memory[1] == 1
    assert memory[8:12] == bytes((43, 0, 0, 0))
    assert [int.from_bytes(memory[at : at + 8], "little") for at in (32, 40, 48)] == [4096, 2, 28]
    assert run.snp_req_certs == (0x1000, 2, 28)
    run.answer_req_certs(0)
    assert run.snp_req_certs == (0x1000, 2, 0)


@pytest.mark.parametrize("memory", [bytes(kvm.RUN_SIZE), bytearray(kvm.RUN_SIZE - 1)])
def test_run_view_needs_writable_memory_of_its_size(memory: bytes | bytearray) -> None:
    with pytest.raises(ValueError, match="writable"):
        kvm.RunView(memory)  # type: ignore[arg-type]


def test_report_fields_end_where_the_signature_starts() -> None:
    layout = report.ReportLayout.layout()
    assert layout["signature"] == (report.SIGNED_SIZE, 512)
    assert layout["reported_tcb"] == (0x180, 8)
    assert layout["chip_id"] == (0x1A0, 64)
    assert layout["committed_tcb"] == (0x1E0, 8)
    assert layout["launch_tcb"] == (0x1F0, 8)
