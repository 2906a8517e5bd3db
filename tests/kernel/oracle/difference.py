# SPDX-License-Identifier: Apache-2.0
"""Differences between kernel and emulator, and the list of those that are intended."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


class DifferenceError(Exception):
    """The two sides differ. ``key`` names the kind of difference; ``story`` lists the steps."""

    def __init__(self, key: str, values: dict[str, str], story: Sequence[str]) -> None:
        super().__init__(f"{key}: {values}")
        self.key = key
        self.values = values
        self.story = tuple(story)


@dataclass(frozen=True, slots=True)
class Explained:
    """An intended difference: the part and the series that have it, and the reason.

    ``pattern`` matches the beginning of a difference's key. An explanation that matches no
    difference any more is a fault, as is a difference without an explanation.
    """

    part: str
    series: Sequence[str]
    pattern: str
    reason: str

    def covers(self, part: str, release: str, key: str) -> bool:
        """Whether this explains a difference."""
        return self.of(part, release) and re.match(self.pattern, key) is not None

    def of(self, part: str, release: str) -> bool:
        """Whether this explanation applies to the given part of the given release."""
        return part == self.part and release.startswith(tuple(f"{each}." for each in self.series))


EXPLAINED: Final[tuple[Explained, ...]] = ()
