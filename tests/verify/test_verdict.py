# SPDX-License-Identifier: Apache-2.0
"""A verdict cannot contradict itself, and cannot be mistaken for a truth value."""

from __future__ import annotations

import json

import pytest

from snpcerts.abi.report import Report
from snpcerts.endorsement.anchors import AMD_ANCHORS
from snpcerts.endorsement.reason import Reason, ReasonCode
from snpcerts.endorsement.vek import EndorsementCert
from snpcerts.verify.verdict import Status, Verdict
from tests.endorsement.small_ca import SmallCa
from tests.verify.test_verify import judge

CA = SmallCa()
REASON = Reason(ReasonCode.REPORT_SIZE, "too short")


def test_a_verdict_is_not_a_truth_value() -> None:
    with pytest.raises(TypeError, match="status"):
        bool(Verdict(Status.REFUSED, (REASON,)))


def test_status_and_reasons_cannot_disagree() -> None:
    report = Report.unpack(CA.report())
    leaf = EndorsementCert.from_bytes(CA.leaf.make())
    root = AMD_ANCHORS[0]
    Verdict(Status.VERIFIED, (), report=report, leaf=leaf, root=root)
    with pytest.raises(ValueError, match="needs a reason"):
        Verdict(Status.REFUSED, ())
    with pytest.raises(ValueError, match="verified"):
        Verdict(Status.VERIFIED, (REASON,), report=report, leaf=leaf, root=root)
    with pytest.raises(ValueError, match="verified"):
        Verdict(Status.VERIFIED, (), report=report, root=root)
    with pytest.raises(ValueError, match="verified"):
        Verdict(Status.VERIFIED, (), report=report, leaf=leaf)
    with pytest.raises(ValueError, match="verified"):
        Verdict(Status.VERIFIED, (), leaf=leaf, root=root)


def test_no_verdict_is_made_around_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Verdict) -> None:
        raise AssertionError("judged")

    assert judge(CA.report()).status is Status.VERIFIED
    monkeypatch.setattr(Verdict, "__post_init__", refuse)
    for report in (CA.report(), CA.report()[:-1], CA.report(vmpl=9)):
        with pytest.raises(AssertionError, match="judged"):
            judge(report)


def test_a_refusal_of_nothing_readable_is_json_with_nulls() -> None:
    assert json.loads(json.dumps(Verdict(Status.REFUSED, (REASON,)).to_json())) == {
        "verdict": "refused",
        "reasons": [{"code": "report-size", "message": "too short", "next_step": "refuse"}],
        "next_step": "refuse",
        "product": None,
        "chip_id": None,
        "signing_key": None,
        "tcb": {"current": None, "reported": None, "committed": None, "launch": None},
        "report_version": None,
        "vmpl": None,
        "measurement": None,
        "report_data": None,
        "root": None,
        "sources": [],
        "revocation_lists": [],
        "checks": [],
    }
