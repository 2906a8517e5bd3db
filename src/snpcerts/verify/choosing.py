# SPDX-License-Identifier: Apache-2.0
"""Selects the chain for a report from all supplied certificates, and finds out which parts are
missing.

The certificates in the collateral's slots come first. If their chain has no problem, nothing else
is read. Otherwise all supplied certificates are sorted by kind, and the first chain without a
problem is selected. If every chain has problems, the chain with the fewest is selected.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from snpcerts.abi.report import Report
from snpcerts.endorsement.anchors import Anchor
from snpcerts.endorsement.judge import Findings, JudgeMemory
from snpcerts.endorsement.reason import Authenticity, Reason, ReasonCode
from snpcerts.endorsement.sorting import chains, sort_all
from snpcerts.endorsement.vek import EndorsementCert, VekKind
from snpcerts.verify import report_check
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.verdict import ReportTcbs


class Part(enum.Enum):
    """A part of a chain that may be missing."""

    LEAF = "leaf"
    INTERMEDIATE = "intermediate"
    ROOT = "root"
    CRL = "crl"


class Choice(NamedTuple):
    """A possible chain for a report, and the mismatches between the chain's leaf and the report.

    ``tcbs`` holds the report's TCBs in the layout of the leaf's product, with the reasons why some
    cannot be read. It is None if the chain has no leaf.
    """

    findings: Findings
    of_leaf: tuple[Reason, ...] = ()
    tcbs: tuple[ReportTcbs, tuple[Reason, ...]] | None = None

    def reasons(self, at: datetime) -> tuple[Reason, ...]:
        """Return every problem of the chain at the time ``at``."""
        return self.findings.reasons_at(at) + self.of_leaf


def choose(
    report: Report,
    kind: VekKind,
    collateral: Collateral,
    anchors: Sequence[Anchor],
    at: datetime,
    memory: JudgeMemory,
    *,
    allow_masked: bool,
) -> Choice:
    """Return the best chain that the certificates in ``collateral`` can form for the report."""
    lists = [each.data for each in collateral.all_lists]
    findings = memory.findings(kind, collateral.chain(kind), anchors, lists)
    best = _choice(report, findings, allow_masked)
    if not best.reasons(at) or collateral.without_certificates:
        return best
    least = _score(best, at)

    def fits(leaf: EndorsementCert) -> bool:
        return not _of_leaf(report, leaf, True)[0]

    for chain in chains(kind, sort_all(collateral.parts), fits):
        findings = memory.findings(kind, chain, anchors, lists)
        other = _choice(report, findings, allow_masked)
        score = _score(other, at)
        if score < least:
            best, least = other, score
        if not score[1]:
            break
    return best


def _score(choice: Choice, at: datetime) -> tuple[int, int]:
    """Return the chain's score, by which chains are compared: lower is better.

    The number of missing parts counts first, then the number of problems.
    """
    facts = choice.findings.facts
    present = facts.leaf + facts.intermediate + facts.root
    return 3 - present, len(choice.reasons(at))


def _choice(report: Report, findings: Findings, allow_masked: bool) -> Choice:
    leaf = findings.leaf
    return (
        Choice(findings)
        if leaf is None
        else Choice(findings, *_of_leaf(report, leaf, allow_masked))
    )


def _of_leaf(
    report: Report, leaf: EndorsementCert, allow_masked: bool
) -> tuple[tuple[Reason, ...], tuple[ReportTcbs, tuple[Reason, ...]]]:
    tcbs = report_check.read_tcbs(report, leaf.product)
    reported = tcbs[0].reported
    reasons = tuple(report_check.check_leaf(report, reported, leaf, allow_masked=allow_masked))
    return reasons, tcbs


_LEAF = frozenset({Part.LEAF})
_UPPER = frozenset({Part.INTERMEDIATE, Part.ROOT})
_ALL = _LEAF | _UPPER
_BY_CHECK: Final = {
    Authenticity.LEAF: _LEAF,
    Authenticity.INTERMEDIATE: frozenset({Part.INTERMEDIATE}),
    Authenticity.ROOT: frozenset({Part.ROOT}),
    Authenticity.ANCHOR: _UPPER,
    Authenticity.CHAIN_PRODUCT: _ALL,
    Authenticity.CHIP_ID: _LEAF,
    Authenticity.REPORTED_TCB: _LEAF,
    Authenticity.PRODUCT: _LEAF,
}
_BY_CODE: Final = {
    # If two certificates do not match, either of them may be the wrong one.
    ReasonCode.LEAF_ISSUER: _ALL,
    ReasonCode.LEAF_SIGNATURE: _ALL,
    ReasonCode.ASK_ISSUER: _UPPER,
    ReasonCode.ASK_SIGNATURE: _UPPER,
    ReasonCode.LEAF_EXPIRED: _LEAF,
    ReasonCode.LEAF_NOT_YET_VALID: _LEAF,
    ReasonCode.ASK_EXPIRED: _UPPER,
    ReasonCode.ASK_NOT_YET_VALID: _UPPER,
    ReasonCode.ARK_EXPIRED: _UPPER,
    ReasonCode.ARK_NOT_YET_VALID: _UPPER,
    ReasonCode.ASK_REVOKED: _ALL,
    # No other certificate would remove these reasons.
    ReasonCode.CHIP_ID_MASKED: frozenset[Part](),
    ReasonCode.PRODUCT_UNKNOWN: frozenset[Part](),
    ReasonCode.REPORT_TCB: frozenset[Part](),
}


def parts_of(reason: Reason) -> frozenset[Part]:
    """Return the parts of the chain whose replacement might remove the reason."""
    by_code = _BY_CODE.get(reason.code)
    if by_code is not None:
        return by_code
    check = reason.code.check
    return frozenset() if check is None else _BY_CHECK.get(check, frozenset())


def wrong_parts(reasons: Iterable[Reason]) -> frozenset[Part]:
    """Return the parts of the chain to request from other sources because of these reasons."""
    found: frozenset[Part] = frozenset()
    for reason in reasons:
        found |= parts_of(reason)
    return found
