# SPDX-License-Identifier: Apache-2.0
"""Is this attestation report genuine?

A verdict of *verified* says: a key that AMD endorses, through a chain to a
trusted root that is valid at the time asked about, signed this report; and the
key is the one for the product, the TCB and (VCEK) the chip that the report
names.

It does **not** say, and the caller must still judge:

* that the report answers the caller's question: ``report_data`` must hold the
  caller's nonce or key, else the report may be a replay;
* what runs in the guest: ``measurement``, ``host_data``, ``id_key_digest``;
* that the guest policy is acceptable: debug, migration, SMT;
* that the request came from the VMPL it should;
* that the TCB is new enough, or that reported, committed and current TCB are in
  order: a verified report may be from firmware with known holes;
* that no certificate is revoked: a CRL is carried and not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from snpcerts.abi.product import Product
from snpcerts.abi.report import Report, SigningKey
from snpcerts.endorsement.anchors import AMD_ANCHORS, Anchor
from snpcerts.endorsement.vek import EndorsementCert, VekKind
from snpcerts.errors import FormatError, UsageError
from snpcerts.verify import report_check
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.endorsement_check import EndorsementMemory
from snpcerts.verify.reason import Reason, ReasonCode
from snpcerts.verify.verdict import ReportTcbs, Status, Verdict

_KINDS = {SigningKey.VCEK: VekKind.VCEK, SigningKey.VLEK: VekKind.VLEK}

_memory = EndorsementMemory()


def verify(
    report: Report | bytes,
    collateral: Collateral,
    *,
    anchors: Sequence[Anchor] = AMD_ANCHORS,
    at: datetime,
) -> Verdict:
    """Judge a report with the certificates that came with it.

    Everything that can be judged is, and every reason is listed, in the same
    order each time: the report itself, its certificates, the two together.
    Nothing about the evidence raises, whatever bytes it is. ``at`` is when the
    certificates must be valid; :class:`UsageError` if it has no time zone.
    """
    if at.tzinfo is None or at.utcoffset() is None:
        raise UsageError("the time to verify at needs a time zone")
    if not isinstance(report, Report):
        try:
            report = Report.unpack(report)
        except FormatError as error:
            return Verdict(Status.REFUSED, (Reason(ReasonCode.REPORT_SIZE, str(error)),))
    reasons = list(report_check.check_layout(report))
    kind = None if report.signing_key is None else _KINDS.get(report.signing_key)
    leaf = key = None
    if kind is not None:
        findings = _memory.findings(kind, collateral, anchors)
        leaf, key = findings.leaf, findings.key
        reasons += findings.reasons_at(at)
    elif report.signing_key is SigningKey.NONE:
        reasons.append(
            Reason(ReasonCode.REPORT_UNSIGNED, "SIGNING_KEY says that neither VCEK nor VLEK signed")
        )
    product = report.product if leaf is None else leaf.product
    tcbs, unreadable = _tcbs(report, product)
    reasons += unreadable
    if leaf is not None:
        reasons += _against_leaf(report, tcbs, leaf)
    if key is not None:
        reasons += report_check.check_signature(report, key)
    return Verdict(
        status=Status.REFUSED if reasons else Status.VERIFIED,
        reasons=tuple(reasons),
        product=product,
        chip_id=report.fields.chip_id,
        signing_key=report.signing_key,
        tcbs=tcbs,
        report=report,
        leaf=leaf,
    )


def _tcbs(report: Report, product: Product | None) -> tuple[ReportTcbs, tuple[Reason, ...]]:
    # Without a product the bytes have no meaning, and the reason for that is listed.
    return (ReportTcbs(), ()) if product is None else report_check.read_tcbs(report, product)


def _against_leaf(report: Report, tcbs: ReportTcbs, leaf: EndorsementCert) -> list[Reason]:
    return [
        *report_check.check_product(report, leaf),
        *report_check.check_chip_id(report, leaf),
        *report_check.check_reported_tcb(tcbs.reported, leaf),
    ]
