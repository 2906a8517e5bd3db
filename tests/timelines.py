# SPDX-License-Identifier: Apache-2.0
"""Finds what Perfetto would drop from a timeline without saying so."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

Events = list[dict[str, Any]]


def nanoseconds(microseconds: float) -> int:
    return round(microseconds * 1e3)


def assert_perfetto_draws_all(events: Events) -> None:
    """Check that slices of a track nest, that each arrow goes forward from slice to slice, and that
    Perfetto takes no track for a process's main thread.
    """
    slices: dict[tuple[int, int], list[tuple[int, int, str]]] = defaultdict(list)
    arrows: dict[int, list[tuple[int, tuple[int, int]]]] = defaultdict(list)
    for each in events:
        where = each["pid"], each.get("tid", -1)
        assert where[0] != where[1], f"{each['name']}: must not be a main thread's track"
        if each["ph"] == "X":
            start = nanoseconds(each["ts"])
            slices[where].append((start, start + nanoseconds(each["dur"]), each["name"]))
        elif each.get("cat") == "flow":
            arrows[each["id"]].append((nanoseconds(each["ts"]), where))
    assert slices
    for found in slices.values():
        around: list[tuple[int, int, str]] = []
        for one in sorted(found, key=lambda each: (each[0], -each[1])):
            while around and around[-1][1] <= one[0]:
                around.pop()
            assert not around or one[1] <= around[-1][1], f"{around[-1]} overlaps {one}"
            around.append(one)
    for points in arrows.values():
        assert points == sorted(points, key=lambda each: each[0]), points
        for at, where in points:
            assert any(start <= at <= end for start, end, _ in slices[where]), (at, where)
