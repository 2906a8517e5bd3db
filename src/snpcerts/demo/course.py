# SPDX-License-Identifier: Apache-2.0
"""The course of one demo run: which process waited, held a lock, answered or signed, and when.

The events come from different processes. A guest's n-th report belongs to the guest's n-th request
that KVM passed on to the firmware after the VMM's answer. A firmware command belongs to the KVM_RUN
during which it ran.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from snpcerts.certfile.span import Span, SpanKind
from snpcerts.demo.demo_event import (
    AllUp,
    Answered,
    AttestedEvent,
    Event,
    FirmwareCommand,
    Updated,
)
from snpcerts.demo.tally import RequestResult
from snpcerts.vmm.exit_service import Outcome

REQUESTS_MAX: Final = 10_000  # kept of one run; about a minute of the default demo
SIGNS: Final = "SNP_GUEST_REQUEST"
SETS_KEY: Final = "SNP_CONFIG"
_PASSED_ON: Final = (Outcome.SERVED.value, Outcome.EMPTY.value)  # passed on to the firmware


@dataclass(frozen=True, slots=True)
class GuestReport:
    """One report as the program in the guest got it, and whether the report verifies."""

    start: float
    end: float
    result: RequestResult


@dataclass(frozen=True, slots=True)
class CourseRequest:
    """One KVM_EXIT_SNP_REQ_CERTS exit, and the result of the request."""

    guest: int
    exited: float
    outcome: str
    spans: tuple[Span, ...]
    report: GuestReport | None = None
    signature: FirmwareCommand | None = None

    @property
    def end(self) -> float:
        """The time at which the VMM finished the request."""
        return max((each.end for each in self.spans), default=self.exited)

    def span(self, kind: SpanKind) -> Span | None:
        """Return the request's last span of this kind; None if there is none."""
        return next((each for each in reversed(self.spans) if each.kind is kind), None)

    @property
    def mismatched(self) -> bool:
        """Whether the report does not verify with the certificates that came with it."""
        return self.report is not None and self.report.result.result == "mismatched"


@dataclass(slots=True)
class Course:
    """The events of one run in the order in which :meth:`note` received them.

    ``title`` is the run's name. Times are monotonic seconds. After the first 10,000 answers, no
    more events are kept; ``left_out`` counts the later answers.
    """

    title: str
    guests: int
    key_names: Mapping[bytes, str]  # by reported TCB, 8 bytes; the first key signs at the start
    begin: float = 0.0
    left_out: int = 0
    updates: list[Updated] = field(default_factory=list)
    commands: list[FirmwareCommand] = field(default_factory=list)
    _answers: list[Answered] = field(default_factory=list)
    _reports: list[tuple[int, GuestReport]] = field(default_factory=list)

    def note(self, event: Event, result: RequestResult | None) -> None:
        """Record one event. ``result`` is what :meth:`Tally.count` returned for the event."""
        match event:
            case AllUp(now=now):
                self.begin = now
            case _ if len(self._answers) >= REQUESTS_MAX:
                self.left_out += isinstance(event, Answered)
            case Answered():
                self._answers.append(event)
            case AttestedEvent() if result is not None:
                self._reports.append((event.guest, GuestReport(event.start, event.end, result)))
            case Updated():
                self.updates.append(event)
            case FirmwareCommand():
                self.commands.append(event)

    def requests(self) -> list[CourseRequest]:
        """Return the requests in the order of their exits, each with its report and signature."""
        found: list[CourseRequest] = []
        for guest in range(self.guests):
            reports = (each for number, each in self._reports if number == guest)
            signatures = [
                each for each in self.commands if each.guest == guest and each.name == SIGNS
            ]
            for answer in self._answers:
                if answer.guest != guest:
                    continue
                passed_on = answer.outcome in _PASSED_ON
                report = next(reports, None) if passed_on else None
                found.append(_request(answer, report, signatures))
        return sorted(found, key=lambda each: each.exited)

    def keys(self) -> list[tuple[float, str]]:
        """Return, for each key, the time at which it began to sign, and its name."""
        changes = (each.end for each in self.commands if each.name == SETS_KEY)
        first, *_ = self.key_names.values()
        later = zip(changes, self.updates, strict=False)  # a stopped run may lack the last update
        return [(0.0, first), *((at, self.key_names[each.tcb]) for at, each in later)]


def _request(
    answer: Answered, report: GuestReport | None, signatures: list[FirmwareCommand]
) -> CourseRequest:
    made = CourseRequest(answer.guest, answer.exited, answer.outcome, answer.spans, report)
    reentry = made.span(SpanKind.REENTRY)
    if report is None or reentry is None:
        return made
    signed = (each for each in signatures if reentry.start <= each.start <= reentry.end)
    return replace(made, signature=next(signed, None))
