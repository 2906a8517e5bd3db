# SPDX-License-Identifier: Apache-2.0
"""Writes a timeline that Perfetto and chrome://tracing can open.

Format: the JSON of the "Trace Event Format": complete events (``X``), instants (``i``), flow arrows
(``s``, ``t`` and ``f``) and names of groups and tracks (``M``). In that format a group is a
process, and a track is a thread. Callers pass times in seconds, all on the same clock. The file
counts microseconds from the earliest time, with three decimals.

Perfetto 52 orders groups by their number of slices, and orders the tracks of a group by their track
numbers, which it also shows after their names. A track with the same number as its group comes
first. If two slices of a track overlap and neither contains the other, Perfetto drops one. It draws
an arrow from the end of one slice to the start of the next.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

EVENTS_MAX: Final = 200_000  # a browser can still open this many
_END: Final = "end"  # name of the field for a slice's end; the file has its length instead

Values = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Track:
    """One row of the timeline, such as a vCPU, a process or the firmware."""

    group: int
    number: int
    name: str


@dataclass(slots=True)
class Timeline:
    """A timeline named ``title``. Tracks and groups appear in the order in which they are first
    named.

    Events after the first 200,000 are dropped; ``dropped`` counts them.
    """

    title: str
    dropped: int = 0
    _groups: dict[str, int] = field(default_factory=dict)
    _tracks: dict[tuple[int, str], Track] = field(default_factory=dict)
    _events: list[dict[str, object]] = field(default_factory=list)
    _arrows: int = 0
    _last: int = 0  # number of the last track

    def track(self, name: str, group: str | None = None) -> Track:
        """Return the track with this name in ``group``. Add the track if it is new. The default
        group is named after the timeline's title.
        """
        group = self.title if group is None else group
        number = self._groups.setdefault(group, len(self._groups) + 1)
        if (number, name) not in self._tracks:
            self._last += 1 + (self._last + 1 == number)
            self._tracks[number, name] = Track(number, self._last, name)
        return self._tracks[number, name]

    def slice(
        self, track: Track, name: str, start: float, end: float, values: Values | None = None
    ) -> None:
        """Add a slice that lasts from ``start`` to ``end``, in seconds. It must not overlap another
        slice of its track, unless one of the two contains the other.
        """
        last = {_END: max(start, end) * 1e6}
        self._add({"ph": "X", **self._at(track, name, start), **last, "args": dict(values or {})})

    def instant(self, track: Track, name: str, at: float, values: Values | None = None) -> None:
        """Add an event without duration."""
        where = self._at(track, name, at)
        self._add({"ph": "i", "s": "t", **where, "args": dict(values or {})})

    def arrow(self, name: str, *points: tuple[Track, float]) -> None:
        """Add an arrow from one slice to later ones. Each point is a track and a time within a
        slice that was added before. If several slices start at that time, the arrow touches the
        last one added.
        """
        self._arrows += 1
        same: dict[str, object] = {"cat": "flow", "id": self._arrows}
        for number, (track, at) in enumerate(points):
            end = number == len(points) - 1
            phase = "s" if number == 0 else "f" if end else "t"
            binding = {"bp": "e"} if number else {}
            self._add({"ph": phase, **binding, **self._at(track, name, at), **same})

    def to_json(self) -> str:
        """Return the whole timeline as the JSON text of a file."""
        times = [each["ts"] for each in self._events]
        begin = min((at for at in times if isinstance(at, float)), default=0.0)
        events = [_since(begin, each) for each in self._events]
        return json.dumps({"traceEvents": [*self.names(), *events], "displayTimeUnit": "ms"})

    def names(self) -> list[dict[str, object]]:
        """Return the events that set the names and the order of the groups and tracks."""
        names: list[dict[str, object]] = []
        for name, number in self._groups.items() or {self.title: 1}.items():
            where = {"ph": "M", "pid": number}
            names.append({**where, "name": "process_name", "args": {"name": name}})
            names.append({**where, "name": "process_sort_index", "args": {"sort_index": number}})
        for track in self._tracks.values():
            where = {"ph": "M", "pid": track.group, "tid": track.number}
            # Perfetto shows the track's number after its name. If the name ends in a number too,
            # separate the two. Perfetto 52 does not decode JSON's escapes in these names, so the
            # separator is ASCII.
            name = f"{track.name} |" if track.name[-1:].isdigit() else track.name
            names.append({**where, "name": "thread_name", "args": {"name": name}})
            order = {"sort_index": track.number}
            names.append({**where, "name": "thread_sort_index", "args": order})
        return names

    def take(self) -> Sequence[Mapping[str, object]]:
        """Return the events added so far, and forget them. Their times are on the callers' clock,
        in microseconds.
        """
        events = self._events[:]
        del self._events[: len(events)]  # another thread may have added one meanwhile
        return [_since(0.0, each) for each in events]

    def _at(self, track: Track, name: str, at: float) -> dict[str, object]:
        return {"name": name, "pid": track.group, "tid": track.number, "ts": at * 1e6}

    def _add(self, event: dict[str, object]) -> None:
        if len(self._events) >= EVENTS_MAX:
            self.dropped += 1
        else:
            self._events.append(event)


def _since(begin: float, event: dict[str, object]) -> dict[str, object]:
    """Return the event with its times relative to ``begin``, in microseconds, rounded to
    nanoseconds.

    A slice's end is rounded before its length is computed, so that adjacent slices stay adjacent.
    """
    made = {name: value for name, value in event.items() if name != _END}
    start, end = _nanoseconds(event["ts"], begin), event.get(_END)
    made["ts"] = start / 1e3
    if end is not None:
        made["dur"] = (_nanoseconds(end, begin) - start) / 1e3
    return made


def _nanoseconds(at: object, begin: float) -> int:
    return round((at - begin) * 1e3) if isinstance(at, float) else 0


@dataclass(slots=True)
class TimelineStream:
    """Writes a timeline to a file as it grows, in the array form of the format.

    Readers accept the file even if its end is missing because the writer was killed. Times are not
    made relative to the earliest one. Events after the first 200,000 are dropped.
    """

    timeline: Timeline
    write: Callable[[str], object]
    _written: int = 0
    _named: int = 0
    _begun: bool = False
    _closed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def flush(self) -> None:
        """Write the new events. Any thread may call this method. After :meth:`close`, it does
        nothing.
        """
        with self._lock:
            if not self._closed:
                self._flush()

    def close(self) -> None:
        """Write the new events and the end of the file."""
        with self._lock:
            self._flush()
            self.write("\n]\n" if self._begun else "[]\n")
            self._closed = True

    def _flush(self) -> None:
        events = list(self.timeline.take())[: max(0, EVENTS_MAX - self._written)]
        names = self.timeline.names()
        if len(names) != self._named:
            self._named = len(names)
            events = [*names, *events]
        self._written += len(events)
        for each in events:
            self.write((",\n" if self._begun else "[\n") + json.dumps(each))
            self._begun = True
