# SPDX-License-Identifier: Apache-2.0
"""Writes the demo's runs as a timeline for Perfetto.

Each run is a group, with a track for each vCPU, for each VMM, for the writer and for the firmware.
The key server has its own group. An arrow leads from a guest's request to the certificates that its
VMM reads, and on to the signature.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from snpcerts.certfile.span import SpanKind
from snpcerts.demo.course import SETS_KEY, Course, CourseRequest
from snpcerts.demo.demo_host import IssueTime
from snpcerts.trace import Timeline, Track

_TITLE = "snpcerts demo"
_KEY_SERVER = "before the runs"


def timeline_of(courses: Sequence[Course], issued: Iterable[IssueTime]) -> Timeline:
    """Return the timeline of the runs, and of the certificates ``issued`` before them."""
    timeline = Timeline(_TITLE)
    for each in issued:
        track = timeline.track("key server", _KEY_SERVER)
        timeline.slice(track, f"issues {each.what}", each.start, each.end)
    for number, course in enumerate(courses, 1):
        _add(timeline, course, f"{number}. {course.title}")
    return timeline


def _add(timeline: Timeline, course: Course, group: str) -> None:
    rows = [
        (timeline.track(f"guest {number} vCPU 0", group), timeline.track(f"VMM {number}", group))
        for number in range(course.guests)
    ]
    writer, firmware = timeline.track("writer", group), timeline.track("firmware", group)
    for request in course.requests():
        _add_request(timeline, request, *rows[request.guest], firmware)
    for update in course.updates:
        values = {"update": update.number, "reported_tcb": update.tcb.hex()}
        for span in update.spans:
            name = SETS_KEY if span.kind is SpanKind.CHANGE else span.kind.value
            timeline.slice(writer, name, span.start, span.end, values)
    for command in course.commands:
        served = {} if command.guest is None else {"guest": command.guest}
        timeline.slice(firmware, command.name, command.start, command.end, served)


def _add_request(
    timeline: Timeline, request: CourseRequest, vcpu: Track, vmm: Track, firmware: Track
) -> None:
    timeline.slice(
        vmm, "exit for certificates", request.exited, request.end, {"answer": request.outcome}
    )
    for span in request.spans:
        timeline.slice(vmm, span.kind.value, span.start, span.end)
    report = request.report
    if report is None:
        return
    values: dict[str, object] = {"signed_by": report.result.key, "result": report.result.result}
    name = "report"
    if request.mismatched:
        values |= {"certificates_of": report.result.certified, "why": list(report.result.reasons)}
        name = "Mismatch"  # which Perfetto draws in red
    timeline.slice(vcpu, name, report.start, report.end, values)
    timeline.slice(vcpu, "asks", report.start, request.exited)
    points = [(vcpu, report.start)]
    table, reentry = request.span(SpanKind.TABLE), request.span(SpanKind.REENTRY)
    if table is not None and reentry is not None:
        timeline.slice(vmm, "reads certificates", table.start, reentry.start)
        points.append((vmm, table.start))
    if (signed := request.signature) is not None:
        points.append((firmware, signed.start))
    if len(points) > 1:
        timeline.arrow("certificates, then signature", *points)
