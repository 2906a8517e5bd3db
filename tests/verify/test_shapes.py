# SPDX-License-Identifier: Apache-2.0
"""Evidence and certificates verify in every documented format, and bad bytes in none."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snpcerts.abi.cert_table import ARK_GUID, ASK_GUID, VCEK_GUID, CertTable, TableEntry
from snpcerts.cli.main import main
from snpcerts.endorsement.bundle import MAX_CERTIFICATES, read_bundle
from snpcerts.endorsement.encoded_text import MAX_TEXT, bytes_in, read_json
from snpcerts.endorsement.file_kind import kind_of
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import FormatError, RetryLaterError
from snpcerts.schemas import schema_of
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.evidence import Evidence, Shape
from snpcerts.verify.judging import verify
from snpcerts.verify.message_pack import read_message_pack
from snpcerts.verify.sources import OWN, CollateralRequest, Given, verify_with
from snpcerts.verify.verdict import Status
from tests.endorsement.small_ca import NOON, TCBS, SmallCa, flipped
from tests.verify import shapes
from tests.verify.shapes import ALONE, ARK, ASK, BUNDLES, CA, DERS, LEAF, TABLE, WHOLE
from tests.verify.test_verify import anchors, codes

REPORT = CA.report()
DOCUMENTED = Path(__file__).parents[2] / "docs" / "relying-parties.md"
AT = ("--at", NOON.isoformat())
ALL = Collateral(others=DERS)

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.chdir(tmp_path)
    Path("root.der").write_bytes(ARK)

    def command(*arguments: str) -> tuple[int, str, str]:
        code = main(["verify", *arguments, "--anchor", "root.der", *AT])
        out, err = capsys.readouterr()
        return code, out, err

    return command


@pytest.mark.parametrize("name", WHOLE)
def test_evidence_with_its_certificates(name: str) -> None:
    evidence = Evidence.from_bytes(WHOLE[name](REPORT))
    assert evidence.report.raw == REPORT
    assert codes(verify(evidence, anchors=anchors(), at=NOON)) == []


@pytest.mark.parametrize("name", ALONE)
def test_a_report_alone(name: str) -> None:
    evidence = Evidence.from_bytes(ALONE[name](REPORT))
    assert evidence.report.raw == REPORT
    assert codes(verify(evidence, ALL, anchors=anchors(), at=NOON)) == []


@pytest.mark.parametrize("name", BUNDLES)
def test_a_file_of_certificates(name: str) -> None:
    found = read_bundle(BUNDLES[name])
    assert set(found.certificates) == set(DERS)
    given_ = Given(Collateral(others=found.certificates))
    verdict = verify_with(Evidence(REPORT), [given_], anchors=anchors(), at=NOON)
    assert codes(verdict) == []


def test_the_schema_lists_every_shape() -> None:
    shape = schema_of("report show")["properties"]["shape"]
    assert shape["enum"] == [each.value for each in Shape]


def test_the_documentation_lists_every_shape() -> None:
    text = DOCUMENTED.read_text(encoding="utf-8")
    section = text.split("## What is read\n")[1].split("\n## ")[0]
    listed = {line.split("`")[1] for line in section.splitlines() if line.startswith("| `")}
    assert listed == {*WHOLE, *ALONE, *BUNDLES}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([*WHOLE, *ALONE]), st.integers(0, 0x29F), st.integers(0, 7))
def test_no_changed_report_verifies_in_any_shape(name: str, at: int, bit: int) -> None:
    changed = bytearray(REPORT)
    changed[at] ^= 1 << bit
    make = WHOLE.get(name) or ALONE[name]
    try:
        evidence = Evidence.from_bytes(make(bytes(changed)))
    except FormatError:
        return
    verdict = verify(evidence, ALL, anchors=anchors(), at=NOON)
    # JSON and protobuf have no place for reserved bytes, so a change in these is lost.
    assert verdict.status is Status.REFUSED or evidence.report.raw == REPORT


UNREADABLE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "random": lambda data: random.Random(1).randbytes(len(data)),
    "truncated": lambda data: data[: len(data) // 2],
    "deeply nested": lambda data: b"[" * 100_000 + data,
    "nested and closed": lambda _: b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "wrong type": lambda _: b'{"outblob": 5, "provider": ["sev_guest"], "report": {}}',
    "the same key twice": lambda data: (
        json.dumps({"report": data.hex()})[:-1].encode() + b', "report": ""}'
    ),
    "bad UTF-8": lambda data: b'{"report": "' + b"\xff\xfe" + base64.b64encode(data) + b'"}',
    "wrong base64": lambda data: base64.b64encode(data)[:-7] + b"!",
    "CBOR cut short": lambda data: cbor2.dumps({"outblob": data, "provider": "sev_guest"})[:-9],
    "CBOR of a long string": lambda _: b"\xa1\x67outblob\x5b\x7f\xff\xff\xff\xff\xff\xff\xff",
    "CBOR, the same key twice": lambda data: b"\xa2" + cbor2.dumps({"outblob": data})[1:] * 2,
    "CBOR, deeply nested": lambda _: b"\xa1\x61a" * 50_000 + b"\1",
}


@pytest.mark.parametrize("fault", UNREADABLE)
@pytest.mark.parametrize("name", ["report", *WHOLE])
def test_bad_bytes_in_any_shape_are_an_error_or_a_refusal(name: str, fault: str) -> None:
    data = UNREADABLE[fault]((WHOLE.get(name) or ALONE[name])(REPORT))
    read_bundle(data)
    kind_of(data)
    try:
        evidence = Evidence.from_bytes(data)
    except FormatError:
        return
    verdict = verify(evidence, ALL, anchors=anchors(), at=NOON)
    assert verdict.status is not Status.VERIFIED or evidence.report.raw == REPORT


@pytest.mark.parametrize("start", [b"", b"[", b"0x", b"-----BEGIN A-----", b"\xa1", b"<html>"])
def test_what_is_too_large_is_not_read(run: Command, start: bytes) -> None:
    with open("huge", "wb") as file:
        file.write(start)
        file.truncate(100 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, out, err = run("huge")
    assert (code, out) == (2, "")
    assert "larger than" in err
    # ru_maxrss is in KiB. Reading the whole file would take 100 MiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 << 10


@given(st.binary(max_size=600))
def test_no_bytes_break_a_reader(data: bytes) -> None:
    for each in (data, data.hex().encode(), base64.b64encode(data), b'{"a": ' + data):
        read_bundle(each)
        assert kind_of(each).name
        try:
            Evidence.from_bytes(each)
        except FormatError:
            continue


# Each would take minutes if a reader read any part of it repeatedly.
REPEATED = {
    "BEGIN without END": (b"", b"-----BEGIN X-----", b""),
    "BEGIN without END, and one END": (b"", b"-----BEGIN ", b"-----END X-----"),
    "END of something else": (b"", b"-----BEGIN X-----\n-----END Y", b""),
    "objects": (b"", b"{", b""),
    "stars": (b"", b"* ", b""),
    "0x": (b"", b"0x0 ", b""),
    "backslashes": (b"x", b"\\", b""),
    "comments of HTML": (b"", b"<!---->", b""),
    "blanks in a text message": (b"report", b" ", b""),
    "characters of a literal": (b"b'", b"a", b""),
    "decimals": (b"[", b"3 0 255 ", b"x"),
}


@pytest.mark.parametrize("name", REPEATED)
def test_text_takes_time_in_proportion_to_its_size(name: str) -> None:
    start, part, end = REPEATED[name]
    data = start + part * (MAX_TEXT // len(part) // 4) + end
    assert read_bundle(data).empty
    with contextlib.suppress(FormatError):
        Evidence.from_bytes(data)


def test_json_with_many_keys_takes_time_in_proportion_to_its_size() -> None:
    keys = ", ".join(f'"{at}": 0' for at in range(100_000))
    with pytest.raises(FormatError, match="'99999' appears twice"):
        read_json(f'{{{keys}, "99999": 1}}', "evidence")


def test_a_dump_is_not_many_times_its_text() -> None:
    """This dump of a few characters stands for 4 MiB, and a JSON file could hold thousands."""
    assert bytes_in("00000000: 00\n*\n003fffff: 00") is None
    assert bytes_in("00000000: 00\n*\n00000100: 01") == bytes(256) + b"\1"
    # A line with only an offset has no bytes that the star could repeat.
    assert bytes_in("00000000: 4141\n00000002\n*\n00000010: 4141") is None


@pytest.mark.parametrize("escape", ["\\q", "\\400", "\\x4", "\\"])
def test_python_does_not_warn_of_a_literals_escapes(escape: str) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        bytes_in(f"b'AAAA{escape}'")
    assert warned == []


def test_a_file_of_many_certificates_is_bounded() -> None:
    chips = [SmallCa(chip_id=bytes([1 + at]) * 64) for at in range(MAX_CERTIFICATES + 2)]
    found = read_bundle(b"".join(chip.leaf.make() for chip in chips))
    assert len(found.certificates) == MAX_CERTIFICATES
    assert found.others


NAMED = {
    b"<!DOCTYPE html><html>": "an HTML page",
    b"404 - Not Found\n": "the text '404 - Not Found'",
    b"\x1f\x8b\x08" + bytes(40): "gzip data",
    b"\x7fELF" + bytes(60): "a program (ELF)",
    b"#!/bin/sh\nexit\n": "a script",
    b"version https://git-lfs.github.com/spec/v1\n": "a Git LFS pointer",
    b"Attestation Report:\n\nVersion:   3\n": "a report printed for people",
    b"\x0a\x28HCLA" + bytes(2600): "an HCL report after a two-byte size",
    b"report.bin".ljust(257, b"\0") + b"ustar\0" + bytes(250) + REPORT + DERS[0]: "a tar archive",
    b"\xffTCG\x80\x18" + bytes(100): "a TPM quote",
    b"\4\0\2\0\x81\0\0\0" + bytes(600): "an Intel TDX quote",
    b"\x84\x44\xa1\x01\x38\x22\xa0": "an AWS Nitro attestation document (COSE)",
    b"eyJhbGciOiJFUzI1NiJ9.eyJhIjoxfQ.c2ln": "a signed token (JWT)",
    REPORT[:1000]: "a truncated report: 1000 of 1184 bytes",
    REPORT[:1000].hex().encode(): "a truncated report: 1000 of 1184 bytes",
    TABLE: "a certificate table",
    shapes.pem(LEAF).encode(): "a certificate in PEM",
    b"-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n": "a private key",
    b"HTTP/1.1 200 OK\r\n\r\n" + REPORT.hex().encode(): "a server's response with its headers",
    b"--x\r\nContent-Disposition: form-data\r\n\r\n" + REPORT: "a multipart form",
    b"\xd2\x84\x43\xa1\x01\x26\xa0\x59\x04\xa0" + REPORT + b"\x40": "a COSE message",
    zlib.compress(REPORT): "zlib data",
    b'{"a": 1}\n{"a": 2}\n': "found more text after it",
    REPORT.decode("latin-1").encode(): "read as Latin-1 and written as UTF-8",
    REPORT.decode(errors="replace").encode(): "bytes that are not valid text were replaced",
    BUNDLES["Azure IMDS JSON"]: "which contains only certificates",
    b'{"provider": "tdx_guest", "outblob": "AAAA"}': "found Intel TDX",
    b"\x82\xa4kind\xa7sev-snp" + bytes(100): "an attestation in MessagePack",
}


@pytest.mark.parametrize("data", NAMED, ids=NAMED.values())
def test_what_is_no_evidence_is_called_what_it_is(data: bytes) -> None:
    with pytest.raises(FormatError) as raised:
        Evidence.from_bytes(data)
    assert NAMED[data] in str(raised.value)


def test_a_report_whose_line_ends_were_changed_is_named() -> None:
    report = CA.report(report_data=b"\n" * 64)
    with pytest.raises(FormatError, match="line ends were changed"):
        Evidence.from_bytes(report.replace(b"\n", b"\r\n"))


@pytest.mark.parametrize("behind", [b"x", b"\n\n", b"\r", b" \n"])
def test_only_a_line_end_may_follow_a_report_without_a_table(behind: bytes) -> None:
    with pytest.raises(FormatError, match="expected a report of 1184 bytes, alone or"):
        Evidence.from_bytes(REPORT + behind)


PACKED = shapes.dstack_packed(REPORT, *DERS)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (PACKED[:-1], "ends before its last value|but only|ends within a number"),
        (PACKED + b"\0", "found 1 more bytes"),
        (b"\x82" + shapes.packed("sev-snp") + b"\1" + shapes.packed("sev-snp") + b"\1", "twice"),
        (b"\x81" + shapes.packed("sev-snp") + b"\x91" * 1000 + b"\0", "nested too deeply"),
        (b"\x81" + shapes.packed("sev-snp") + b"\xdd\xff\xff\xff\xff", "but only"),
        (b"\x82" + shapes.packed("sev-snp") + b"\1\1\1", "expected text as the key"),
        (b"\x81" + shapes.packed("sev-snp") + b"\xc7\1\1\1", "found 0xc7"),
        (b"\x81" + shapes.packed("sev-snp") + b"\xa2\xff\xfe", "expected text in UTF-8"),
        (
            b"\x81" + shapes.packed("sev-snp") + b"\xdc\xff\xff" + b"\x90" * 0xFFFF,
            "at most 10000 maps and arrays",
        ),
        (b"\x81" + shapes.packed("sev-snp") + b"\1", "which contains none"),
    ],
)
def test_bad_message_pack_is_an_error(data: bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        Evidence.from_bytes(data)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader_of_message_pack(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        read_message_pack(data)


def test_a_response_without_a_report_says_why() -> None:
    refused = bytearray(shapes.response(REPORT))
    refused[0] = 0x16
    with pytest.raises(FormatError, match="status 0x16"):
        Evidence.from_bytes(bytes(refused))
    with pytest.raises(FormatError, match="to the end of the report"):
        Evidence.from_bytes(shapes.response(REPORT)[:1000])


def test_two_reports_in_one_file_are_an_error() -> None:
    other = CA.report(report_data=b"\1" * 64)
    both = {"a": shapes.b64(REPORT), "b": shapes.b64(other)}
    with pytest.raises(FormatError, match="expected one report, found 2"):
        Evidence.from_bytes(json.dumps(both).encode())
    same = {"a": shapes.b64(REPORT), "b": REPORT.hex()}
    assert Evidence.from_bytes(json.dumps(same).encode()).report.raw == REPORT


CHAIN = "".join(map(shapes.pem, (ASK, ARK)))
# How public services and tools wrap a report and its certificates.
SERVICES = {
    "enclaive": {
        "Provider": "aws-sev-snp-raw",
        "Attestation": {"Product": "Milan", "Report": shapes.b64(REPORT)},
    },
    "Azure Attestation": {
        "report": shapes.b64url(
            json.dumps(
                {
                    "SnpReport": shapes.b64url(REPORT),
                    "VcekCertChain": shapes.b64url((shapes.pem(LEAF) + CHAIN).encode()),
                }
            ).encode()
        ),
        "runtimeData": {"data": "eA", "dataType": "JSON"},
    },
    "CCF": {
        "format": "AMD_SEV_SNP_v1",
        "raw": shapes.b64(REPORT),
        "endorsements": shapes.b64((shapes.pem(LEAF) + CHAIN).encode()),
    },
    "Constellation": {
        "Attestation": {"ak_pub": shapes.b64(bytes(300))},
        "InstanceInfo": shapes.b64(
            json.dumps(
                {
                    "ReportSigner": shapes.b64(shapes.pem(LEAF).encode()),
                    "CertChain": shapes.b64(CHAIN.encode()),
                    "AttestationReport": shapes.b64(REPORT),
                }
            ).encode()
        ),
    },
    "Trustee's key broker": {
        "tee": "snp",
        "evidence": shapes.trustee(REPORT, DERS).decode(),
        "additional_evidence": "",
    },
    "Trustee's verification request": {
        "verification_requests": [
            {"tee": "snp", "evidence": shapes.b64url(shapes.trustee(REPORT, DERS))}
        ]
    },
}


@pytest.mark.parametrize("name", SERVICES)
def test_evidence_as_services_wrap_it(name: str) -> None:
    evidence = Evidence.from_bytes(json.dumps(SERVICES[name]).encode())
    given_ = Given(Collateral(others=DERS if name == "enclaive" else ()))
    verdict = verify_with(evidence, [OWN, given_], anchors=anchors(), at=NOON)
    assert codes(verdict) == []


def test_broken_authorities_in_a_hosts_table_hide_no_others() -> None:
    """Guests of a cloud provider have received such tables."""
    slots = ((VCEK_GUID, LEAF), (ASK_GUID, b"\x30\x82\x01"), (ARK_GUID, bytes(40)))
    host = CertTable(tuple(TableEntry(*slot) for slot in slots)).encode()
    evidence = Evidence.from_parts(REPORT, host)
    given_ = Given(Collateral(others=(ASK, ARK)))
    assert codes(verify_with(evidence, [OWN, given_], anchors=anchors(), at=NOON)) == []


def test_an_anchor_may_be_amds_cert_chain(run: Command) -> None:
    """Of AMD's cert_chain, only the root is trusted."""
    Path("report").write_bytes(REPORT)
    Path("leaf").write_bytes(LEAF)
    Path("chain").write_text(CHAIN)
    Path("root.der").write_text(CHAIN)
    assert run("report", "--certs", "leaf")[0] == 1
    Path("leaf").write_text(shapes.pem(LEAF) + shapes.pem(ASK))
    assert run("report", "--certs", "leaf")[0] == 0
    for wrong in (shapes.pem(LEAF) + shapes.pem(ASK), shapes.pem(LEAF) + CHAIN):
        Path("root.der").write_text(wrong)
        assert run("report", "--certs", "leaf")[0] == 2
    Path("root.der").write_bytes(TABLE)
    assert run("report", "--certs", "leaf")[0] == 2


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            CHAIN.encode(),
            "a certificate in PEM, not a certificate table (pass the certificate with --certs)",
        ),
        (ARK, "a certificate in DER, not a certificate table"),
        (REPORT, "an attestation report, not a certificate table"),
        (b"<html><head>", "an HTML page, not a certificate table"),
    ],
)
def test_what_is_not_a_table_is_named(run: Command, table: bytes, said: str) -> None:
    Path("report").write_bytes(REPORT)
    Path("table").write_bytes(table)
    code, out, err = run("report", "--table", "table")
    assert (code, out) == (2, "")
    assert said in err


