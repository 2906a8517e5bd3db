# SPDX-License-Identifier: Apache-2.0
"""Faults that an emulated key server produces on request.

AMD's server has throttled clients, answered 404 for existing certificates, and refused connections
for hours. The other faults imitate proxies, captive portals and whatever else may be between client
and server.
"""

from __future__ import annotations

import enum
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from snpcerts.errors import UsageError

_MAX_BUCKETS: Final = 4096


class Fault(enum.Enum):
    """One fault of a key server. Its value is its name on the command line."""

    TOO_MANY = "429"  # for every client, regardless of the rate
    TOO_MANY_SILENT = "429-silent"  # without Retry-After
    TOO_MANY_DATE = "429-date"  # Retry-After as a date
    SERVER_ERROR = "500"
    UNAVAILABLE = "503"
    NOT_FOUND = "404"
    FORBIDDEN = "403"
    SLOW = "slow"  # answers late
    DRIP = "drip"  # sends a few bytes at a time
    REFUSE = "refuse"  # closes the connection without an answer
    CUT = "cut"  # closes the connection after half of the body
    CUT_SILENT = "cut-silent"  # the same, without Content-Length
    WRONG_CHIP = "wrong-chip"
    WRONG_TCB = "wrong-tcb"
    WRONG_ROOT = "wrong-root"
    WRONG_KEY = "wrong-key"  # the right chip and TCB, but another public key
    EXPIRED = "expired"
    CONTENT_TYPE = "content-type"  # the right body with a wrong content type
    HTML = "html"
    EMPTY = "empty"
    HUGE = "huge"  # an endless body
    REDIRECT = "redirect"  # to another server
    REDIRECT_HERE = "redirect-here"  # to another path of the same server


def faults_of_names(names: Iterable[str]) -> frozenset[Fault]:
    """Return the faults that ``names`` lists.

    Raises :class:`UsageError`, which lists all names, for an unknown one.
    """
    known = {fault.value: fault for fault in Fault}
    found: set[Fault] = set()
    for name in names:
        if name not in known:
            raise UsageError(
                f"unknown fault {name!r}", hint=f"choose from these faults: {', '.join(known)}"
            )
        found.add(known[name])
    return frozenset(found)


class Faults:
    """The faults of one key server, which can change while the server runs."""

    def __init__(self, always: Iterable[Fault] = ()) -> None:
        self._lock = threading.Lock()
        self._always = frozenset(always)
        self._next: list[frozenset[Fault]] = []

    def set(self, *faults: Fault) -> None:
        """Apply exactly these faults to every request from now on, and drop queued faults."""
        with self._lock:
            self._always, self._next = frozenset(faults), []

    def clear(self) -> None:
        """Apply no faults from now on, and drop queued faults."""
        self.set()

    def next(self, *faults: Fault, times: int = 1) -> None:
        """Queue these faults for the next ``times`` requests, after those already queued."""
        with self._lock:
            self._next += [frozenset(faults)] * times

    def take(self) -> frozenset[Fault]:
        """Return the faults to apply to the current request."""
        with self._lock:
            return self._next.pop(0) if self._next else self._always


class Throttled(enum.Enum):
    """Whether a throttle limits a client address as a whole, or separately for each VCEK."""

    ADDRESS = "address"  # by address, for any VCEK, as AMD's server does
    CERTIFICATE = "certificate"  # by address and VCEK


@dataclass(frozen=True, slots=True)
class Throttle:
    """Allows each client address one VCEK in ``interval`` seconds; 0 means no limit.

    If ``by`` is CERTIFICATE, it allows each client address each VCEK once in that time. With
    ``lengthens``, a refused request restarts the interval, so a client that keeps asking gets
    nothing. Public reports describe both behaviours: with and without ``lengthens``.
    """

    interval: float = 0.0
    by: Throttled = Throttled.ADDRESS
    lengthens: bool = False


class ThrottleMemory:
    """Records when each client may get a VCEK again."""

    def __init__(self, throttle: Throttle) -> None:
        self.throttle = throttle
        self._lock = threading.Lock()
        self._free_at: OrderedDict[tuple[str, str], float] = OrderedDict()

    def wait(self, client: str, target: str, now: float) -> float:
        """Return how many seconds ``client`` must wait for ``target``, or 0 if it need not wait."""
        interval = self.throttle.interval
        if not interval:
            return 0.0
        key = (client, target if self.throttle.by is Throttled.CERTIFICATE else "")
        with self._lock:
            free_at = self._free_at.get(key, now)
            refused = free_at > now
            if not refused or self.throttle.lengthens:
                self._free_at[key] = free_at = now + interval
                self._free_at.move_to_end(key)
                while len(self._free_at) > _MAX_BUCKETS:
                    self._free_at.popitem(last=False)
            return free_at - now if refused else 0.0
