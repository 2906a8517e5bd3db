# SPDX-License-Identifier: Apache-2.0
"""Draws the charts of the fleet's page, as inline SVG.

Charts stretch to the page's width, so they contain no text. Scales and legends are HTML beside the
charts. Colours are classes of the style sheet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from snpcerts.mirror.fleet_view import HostHistory, HostState, Roll
from snpcerts.mirror.markup import Markup, element

MOST_SQUARES: Final = 1200
_WIDTH: Final = 1000.0
_HEIGHT: Final = 100.0


def _svg(*children: Markup, label: str, class_: str, box: str, stretch: bool = True) -> Markup:
    return element(
        "svg",
        *children,
        class_=class_,
        viewBox=box,
        preserveAspectRatio="none" if stretch else "xMinYMin meet",
        role="img",
        aria_label=label,
    )


def _rect(x: float, y: float, width: float, height: float, class_: str) -> Markup:
    return element(
        "rect", x=f"{x:g}", y=f"{y:g}", width=f"{width:g}", height=f"{height:g}", class_=class_
    )


def state_bar(counts: Mapping[HostState, int]) -> Markup:
    """Return a bar that shows the share of hosts in each state, good states first."""
    total = sum(counts.values())
    parts = [_rect(0, 0, _WIDTH, 10, "track")]
    x = 0.0
    for state in reversed(HostState):
        width = _WIDTH * counts.get(state, 0) / total if total else 0.0
        if width:
            parts.append(_rect(x, 0, width, 10, state.slug))
        x += width
    said = ", ".join(f"{counts[state]} {state.value}" for state in HostState if counts.get(state))
    return _svg(*parts, label=said or "no hosts", class_="bar", box=f"0 0 {_WIDTH:g} 10")


def share_bar(part: int, whole: int, class_: str) -> Markup:
    """Return a bar that is filled to ``part`` of ``whole``."""
    filled = _WIDTH * part / whole if whole else 0.0
    return _svg(
        _rect(0, 0, _WIDTH, 10, "track"),
        _rect(0, 0, filled, 10, class_),
        label=f"{part} of {whole}",
        class_="share",
        box=f"0 0 {_WIDTH:g} 10",
    )


def hosts_per_square(hosts: int) -> int:
    """Return how many hosts one square of :func:`state_squares` stands for."""
    return -(-hosts // MOST_SQUARES) or 1


def state_squares(counts: Mapping[HostState, int], columns: int = 48) -> Markup:
    """Return a grid of squares, each for one host or, in a large fleet, for several. The hosts in
    the worst state come first.
    """
    total = sum(counts.values())
    each = hosts_per_square(total)
    squares = [state for state in HostState for _ in range(-(-counts.get(state, 0) // each))]
    columns = min(columns, max(len(squares), 12))
    rows = -(-len(squares) // columns) or 1
    paths: dict[HostState, list[str]] = {}
    for index, state in enumerate(squares):
        x, y = index % columns * 10, index // columns * 10
        paths.setdefault(state, []).append(f"M{x} {y}h8v8h-8z")
    return _svg(
        *(element("path", d="".join(drawn), class_=state.slug) for state, drawn in paths.items()),
        label=f"{total} hosts by state",
        class_="squares",
        box=f"0 0 {columns * 10 - 2} {rows * 10 - 2}",
        stretch=False,
    )


def roll_chart(roll: Roll, now: datetime) -> Markup:
    """Return a chart of a roll's progress over time. The dashed line leads to the time at which the
    last certificate will be stored.
    """
    start = roll.started_at
    end = roll_end(roll, now)

    def x(at: datetime) -> float:
        return _WIDTH * min(max((at - start) / (end - start), 0.0), 1.0)

    def y(count: int) -> float:
        return _HEIGHT * (1 - min(count / max(roll.hosts, 1), 1.0))

    shown = [point for point in roll.points if point.at <= end]
    until = min(now, end)
    parts = [
        element("line", x1=0, x2=_WIDTH, y1=f"{at:g}", y2=f"{at:g}", class_="grid")
        for at in (0, _HEIGHT / 2, _HEIGHT)
    ]
    for name in ("stored", "committed", "in_step"):
        drawn = _steps([(x(point.at), y(getattr(point, name))) for point in shown], x(until))
        parts.append(element("path", d=drawn, class_=name.replace("_", "-")))
    if shown and not roll.done and roll.prefetched_at is not None and roll.prefetched_at > now:
        ahead = f"M{x(until):g} {y(shown[-1].stored):g}L{x(roll.prefetched_at):g} 0"
        parts.append(element("path", d=ahead, class_="ahead"))
    if until < end:
        at = f"{x(until):g}"
        parts.append(element("line", x1=at, x2=at, y1=0, y2=_HEIGHT, class_="now"))
    label = (
        f"of {roll.hosts} hosts, {roll.latest.stored} have a stored certificate, "
        f"{roll.latest.committed} have committed, {roll.latest.in_step} are in step"
    )
    return _svg(*parts, label=label, class_="roll", box=f"0 0 {_WIDTH:g} {_HEIGHT:g}")


def roll_end(roll: Roll, now: datetime) -> datetime:
    """Return the time at the right edge of :func:`roll_chart`."""
    if roll.done:
        return max(roll.latest.at, roll.started_at + timedelta(seconds=10))
    return max(now, roll.prefetched_at or now, roll.started_at + timedelta(seconds=10))


def _steps(points: Sequence[tuple[float, float]], until: float) -> str:
    """Return the SVG path of the area below a step line that ends at ``until``."""
    if not points:
        return ""
    first_x, first_y = points[0]
    parts = [f"M{first_x:g} {_HEIGHT:g}V{first_y:g}"]
    parts += (f"H{x:g}V{y:g}" for x, y in points[1:])
    parts.append(f"H{max(until, points[-1][0]):g}V{_HEIGHT:g}Z")
    return "".join(parts)


def history_strip(history: HostHistory) -> Markup:
    """Return a strip that shows a host's states over time, the oldest at the left."""
    if not history.seen:
        return Markup("")
    start = history.seen[0].at
    length = max(history.now - start, timedelta(seconds=1))
    times = [each.at for each in history.seen] + [history.now]
    states = [history.state_at(each) for each in history.seen]
    parts = [_rect(0, 0, _WIDTH, 10, "track")]
    for (begin, end), state in zip(pairwise(times), states, strict=True):
        left = _WIDTH * ((begin - start) / length)
        # Make even a short time in a bad state visible.
        width = max(_WIDTH * ((end - begin) / length), 3.0)
        parts.append(_rect(left, 0, width, 10, state.slug))
    said = ", then ".join(dict.fromkeys(state.value for state in states))
    return _svg(*parts, label=said, class_="strip", box=f"0 0 {_WIDTH:g} 10")
