# SPDX-License-Identifier: Apache-2.0
"""The events of a demo run.

``at`` is in seconds since all guests were running.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answered:
    """A VMM answered a certificate request of its guest."""

    at: float
    guest: int
    outcome: str  # a value of vmm.exit_service.Outcome
    detail: str | None


@dataclass(frozen=True, slots=True)
class AttestedEvent:
    """A guest got an answer to one report request; ``report`` is empty after an error."""

    at: float
    guest: int
    errno: int
    report: bytes
    table: bytes


@dataclass(frozen=True, slots=True)
class Updated:
    """The writer changed key and table; ``tcb`` is the new reported TCB, 8 bytes."""

    at: float
    number: int
    tcb: bytes
    waited: float  # seconds
    held: float  # seconds


@dataclass(frozen=True, slots=True)
class AllUp:
    """Every guest has got an answer: the run's time starts now."""

    at: float


Event = AllUp | Answered | AttestedEvent | Updated
