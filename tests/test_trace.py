# SPDX-License-Identifier: Apache-2.0
"""Timelines in the form that Perfetto reads."""

from __future__ import annotations

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from snpcerts.trace import Timeline

from .timelines import assert_perfetto_draws_all, nanoseconds


def test_times_are_microseconds_from_the_first_event() -> None:
    timeline = Timeline("a run")
    vcpu, firmware = timeline.track("vCPU 0"), timeline.track("firmware")
    timeline.slice(vcpu, "request", 100.0, 100.5, {"npages": 2})
    timeline.instant(vcpu, "lock", 100.25)
    timeline.arrow("asks", (vcpu, 100.5), (firmware, 101.0))
    events = json.loads(timeline.to_json())["traceEvents"]
    names = {each["args"]["name"] for each in events if each["name"] == "thread_name"}
    assert names == {"vCPU 0 |", "firmware"}
    (request,) = (each for each in events if each["ph"] == "X")
    assert (request["ts"], request["dur"], request["args"]) == (0, 500_000, {"npages": 2})
    (lock,) = (each for each in events if each["ph"] == "i")
    assert lock["ts"] == 250_000
    start, end = (next(each for each in events if each["ph"] == phase) for phase in "sf")
    assert start["id"] == end["id"]
    assert (start["tid"], end["tid"]) == (vcpu.number, firmware.number)


@given(
    events=st.lists(
        st.tuples(st.text(), st.text(), st.floats(0, 1e9), st.floats(0, 1e3)), max_size=9
    )
)
def test_any_text_and_any_order_make_a_timeline(
    events: list[tuple[str, str, float, float]],
) -> None:
    timeline = Timeline("x")
    for track, name, start, length in events:
        timeline.slice(timeline.track(track), name, start, start + length)
    written = [each for each in json.loads(timeline.to_json())["traceEvents"] if each["ph"] == "X"]
    assert [each["name"] for each in written] == [name for _, name, _, _ in events]
    assert all(each["ts"] >= 0 and each["dur"] >= 0 for each in written)


@given(
    begin=st.floats(0, 1e6),
    times=st.lists(st.floats(0, 100), min_size=3, max_size=9),
)
def test_slices_that_meet_still_meet_in_the_file(begin: float, times: list[float]) -> None:
    timeline = Timeline("x")
    track = timeline.track("writer")
    points = [begin + each for each in sorted(times)]
    for start, end in itertools.pairwise(points):
        timeline.slice(track, "held", start, end)
    timeline.slice(track, "update", points[0], points[-1])
    events = json.loads(timeline.to_json())["traceEvents"]
    assert_perfetto_draws_all(events)
    ends = [nanoseconds(each["ts"] + each["dur"]) for each in events if each["ph"] == "X"]
    assert ends[-1] == ends[-2]


def test_no_track_is_numbered_like_its_group() -> None:
    timeline = Timeline("x")
    for group in "abc":
        for name in "opqrs":
            timeline.slice(timeline.track(name, group), "one", 1.0, 2.0)
    tracks = {
        each["tid"] for each in json.loads(timeline.to_json())["traceEvents"] if "tid" in each
    }
    assert len(tracks) == 15
    assert_perfetto_draws_all(json.loads(timeline.to_json())["traceEvents"])
