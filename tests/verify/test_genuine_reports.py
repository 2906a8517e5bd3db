# SPDX-License-Identifier: Apache-2.0
"""Genuine reports verify; with one bit of anything turned over they do not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from snpcerts.abi.cert_table import ARK_GUID, ASK_GUID, VLEK_GUID, CertTable, TableEntry
from snpcerts.abi.product import Product
from snpcerts.abi.report import REPORT_SIZE, SIGNED_SIZE, SigningKey
from snpcerts.endorsement.anchors import AMD_ANCHORS
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.verdict import Status, Verdict
from snpcerts.verify.verify import verify
from tests.endorsement.small_ca import SmallCa, every, flipped


@dataclass(frozen=True)
class Evidence:
    """A genuine report, what came with it, and a time at which it is good."""

    report: bytes
    collateral: Collateral
    at: datetime

    def verdict(self, **changes: object) -> Verdict:
        values: dict[str, object] = {"collateral": self.collateral, "at": self.at}
        return verify(self.report, **(values | changes))  # type: ignore[arg-type]

    def verdict_of(self, report: bytes) -> Verdict:
        return verify(report, self.collateral, at=self.at)


NAMES = ("milan", "turin-v5", "vlek-milan-v3")
TIMES = {
    "milan": datetime(2024, 1, 1, tzinfo=UTC),
    "turin-v5": datetime(2026, 6, 1, tzinfo=UTC),
    "vlek-milan-v3": datetime(2025, 6, 1, tzinfo=UTC),
}


def load(vectors: Path, name: str) -> Evidence:
    def data(file: str) -> bytes:
        return (vectors / name / file).read_bytes()

    if name.startswith("vlek"):
        parts = Collateral(vlek=data("vlek.der"), ask=data("asvk.der"), ark=data("ark.der"))
    else:
        parts = Collateral(vcek=data("vcek.der"), ask=data("ask.der"), ark=data("ark.der"))
    return Evidence(data("report.bin"), parts, TIMES[name])


@pytest.fixture(params=NAMES)
def evidence(request: pytest.FixtureRequest, vectors: Path) -> Evidence:
    return load(vectors, request.param)


@pytest.fixture
def milan(vectors: Path) -> Evidence:
    return load(vectors, "milan")


def codes(verdict: Verdict) -> list[str]:
    assert (verdict.status is Status.REFUSED) == bool(verdict.reasons)
    return [reason.code.value for reason in verdict.reasons]


@pytest.mark.parametrize(
    ("name", "product", "key"),
    [
        ("milan", Product.MILAN, SigningKey.VCEK),
        ("turin-v5", Product.TURIN, SigningKey.VCEK),
        ("vlek-milan-v3", Product.MILAN, SigningKey.VLEK),
    ],
)
def test_genuine_reports_verify(
    vectors: Path, name: str, product: Product, key: SigningKey
) -> None:
    evidence = load(vectors, name)
    verdict = evidence.verdict()
    assert verdict.status is Status.VERIFIED
    assert verdict.reasons == ()
    assert (verdict.product, verdict.signing_key) == (product, key)
    assert verdict.report is not None
    assert verdict.report.raw == evidence.report
    assert verdict.leaf is not None
    assert verdict.tcbs.reported == verdict.leaf.tcb


def test_the_vleks_report_has_four_tcbs_of_three_values(vectors: Path) -> None:
    tcbs = load(vectors, "vlek-milan-v3").verdict().tcbs
    read = [None if tcb is None else tcb.pack().hex() for tcb in tcbs.named().values()]
    assert read == ["04000000000018dc", "04000000000018d9", "04000000000018db", "04000000000018db"]


# (first byte, end, bit turned over, code): fields with a code of their own.
OWN_CODES = (
    (0x00, 0x04, 7, "report-version"),
    (0x0C, 0x10, 7, "report-policy"),
    (0x34, 0x38, 0, "report-signature-algorithm"),
    (0x49, 0x4C, 0, "report-flags"),
    (0x4C, 0x50, 0, "report-reserved"),
    (0x180, 0x182, 0, "tcb-mismatch"),
    (0x184, 0x186, 0, "report-tcb"),
    (0x187, 0x188, 0, "tcb-mismatch"),
    (0x18B, 0x1A0, 0, "report-reserved"),
    (0x1EB, 0x1EC, 0, "report-reserved"),
    (0x208, 0x2A0, 0, "report-reserved"),
)


@pytest.mark.parametrize("bit", [0, 7])
def test_no_byte_of_the_signed_range_can_change(evidence: Evidence, bit: int) -> None:
    for index in range(SIGNED_SIZE):
        found = codes(evidence.verdict_of(flipped(evidence.report, index, bit)))
        assert "report-signature" in found, hex(index)
        for start, end, own_bit, code in OWN_CODES:
            if bit == own_bit and start <= index < end:
                assert code in found, hex(index)


def test_no_byte_of_the_signature_can_change(evidence: Evidence) -> None:
    for index in range(SIGNED_SIZE, REPORT_SIZE):
        found = codes(evidence.verdict_of(flipped(evidence.report, index, index % 8)))
        part = index - SIGNED_SIZE
        expected = {"report-signature"} if part < 144 else set()
        if part >= 144 or part % 72 >= 48:
            expected.add("report-reserved")
        assert set(found) == expected, hex(index)


def test_a_chip_id_of_another_chip_is_said_to_be_so(milan: Evidence) -> None:
    for index in range(0x1A0, 0x1E0):
        found = codes(milan.verdict_of(flipped(milan.report, index)))
        assert found == ["chip-id-mismatch", "report-signature"]


@pytest.mark.parametrize("slot", ["leaf", "ask", "ark"])
def test_no_certificate_can_change(evidence: Evidence, slot: str) -> None:
    """Bits all over each certificate, the signed part and the signature alike."""
    if slot == "leaf":
        slot = "vcek" if evidence.collateral.vcek else "vlek"
    data = getattr(evidence.collateral, slot)
    for index in every(data, 7):
        for bit in (0, 5):
            changed = replace(evidence.collateral, **{slot: flipped(data, index, bit)})
            verdict = evidence.verdict(collateral=changed)
            assert verdict.status is Status.REFUSED, (index, bit)


@pytest.mark.parametrize("slot", ["vcek", "ask", "ark"])
def test_nothing_around_the_signed_part_can_change(milan: Evidence, slot: str) -> None:
    """The outer header, the outer algorithm, the header of the signature: every bit."""
    data = getattr(milan.collateral, slot)
    signed = load_certificate(data, slot).tbs_certificate_bytes
    start = data.index(signed)
    for index in (*range(start), *range(start + len(signed), len(data) - 512)):
        for bit in range(8):
            changed = replace(milan.collateral, **{slot: flipped(data, index, bit)})
            assert milan.verdict(collateral=changed).status is Status.REFUSED, (index, bit)


def test_certificates_of_other_reports_do_not_serve(vectors: Path) -> None:
    milan, turin, vlek = (load(vectors, name) for name in NAMES)
    foreign = milan.verdict(collateral=turin.collateral, at=turin.at)
    assert codes(foreign) == [
        "report-tcb",
        "report-tcb",
        "report-tcb",
        "report-tcb",
        "chip-id-mismatch",
        "report-signature",
    ]
    foreign = turin.verdict(collateral=milan.collateral)
    assert {"product-mismatch", "chip-id-mismatch", "report-signature"} <= set(codes(foreign))
    crossed = replace(milan.collateral, ask=turin.collateral.ask)
    assert codes(milan.verdict(collateral=crossed, at=turin.at)) == [
        "leaf-issuer",
        "leaf-signature",
        "ask-issuer",
        "ask-signature",
        "chain-product",
    ]
    crossed = replace(milan.collateral, ask=vlek.collateral.ask)
    assert codes(milan.verdict(collateral=crossed)) == ["leaf-issuer", "leaf-signature", "ask-name"]
    crossed = replace(milan.collateral, ark=milan.collateral.ask, ask=milan.collateral.ark)
    assert {"ask-name", "ark-name", "ark-untrusted"} <= set(
        codes(milan.verdict(collateral=crossed))
    )
    misplaced = replace(milan.collateral, vcek=vlek.collateral.vlek, ask=vlek.collateral.ask)
    assert "leaf-kind" in codes(milan.verdict(collateral=misplaced, at=vlek.at))
    unused = replace(milan.collateral, vlek=b"garbage")
    assert codes(milan.verdict(collateral=unused)) == []
    given = replace(milan.collateral, crl=b"garbage")
    assert codes(milan.verdict(collateral=given)) == ["crl-unreadable"]


@pytest.mark.parametrize(
    ("year", "expected"),
    [
        (2019, ["leaf-not-yet-valid", "ask-not-yet-valid", "ark-not-yet-valid"]),
        (2022, ["leaf-not-yet-valid"]),
        (2024, []),
        (2031, ["leaf-expired"]),
        (2046, ["leaf-expired", "ask-expired", "ark-expired"]),
    ],
)
def test_validity_is_judged_at_each_call(milan: Evidence, year: int, expected: list[str]) -> None:
    assert codes(milan.verdict()) == []
    assert codes(milan.verdict(at=datetime(year, 1, 1, tzinfo=UTC))) == expected


def test_only_the_anchors_given_are_trusted(milan: Evidence) -> None:
    """Also when the same chain has just been found good with others."""
    assert codes(milan.verdict()) == []
    assert codes(milan.verdict(anchors=())) == ["ark-untrusted"]
    assert codes(milan.verdict(anchors=AMD_ANCHORS[1:])) == ["ark-untrusted"]
    assert codes(milan.verdict(anchors=AMD_ANCHORS[:1])) == []


def test_a_self_made_chain_with_amd_names_is_untrusted(milan: Evidence) -> None:
    ca = SmallCa(suffix="")
    parts = Collateral(vcek=ca.leaf.make(), ask=ca.ask.make(), ark=ca.ark.make())
    assert codes(verify(ca.report(), parts, at=milan.at)) == ["ark-untrusted"]


def test_without_a_certificate_the_others_are_still_judged(milan: Evidence) -> None:
    for slot, code in (("vcek", "vcek-missing"), ("ask", "ask-missing"), ("ark", "ark-missing")):
        parts = replace(milan.collateral, **{slot: None})
        assert codes(milan.verdict(collateral=parts)) == [code]
        assert codes(milan.verdict(collateral=parts, anchors=()))[0] == code
    assert codes(milan.verdict(collateral=Collateral())) == [
        "vcek-missing",
        "ask-missing",
        "ark-missing",
    ]


def test_a_table_serves_as_collateral(vectors: Path) -> None:
    vlek = load(vectors, "vlek-milan-v3")
    parts = vlek.collateral
    entries = ((VLEK_GUID, parts.vlek), (ASK_GUID, parts.ask), (ARK_GUID, parts.ark))
    table = CertTable(tuple(TableEntry(guid, data) for guid, data in entries if data))
    served = Collateral.from_table(CertTable.decode(table.encode()))
    assert served == parts
    assert codes(vlek.verdict(collateral=served)) == []
