# SPDX-License-Identifier: Apache-2.0
"""Evidence in every format becomes one object, and hostile input is an error."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import uuid
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.cert_table import ARK_GUID, ASK_GUID, VCEK_GUID, VLEK_GUID, CertTable, TableEntry
from snpcerts.abi.report import Report
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import FormatError
from snpcerts.verify.evidence import Evidence, RuntimeData, Shape
from snpcerts.verify.judging import verify
from snpcerts.verify.policy import Policy
from snpcerts.verify.verdict import Verdict
from tests.endorsement.small_ca import NOON, SmallCa
from tests.verify.test_verify import anchors, codes

CA = SmallCa()
VLEK_CA = SmallCa(kind=VekKind.VLEK)
CLAIMS = json.dumps({"keys": [], "user-data": "0A0b"}).encode()
GOOGLE_FIRMWARE = uuid.UUID("9f4116cd-c503-4f5a-8f6f-fb68882f4ce2")
PLATFORM_INFO = uuid.UUID("ecae0c0f-9502-43b1-afa2-0ae2e0d565b6")


def table(*entries: tuple[uuid.UUID, bytes]) -> bytes:
    return CertTable(tuple(TableEntry(*entry) for entry in entries)).encode()


def full_table(ca: SmallCa = CA) -> bytes:
    leaf = VCEK_GUID if ca.kind is VekKind.VCEK else VLEK_GUID
    return table((leaf, ca.leaf.make()), (ASK_GUID, ca.ask.make()), (ARK_GUID, ca.ark.make()))


def pem(data: bytes) -> bytes:
    return load_certificate(data, "x").public_bytes(Encoding.PEM)


def hcl(
    report: bytes,
    claims: bytes = CLAIMS,
    *,
    magic: bytes = b"HCLA",
    version: int = 2,
    runtime_version: int = 1,
    kind: int = 2,
    digest: int = 1,
    size: int | None = None,
    padding: bytes = bytes(100),
) -> bytes:
    header = magic + struct.pack("<7I", version, 1819, 2, 0, 0, 0, 0)
    length = len(claims) if size is None else size
    runtime = struct.pack("<5I", 20 + len(claims), runtime_version, kind, digest, length)
    return header + report + runtime + claims + padding


def bound(claims: bytes = CLAIMS, digest: str = "sha256") -> bytes:
    return CA.report(report_data=hashlib.new(digest, claims).digest().ljust(64, b"\0"))


def judge(evidence: Evidence, policy: Policy | None = None, ca: SmallCa = CA) -> Verdict:
    return verify(evidence, policy=policy, anchors=anchors(ca), at=NOON)


def test_evidence_parses_its_report_once() -> None:
    """For bytes of another size, Evidence raises an error, but the verifier returns a verdict."""
    report = CA.report()
    evidence = Evidence(report)
    assert evidence.report == Report.unpack(report)
    assert Evidence(evidence.report).report is evidence.report
    assert replace(evidence, shape=Shape.HCL).report is evidence.report
    assert pickle.loads(pickle.dumps(evidence)) == evidence  # noqa: S301 (our own)
    with pytest.raises(FormatError, match="expected 1184 bytes, found 5"):
        Evidence(b"short")
    assert codes(verify(b"short", anchors=anchors(), at=NOON)) == ["report-size"]


def test_a_report_alone() -> None:
    evidence = Evidence.from_bytes(CA.report())
    assert (evidence.shape, evidence.table) == (Shape.REPORT, None)
    assert codes(judge(evidence)) == ["vcek-missing", "ask-missing", "ark-missing"]


@pytest.mark.parametrize("padding", [0, 1, 4096])
def test_a_report_with_its_table_behind_it(padding: int) -> None:
    evidence = Evidence.from_bytes(CA.report() + full_table() + bytes(padding))
    assert evidence.shape is Shape.REPORT_AND_TABLE
    assert codes(judge(evidence)) == []


def test_outblob_and_auxblob() -> None:
    assert codes(judge(Evidence.from_parts(CA.report(), full_table()))) == []
    assert Evidence.from_parts(CA.report(), b"").table is None
    assert Evidence.from_parts(CA.report(), bytes(24)).collateral.vcek is None


def test_certificates_in_pem_and_unknown_guids_are_kept() -> None:
    """Google's hosts send such a table, and go-sev-guest adds an entry to it."""
    served = table(
        (GOOGLE_FIRMWARE, b"an endorsement"),
        (VCEK_GUID, pem(CA.leaf.make())),
        (ASK_GUID, pem(CA.ask.make())),
        (ARK_GUID, pem(CA.ark.make())),
        (PLATFORM_INFO, struct.pack("<II", 8, 0xA00F11)),
    )
    evidence = Evidence.from_parts(CA.report(), served)
    assert codes(judge(evidence)) == []
    assert evidence.table is not None
    assert evidence.table.get(GOOGLE_FIRMWARE) == b"an endorsement"


