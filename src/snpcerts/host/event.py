# SPDX-License-Identifier: Apache-2.0
"""Events that the agent reports while it works, for logs and metrics."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from snpcerts.printable import printable


class EventKind(enum.StrEnum):
    """What happened. The values are stable, because programs that read the log depend on them."""

    PUBLISHED = "published"  # a file contains the certificates of the signing key
    EMPTIED = "emptied"  # a file was replaced by the empty table
    DRIFT = "drift"  # the firmware or a file changed without the lock
    GARBAGE = "garbage"  # a file that an update wrote earlier contains no valid table
    LAPSED = "lapsed"  # the certificates of a file have expired or were revoked
    FIRMWARE = "firmware"  # a firmware command was issued
    CHANGED = "changed"  # the firmware's state has changed since the last read; ``what`` says how
    FETCHED = "fetched"  # the certificate source was asked; ``result`` is the outcome
    UNAVAILABLE = "unavailable"  # a certificate is not available now
    PROVEN = "proven"  # a report showed that the believed signing key signs
    CONTRADICTED = "contradicted"  # a report showed that another key signs
    ANNOUNCED = "announced"  # the fleet's mirror knows this host
    NOT_ANNOUNCED = "not-announced"  # the announcement did not reach the fleet's mirror
    FAILED = "failed"  # something failed
    CHECKED = "checked"  # every file was checked
    STARTED = "started"
    STOPPED = "stopped"

    @property
    def loud(self) -> bool:
        """Whether an operator should see the event."""
        return self in (
            EventKind.DRIFT,
            EventKind.GARBAGE,
            EventKind.LAPSED,
            EventKind.UNAVAILABLE,
            EventKind.CONTRADICTED,
            EventKind.NOT_ANNOUNCED,
            EventKind.FAILED,
        )


@dataclass(frozen=True, slots=True)
class Event:
    """One event. ``fields`` has values for programs: text, numbers and booleans."""

    kind: EventKind
    message: str
    file: str | None = None
    fields: Mapping[str, str | float | bool | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Escape the message, so that it stays one line in a log, whatever text it quotes."""
        object.__setattr__(self, "message", printable(self.message))


Listener = Callable[[Event], None]


def ignore_event(event: Event) -> None:
    """Do nothing. This is the listener of an agent that has no other."""
    del event
