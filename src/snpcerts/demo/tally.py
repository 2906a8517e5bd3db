# SPDX-License-Identifier: Apache-2.0
"""Verifies every report with the table that came with it, and counts the results."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from snpcerts.abi.cert_table import CertTable
from snpcerts.abi.report import Report
from snpcerts.demo.demo_event import Answered, AttestedEvent, Event, Updated
from snpcerts.demo.demo_host import EmulatedHost, key_name
from snpcerts.errors import FormatError
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.judging import verify
from snpcerts.verify.verdict import Status
from snpcerts.vmm.exit_service import Outcome


@dataclass(frozen=True, slots=True)
class RequestResult:
    """The result of one report request. ``result`` is the name of the :class:`Tally` field that
    counts it.

    ``key`` names the key that signed the report. ``certified`` names the key that the certificates
    certify; it is empty if the table is not one of the host's.
    """

    result: str
    key: str = ""
    certified: str = ""
    reasons: tuple[str, ...] = ()


@dataclass(slots=True)
class Tally:
    """The counts of one run. With the lock, ``mismatched`` must be 0."""

    reports: int = 0  # reports that guests got
    verified: int = 0  # reports that verify with their table
    mismatched: int = 0  # reports that do not verify with their table
    empty: int = 0  # reports with an empty table
    busy: int = 0  # requests answered with BUSY
    failed: int = 0  # requests that ended in an error at the guest
    updates: int = 0
    writer_wait_ms_max: float = 0.0
    writer_hold_ms_max: float = 0.0

    def count(self, event: Event, host: EmulatedHost) -> RequestResult | None:
        """Count one event. For an answer to a guest, return the result of its request."""
        match event:
            case Answered(outcome=outcome):
                self.busy += outcome == Outcome.BUSY.value
            case Updated(waited=waited, held=held):
                self.updates += 1
                self.writer_wait_ms_max = max(self.writer_wait_ms_max, waited * 1000)
                self.writer_hold_ms_max = max(self.writer_hold_ms_max, held * 1000)
            case AttestedEvent():
                judgement = self._judge(event.report, event.table, event.errno, host)
                self.reports += judgement.result != "failed"
                setattr(self, judgement.result, getattr(self, judgement.result) + 1)
                return judgement
        return None

    def _judge(self, report: bytes, table: bytes, errno: int, host: EmulatedHost) -> RequestResult:
        if not report:
            return RequestResult("failed", reasons=(f"errno {errno}",))
        key = key_name(host.tcb_of(Report.unpack(report)))
        try:
            parsed = CertTable.decode(table)
        except FormatError as error:
            return RequestResult("mismatched", key, reasons=(str(error),))
        if not parsed.entries:
            return RequestResult("empty", key)
        verdict = verify(
            report,
            Collateral.from_table(parsed),
            anchors=(host.anchor,),
            at=datetime.now(UTC),
        )
        if verdict.status is Status.VERIFIED:
            return RequestResult("verified", key, key)
        tcb = host.tcb_of_table(parsed)
        certified = key_name(tcb) if tcb else ""
        codes = tuple(reason.code for reason in verdict.reasons)
        return RequestResult("mismatched", key, certified, codes)

    def to_json(self) -> dict[str, int | float]:
        """Return the counts as JSON values."""
        return {
            "reports": self.reports,
            "verified": self.verified,
            "mismatched": self.mismatched,
            "empty": self.empty,
            "busy": self.busy,
            "failed": self.failed,
            "updates": self.updates,
            "writer_wait_ms_max": round(self.writer_wait_ms_max, 3),
            "writer_hold_ms_max": round(self.writer_hold_ms_max, 3),
        }
