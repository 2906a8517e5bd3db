# SPDX-License-Identifier: Apache-2.0
"""Keeps recent answers in memory, keyed by the bytes of their requests, so that a hit needs no URL
parsing.

The cache has a limit in bytes, so that the process does not grow with the database.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

MAX_BYTES: Final = 16 << 20
_OVERHEAD: Final = 1500  # bytes of an entry's objects, roughly


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer with a certificate, which may be used until the time ``until``, in seconds since
    the epoch.
    """

    kind: str
    body: bytes
    etag: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    until: float


class BodyCache:
    """A cache of the most recently used answers, for one thread only."""

    def __init__(self, limit: int = MAX_BYTES) -> None:
        self._limit = limit
        self._size = 0
        self._kept: OrderedDict[bytes, KeptAnswer] = OrderedDict()

    def get(self, target: bytes, now: float) -> KeptAnswer | None:
        """Return the cached answer to a request for ``target``; None if there is none or it has
        expired.
        """
        found = self._kept.get(target)
        if found is None:
            return None
        if found.until <= now:
            self._drop(target)
            return None
        self._kept.move_to_end(target)
        return found

    def put(self, target: bytes, answer: KeptAnswer) -> None:
        """Keep an answer. If there is no room, drop those that have been unused for longest."""
        self._drop(target)
        self._kept[target] = answer
        self._size += _weight(target, answer)
        while self._size > self._limit:
            self._drop(next(iter(self._kept)))

    def _drop(self, target: bytes) -> None:
        found = self._kept.pop(target, None)
        if found is not None:
            self._size -= _weight(target, found)


def _weight(target: bytes, answer: KeptAnswer) -> int:
    return len(target) + len(answer.body) + _OVERHEAD