# The tests below are about which certificates are used.


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_certificates_in_each_others_slots_are_sorted(order: tuple[int, int, int]) -> None:
    vcek, ask, ark = (DERS[index] for index in order)
    exchanged = Collateral(vcek=vcek, ask=ask, ark=ark)
    assert codes(verify(REPORT, exchanged, anchors=anchors(), at=NOON)) == []


def _stale() -> Collateral:
    """The certificates after a firmware update: the table still has the VCEK of the old TCB."""
    before = replace(TCBS[CA.product], snp=TCBS[CA.product].snp - 1)
    return Collateral(vcek=SmallCa(tcb=before).leaf.make(), ask=ASK, ark=ARK)


def test_a_stale_table_is_no_answer_where_another_source_has_the_right_certificate() -> None:
    evidence = Evidence(REPORT, _stale())
    alone = verify_with(evidence, [OWN], anchors=anchors(), at=NOON)
    assert "tcb-mismatch" in codes(alone)
    fresh = Given(Collateral(vcek=LEAF))
    verdict = verify_with(evidence, [OWN, fresh], anchors=anchors(), at=NOON)
    assert (codes(verdict), verdict.sources) == ([], ())


def test_a_refusal_names_each_sources_fault() -> None:
    stale, other = _stale(), SmallCa(chip_id=b"\7" * 64)
    given_ = Given(Collateral(vcek=other.leaf.make()), name="--certs other", problems=("x is y",))
    evidence = Evidence(REPORT, stale)
    verdict = verify_with(evidence, [OWN, given_], anchors=anchors(), at=NOON)
    assert verdict.status is Status.REFUSED
    own, certs = verdict.sources
    assert own.source == "the certificates that came with the report"
    assert "the report has" in own.problem
    assert certs.source == "--certs other"
    assert certs.problem.startswith("x is y; ")


