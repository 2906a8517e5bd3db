# SPDX-License-Identifier: Apache-2.0
"""What happens on the demo's stage, as those who watch it are told.

``at`` is seconds since all guests were up.
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
class Attested:
    """A guest got an answer to one report request; ``report`` is empty if it was an error."""

    at: float
    guest: int
    errno: int
    report: bytes
    table: bytes


@dataclass(frozen=True, slots=True)
class Updated:
    """The writer changed key and table; ``tcb`` is the eight bytes now reported."""

    at: float
    number: int
    tcb: bytes
    waited: float  # seconds
    held: float  # seconds


Event = Answered | Attested | Updated
