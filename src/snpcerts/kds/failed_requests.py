# SPDX-License-Identifier: Apache-2.0
"""Limits how many requests an hour may go to the key server without helping to verify a report.

Such requests are called fruitless. Anyone can cause them, by sending made-up reports to a verifier
that fetches certificates. A file in the cache holds the count for all processes that share the
cache: eight bytes for each request of the last hour, for at most :data:`LIMIT` requests. If the
file cannot be written, each process keeps a count of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

# AMD's server sends one client address about 360 VCEK certificates an hour. This is a tenth of
# that.
LIMIT: Final = 36
PERIOD: Final = 3600.0  # seconds

_NAME: Final = "fruitless"
_STAMP: Final = struct.Struct("<d")  # seconds since the epoch


class FruitlessRequests:
    """The count of fruitless requests: those that did not help to verify a report. Threads and
    processes that use the same cache share the count.
    """

    def __init__(self, root: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._root = root
        self._clock = clock
        self._lock = threading.Lock()
        self._own: list[float] = []

    def count(self) -> tuple[float, float]:
        """Count one request. Return a token for :meth:`take_back`, and how many seconds to wait
        before the request: 0, unless the limit is reached.

        If the limit is reached, the token is 0, and the request is not counted and must not be
        made.
        """
        now = self._clock()
        with self._stamps() as stamps:
            if len(stamps) >= LIMIT:
                return 0.0, max(1.0, stamps[-LIMIT] + PERIOD - now)
            stamps.append(now)
        return now, 0.0

    def take_back(self, counted: Iterable[float]) -> None:
        """Remove requests from the count, because they proved useful."""
        counted = list(counted)
        if not counted:
            return
        with self._stamps() as stamps:
            for stamp in counted:
                if stamp in stamps:
                    stamps.remove(stamp)

    @contextlib.contextmanager
    def _stamps(self) -> Iterator[list[float]]:
        """Yield the times of the last hour's requests, oldest first. Save the changes that the
        block makes to that list.
        """
        with self._lock:
            descriptor = self._open()
            try:
                stamps = self._own if descriptor is None else _read(descriptor)
                now = self._clock()
                # A time in the future was recorded by a wrong clock, so drop it.
                recent = sorted(stamp for stamp in stamps if now - PERIOD < stamp <= now)
                before = list(recent)
                yield recent
                self._own = recent = sorted(recent)[-LIMIT:]
                if descriptor is not None and recent != before:
                    _write(descriptor, recent)
            finally:
                if descriptor is not None:
                    os.close(descriptor)

    def _open(self) -> int | None:
        with contextlib.suppress(OSError):
            self._root.mkdir(mode=0o755, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(self._root / _NAME, flags, 0o600)
            # Wait for the lock, which is held only while a few bytes are read and written.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            return descriptor
        return None


def _read(descriptor: int) -> list[float]:
    with contextlib.suppress(OSError):
        data = os.pread(descriptor, LIMIT * _STAMP.size, 0)
        whole = len(data) // _STAMP.size * _STAMP.size
        return [stamp for (stamp,) in _STAMP.iter_unpack(data[:whole])]
    return []


def _write(descriptor: int, stamps: list[float]) -> None:
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"".join(map(_STAMP.pack, stamps)), 0)
