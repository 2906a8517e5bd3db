# SPDX-License-Identifier: Apache-2.0
"""Genuine reports verify; with any bit flipped they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from snpcerts.abi.cert_table import ARK_GUID, ASK_GUID, VLEK_GUID, CertTable, TableEntry
from snpcerts.abi.product import Product, product_of_cpuid
from snpcerts.abi.report import REPORT_SIZE, SIGNED_SIZE, ReportLayout, SigningKey
from snpcerts.endorsement.anchors import AMD_ANCHORS
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.endorsement.der import read_element
from snpcerts.endorsement.vek import AMD_ARC
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.judging import verify
from snpcerts.verify.verdict import Status, Verdict
from tests.endorsement.small_ca import SmallCa, every, flipped

from ..sizes import sized
from .slots import with_slot


@dataclass(frozen=True)
class Evidence:
    """A genuine report, its certificates, and a time at which it verifies."""

    name: str
    report: bytes
    collateral: Collateral
    at: datetime

    def verdict(self, **changes: object) -> Verdict:
        values: dict[str, object] = {"collateral": self.collateral, "at": self.at}
        return verify(self.report, **(values | changes))  # type: ignore[arg-type]

    @property
    def turin(self) -> bool:
        """Whether a Turin made the report. Its TCB layout differs from that of Milan and Genoa."""
        return self.name.startswith("turin")

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
    return Evidence(name, data("report.bin"), parts, TIMES[name])


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


TCBS = ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb")
MITIGATIONS = ("launch_mit_vector", "current_mit_vector")


def codes_of_a_bit(evidence: Evidence, changed: bytes, name: str, at: int, bit: int) -> set[str]:
    """The reasons that a flipped bit of a field must give: the signature's, and the field's own.

    ``at`` counts from the field's first byte. If the bit makes the report name another signing
    key, there is no leaf to check the signature with.
    """
    vlek = evidence.collateral.vcek is None
    version = int.from_bytes(evidence.report[:4], "little")
    index = 8 * at + bit
    own: set[str] = set()
    if name == "version":
        now = int.from_bytes(changed[:4], "little")
        if now not in (2, 3, 4, 5):
            own.add("report-version")
        elif now == 2 and version > 2:
            own.add("report-reserved")  # its CPUID fields
        if version == 2 and now > 2:
            own.add("product-unknown")
    elif name == "policy":
        if index == 17 or index >= 26:
            own.add("report-policy")
        own |= {18: {"policy-migration-agent"}, 19: {"policy-debug"}}.get(index, set())
    elif name == "signature_algo":
        own.add("report-signature-algorithm")
    elif name == "flags":
        if index == 2:
            return {"ask-name", "vcek-missing" if vlek else "vlek-missing"}
        if index in (3, 4):
            return {"report-signing-key"}
        if index > 4:
            own.add("report-flags")
    elif name in TCBS:
        if at in ((4, 5, 6) if evidence.turin else (2, 3, 4, 5)):
            own.add("report-tcb")
        elif name == "reported_tcb":
            own.add("tcb-mismatch")
        own |= _above_current(evidence, changed)
    elif name.startswith("cpuid_") and version == 2:
        own.add("report-reserved")
    elif name in ("cpuid_family", "cpuid_model"):
        product = product_of_cpuid(changed[0x188], changed[0x189])
        expected = Product.TURIN if evidence.turin else Product.MILAN
        if product is None:
            own.add("product-unknown")
        elif product is not expected:
            own.add("product-mismatch")
    elif name == "chip_id" and not vlek:
        own.add("chip-id-mismatch")
    elif name in MITIGATIONS and version < 4:
        own.add("report-reserved")
    return own | {"report-signature"}


def _above_current(evidence: Evidence, changed: bytes) -> set[str]:
    """The reason, if the changed report or the leaf has a component above the current TCB."""
    components = (0, 1, 2, 3, 7) if evidence.turin else (0, 1, 6, 7)
    current, reported = (
        changed[start : start + 8]
        for start in (FIELDS["current_tcb"][0], FIELDS["reported_tcb"][0])
    )
    if not {reported[i] for i in range(8) if i not in components} <= {0}:
        return set()
    if not {current[i] for i in range(8) if i not in components} <= {0}:
        return set()
    start = FIELDS["reported_tcb"][0]
    of_leaf = evidence.report[start : start + 8]
    above = any(max(reported[i], of_leaf[i]) > current[i] for i in components)
    return {"policy-tcb-above-current"} if above else set()


def bits_of(byte: int) -> Sequence[int]:
    """Return the bits of a byte to try: one, which differs from byte to byte, or all."""
    return sized((byte % 8,), range(8))


FIELDS = {name: place for name, place in ReportLayout.layout().items() if name != "signature"}


@pytest.mark.parametrize("field", FIELDS)
def test_no_bit_of_a_field_can_change(evidence: Evidence, field: str) -> None:
    offset, size = FIELDS[field]
    for at in range(size):
        for bit in range(8) if size <= 8 else bits_of(at):
            changed = flipped(evidence.report, offset + at, bit)
            found = set(codes(evidence.verdict_of(changed)))
            assert found == codes_of_a_bit(evidence, changed, field, at, bit), (at, bit)


def test_no_bit_between_the_fields_can_change(evidence: Evidence) -> None:
    of_fields = {at for start, size in FIELDS.values() for at in range(start, start + size)}
    between = [at for at in range(SIGNED_SIZE) if at not in of_fields]
    assert len(between) == 4 + 21 + 1 + 1 + 152
    for at in between:
        for bit in (0, 7):
            found = codes(evidence.verdict_of(flipped(evidence.report, at, bit)))
            assert found == ["report-reserved", "report-signature"], hex(at)


def test_no_byte_of_the_signature_can_change(evidence: Evidence) -> None:
    for index in range(SIGNED_SIZE, REPORT_SIZE):
        found = codes(evidence.verdict_of(flipped(evidence.report, index, index % 8)))
        part = index - SIGNED_SIZE
        expected = {"report-signature"} if part < 144 else set()
        if part >= 144 or part % 72 >= 48:
            expected.add("report-reserved")
        assert set(found) == expected, hex(index)


def test_a_chip_id_of_another_chip_is_reported(milan: Evidence) -> None:
    for index in range(0x1A0, 0x1E0):
        found = codes(milan.verdict_of(flipped(milan.report, index)))
        assert found == ["chip-id-mismatch", "report-signature"]


# The reasons for a change in a part of a certificate; {} is the certificate's place in the chain.
PARTS = {
    "version": {"{}-unreadable"},
    "serial number": {"{}-signature"},
    "inner algorithm": {"{}-signature-algorithm", "{}-signature"},
    "issuer": {"{}-issuer", "{}-signature"},
    "validity": {"{}-signature"},
    "outer algorithm": {"{}-signature-algorithm"},
    "signature": {"{}-signature"},
}
SUBJECTS = {
    "leaf": {"leaf-profile", "leaf-kind", "leaf-signature"},
    "ask": {"leaf-issuer", "ask-name", "ask-signature"},
    "ark": {"ask-issuer", "ark-name", "ark-issuer", "ark-signature"},
}
KEYS = {
    "leaf": {"leaf-unreadable"},  # the point is on no curve
    "ask": {"leaf-signature", "ask-signature"},
    "ark": {"ask-signature", "ark-signature", "ark-untrusted"},
}
# The reason for a change in an extension, by the part of its OID after AMD's arc. All other
# extensions give leaf-profile.
LEVELS = dict.fromkeys(("3.1", "3.2", "3.3", "3.8", "3.9"), "tcb-mismatch")
EXTENSIONS = LEVELS | {"4": "chip-id-mismatch", "5": None}


def anatomy(der: bytes) -> dict[str, tuple[int, int]]:
    """For each part of a certificate, where its content starts and ends."""

    def inside(at: int) -> tuple[int, int]:
        element = read_element(der, at, "certificate")
        return element.end - len(element.content), element.end

    parts: dict[str, tuple[int, int]] = {}
    signed, end = inside(inside(0)[0])
    at = signed
    for name in (*("version", "serial number", "inner algorithm"), *("issuer", "validity")):
        parts[name] = inside(at)
        at = parts[name][1]
    for name in ("subject", "key"):
        parts[name] = inside(at)
        at = parts[name][1]
    listed = inside(inside(at)[0])
    parts["outer algorithm"] = inside(end)
    parts["signature"] = inside(parts["outer algorithm"][1])
    at = listed[0]
    while at < listed[1]:
        start, end = inside(at)
        oid = inside(start)
        parts["extension " + der[slice(*oid)].hex()] = start, end
        at = end
    return parts


@pytest.mark.parametrize("place", ["leaf", "ask", "ark"])
def test_no_part_of_a_certificate_can_change(evidence: Evidence, place: str) -> None:
    """A change in any part or extension is refused, with the reason codes for that change."""
    slot = place
    if place == "leaf":
        slot = "vcek" if evidence.collateral.vcek else "vlek"
    data = getattr(evidence.collateral, slot)
    found = anatomy(data)
    assert set(PARTS) | {"subject", "key"} < set(found)
    for name, (start, end) in found.items():
        # Change a digit of the validity's end, the middle of the key, or the last byte elsewhere.
        at = {"validity": end - 2, "key": (start + end) // 2}.get(name, end - 1)
        changed = with_slot(evidence.collateral, slot, flipped(data, at))
        verdict = evidence.verdict(collateral=changed)
        got = set(codes(verdict))
        if verdict.leaf is not None and verdict.tcbs.current is not None:
            above = not verdict.tcbs.current.covers(verdict.leaf.tcb)
            assert ("policy-tcb-above-current" in got) == above
            got.discard("policy-tcb-above-current")
        if name.startswith("extension"):
            assert got & {f"{place}-signature", f"{place}-unreadable"}, name
            if place == "leaf":
                assert got == _of_extension(evidence, name), (name, got)
            continue
        expected = {"subject": SUBJECTS[place], "key": KEYS[place]}.get(name) or PARTS[name]
        reasons = {each.format(place) for each in expected}
        if place == "leaf":
            reasons = {each.replace("leaf-unreadable", f"{slot}-unreadable") for each in reasons}
        assert got == reasons, (name, got)


def _of_extension(evidence: Evidence, name: str) -> set[str]:
    oid = x509.ObjectIdentifier(_dotted(bytes.fromhex(name.split()[1])))
    suffix = oid.dotted_string.removeprefix(f"{AMD_ARC}.")
    if suffix == "2" and evidence.name == "milan":
        # This makes Milan-B1 of Milan-B0: another stepping of the same product.
        return {"leaf-signature"}
    own = EXTENSIONS.get(suffix, "leaf-profile")
    return {"leaf-signature"} | ({own} if own else set())


def _dotted(oid: bytes) -> str:
    arcs, value = [str(oid[0] // 40), str(oid[0] % 40)], 0
    for byte in oid[1:]:
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            arcs.append(str(value))
            value = 0
    return ".".join(arcs)


@pytest.mark.parametrize("slot", ["leaf", "ask", "ark"])
def test_no_certificate_can_change(evidence: Evidence, slot: str) -> None:
    """The flipped bits are spread across the certificate: the signed part and the signature."""
    if slot == "leaf":
        slot = "vcek" if evidence.collateral.vcek else "vlek"
    data = getattr(evidence.collateral, slot)
    for index in every(data, sized(35, 7)):
        for bit in (0, 5):
            changed = with_slot(evidence.collateral, slot, flipped(data, index, bit))
            verdict = evidence.verdict(collateral=changed)
            assert verdict.status is Status.REFUSED, (index, bit)


@pytest.mark.parametrize("slot", ["vcek", "ask", "ark"])
def test_nothing_around_the_signed_part_can_change(milan: Evidence, slot: str) -> None:
    """Around the signed part are the outer header and algorithm, and the signature's header."""
    data = getattr(milan.collateral, slot)
    signed = load_certificate(data, slot).tbs_certificate_bytes
    start = data.index(signed)
    for index in (*range(start), *range(start + len(signed), len(data) - 512)):
        for bit in bits_of(index):
            changed = with_slot(milan.collateral, slot, flipped(data, index, bit))
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
    # If ASK and ARK are in each other's place, the verifier exchanges them.
    assert codes(milan.verdict(collateral=crossed)) == []
    misplaced = replace(milan.collateral, vcek=vlek.collateral.vlek, ask=vlek.collateral.ask)
    assert "leaf-kind" in codes(milan.verdict(collateral=misplaced, at=vlek.at))
    unused = replace(milan.collateral, vlek=b"garbage")
    assert codes(milan.verdict(collateral=unused)) == []
    given = replace(milan.collateral, crl=b"garbage")
    verdict = milan.verdict(collateral=given)
    assert codes(verdict) == []
    (judged,) = verdict.revocation_lists
    assert [problem.code.value for problem in judged.problems] == ["crl-unreadable"]


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
    """This holds even if the same chain has just verified with other anchors."""
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
        parts = with_slot(milan.collateral, slot, None)
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