def test_an_outage_of_the_next_source_leaves_a_stale_table_undecided() -> None:
    class Down:
        name = "the key server"

        def collateral(self, request: CollateralRequest) -> Collateral:
            raise RetryLaterError(f"no answer for {request.kind.name}")

    evidence = Evidence(REPORT, _stale())
    verdict = verify_with(evidence, [OWN, Down()], anchors=anchors(), at=NOON)
    said = [each.code.value for each in verdict.reasons]
    assert (verdict.status, said) == (Status.UNDECIDED, ["collateral-unavailable"])
    assert [each.source for each in verdict.sources] == [
        "the certificates that came with the report",
        "the key server",
    ]
    # A forged report is refused, even while the key server is unreachable.
    broken = Evidence(flipped(REPORT, 0x2A0 + 40), Collateral(vcek=LEAF, ask=ASK, ark=ARK))
    assert verify_with(broken, [OWN, Down()], anchors=anchors(), at=NOON).status is Status.REFUSED


def test_a_chain_of_ones_own_beside_the_right_one_takes_nothing_away() -> None:
    forged = SmallCa(ark_key="other", ask_key="other")
    others = (forged.ark.make(), forged.ask.make(), forged.leaf.make(), *DERS)
    assert codes(verify(REPORT, Collateral(others=others), anchors=anchors(), at=NOON)) == []
    alone = Collateral(others=others[:3])
    assert "ark-untrusted" in codes(verify(REPORT, alone, anchors=anchors(), at=NOON))


