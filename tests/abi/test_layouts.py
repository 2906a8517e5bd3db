# SPDX-License-Identifier: Apache-2.0
"""Packs and unpacks each ``CStruct``; tests/kernel compares the layouts with Linux's headers."""

from __future__ import annotations

import importlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi import ghcb, guest_message, kvm, psp, report, sev_guest
from snpcerts.abi.cstruct import CStruct
from snpcerts.errors import FormatError, SnpCertsError

MODULES = ("guest_message", "kvm", "lock", "psp", "report", "sev_guest")


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


def test_requests_that_older_headers_lack() -> None:
    """Linux 7.0 and its guest driver use these numbers."""
    assert int(kvm.Ioctl.SET_USER_MEMORY_REGION2) == 0x40A0AE49
    assert int(kvm.Ioctl.CREATE_GUEST_MEMFD) == 0xC040AED4
    assert int(kvm.Ioctl.SET_MEMORY_ATTRIBUTES) == 0x4020AED2
    assert int(kvm.ExitReason.SNP_REQ_CERTS) == 43
    assert int(kvm.SevCommand.SNP_ENABLE_REQ_CERTS) == 103
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
    with pytest.raises(SnpCertsError, match=f"expected at least {structure.SIZE} bytes"):
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
