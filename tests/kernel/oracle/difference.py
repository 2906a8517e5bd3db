# SPDX-License-Identifier: Apache-2.0
"""Where kernel and emulator differ, and which of that is known, release by release."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


class DifferenceError(Exception):
    """The two sides differ. ``key`` names the class of it; ``story`` is what was done."""

    def __init__(self, key: str, values: dict[str, str], story: Sequence[str]) -> None:
        super().__init__(f"{key}: {values}")
        self.key = key
        self.values = values
        self.story = tuple(story)


@dataclass(frozen=True, slots=True)
class Explained:
    """A difference that is meant: of which part, in which series, and why.

    ``pattern`` is matched with the key of a difference from its beginning. An entry
    that nothing matches any more is as wrong as a difference without an entry.
    """

    part: str
    series: Sequence[str]
    pattern: str
    reason: str

    def covers(self, part: str, release: str, key: str) -> bool:
        """Whether this explains a difference."""
        return self.of(part, release) and re.match(self.pattern, key) is not None

    def of(self, part: str, release: str) -> bool:
        """Whether it is about a part of a release."""
        return part == self.part and release.startswith(tuple(f"{each}." for each in self.series))


EXPLAINED: Final[tuple[Explained, ...]] = ()