def test_the_intermediate_is_that_of_the_leafs_kind() -> None:
    vlek = SmallCa(kind=VekKind.VLEK)
    mixed = (vlek.ask.make(), vlek.leaf.make(), vlek.ark.make(), *DERS)
    assert codes(verify(REPORT, Collateral(others=mixed), anchors=anchors(), at=NOON)) == []


# Files and directories.


def _lay(**files: bytes) -> None:
    for name, data in files.items():
        path = Path("in", name.replace("_dot_", "."))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)


@pytest.mark.parametrize("name", BUNDLES)
def test_a_directory_with_a_report_and_a_file_of_certificates(run: Command, name: str) -> None:
    _lay(guest_report=REPORT, whatever=BUNDLES[name])
    code, out, _ = run("in")
    assert (code, out.splitlines()[0][:8]) == (0, "verified")
    assert run("in/guest_report", "--certs", "in")[0] == 0
    assert run("in/guest_report", "--certs", "in/whatever")[0] == 0


@pytest.mark.parametrize("name", [*WHOLE, *ALONE])
def test_evidence_in_every_shape_beside_certificates(run: Command, name: str) -> None:
    _lay(evidence=(WHOLE.get(name) or ALONE[name])(REPORT), chain_dot_pem=BUNDLES["PEM"])
    assert run("in")[0] == 0


