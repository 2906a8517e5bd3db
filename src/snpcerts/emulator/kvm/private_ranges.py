# SPDX-License-Identifier: Apache-2.0
"""The guest addresses that a VMM has made private (KVM_SET_MEMORY_ATTRIBUTES)."""

from __future__ import annotations

import bisect


class PrivateRanges:
    """A set of addresses, kept as sorted ranges that neither touch nor overlap."""

    __slots__ = ("_ranges",)

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []  # start, end

    def __len__(self) -> int:
        return len(self._ranges)

    def add(self, start: int, end: int) -> None:
        """Mark the addresses from ``start`` up to ``end`` private."""
        self._change(start, end, private=True)

    def remove(self, start: int, end: int) -> None:
        """Mark the addresses from ``start`` up to ``end`` shared."""
        self._change(start, end, private=False)

    def holds(self, address: int) -> bool:
        """Whether the address is private."""
        index = bisect.bisect_right(self._ranges, address, key=lambda each: each[0])
        return index > 0 and address < self._ranges[index - 1][1]

    def covers(self, start: int, end: int) -> bool:
        """Whether the whole range is private."""
        return any(low <= start and end <= high for low, high in self._ranges)

    def _change(self, start: int, end: int, *, private: bool) -> None:
        kept: list[tuple[int, int]] = []
        for low, high in self._ranges:
            if high < start or low > end or (not private and (high == start or low == end)):
                kept.append((low, high))
            elif private:
                start, end = min(start, low), max(end, high)
            else:
                kept += [
                    (a, b) for a, b in ((low, min(high, start)), (max(low, end), high)) if a < b
                ]
        if private:
            kept.append((start, end))
        self._ranges = sorted(kept)
