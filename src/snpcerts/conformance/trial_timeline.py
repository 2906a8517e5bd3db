# SPDX-License-Identifier: Apache-2.0
"""Draws one run of a VMM as a timeline. Each vCPU has one track for its requests and one for its
firmware commands. Three more tracks show the VMM, the update, and the checks that fail.

A VMM is observed from outside, through its system calls. Its lock is drawn from the last attempt to
take it until it was last observed: when the VMM answered, or when the firmware had the request.
"""

from __future__ import annotations

from dataclasses import dataclass

from snpcerts.conformance.journal import VERDICT, CertsRequest, SeenEvent, vcpu_track
from snpcerts.conformance.served_file import LockSeen
from snpcerts.trace import Timeline, Track


@dataclass(frozen=True, slots=True)
class TrialSeen:
    """The observations of one run of the VMM."""

    events: list[SeenEvent]
    requests: list[CertsRequest]


def add_trial(timeline: Timeline, seen: TrialSeen, group: str | None = None) -> None:
    """Add a run to the timeline, as one group.

    An arrow leads from each exit to the last attempt to lock the file, and on to the firmware.
    """
    names = {event.track for event in seen.events}
    for name in sorted(names, key=lambda name: (not name.startswith("vCPU"), name)):
        timeline.track(name, group)
    drawn = min((event.at for event in seen.events), default=0.0)
    for event in seen.events:
        track = timeline.track(event.track, group)
        if event.track == VERDICT:
            asked = [each.asked_at for each in seen.requests if each.asked_at <= event.at]
            timeline.slice(track, event.what, max([drawn, *asked]), event.at)
            drawn = event.at
        elif event.until is not None:
            timeline.slice(track, event.what, event.at, event.until)
        else:
            timeline.instant(track, event.what, event.at)
    for request in seen.requests:
        _add_request(timeline, request, seen.events, group)


def _add_request(
    timeline: Timeline, request: CertsRequest, events: list[SeenEvent], group: str | None
) -> None:
    answered = request.answered_at
    if answered is None:
        return
    vcpu = timeline.track(vcpu_track(request.vcpu), group)
    command = _command_of(request, events)
    end = answered if command is None or command.until is None else command.until
    timeline.slice(vcpu, "request", request.asked_at, end, {"ret": request.ret})
    tries = request.lock_tries
    if len(tries) > 1:
        timeline.slice(vcpu, "lock wait", tries[0], tries[-1])
    if tries and _shared(request.lock_at_answer):
        held_until = end if _shared(request.lock_when_signed) else answered
        timeline.slice(vcpu, "lock held", tries[-1], held_until)
    points: list[tuple[Track, float]] = [(vcpu, request.asked_at)]
    if tries:
        points.append((vcpu, tries[-1]))
    if command is not None:
        points.append((timeline.track(command.track, group), command.at))
    if len(points) > 1:
        timeline.arrow("asks the firmware", *points)


def _command_of(request: CertsRequest, events: list[SeenEvent]) -> SeenEvent | None:
    """Return the firmware command that began when the VMM answered ``request``, or None."""
    found = (each for each in events if each.until is not None and each.at == request.answered_at)
    return next(found, None)


def _shared(lock: LockSeen | None) -> bool:
    return lock is not None and not lock.exclusive
