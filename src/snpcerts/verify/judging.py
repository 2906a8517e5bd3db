# SPDX-License-Identifier: Apache-2.0
"""Judges whether an attestation report is genuine and meets the caller's demands.

A *verified* report meets three conditions. It was signed by a key that AMD endorses, through a
chain that is valid at the given time and ends at a trusted root. That key is the one for the
product, the TCB and, if it is a VCEK, the chip that the report names. And the report meets every
demand of the policy.

The verdict says **nothing** about anything that the policy does not require. Without a policy, the
only demands are that the guest cannot be debugged, that no migration agent can move it, and that no
component of the reported TCB is above the current TCB. Above all, require ``report_data``: if the
report does not contain the caller's nonce or key, it may be a replay. ``Verdict.checks`` shows
which checks were made and which were not.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from snpcerts.abi.product import Product
from snpcerts.abi.report import Report, SigningKey
from snpcerts.endorsement.anchors import AMD_ANCHORS, Anchor
from snpcerts.endorsement.judge import NOTHING, ChainFacts, JudgeMemory
from snpcerts.endorsement.reason import Authenticity, NextStep, Reason, ReasonCode
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import FormatError, UsageError
from snpcerts.verify import report_check
from snpcerts.verify.choosing import Choice, Part, choose, parts_of, wrong_parts
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.evidence import Evidence
from snpcerts.verify.policy import Policy, Revocation
from snpcerts.verify.policy_check import Subject, check_policy, unjudged
from snpcerts.verify.revocation import NO_LISTS, check_revocation
from snpcerts.verify.verdict import ReportTcbs, SourceFault, Status, Verdict, status_of
from snpcerts.verify.verdict_check import ReportFacts, all_checks, authenticity_checks

KINDS = {SigningKey.VCEK: VekKind.VCEK, SigningKey.VLEK: VekKind.VLEK}
DEFAULT_POLICY = Policy()
_NO_CHOICE = Choice(NOTHING)

MEMORY = JudgeMemory()


def verify(
    evidence: Evidence | Report | bytes,
    collateral: Collateral | None = None,
    policy: Policy | None = None,
    *,
    anchors: Sequence[Anchor] = AMD_ANCHORS,
    at: datetime,
) -> Verdict:
    """Judge a report with the certificates that came with it.

    ``evidence`` may be a bare report of 1184 bytes. ``collateral``, if given, replaces the
    evidence's own certificates. The verdict lists every reason that can be found, always in the
    same order: about the report itself, its certificates, the two together, and the policy. No
    bytes of evidence make this function raise an error. ``at`` is the time at which the
    certificates must be valid. Raises :class:`UsageError` if it has no time zone.
    """
    return judge(evidence, collateral, policy or DEFAULT_POLICY, anchors, at, ())


def judge(
    evidence: Evidence | Report | bytes,
    collateral: Collateral | None,
    policy: Policy,
    anchors: Sequence[Anchor],
    at: datetime,
    unavailable: Sequence[Reason],
    faults: Sequence[SourceFault] = (),
) -> Verdict:
    """Verify evidence as :func:`verify` does. The verdict also says which sources failed, and why.

    ``unavailable`` says why parts of the chain are missing, and replaces the reasons that say only
    that they are missing. ``faults`` are the problems with each source's answer.
    """
    if at.tzinfo is None or at.utcoffset() is None:
        raise UsageError("at: expected a time with a time zone, found a time without one")
    if not isinstance(evidence, Evidence):
        try:
            evidence = Evidence(evidence)
        except FormatError as error:
            return _unread(policy, Reason(ReasonCode.REPORT_SIZE, str(error)))
    report = evidence.report
    collateral = evidence.collateral if collateral is None else collateral
    if policy.revocation is Revocation.IGNORE:
        collateral = collateral.without_crl()
    genuine = report_check.check_layout(report)
    signing_key = report.signing_key
    kind = None if signing_key is None else KINDS.get(signing_key)
    choice = _NO_CHOICE
    supplied = collateral.all_lists
    unpinned = report.product is not None and not report.product.is_pinned
    if unpinned:
        genuine.append(report_check.unknown_product(report))
    elif kind is not None:
        masked = policy.allow_masked_chip_id
        choice = choose(report, kind, collateral, anchors, at, MEMORY, allow_masked=masked)
    findings = choice.findings
    leaf = findings.leaf
    product = report.product if leaf is None else leaf.product
    lists = NO_LISTS
    if kind is not None and not unpinned:
        lists = check_revocation(kind, product, supplied, findings.lists, policy, at)
        genuine += (*findings.reasons_at(at), *lists.reasons)
    elif signing_key is SigningKey.NONE:
        genuine.append(Reason(ReasonCode.REPORT_UNSIGNED, _unsigned(report)))
    tcbs, unreadable = choice.tcbs or _tcbs(report, product)
    genuine += () if unpinned else unreadable  # an unreadable TCB must not give two reasons
    genuine += choice.of_leaf
    if findings.key is not None:
        genuine += report_check.check_signature(report, findings.key)
    if unavailable:
        genuine = _explained(genuine, unavailable)
    if evidence.runtime_data is not None:
        any_vmpl = policy.vmpls is not None
        genuine += report_check.check_runtime_data(report, evidence.runtime_data, any_vmpl=any_vmpl)
    facts = ReportFacts(
        True,
        report.fields.version >= 3,
        policy.allow_masked_chip_id and report.chip_id_masked,
        evidence.runtime_data is not None,
        lists.asked or policy.revocation is Revocation.REQUIRE,
        lists.met,
        bool(lists.lists),
    )
    subject = Subject(report, product, tcbs, leaf, evidence.runtime_data)
    asked, unmet = check_policy(policy, subject)
    reasons = (*genuine, *unmet)
    return Verdict(
        status_of(reasons),
        reasons,
        product,
        report.fields.chip_id,
        signing_key,
        tcbs,
        report,
        leaf,
        all_checks(authenticity_checks(findings.facts, facts, genuine), asked),
        findings.anchor,
        lists.lists,
        tuple(faults) if reasons else (),
    )


def _unread(policy: Policy, reason: Reason) -> Verdict:
    checks = (*authenticity_checks(ChainFacts(), ReportFacts(), (reason,)), *unjudged(policy))
    return Verdict(Status.REFUSED, (reason,), checks=checks)


_MISSING = frozenset(
    {
        ReasonCode.VCEK_MISSING,
        ReasonCode.VLEK_MISSING,
        ReasonCode.ASK_MISSING,
        ReasonCode.ARK_MISSING,
        ReasonCode.CRL_MISSING,
    }
)


def _unsigned(report: Report) -> str:
    if report.mask_chip_key:
        return (
            "SIGNING_KEY says that neither a VCEK nor a VLEK signed the report: the host masks "
            "the chip's key (MASK_CHIP_KEY), and no VLEK signed in its place"
        )
    return (
        "SIGNING_KEY says that neither a VCEK nor a VLEK signed the report, although "
        "MASK_CHIP_KEY is zero"
    )


def _explained(reasons: list[Reason], unavailable: Sequence[Reason]) -> list[Reason]:
    """Return ``reasons``, with ``unavailable`` added if a part of the chain is missing or wrong.

    ``unavailable`` says why no source supplied a better part. It replaces the reasons that say only
    that a part is missing. If a source could not be reached and the root is trusted, it also
    replaces each reason that a better certificate might resolve: the source may have that
    certificate.
    """
    wrong = wrong_parts(reasons) | {Part.CRL for each in reasons if each.code in _MISSING}
    if not wrong:
        return reasons
    kept = [each for each in reasons if each.code not in _MISSING]
    retry = all(each.next_step is NextStep.RETRY_LATER for each in unavailable)
    if retry and not any(each.code.check is Authenticity.ANCHOR for each in reasons):
        leaf = Part.LEAF in wrong
        kept = [
            each
            for each in kept
            if not parts_of(each) and not (leaf and each.code is ReasonCode.REPORT_SIGNATURE)
        ]
    first = next((at for at, each in enumerate(reasons) if each not in kept), len(kept))
    return [*kept[:first], *unavailable, *kept[first:]]


def _tcbs(report: Report, product: Product | None) -> tuple[ReportTcbs, tuple[Reason, ...]]:
    # The product determines the layout of the TCBs. If the product is unknown, another reason is
    # already listed.
    return (ReportTcbs(), ()) if product is None else report_check.read_tcbs(report, product)
