# SPDX-License-Identifier: Apache-2.0
"""What happens on the demo's stage, as those who watch it are told."""

from __future__ import annotations

from dataclasses import dataclass

from snpcerts.certfile.writer import Update
from snpcerts.emulator.scripted_guest import ReportOutcome
from snpcerts.vmm.exit_service import Served


@dataclass(frozen=True, slots=True)
class Answered:
    """A VMM answered a certificate request of its guest."""

    at: float  # seconds since the start
    guest: int
    served: Served


@dataclass(frozen=True, slots=True)
class Attested:
    """A guest got an answer to one report request, or an error."""

    at: float
    guest: int
    outcome: ReportOutcome


@dataclass(frozen=True, slots=True)
class Updated:
    """The writer changed the key and the table; ``key`` names the new one."""

    at: float
    number: int
    key: str
    update: Update


@dataclass(frozen=True, slots=True)
class Failed:
    """A part of the stage ended by an error; the demo ends with it."""

    at: float
    error: BaseException


Event = Answered | Attested | Updated | Failed
