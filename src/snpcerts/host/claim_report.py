# SPDX-License-Identifier: Apache-2.0
"""Reports how a host's behaviour compares with each claim of :mod:`snpcerts.fidelity`, as text and
as JSON.

The result says something about hardware only if an attestation report was verified with one of
AMD's roots.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from snpcerts.fidelity import BY_ID, CLAIMS
from snpcerts.printable import printable

_SHORT = 16  # hexadecimal digits of a chip ID that are shown


class Showing(enum.StrEnum):
    """The result for one claim."""

    SEEN = "seen"
    DIFFERS = "differs"
    NOT_TRIED = "not-tried"


@dataclass(frozen=True, slots=True)
class Observation:
    """What one trial of one claim showed."""

    id: str
    claim: str
    showing: Showing
    detail: str

    def __post_init__(self) -> None:
        """Refuse an unknown claim, and escape the detail so that it is one line."""
        if self.claim not in BY_ID:
            raise ValueError(f"there is no claim {self.claim!r}")
        object.__setattr__(self, "detail", printable(self.detail))

    def to_json(self) -> dict[str, str]:
        """Return the fields as JSON values."""
        return {"id": self.id, "showing": self.showing.value, "detail": self.detail}


@dataclass(frozen=True, slots=True)
class RootOfTrust:
    """The root with which reports verified. ``is_amds``: whether AMD's pinned roots include it."""

    name: str
    is_amds: bool


@dataclass(slots=True)
class ClaimReport:
    """All observations of one host. ``about`` has the versions and names to print.

    ``root`` is None until a report has verified.
    """

    made_at: datetime
    snpcerts: str
    chip_id: str | None
    about: Mapping[str, str]
    checks: Sequence[Mapping[str, str]] = ()
    root: RootOfTrust | None = None
    observations: list[Observation] = field(default_factory=list)

    def note(self, name: str, claim: str, showing: Showing, detail: str) -> None:
        """Add an observation."""
        self.observations.append(Observation(name, claim, showing, detail))

    @property
    def hardware(self) -> bool:
        """Whether the host is real SNP hardware: reports verified, and only with AMD's roots."""
        return self.root is not None and self.root.is_amds

    def of_claim(self, claim: str) -> list[Observation]:
        """Return the observations about a claim."""
        return [each for each in self.observations if each.claim == claim]

    def showing(self, claim: str) -> Showing:
        """Return the result for a claim. One observation that differs outweighs all others."""
        if claim == _HARDWARE:
            return self._hardware()
        found = {each.showing for each in self.of_claim(claim)}
        order = (Showing.DIFFERS, Showing.SEEN)
        return next((each for each in order if each in found), Showing.NOT_TRIED)

    @property
    def differs(self) -> bool:
        """Whether the host differs from any claim."""
        return any(self.showing(claim.id) is Showing.DIFFERS for claim in CLAIMS)

    def to_json(self, *, full_chip_id: bool = False) -> dict[str, object]:
        """Return the report as JSON values."""
        return {
            "made_at": self.made_at.isoformat(),
            "snpcerts": self.snpcerts,
            "hardware": self.hardware,
            "root": None
            if self.root is None
            else {"name": self.root.name, "amd": self.root.is_amds},
            "chip_id": self._chip_id(full_chip_id),
            "about": dict(self.about),
            "checks": [dict(each) for each in self.checks],
            "claims": [
                {
                    "id": claim.id,
                    "text": claim.text,
                    "showing": self.showing(claim.id).value,
                    "observations": [each.to_json() for each in self.of_claim(claim.id)],
                }
                for claim in CLAIMS
            ],
        }

    def lines(self, *, full_chip_id: bool = False) -> list[str]:
        """Return the report as lines of text for people."""
        out = [self._headline(), ""]
        rows = {"made": f"{self.made_at:%Y-%m-%d %H:%M} UTC by snpcerts {self.snpcerts}"}
        rows |= {**self.about, "chip ID": self._chip_id(full_chip_id) or "not known"}
        rows["root"] = "no report has verified" if self.root is None else self.root.name
        out += [f"  {name:<10} {value}" for name, value in rows.items()]
        out.append("")
        for claim in CLAIMS:
            out.append(f"  {self.showing(claim.id).value:<10} {claim.id}")
            out += [
                f"             {_MARKS[each.showing]} {each.id}: {each.detail}"
                for each in self.of_claim(claim.id)
            ]
        counted = {
            each: sum(self.showing(claim.id) is each for claim in CLAIMS) for each in Showing
        }
        out.append("")
        out.append(", ".join(f"{counted[each]} {_WORDS[each]}" for each in Showing))
        return [printable(line) for line in out]

    def _headline(self) -> str:
        if self.hardware:
            return "Observations on this SNP host. Its reports verify with AMD's root."
        if self.root is None:
            return (
                "Observations on this host. No report verified, so the observations say nothing "
                "about hardware."
            )
        return (
            f"Observations on this host. Its reports verify with the root {self.root.name}, which "
            "is not AMD's, so the observations say nothing about hardware."
        )

    def _hardware(self) -> Showing:
        if not self.hardware:
            return Showing.NOT_TRIED
        others = {each.showing for each in self.observations}
        return Showing.DIFFERS if Showing.DIFFERS in others else Showing.SEEN

    def _chip_id(self, full: bool) -> str | None:
        if self.chip_id is None or full:
            return self.chip_id
        return f"{self.chip_id[:_SHORT]}..."


_HARDWARE = "hardware"
_MARKS = {Showing.SEEN: "+", Showing.DIFFERS: "!", Showing.NOT_TRIED: "-"}
_WORDS = {Showing.SEEN: "seen", Showing.DIFFERS: "differ", Showing.NOT_TRIED: "not tried"}
