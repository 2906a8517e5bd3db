# SPDX-License-Identifier: Apache-2.0
"""go-sev-guest's messages: a report comes back byte for byte, and hostile messages are errors."""

from __future__ import annotations

import random
import tracemalloc
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.cert_table import CRL_GUID, MAX_ENTRIES, CertTable
from snpcerts.abi.report import REPORT_SIZE, Report, ReportLayout
from snpcerts.cli.main import main
from snpcerts.errors import FormatError
from snpcerts.verify import attestation_proto
from snpcerts.verify.evidence import Evidence, Shape
from tests.endorsement.small_ca import CrlRecipe, SmallCa, flipped
from tests.verify.messages import (
    attestation,
    blob,
    cpuid,
    extra,
    number,
    report_fields,
    report_message,
    varint,
)
from tests.verify.test_evidence import PLATFORM_INFO, judge
from tests.verify.test_verify import codes

CA = SmallCa()
REPORT = CA.report()  # each run makes a new signature
NEWEST = CA.report(5)
CHAIN = blob(1, CA.leaf.make()) + blob(2, CA.ask.make()) + blob(3, CA.ark.make())


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_an_attestation_verifies_as_its_report_and_table_do(version: int) -> None:
    report = CA.report(version)
    for product in (None, number(1, 1) + blob(3, number(1, 2))):
        evidence = Evidence.from_bytes(attestation(report, CHAIN, product))
        assert (evidence.report.raw, evidence.shape) == (report, Shape.PROTO)
        assert codes(judge(evidence)) == []


def test_a_report_message_alone() -> None:
    evidence = Evidence.from_bytes(report_message(REPORT))
    assert (evidence.report.raw, evidence.table) == (REPORT, None)
    assert codes(judge(evidence)) == ["vcek-missing", "ask-missing", "ark-missing"]
    with_svn = CA.report(guest_svn=7)
    assert Evidence.from_bytes(report_message(with_svn)).report.raw == with_svn


def test_extras_are_entries_of_the_table_and_a_deprecated_field_is_none() -> None:
    crl = CrlRecipe(CA).make()
    chain = CHAIN + extra(str(CRL_GUID), crl) + extra(str(PLATFORM_INFO).upper(), b"info")
    evidence = Evidence.from_bytes(attestation(REPORT, chain + blob(4, b"firmware")))
    assert evidence.collateral.crl == crl
    assert evidence.table is not None
    assert evidence.table.get(PLATFORM_INFO) == b"info"
    assert len(evidence.table) == 5
    assert codes(judge(evidence)) == []


@pytest.mark.parametrize("chain", [None, b"", blob(4, b"firmware")])
def test_evidence_without_certificates_has_no_table(chain: bytes | None) -> None:
    evidence = Evidence.from_bytes(attestation(REPORT, chain))
    assert (evidence.report.raw, evidence.table) == (REPORT, None)


def test_a_vlek_is_taken_from_its_field() -> None:
    evidence = Evidence.from_bytes(attestation(REPORT, blob(6, b"leaf") + blob(2, b"asvk")))
    assert (evidence.collateral.vlek, evidence.collateral.ask) == (b"leaf", b"asvk")


def test_the_order_of_fields_does_not_matter() -> None:
    parts = list(report_fields(REPORT).values())
    random.Random(1).shuffle(parts)
    message = blob(2, CHAIN) + blob(1, b"".join(parts))
    assert attestation_proto.read_attestation(message)[0] == REPORT


def _numbers() -> st.SearchStrategy[dict[str, Any]]:
    sizes = {name: size for name, (_, size) in ReportLayout.layout().items()}
    strategies: dict[str, st.SearchStrategy[Any]] = {}
    for field in fields(ReportLayout):
        name, size = field.name, sizes[field.name]
        if isinstance(field.default, bytes):
            strategies[name] = st.binary(min_size=size, max_size=size)
        else:
            strategies[name] = st.integers(0, 256**size - 1)
    # The message has only four bits for the stepping.
    strategies["cpuid_stepping"] = st.integers(0, 15)
    return st.fixed_dictionaries({}, optional=strategies)


