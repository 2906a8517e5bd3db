# SPDX-License-Identifier: Apache-2.0
"""Each rule about report and leaf, on purpose-made chains."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.product import Product
from snpcerts.abi.report import REPORT_SIZE, Report
from snpcerts.endorsement.anchors import Anchor, anchor_from_certificate
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.endorsement.reason import ReasonCode
from snpcerts.endorsement.vek import AMD_ARC, VekKind
from snpcerts.errors import UsageError
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.judging import verify
from snpcerts.verify.report_check import P384_ORDER
from snpcerts.verify.verdict import Status, Verdict
from tests.endorsement.small_ca import (
    NOON,
    PINNED,
    TCBS,
    Recipe,
    SmallCa,
    ec_key,
    integer,
    sign_report,
    with_signature,
)
from tests.keys import rsa_key

from .slots import with_slot

CA = SmallCa()


def collateral(ca: SmallCa = CA, leaf: Recipe | None = None) -> Collateral:
    made = (leaf or ca.leaf).make()
    slot = "vcek" if ca.kind is VekKind.VCEK else "vlek"
    return with_slot(Collateral(ask=ca.ask.make(), ark=ca.ark.make()), slot, made)


def anchors(ca: SmallCa = CA) -> tuple[Anchor, ...]:
    return (anchor_from_certificate(load_certificate(ca.ark.make(), "ARK")),)


def judge(report: bytes | Report, parts: Collateral | None = None, ca: SmallCa = CA) -> Verdict:
    return verify(report, parts or collateral(ca), anchors=anchors(ca), at=NOON)


def codes(verdict: Verdict) -> list[str]:
    assert (verdict.status is Status.REFUSED) == bool(verdict.reasons)
    return [reason.code.value for reason in verdict.reasons]


@pytest.mark.parametrize("product", PINNED)
@pytest.mark.parametrize("kind", list(VekKind))
@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_sound_evidence_of_every_kind_verifies(
    product: Product, kind: VekKind, version: int
) -> None:
    ca = SmallCa(product, kind)
    verdict = judge(ca.report(version), ca=ca)
    assert codes(verdict) == []
    assert verdict.product is product
    assert verdict.tcbs.reported == TCBS[product]


def test_a_report_may_be_given_parsed() -> None:
    report = Report.unpack(CA.report())
    assert judge(report).report is report


def test_other_kinds_of_bytes_serve_as_well() -> None:
    parts = collateral()
    other = Collateral(
        vcek=bytearray(parts.vcek or b""),  # type: ignore[arg-type]  # callers may
        ask=memoryview(parts.ask or b""),  # type: ignore[arg-type]  # callers may
        ark=parts.ark,
    )
    assert codes(judge(CA.report(), other)) == []


def test_pem_certificates_serve_as_well() -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    def pem(data: bytes | None) -> bytes:
        return load_certificate(data or b"", "x").public_bytes(Encoding.PEM)

    parts = collateral()
    parts = Collateral(vcek=pem(parts.vcek), ask=pem(parts.ask), ark=pem(parts.ark))
    assert codes(judge(CA.report(), parts)) == []


@pytest.mark.parametrize("size", [0, 1, REPORT_SIZE - 1, REPORT_SIZE + 1, 4096])
def test_a_report_of_another_size_is_refused(size: int) -> None:
    verdict = judge(bytes(size))
    assert codes(verdict) == ["report-size"]
    assert verdict.report is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"version": 6}, ["report-version"]),
        ({"version": 1}, ["report-version"]),
        ({"policy": 0x10000}, ["report-policy"]),
        ({"policy": 0x30000 | 1 << 63}, ["report-policy"]),
        ({"signature_algo": 0}, ["report-signature-algorithm"]),
        ({"flags": 1 << 31}, ["report-flags"]),
        ({"flags": 2 << 2}, ["report-signing-key"]),
        ({"flags": 6 << 2}, ["report-signing-key"]),
        ({"flags": 7 << 2 | 2}, ["report-unsigned"]),
        ({"flags": 1 << 2}, ["vlek-missing", "ask-name"]),
        ({"launch_mit_vector": 1}, ["report-reserved"]),
        ({"cpuid_family": 0x1A, "cpuid_model": 2}, ["product-mismatch"]),
        ({"cpuid_model": 0x11}, ["product-mismatch"]),
        ({"cpuid_model": 0x50}, ["product-unknown"]),
        ({"chip_id": bytes(64)}, ["chip-id-masked"]),
        ({"chip_id": b"\1" * 64}, ["chip-id-mismatch"]),
        ({"current_tcb": bytes((4, 0, 1, 0, 0, 0, 24, 219))}, ["report-tcb"]),
        ({"reported_tcb": bytes((4, 0, 0, 0, 0, 1, 24, 219))}, ["report-tcb"]),
        ({"reported_tcb": bytes((4, 0, 0, 0, 0, 0, 24, 218))}, ["tcb-mismatch"]),
        (
            {"reported_tcb": bytes((4, 0, 0, 0, 0, 0, 25, 219))},
            ["tcb-mismatch", "policy-tcb-above-current"],
        ),
        ({"reported_tcb": bytes(8)}, ["tcb-mismatch"] * 3),
        # The verdict does not depend on these.
        ({"current_tcb": b"\xff\xff\0\0\0\0\xff\xff"}, []),
        ({"committed_tcb": bytes(8)}, []),
        ({"platform_info": 1 << 6}, []),
        ({"vmpl": 0xFFFFFFFF}, []),
        # A policy refuses these by default.
        ({"policy": 0x30000 | 1 << 19}, ["policy-debug"]),
        ({"policy": 0x30000 | 1 << 18}, ["policy-migration-agent"]),
    ],
)
def test_a_signed_report_with_this_field_has_this_reason(
    fields: dict[str, object], expected: list[str]
) -> None:
    """The signature is valid each time, but that alone is not enough."""
    assert codes(judge(CA.report(**fields))) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("component", ["bootloader", "tee", "snp", "microcode", "fmc"])
@pytest.mark.parametrize("step", [1, -1])
def test_each_component_of_the_tcb_is_compared(component: str, step: int) -> None:
    """A certificate for a newer TCB is as wrong as one for an older."""
    ca = SmallCa(Product.TURIN)
    tcb = TCBS[Product.TURIN]
    other = replace(tcb, **{component: getattr(tcb, component) + step})
    report = ca.report(reported_tcb=other.pack(), current_tcb=bytes.fromhex("ffffffff000000ff"))
    (reason,) = judge(report, ca=ca).reasons
    assert reason.code is ReasonCode.TCB_MISMATCH
    assert reason.message.startswith(component)


def test_a_turin_chip_id_is_zero_after_its_eight_bytes() -> None:
    ca = SmallCa(Product.TURIN)
    for index in (8, 63):
        chip_id = bytearray(ca.report_chip_id)
        chip_id[index] = 1
        assert codes(judge(ca.report(chip_id=bytes(chip_id)), ca=ca)) == ["chip-id-mismatch"]


def test_a_vlek_is_not_bound_to_a_chip() -> None:
    ca = SmallCa(kind=VekKind.VLEK)
    for chip_id in (bytes(64), b"\1" * 64):
        assert codes(judge(ca.report(chip_id=chip_id), ca=ca)) == []


@pytest.mark.parametrize("part", ["R", "S"])
@pytest.mark.parametrize("value", [0, P384_ORDER, P384_ORDER + 1, (1 << 384) - 1, 1 << 384])
def test_signature_parts_out_of_range_are_refused(part: str, value: int) -> None:
    report = CA.report()
    r, s = Report.unpack(report).signature
    parts = (value, s) if part == "R" else (r, value)
    verdict = judge(with_signature(report, *parts))
    reason = verdict.reasons[-1]
    assert reason.code is ReasonCode.REPORT_SIGNATURE
    assert f"expected {part} of the signature" in reason.message


def test_a_signature_that_only_fits_modulo_the_order_is_refused() -> None:
    report = CA.report()
    r, s = Report.unpack(report).signature
    assert "report-signature" in codes(judge(with_signature(report, r, s + P384_ORDER)))
    # In ECDSA, the order minus S is as valid as S, and the firmware may choose either.
    assert codes(judge(with_signature(report, r, P384_ORDER - s))) == []


def test_another_key_of_the_same_kind_did_not_sign() -> None:
    report = sign_report(CA.report(), ec_key("another"))
    assert codes(judge(report)) == ["report-signature"]


def test_a_leaf_with_a_bad_extension_still_answers_for_the_signature() -> None:
    leaf = CA.leaf.with_extension(f"{AMD_ARC}.3.1", integer(256))
    assert codes(judge(CA.report(), collateral(leaf=leaf))) == ["leaf-profile"]
    report = sign_report(CA.report(), ec_key("another"))
    found = codes(judge(report, collateral(leaf=leaf)))
    assert found == ["leaf-profile", "report-signature"]


def test_a_leaf_with_another_key_is_reported() -> None:
    for key in (rsa_key("ask"), ec.generate_private_key(ec.SECP256R1())):
        leaf = CA.leaf.but(key=key)
        assert codes(judge(CA.report(), collateral(leaf=leaf))) == ["leaf-key"]


def test_a_leaf_in_the_other_leafs_slot_is_found_there() -> None:
    """Some hosts serve a VLEK in the VCEK's slot, and some a VCEK in the VLEK's."""
    vlek = SmallCa(kind=VekKind.VLEK)
    parts = collateral(vlek)
    swapped = replace(parts, vcek=parts.vlek, vlek=None)
    assert codes(judge(vlek.report(), swapped)) == []
    assert codes(judge(vlek.report(), replace(swapped, vlek=b"first"))) == []
    assert codes(judge(vlek.report(), replace(swapped, vcek=b"garbage"))) == ["vlek-missing"]
    other = collateral()
    assert codes(judge(CA.report(), replace(other, vcek=None, vlek=other.vcek))) == []
    found = codes(judge(CA.report(), swapped))
    assert found[:2] == ["leaf-kind", "ask-name"]


def test_both_leaves_may_be_there_and_the_report_chooses() -> None:
    vlek = SmallCa(kind=VekKind.VLEK)
    both = replace(collateral(), vlek=vlek.leaf.make())
    assert codes(judge(CA.report(), both)) == []
    assert codes(judge(vlek.report(), both)) == ["leaf-issuer", "ask-name"]


@pytest.mark.parametrize("slot", ["vcek", "ask", "ark"])
@pytest.mark.parametrize("garbage", [b"", b"\0" * 100, b"-----BEGIN CERTIFICATE-----"])
def test_garbage_in_a_slot_is_named(slot: str, garbage: bytes) -> None:
    parts = with_slot(collateral(), slot, garbage)
    assert codes(judge(CA.report(), parts))[0] == f"{slot}-unreadable"


def test_everything_wrong_is_listed_in_one_order() -> None:
    report = bytearray(CA.report(policy=0, chip_id=bytes(64), reported_tcb=bytes(8)))
    report[0x300] ^= 1
    parts = replace(collateral(leaf=CA.leaf.but(signer=rsa_key("ark"))), ark=b"x")
    expected = [
        "report-policy",
        "ark-unreadable",
        "leaf-signature",
        "chip-id-masked",
        "tcb-mismatch",
        "tcb-mismatch",
        "tcb-mismatch",
        "report-signature",
    ]
    for _ in range(2):
        assert codes(judge(bytes(report), parts)) == expected


def test_a_time_without_a_zone_is_a_wrong_call() -> None:
    with pytest.raises(UsageError, match="time zone"):
        verify(CA.report(), collateral(), at=datetime(2025, 6, 1))


def test_every_reason_code_has_a_sentence() -> None:
    assert all(code.description.endswith(".") for code in ReasonCode)


certificates = st.none() | st.binary(max_size=300) | st.sampled_from([CA.leaf, CA.ask, CA.ark])
reports = st.binary(max_size=REPORT_SIZE + 8) | st.binary(
    min_size=REPORT_SIZE, max_size=REPORT_SIZE
)


@given(reports, st.tuples(*[certificates] * 5), st.datetimes(timezones=st.timezones()))
def test_random_evidence_is_refused_and_never_raises(
    report: bytes, parts: tuple[bytes | Recipe | None, ...], at: datetime
) -> None:
    made = (part.make() if isinstance(part, Recipe) else part for part in parts)
    vcek, vlek, ask, ark, crl = made
    verdict = verify(report, Collateral(vcek, vlek, ask, ark, crl), anchors=anchors(), at=at)
    assert verdict.status is Status.REFUSED
    assert verdict.to_json()["verdict"] == "refused"


@given(st.data())
def test_a_sound_report_with_random_certificates_never_verifies(data: st.DataObject) -> None:
    sound = collateral()
    slot = data.draw(st.sampled_from(["vcek", "ask", "ark"]))
    good = getattr(sound, slot)
    cut = data.draw(st.integers(0, len(good) - 1))
    bad = good[:cut] + data.draw(st.binary(max_size=len(good)).filter(lambda b: b != good[cut:]))
    assert judge(CA.report(), with_slot(sound, slot, bad)).status is Status.REFUSED
