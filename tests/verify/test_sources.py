# SPDX-License-Identifier: Apache-2.0
"""Certificates come from sources in the caller's order; an outage is never a refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.reason import NextStep
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import FormatError, RefusedError, RetryLaterError
from snpcerts.verify.choosing import Part
from snpcerts.verify.collateral import Collateral, SuppliedCrl, Supplier
from snpcerts.verify.evidence import Evidence
from snpcerts.verify.policy import Policy, Revocation
from snpcerts.verify.sources import (
    OWN,
    CollateralRequest,
    CollateralSource,
    Given,
    GivenCrls,
    InThread,
    averify_with,
    verify_with,
)
from snpcerts.verify.verdict import Status, Verdict
from tests.endorsement.small_ca import NOON, PINNED, TCBS, CrlRecipe, SmallCa, flipped
from tests.verify.test_verify import anchors, collateral

CA = SmallCa()
VLEK = SmallCa(kind=VekKind.VLEK)
WHOLE = collateral()
REQUIRED = Policy(revocation=Revocation.REQUIRE)


@dataclass
class Recorder:
    """A source that answers or raises, and remembers its requests."""

    answer: Collateral | Exception
    asked: list[CollateralRequest] = field(default_factory=list)

    def collateral(self, request: CollateralRequest) -> Collateral:
        self.asked.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@dataclass
class AsyncRecorder(Recorder):
    """A Recorder for async code."""

    async def collateral(self, request: CollateralRequest) -> Collateral:  # type: ignore[override]  # as the other protocol has it
        await asyncio.sleep(0)
        return super().collateral(request)


def nowhere() -> Recorder:
    return Recorder(RetryLaterError("key server: timed out"))


def judge(
    sources: Sequence[CollateralSource],
    evidence: Evidence | None = None,
    policy: Policy | None = None,
    ca: SmallCa = CA,
) -> Verdict:
    given = evidence or Evidence(ca.report())
    return verify_with(given, sources, policy, anchors=anchors(ca), at=NOON)


def codes(verdict: Verdict) -> list[str]:
    return [reason.code.value for reason in verdict.reasons]


def test_certificates_from_the_report_are_used_only_at_own() -> None:
    evidence = Evidence(CA.report(), WHOLE)
    assert judge([OWN], evidence).status is Status.VERIFIED
    assert codes(judge([], evidence)) == ["vcek-missing", "ask-missing", "ark-missing"]


def test_sources_are_asked_until_nothing_is_missing() -> None:
    first = Recorder(Collateral(vcek=WHOLE.vcek))
    second = Recorder(Collateral(vcek=b"later", ask=WHOLE.ask, ark=WHOLE.ark))
    third = Recorder(Collateral())
    policy = Policy(revocation=Revocation.IGNORE)
    assert judge([first, second, third], policy=policy).status is Status.VERIFIED
    assert [request.missing for request in (*first.asked, *second.asked)] == [
        {Part.LEAF, Part.INTERMEDIATE, Part.ROOT},
        {Part.INTERMEDIATE, Part.ROOT},
    ]
    assert third.asked == []


def of_vceks(recipe: CrlRecipe, **changes: Any) -> SuppliedCrl:
    made = SuppliedCrl(recipe.make(), VekKind.VCEK, Supplier.CALLER, "a file")
    return replace(made, **changes)


def test_the_order_is_the_callers() -> None:
    evidence = Evidence(CA.report(), replace(WHOLE, vcek=b"stale"))
    fresh = Recorder(WHOLE)
    assert judge([OWN, fresh], evidence).status is Status.VERIFIED
    assert fresh.asked[-1].missing == {Part.LEAF}
    asked = len(fresh.asked)
    assert judge([fresh, OWN], evidence).status is Status.VERIFIED
    assert Part.ROOT in fresh.asked[asked].missing


def test_a_source_gets_chip_product_and_tcb() -> None:
    source = Recorder(Collateral())
    ca = SmallCa(Product.TURIN)
    judge([source], ca=ca)
    (request,) = source.asked
    assert request.products == (Product.TURIN,)
    assert request.hwid(Product.TURIN) == ca.chip_id[:8]
    assert request.tcb(Product.TURIN) == TCBS[Product.TURIN]
    # The TCB must not be read with the layout of another product, which it does not fit.
    assert request.tcb(Product.MILAN) is None


@pytest.mark.parametrize("product", PINNED)
def test_the_product_of_a_version_2_report_is_that_of_its_leaf(product: Product) -> None:
    ca = SmallCa(product)
    before, after = Recorder(Collateral()), Recorder(Collateral())
    leaf = Given(Collateral(vcek=ca.leaf.make()))
    judge([before, leaf, after], Evidence(ca.report(2)), ca=ca)
    long = (Product.MILAN, Product.GENOA)
    assert before.asked[0].products == ((product,) if product is Product.TURIN else long)
    assert after.asked[0].products == (product,)


def test_a_request_for_a_masked_chip_has_no_chip_id() -> None:
    source = Recorder(Collateral())
    judge([source], Evidence(CA.report(chip_id=bytes(64))))
    assert source.asked[0].hwid(Product.MILAN) is None


def test_an_outage_leaves_a_report_undecided_and_never_refuses_it() -> None:
    verdict = judge([OWN, nowhere()])
    assert verdict.status is Status.UNDECIDED
    assert codes(verdict) == ["collateral-unavailable"]
    assert verdict.next_step is NextStep.RETRY_LATER
    assert "timed out" in verdict.reasons[0].message
    assert verdict.to_json()["verdict"] == "undecided"


def test_an_outage_of_an_unneeded_source_does_not_matter() -> None:
    source = nowhere()
    assert judge([source, Given(WHOLE)]).status is Status.VERIFIED
    assert len(source.asked) == 1


def test_bad_evidence_is_refused_whether_or_not_there_is_an_outage() -> None:
    for report, code in (
        (CA.report(vmpl=3), "policy-vmpl"),
        (flipped(CA.report(), 0x4C), "report-reserved"),
    ):
        verdict = judge([nowhere()], Evidence(report), Policy(vmpls=(0,)))
        assert verdict.status is Status.REFUSED
        assert codes(verdict)[-1] == code or code in codes(verdict)
        assert verdict.next_step is NextStep.REFUSE
    # The leaf is there, so the signature is judged, although the chain cannot be.
    tampered = Evidence(flipped(CA.report(), 0x90), Collateral(vcek=WHOLE.vcek))
    verdict = judge([OWN, nowhere()], tampered)
    assert codes(verdict) == ["collateral-unavailable", "report-signature"]
    assert verdict.status is Status.REFUSED


def test_a_source_that_says_it_has_none_settles_it_unless_another_is_out_of_reach() -> None:
    without = Recorder(RefusedError("key server: 404"))
    verdict = judge([without])
    assert codes(verdict) == ["collateral-not-found"]
    assert (verdict.status, verdict.next_step) == (Status.REFUSED, NextStep.FIX_USAGE)
    assert judge([without, nowhere()]).status is Status.UNDECIDED
    assert judge([without, Given(WHOLE)]).status is Status.VERIFIED


def test_a_required_list_that_cannot_be_fetched_leaves_a_report_undecided() -> None:
    assert codes(judge([Given(WHOLE)], policy=REQUIRED)) == ["crl-missing"]
    source = nowhere()
    verdict = judge([Given(WHOLE), source], policy=REQUIRED)
    assert verdict.status is Status.UNDECIDED
    assert source.asked[0].missing == {Part.CRL}
    assert verdict.check("revocation").state.value == "not-judged"


def test_given_lists_are_used_for_their_product() -> None:
    genoa = SmallCa(Product.GENOA)
    lists = GivenCrls(
        [of_vceks(CrlRecipe(genoa)), of_vceks(CrlRecipe(CA, revoked=(1,)))],
    )
    for policy in (None, REQUIRED):
        verdict = judge([Given(WHOLE), lists], policy=policy)
        assert codes(verdict) == ["ask-revoked", "ark-revoked"]
    # Version 2 does not distinguish Genoa from Milan, so both lists are checked.
    old = Evidence(genoa.report(2), collateral(genoa))
    assert judge([lists, OWN], old, REQUIRED, genoa).status is Status.VERIFIED
    chain = Given(collateral(genoa))
    assert judge([chain, lists], policy=REQUIRED, ca=genoa).status is Status.VERIFIED
    turin = SmallCa(Product.TURIN)
    found = judge([Given(collateral(turin)), lists], policy=REQUIRED, ca=turin)
    assert codes(found) == ["crl-missing"]
    for bad in (b"", CrlRecipe(CA, issuer="somebody").make()):
        with pytest.raises(FormatError):
            GivenCrls([bad])


def test_a_vlek_gets_the_asvk() -> None:
    given = Given(replace(WHOLE, vlek=VLEK.leaf.make()), asvk=VLEK.ask.make())
    assert judge([given], ca=VLEK).status is Status.VERIFIED
    assert judge([given]).status is Status.VERIFIED


def test_async_and_sync_sources_may_be_mixed() -> None:
    evidence = Evidence(CA.report(), Collateral(vcek=WHOLE.vcek))
    late = AsyncRecorder(Collateral(ask=WHOLE.ask))
    verdict = asyncio.run(
        averify_with(
            evidence, [OWN, late, Given(Collateral(ark=WHOLE.ark))], anchors=anchors(), at=NOON
        )
    )
    assert verdict.status is Status.VERIFIED
    assert len(late.asked) == 1
    down = AsyncRecorder(RetryLaterError("down"))
    verdict = asyncio.run(averify_with(evidence, [OWN, down], anchors=anchors(), at=NOON))
    assert verdict.status is Status.UNDECIDED
    none = AsyncRecorder(RefusedError("none"))
    verdict = asyncio.run(averify_with(evidence, [OWN, none], anchors=anchors(), at=NOON))
    assert codes(verdict) == ["collateral-not-found"]


def test_a_source_that_blocks_may_be_asked_in_a_thread() -> None:
    for answer, status in (
        (WHOLE, Status.VERIFIED),
        (RetryLaterError("down"), Status.UNDECIDED),
    ):
        source = InThread(Recorder(answer))
        verdict = asyncio.run(
            averify_with(Evidence(CA.report()), [source], anchors=anchors(), at=NOON)
        )
        assert verdict.status is status


@pytest.mark.parametrize("report", [CA.report(flags=7 << 2), CA.report(flags=2 << 2)])
def test_no_source_is_asked_about_a_report_that_no_key_signed(report: bytes) -> None:
    source = nowhere()
    assert judge([source], Evidence(report)).status is Status.REFUSED
    assert source.asked == []


def test_a_report_of_an_unknown_product_has_no_candidates() -> None:
    source = Recorder(Collateral())
    judge([source], Evidence(CA.report(cpuid_model=0x50)))
    assert source.asked[0].products == ()
    zero = TcbVersion(0, 0, 0, 0)
    assert source.asked[0].tcb(Product.MILAN) != zero