def test_a_vlek_alone_lacks_only_the_certificates_above_it() -> None:
    """Amazon's hosts send such a table, with a report whose chip ID is zero."""
    report = VLEK_CA.report(chip_id=bytes(64))
    evidence = Evidence.from_parts(report, table((VLEK_GUID, VLEK_CA.leaf.make())))
    verdict = judge(evidence, ca=VLEK_CA)
    assert codes(verdict) == ["ask-missing", "ark-missing"]
    assert verdict.check("chip-id").found == "a VLEK belongs to no chip"


def test_a_masked_chip_id_is_taken_only_when_the_policy_says_so() -> None:
    evidence = Evidence.from_parts(CA.report(chip_id=bytes(64)), full_table())
    assert codes(judge(evidence)) == ["chip-id-masked"]
    verdict = judge(evidence, Policy(allow_masked_chip_id=True))
    assert codes(verdict) == []
    assert verdict.check("chip-id").state.value == "not-asked"
    other = Evidence.from_parts(CA.report(chip_id=b"\1" * 64), full_table())
    assert codes(judge(other, Policy(allow_masked_chip_id=True))) == ["chip-id-mismatch"]


@pytest.mark.parametrize(("number", "name"), [(1, "sha256"), (2, "sha384"), (3, "sha512")])
def test_the_runtime_data_of_an_hcl_report_must_be_bound(number: int, name: str) -> None:
    parts = Evidence.from_parts(CA.report(), full_table()).collateral
    evidence = Evidence.from_bytes(hcl(bound(digest=name), digest=number))
    assert evidence.shape is Shape.HCL
    verdict = verify(evidence, parts, anchors=anchors(), at=NOON)
    assert codes(verdict) == []
    assert verdict.check("runtime-data").state.value == "passed"
    forged = Evidence.from_bytes(hcl(bound(digest=name), CLAIMS + b" ", digest=number))
    verdict = verify(forged, parts, anchors=anchors(), at=NOON)
    assert codes(verdict) == ["runtime-data-mismatch"]
    assert verdict.check("runtime-data").state.value == "failed"


def test_a_digest_with_more_behind_it_binds_nothing() -> None:
    """After the digest, REPORT_DATA must be zero. Other bytes show that somebody else chose it."""
    report_data = hashlib.sha256(CLAIMS).digest() + b"\1" * 32
    evidence = Evidence.from_bytes(hcl(CA.report(report_data=report_data)))
    assert "runtime-data-mismatch" in codes(judge(evidence))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 0}, "version"),
        ({"version": 3}, "version"),
        ({"runtime_version": 2}, "runtime data version"),
        ({"kind": 4}, "SEV-SNP"),
        ({"digest": 0}, "hash type"),
        ({"digest": 4}, "hash type"),
        ({"size": len(CLAIMS) + 101}, "claim size"),
        ({"size": 0xFFFFFFFF}, "claim size"),
        ({"size": 3}, "only zero bytes"),
        ({"padding": b"\0\1"}, "only zero bytes"),
        ({"padding": bytes(70000)}, "expected at most"),
    ],
)
def test_a_malformed_hcl_report_is_an_error(changes: dict[str, object], said: str) -> None:
    with pytest.raises(FormatError, match=said):
        Evidence.from_bytes(hcl(bound(), **changes))  # type: ignore[arg-type]  # each by name
    for size in (4, 31, 1215, 1235):
        with pytest.raises(FormatError, match="at least"):
            Evidence.from_bytes(hcl(bound())[:size])


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        (CLAIMS, b"\x0a\x0b"),
        (b'{"user-data": ""}', b""),
        (b'{"user-data": "0"}', None),
        (b'{"user-data": 1}', None),
        (b'{"user-data": "\xc3\xa9"}', None),
        (b"{}", None),
        (b"[]", None),
        (b"", None),
        (b"\xff", None),
        (b"[" * 50000, None),
        (b"1" * 5000, None),
    ],
    ids=range(11),
)
def test_user_data_is_read_from_the_claims_if_it_is_there(
    claims: bytes, expected: bytes | None
) -> None:
    assert RuntimeData(claims, "sha256").user_data() == expected