def test_two_reports_share_what_lies_there_and_other_files_take_nothing_away(run: Command) -> None:
    second = CA.report(report_data=b"\2" * 64)
    _lay(a_dot_bin=REPORT, b_dot_bin=second, program=b"\x7fELF" + bytes(5000))
    _lay(main_dot_go=b"package main\n" * 200, readme=b"how to\n", page_dot_html=b"<html></html>")
    _lay(vcek_dot_crt=LEAF, ask_dot_CER=ASK, ark_dot_cert=ARK, vcek_dot_pem=BUNDLES["PEM"])
    code, out, err = run("in")
    assert (code, err) == (0, "")
    assert "2 in all: 2 verified" in out


def test_a_file_that_should_be_a_certificate_is_named(run: Command) -> None:
    _lay(report=REPORT, ask_dot_pem=b"<html><body>429</body></html>", ark_dot_der=ARK)
    _lay(vcek_dot_pem=b"404 - Not Found")
    code, out, _ = run("in/report", "--certs", "in")
    assert code == 1
    assert "ask.pem is an HTML page, not a certificate" in out
    assert "vcek.pem is the text '404 - Not Found', not a certificate" in out
    _, _, err = run("in")
    assert "ask.pem is an HTML page, not a certificate" in err


def test_a_stale_table_in_a_file(run: Command) -> None:
    Path("report").write_bytes(REPORT)
    stale = _stale()
    assert stale.vcek is not None
    entries = ((VCEK_GUID, stale.vcek), (ASK_GUID, ASK), (ARK_GUID, ARK))
    table = CertTable(tuple(TableEntry(guid, data) for guid, data in entries))
    Path("stale").write_bytes(table.encode())
    _lay(all_dot_pem=BUNDLES["PEM"])
    assert run("report", "--table", "stale", "--certs", "in")[0] == 0
    code, out, _ = run("report", "--table", "stale")
    assert code == 1
    assert "tcb-mismatch" in out
    assert "next: the certificate is not for the key that signed" in out


def test_pipes_and_standard_input() -> None:
    command = [sys.executable, "-m", "snpcerts", "report", "show", "-", "--json"]
    shown = subprocess.run(
        command, input=base64.b64encode(REPORT), stdout=subprocess.PIPE, check=True
    )
    assert json.loads(shown.stdout)["chip_id"] == CA.chip_id.hex()


def test_a_named_pipe_is_read_to_its_end(run: Command) -> None:
    Path("certs.pem").write_bytes(BUNDLES["PEM"])
    os.mkfifo("pipe")

    def write() -> None:
        with open("pipe", "wb") as pipe:
            for part in (REPORT[:500], REPORT[500:]):
                pipe.write(part)
                pipe.flush()

    writer = threading.Thread(target=write)
    writer.start()
    assert run("pipe", "--certs", "certs.pem")[0] == 0
    writer.join()


@given(st.text(alphabet="0123456789abcdefxX,: \n*{}", max_size=300))
def test_text_of_digits_is_bytes_or_nothing(text: str) -> None:
    found = bytes_in(text)
    assert found is None or len(found) <= len(text)
