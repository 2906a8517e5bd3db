# SPDX-License-Identifier: Apache-2.0
"""Verify every report with the table that came with it, and count."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from snpcerts.abi.cert_table import CertTable
from snpcerts.abi.report import Report
from snpcerts.demo.event import Answered, Attested, Event, Updated
from snpcerts.demo.host import EmulatedHost, key_name
from snpcerts.errors import FormatError
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.judging import verify
from snpcerts.verify.verdict import Status
from snpcerts.vmm.exit_service import Outcome


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one answered request was worth: ``result`` is a field of :class:`Tally`."""

    result: str
    key: str = ""
    reasons: tuple[str, ...] = ()


@dataclass(slots=True)
class Tally:
    """Counts of one run. Only ``mismatched`` may never be anything but 0."""

    reports: int = 0  # that guests got
    verified: int = 0  # with the table that came along
    mismatched: int = 0  # a table came along, and the report does not verify with it
    empty: int = 0  # an empty table came along
    busy: int = 0  # times a guest was told to come back
    failed: int = 0  # requests that ended in an error at the guest
    updates: int = 0
    writer_wait_ms_max: float = 0.0
    writer_hold_ms_max: float = 0.0

    def count(self, event: Event, host: EmulatedHost) -> Judgement | None:
        """Take one event in; what a report was worth, if it was one."""
        match event:
            case Answered(outcome=outcome):
                self.busy += outcome == Outcome.BUSY.value
            case Updated(waited=waited, held=held):
                self.updates += 1
                self.writer_wait_ms_max = max(self.writer_wait_ms_max, waited * 1000)
                self.writer_hold_ms_max = max(self.writer_hold_ms_max, held * 1000)
            case Attested():
                judgement = self._judge(event.report, event.table, event.errno, host)
                self.reports += judgement.result != "failed"
                setattr(self, judgement.result, getattr(self, judgement.result) + 1)
                return judgement
        return None

    def _judge(self, report: bytes, table: bytes, errno: int, host: EmulatedHost) -> Judgement:
        if not report:
            return Judgement("failed", reasons=(f"errno {errno}",))
        key = key_name(host.tcb_of(Report.unpack(report)))
        try:
            parsed = CertTable.decode(table)
        except FormatError as error:
            return Judgement("mismatched", key, (str(error),))
        if not parsed.entries:
            return Judgement("empty", key)
        verdict = verify(
            report,
            Collateral.from_table(parsed),
            anchors=(host.anchor,),
            at=datetime.now(UTC),
        )
        if verdict.status is Status.VERIFIED:
            return Judgement("verified", key)
        return Judgement("mismatched", key, tuple(reason.code for reason in verdict.reasons))

    def to_json(self) -> dict[str, int | float]:
        """The counts, for a JSON line."""
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

    def __str__(self) -> str:
        return (
            f"reports {self.reports}, verified {self.verified}, empty {self.empty}, "
            f"busy {self.busy}, failed {self.failed}, updates {self.updates}, "
            f"writer waited {self.writer_wait_ms_max:.1f} ms at most, "
            f"mismatched {self.mismatched}"
        )
