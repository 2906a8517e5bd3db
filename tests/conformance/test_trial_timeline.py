# SPDX-License-Identifier: Apache-2.0
"""The timeline of one run, from what was observed in it."""

from __future__ import annotations

import json

from snpcerts.conformance.journal import (
    VERDICT,
    CertsRequest,
    SeenEvent,
    firmware_track,
    vcpu_track,
)
from snpcerts.conformance.trial_timeline import TrialSeen, add_trial
from snpcerts.trace import Timeline

from ..timelines import assert_perfetto_draws_all


def request(vcpu: int, asked: float, answered: float) -> CertsRequest:
    return CertsRequest(vcpu, 0x1000, 2, asked, answered_at=answered)


def test_the_firmware_has_the_requests_of_two_vcpus() -> None:
    seen = TrialSeen(
        [
            SeenEvent(1.0, vcpu_track(0), "exit for certificates"),
            SeenEvent(2.0, firmware_track(0), "has the request", 5.0),
            SeenEvent(4.0, firmware_track(1), "has the request", 7.0),
            SeenEvent(6.0, VERDICT, "lock-until-signed fails: no lock"),
            SeenEvent(6.5, VERDICT, "busy fails: too late"),
        ],
        [request(0, 1.0, 2.0), request(1, 3.0, 4.0)],
    )
    timeline = Timeline("x")
    add_trial(timeline, seen)
    events = json.loads(timeline.to_json())["traceEvents"]
    assert_perfetto_draws_all(events)
    assert sum(each["name"] == "has the request" for each in events) == 2
    failed = [each for each in events if " fails: " in each["name"]]
    assert [(each["ts"], each["dur"]) for each in failed] == [(2e6, 3e6), (5e6, 0.5e6)]