@given(_numbers())
def test_every_report_comes_back_byte_for_byte(values: dict[str, Any]) -> None:
    report = replace(ReportLayout(), **values).pack()
    assert attestation_proto.read_report(report_message(report)) == report
    assert attestation_proto.read_attestation(attestation(report)) == (
        report,
        CertTable(),
    )


def test_a_change_of_any_field_is_a_change_of_the_report() -> None:
    """No field is ignored: the signature fails, or the message cannot be read."""
    for field, encoded in report_fields(NEWEST).items():
        others = report_fields(NEWEST)
        others[field] = encoded[:-1] + bytes((encoded[-1] ^ 1,))
        message = blob(1, b"".join(others.values())) + blob(2, CHAIN)
        try:
            evidence = Evidence.from_bytes(message)
        except FormatError:
            continue
        assert evidence.report.raw != NEWEST, field
        assert codes(judge(evidence)), field


def test_the_products_processor_is_rebuilt() -> None:
    for family, model in ((0x19, 0x01), (0x19, 0x11), (0x19, 0xA0), (0x1A, 0x11), (5, 0x23)):
        report = replace(ReportLayout(), cpuid_family=family, cpuid_model=model).pack()
        again = Report.unpack(attestation_proto.read_report(report_message(report)))
        assert (again.fields.cpuid_family, again.fields.cpuid_model) == (family, model)


SOUND = report_fields(REPORT)


def _report(**changes: bytes) -> bytes:
    parts = {**SOUND, **{int(name[1:]): data for name, data in changes.items()}}
    return b"".join(parts.values())


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (_report(_32=number(32, 1)), "found field 32"),
        (_report(_32=number(1, 2)), "field 1 appears twice"),
        (_report(_4=blob(4, bytes(15))), "family_id: expected 16 bytes, found 15"),
        (_report(_28=blob(28, bytes(144))), "signature: expected 512 bytes, found 144"),
        (_report(_19=b""), "chip_id: expected 64 bytes, but"),
        (_report(_4=number(4, 1)), "family_id: expected bytes, found a number"),
        (_report(_3=blob(3, b"x")), "policy: expected a number, found bytes"),
        (_report(_6=number(6, 1 << 32)), "vmpl: 4294967296 does not fit in 4 bytes"),
        (_report(_21=number(21, 256)), "current_build: 256 does not fit in 1 bytes"),
        (_report(_29=number(29, 1 << 28)), "cpuid1eax_fms: expected a family, .* 0x10000000"),
        (_report(_29=number(29, 1 << 20)), "cpuid1eax_fms: expected a family, .* 0x100000"),
        (_report(_29=number(29, 0xFF00F00)), "cpuid1eax_fms: expected a family, .* 0xff00f00"),
        (_report(_29=number(29, 1 << 33)), "does not fit in 4 bytes"),
        (_report(_2=varint(2 << 3 | 5) + bytes(4)), "for field 2, found 5"),
        (_report(_2=varint(2 << 3 | 3)), "for field 2, found 3"),
        (_report(_3=b"\x18\x80\x80\x00"), "shortest form"),
        (_report(_3=b"\x18" + b"\xff" * 9 + b"\x02"), "more than 64 bits"),
        (_report(_3=b"\x18" + b"\xff" * 11), "more than 64 bits"),
        (_report(_31=varint(31 << 3)), "the data ends within a number"),
        (_report(_28=varint(28 << 3 | 2) + varint(1 << 63)), "have|follow"),
    ],
)
def test_malformed_reports_are_errors_that_name_the_field(message: bytes, text: str) -> None:
    with pytest.raises(FormatError, match=text):
        attestation_proto.read_report(message)
    with pytest.raises(FormatError, match=text):
        Evidence.from_bytes(blob(1, message) + blob(2, CHAIN))


