# SPDX-License-Identifier: Apache-2.0
"""The agent's events as log lines: text for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

from snpcerts.host.event import Event, EventKind, Listener

_FIGURES = ("lock_wait_ms", "lock_held_ms", "firmware_ms")
# The text log omits these. The JSON log has all events.
_QUIET = (EventKind.CHECKED, EventKind.FETCHED)
_ANNOUNCEMENTS = (EventKind.ANNOUNCED, EventKind.NOT_ANNOUNCED)
_SUCCESSES = (EventKind.ANNOUNCED, EventKind.PUBLISHED, EventKind.EMPTIED)


def text_log(write: Callable[[str], None]) -> Listener:
    """Return a listener that writes one line per event, without the time, because journals
    add it.
    """

    def listen(event: Event) -> None:
        if event.kind in _QUIET:
            return
        mark = "warning: " if event.kind.loud else ""
        drift = "DRIFT, the firmware or the file changed without the lock: "
        figures = [
            f"{name.removesuffix('_ms').replace('_', ' ')} {event.fields[name]:.1f} ms"
            for name in _FIGURES
            if isinstance(event.fields.get(name), float)
        ]
        write(
            mark
            + (drift if event.kind is EventKind.DRIFT else "")
            + event.message
            + (f" ({', '.join(figures)})" if figures else "")
        )

    return listen


def json_log(write: Callable[[str], None]) -> Listener:
    """Return a listener that writes one JSON object per event, with the time in UTC."""

    def listen(event: Event) -> None:
        line: dict[str, object] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event.kind.value,
            "level": "warning" if event.kind.loud else "info",
            "message": event.message,
        }
        if event.file is not None:
            line["file"] = event.file
        write(json.dumps(line | dict(event.fields)))

    return listen


def without_repeats(listener: Listener) -> Listener:
    """Return a listener that passes events on, but drops a warning that repeats the last one about
    the same subject: a file, the announcements to the mirror, or everything else together.

    An update of the file, or an announcement that arrives, ends the repetition: the same warning is
    then passed on again. Nothing ends it for everything else.
    """
    last: dict[tuple[str | None, bool], str] = {}

    def listen(event: Event) -> None:
        subject = (event.file, event.kind in _ANNOUNCEMENTS)
        if event.kind.loud:
            if last.get(subject) == event.message:
                return
            last[subject] = event.message
        elif event.kind in _SUCCESSES:
            last.pop(subject, None)
        listener(event)

    return listen
