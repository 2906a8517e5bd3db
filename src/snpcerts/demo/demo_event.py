# SPDX-License-Identifier: Apache-2.0
"""The events of a demo run.

``at`` is the time when the event became known, in seconds since all guests were running. All other
times are those of ``time.monotonic``, measured by the process that the event is about.
"""

from __future__ import annotations

from dataclasses import dataclass

from snpcerts.certfile.span import Span


@dataclass(frozen=True, slots=True)
class Answered:
    """A VMM answered a certificate request of its guest."""

    at: float
    guest: int
    outcome: str  # a value of vmm.exit_service.Outcome
    detail: str | None
    exited: float  # time of the exit for certificates
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class AttestedEvent:
    """A guest got the answer to one report request; ``report`` is empty if the request failed."""

    at: float
    guest: int
    errno: int
    report: bytes
    table: bytes
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Updated:
    """The writer changed the key and the table; ``tcb`` is the new reported TCB, 8 bytes."""

    at: float
    number: int
    tcb: bytes
    waited: float  # seconds
    held: float  # seconds
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class FirmwareCommand:
    """The firmware ran a command. ``guest`` is the number of the guest that the command was for;
    None if it was for no guest.
    """

    at: float
    name: str
    guest: int | None
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class AllUp:
    """Every guest has received an answer. The run's clock starts at ``now``."""

    at: float
    now: float


Event = AllUp | Answered | AttestedEvent | Updated | FirmwareCommand
