# SPDX-License-Identifier: Apache-2.0
"""Every reason fails a check, and every failed check has reasons."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snpcerts.endorsement.reason import Authenticity, NextStep, Reason, ReasonCode
from snpcerts.endorsement.vek import VekKind
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.judging import verify
from snpcerts.verify.verdict import Status, Verdict
from snpcerts.verify.verdict_check import CheckState
from tests.endorsement.small_ca import NOON, SmallCa, ec_key, sign_report
from tests.verify.test_verify import anchors, collateral

from .slots import with_slot

CA = SmallCa()
ALL = {each.value for each in Authenticity}


def states(verdict: Verdict) -> dict[str, str]:
    return {check.name: check.state.value for check in verdict.checks if check.name in ALL}


def judge(report: bytes, parts: Collateral | None = None, ca: SmallCa = CA) -> dict[str, str]:
    return states(verify(report, parts or collateral(ca), anchors=anchors(ca), at=NOON))


def test_every_reason_but_those_of_sources_and_policies_fails_a_check_of_authenticity() -> None:
    for code in ReasonCode:
        outside = code.value.startswith(("policy-", "collateral-"))
        assert (code.check is None) == outside, code
    assert {code.check for code in ReasonCode} - {None} == set(Authenticity)


def test_each_check_is_there_once_and_in_order() -> None:
    assert list(judge(CA.report())) == [each.value for each in Authenticity]


def test_well_formed_evidence_passes_every_check() -> None:
    expected = dict.fromkeys(ALL, "passed")
    nothing = dict.fromkeys(("revocation", "runtime-data"), "not-asked")
    assert judge(CA.report()) == expected | nothing
    assert judge(CA.report(2)) == expected | nothing | {"product": "not-asked"}
    vlek = SmallCa(kind=VekKind.VLEK)
    assert judge(vlek.report(), ca=vlek) == expected | nothing | {"chip-id": "not-asked"}


@pytest.mark.parametrize(
    ("slot", "failed", "not_judged"),
    [
        (
            "vcek",
            {"leaf"},
            {"chain-product", "validity", "product", "chip-id", "reported-tcb", "report-signature"},
        ),
        ("ask", {"intermediate"}, {"leaf", "chain-product", "validity"}),
        ("ark", {"root"}, {"intermediate", "anchor", "chain-product", "validity"}),
    ],
)
def test_checks_that_need_a_missing_certificate_are_not_judged(
    slot: str, failed: set[str], not_judged: set[str]
) -> None:
    found = judge(CA.report(), with_slot(collateral(), slot, None))
    assert {name for name, state in found.items() if state == "failed"} == failed
    assert {name for name, state in found.items() if state == "not-judged"} == not_judged


def test_a_bad_signature_fails_that_check_alone() -> None:
    found = judge(sign_report(CA.report(), ec_key("another")))
    assert [name for name, state in found.items() if state == "failed"] == ["report-signature"]


def test_a_report_that_no_key_signed_passes_nothing_about_certificates() -> None:
    found = judge(CA.report(flags=7 << 2))
    assert found["report-signature"] == "failed"
    passed = {name for name, state in found.items() if state == "passed"}
    assert passed == {"report-layout"}


def test_a_failed_check_says_all_that_was_found() -> None:
    verdict = verify(CA.report(reported_tcb=bytes(8)), collateral(), anchors=anchors(), at=NOON)
    found = verdict.check("reported-tcb").found
    assert found is not None
    assert found.count(";") == 2
    with pytest.raises(KeyError):
        verdict.check("nonsense")


def test_no_reason_is_left_without_a_next_step_and_only_waiting_is_undecided() -> None:
    later = [code for code in ReasonCode if code.next_step is NextStep.RETRY_LATER]
    assert later == [ReasonCode.COLLATERAL_UNAVAILABLE]
    assert ReasonCode.CRL_MISSING.next_step is NextStep.FIX_USAGE
    assert ReasonCode.REPORT_SIGNATURE.next_step is NextStep.REFUSE
    reason = Reason(ReasonCode.COLLATERAL_UNAVAILABLE, "down")
    assert Verdict(Status.UNDECIDED, (reason,)).next_step is NextStep.RETRY_LATER
    with pytest.raises(ValueError, match="refused"):
        Verdict(Status.REFUSED, (reason,))
    with pytest.raises(ValueError, match="undecided"):
        Verdict(Status.UNDECIDED, (reason, Reason(ReasonCode.LEAF_EXPIRED, "old")))
    with pytest.raises(ValueError, match="needs a reason"):
        Verdict(Status.UNDECIDED, ())


def test_a_verified_verdict_cannot_have_a_failed_check() -> None:
    good = verify(CA.report(), collateral(), anchors=anchors(), at=NOON)
    bad = replace(good.checks[0], state=CheckState.FAILED)
    with pytest.raises(ValueError, match="failed check"):
        replace(good, checks=(bad,))
