# SPDX-License-Identifier: Apache-2.0
"""The guest addresses that a VMM has made private (KVM_SET_MEMORY_ATTRIBUTES)."""

from __future__ import annotations

import bisect


class PrivateRanges:
    """A set of addresses, kept as sorted ranges that neither touch nor overlap.

    A change takes about the same time with a few ranges as with thousands.
    """

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []  # each at the index of its range's start in _starts

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, start: int, end: int) -> None:
        """Mark the addresses from ``start`` up to ``end`` private."""
        first = bisect.bisect_left(self._ends, start)  # includes a range that ends at start
        last = bisect.bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def remove(self, start: int, end: int) -> None:
        """Mark the addresses from ``start`` up to ``end`` shared."""
        first = bisect.bisect_right(self._ends, start)
        last = bisect.bisect_left(self._starts, end)
        if first >= last:
            return
        left, right = (self._starts[first], start), (end, self._ends[last - 1])
        kept = [(low, high) for low, high in (left, right) if low < high]
        self._starts[first:last] = [low for low, _ in kept]
        self._ends[first:last] = [high for _, high in kept]

    def holds(self, address: int) -> bool:
        """Return whether ``address`` is private."""
        return self.covers(address, address + 1)

    def covers(self, start: int, end: int) -> bool:
        """Return whether all addresses from ``start`` up to ``end`` are private."""
        index = bisect.bisect_right(self._starts, start) - 1
        return index >= 0 and end <= self._ends[index]