@pytest.mark.parametrize(
    ("rest", "text"),
    [
        (blob(4, b""), "found field 4"),
        (blob(1, b""), "field 1 appears twice"),
        (number(2, 1), "expected bytes, found a number"),
        (blob(2, blob(1, b"")), "has no data"),
        (blob(2, blob(1, b"a") + blob(1, b"b")), "field 1 appears twice"),
        (blob(2, blob(5, b"a")), "found field 5"),
        (blob(2, blob(1, b"a") + extra("63da758d-e664-4564-adc5-f4b93be8accd", b"b")), "twice"),
        (blob(2, extra("0" * 8 + "-0000" * 3 + "-" + "0" * 12, b"b")), "is zero"),
        (blob(2, extra("63da758de6644564adc5f4b93be8accd", b"b")), "expected the key in the form"),
        (blob(2, extra("VCEK", b"b")), "expected a GUID"),
        (blob(2, blob(7, blob(1, b"\xff" * 36))), "expected a GUID"),
        (blob(2, blob(7, b"")), "expected a GUID"),
        (b"\x12\x7f", "127 bytes, but only 0 follow"),
    ],
)
def test_malformed_chains_are_errors(rest: bytes, text: str) -> None:
    with pytest.raises(FormatError, match=text):
        Evidence.from_bytes(attestation(REPORT) + rest)


def test_an_attestation_without_a_report_is_an_error() -> None:
    with pytest.raises(FormatError, match="expected a report in the message"):
        attestation_proto.read_attestation(blob(2, CHAIN))


def test_certificates_are_as_many_as_in_a_table_at_most() -> None:
    many = b"".join(extra(f"{index:08x}-0000-4000-8000-{0:012x}", b"x") for index in range(1, 800))
    with pytest.raises(FormatError, match=f"at most {MAX_ENTRIES}"):
        Evidence.from_bytes(attestation(REPORT, many))


def test_memory_is_bounded_by_the_message() -> None:
    """This holds even if a mebibyte of the message is one field inside another."""
    message = attestation(REPORT, CHAIN + extra(str(PLATFORM_INFO), bytes(1 << 20)))
    tracemalloc.start()
    try:
        attestation_proto.read_attestation(message)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(message)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for read in (attestation_proto.read_report, attestation_proto.read_attestation):
        try:
            read(data)
        except FormatError:
            continue


@given(st.integers(0, 1 << 14), st.integers(0, 255))
def test_any_change_is_read_or_refused(at: int, value: int) -> None:
    message = bytearray(attestation(REPORT, CHAIN))
    message[at % len(message)] = value
    try:
        evidence = Evidence.from_bytes(bytes(message))
    except FormatError:
        return
    assert len(evidence.report.raw) == REPORT_SIZE


def test_no_report_is_taken_for_a_message() -> None:
    """A report with a wrong version is still a report, so that the error names the version."""
    for index in (0, 1, 2, 3):
        for bit in range(8):
            report = flipped(REPORT, index, bit)
            assert not attestation_proto.is_attestation(report)
            assert not attestation_proto.is_report(report)
    assert not attestation_proto.is_attestation(b"\x0a")
    assert not attestation_proto.is_report(b"\x08\x02")


def test_the_command_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, root = tmp_path / "attestation.pb", tmp_path / "root.der"
    path.write_bytes(attestation(REPORT, CHAIN))
    root.write_bytes(CA.ark.make())
    argv = ["verify", str(path), "--anchor", str(root), "--at", "2025-06-01T12:00:00Z"]
    assert main(argv) == 0
    assert main(["report", "show", str(path), "--json"]) == 0
    assert '"shape": "protobuf"' in capsys.readouterr().out
    path.write_bytes(attestation(REPORT, CHAIN)[:-1])
    assert main(argv) == 2


def test_cpuid_is_as_the_processor_has_it() -> None:
    """Milan B1 and Turin C1, as CPUID leaf 1 gives them."""
    assert cpuid(0x19, 0x01, 1) == 0x00A00F11
    assert cpuid(0x1A, 0x02, 1) == 0x00B00F21
