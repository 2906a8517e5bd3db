# SPDX-License-Identifier: Apache-2.0
"""Writes a timeline that Perfetto and chrome://tracing open.

Format: the JSON array of the "Trace Event Format": complete events (``X``),
instants (``i``), flow arrows (``s`` and ``f``) and names of tracks (``M``).
Times given here are seconds on any one clock; the file counts microseconds
from the earliest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_PID: Final = 1
_EVENTS_MAX: Final = 200_000  # what a browser still opens

Values = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Track:
    """One row of the timeline: a vCPU, a process, the firmware."""

    number: int
    name: str


@dataclass(slots=True)
class Timeline:
    """A timeline named ``title``. Tracks appear in the order in which they were first named.

    Beyond 200,000 events, later ones are dropped and ``dropped`` counts them.
    """

    title: str
    dropped: int = 0
    _tracks: dict[str, Track] = field(default_factory=dict)
    _events: list[dict[str, object]] = field(default_factory=list)
    _arrows: int = 0

    def track(self, name: str) -> Track:
        """Return the track of this name."""
        return self._tracks.setdefault(name, Track(len(self._tracks) + 1, name))

    def slice(
        self, track: Track, name: str, start: float, end: float, values: Values | None = None
    ) -> None:
        """Something that lasted from ``start`` to ``end``, in seconds."""
        length = {"dur": max(0.0, end - start) * 1e6}
        self._add({"ph": "X", **self._at(track, name, start), **length, "args": dict(values or {})})

    def instant(self, track: Track, name: str, at: float, values: Values | None = None) -> None:
        """Something that happened at one moment."""
        where = self._at(track, name, at)
        self._add({"ph": "i", "s": "t", **where, "args": dict(values or {})})

    def arrow(self, name: str, start: tuple[Track, float], end: tuple[Track, float]) -> None:
        """An arrow from a slice to a later one; each is a track and a time within the slice."""
        self._arrows += 1
        same = {"cat": "flow", "id": self._arrows}
        self._add({"ph": "s", **self._at(start[0], name, start[1]), **same})
        self._add({"ph": "f", "bp": "e", **self._at(end[0], name, end[1]), **same})

    def to_json(self) -> str:
        """Return the file's text."""
        times = [each["ts"] for each in self._events]
        begin = min((at for at in times if isinstance(at, float)), default=0.0)
        names: list[dict[str, object]] = [
            {"ph": "M", "pid": _PID, "name": "process_name", "args": {"name": self.title}}
        ]
        for track in self._tracks.values():
            where = {"ph": "M", "pid": _PID, "tid": track.number}
            names.append({**where, "name": "thread_name", "args": {"name": track.name}})
            order = {"sort_index": track.number}
            names.append({**where, "name": "thread_sort_index", "args": order})
        events = [
            {**each, "ts": round(at - begin, 3)}
            for each, at in zip(self._events, times, strict=True)
            if isinstance(at, float)
        ]
        return json.dumps({"traceEvents": [*names, *events], "displayTimeUnit": "ms"})

    def _at(self, track: Track, name: str, at: float) -> dict[str, object]:
        return {"name": name, "pid": _PID, "tid": track.number, "ts": at * 1e6}

    def _add(self, event: dict[str, object]) -> None:
        if len(self._events) >= _EVENTS_MAX:
            self.dropped += 1
        else:
            self._events.append(event)