@pytest.mark.parametrize("size", [0, 1, 1183])
def test_too_few_bytes_are_an_error(size: int) -> None:
    with pytest.raises(FormatError, match=r"1184|empty"):
        Evidence.from_bytes(b"\1" * size)
    with pytest.raises(FormatError, match="1184"):
        Evidence.from_parts(bytes(size))


def test_too_many_bytes_are_an_error() -> None:
    with pytest.raises(FormatError, match="expected at most"):
        Evidence.from_bytes(CA.report() + bytes((1 << 20) + 1))


OTHER_FILES = {
    "5000 zero bytes": bytes(5000),
    "zero bytes, as large as a report": bytes(1184),
    "a MessagePack array": b"\xdd\xff\xff\xff\xff" + bytes(4995),
    "a number and zeros": (5).to_bytes(4, "little") + bytes(1180),
    "ones and a table's end": b"\xff" * 1184 + bytes(24),
    "text that could be hexadecimal": b"a" * 1184,
    "text that could be base64": b"Z" * 2000,
    "zeros in base64": b"A" * 1580,
    "zeros in JSON": json.dumps({"outblob": "00" * 1184}).encode(),
    "zeros in an HCL report": hcl(bytes(1184)),
    "zeros in the driver's response": struct.pack("<II24x", 0, 1184) + bytes(4000 - 32),
    "zeros in Dstack's": b"\0\3" + (1184 << 2 | 1).to_bytes(2, "little") + bytes(1190),
    "zeros in fields": json.dumps(
        {
            "measurement": [0] * 48,
            "reportedTcb": "0",
            "signature": [0] * 512,
            **{name: [0] * 48 for name in ("idKeyDigest", "authorKeyDigest")},
            **{name: [0] * 64 for name in ("reportData", "chipId")},
            **{name: [0] * 32 for name in ("hostData", "reportId", "reportIdMa")},
            **{name: [0] * 16 for name in ("familyId", "imageId")},
        }
    ).encode(),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_file_that_holds_no_report_is_not_judged(name: str) -> None:
    """Each file only happens to have the size or the first bytes of evidence."""
    with pytest.raises(FormatError) as raised:
        Evidence.from_bytes(OTHER_FILES[name])
    for jargon in ("CBOR", "certificate table", "offset"):
        assert jargon not in str(raised.value)


@pytest.mark.parametrize(
    ("offset", "value", "code"),
    [
        (0, 6, "report-version"),
        (0, 0, "report-version"),
        (0, 0xFFFFFFFF, "report-version"),
        (0x34, 0, "report-signature-algorithm"),
        (0x34, 2, "report-signature-algorithm"),
        (0x08, 0, "report-policy"),
        (0x0C, 0xFFFFFFFF, "report-policy"),
    ],
)
def test_a_report_with_one_field_changed_is_still_judged(
    offset: int, value: int, code: str
) -> None:
    changed = bytearray(CA.report())
    changed[offset : offset + 4] = value.to_bytes(4, "little")
    assert code in codes(judge(Evidence.from_bytes(bytes(changed) + full_table())))


@given(st.binary(max_size=200), st.sampled_from([b"", b"HCLA", CA.report(), hcl(bound())]))
def test_garbage_is_never_anything_but_a_format_error(tail: bytes, head: bytes) -> None:
    try:
        evidence = Evidence.from_bytes(head + tail)
    except FormatError:
        return
    judge(evidence).to_json()


@pytest.mark.parametrize(
    "text", [b"report: {\n  version: 2\n", b" report:{version:2", b"version: 3"]
)
def test_a_message_in_text_form_is_reported_as_such(text: bytes) -> None:
    with pytest.raises(FormatError, match="text form") as error:
        Evidence.from_bytes(text.ljust(4000))
    assert "show -inform textproto -outform bin" in str(error.value.hint)
