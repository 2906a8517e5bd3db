# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with an emulated key server, on demand.

AMD's has throttled, answered 404 for what it has, refused connections for
hours; what stands in between (proxies, captive portals, other certificates'
owners) does the rest.
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
    """One thing wrong. The value is its name on the command line."""

    TOO_MANY = "429"  # whoever asks, however rarely
    TOO_MANY_SILENT = "429-silent"  # without Retry-After
    TOO_MANY_DATE = "429-date"  # Retry-After as a date
    SERVER_ERROR = "500"
    UNAVAILABLE = "503"
    NOT_FOUND = "404"
    FORBIDDEN = "403"
    SLOW = "slow"  # answers late
    DRIP = "drip"  # a few bytes now and then
    REFUSE = "refuse"  # closes the connection without a word
    CUT = "cut"  # half of the body, then the end
    CUT_SILENT = "cut-silent"  # likewise, and no length that would tell
    WRONG_CHIP = "wrong-chip"
    WRONG_TCB = "wrong-tcb"
    WRONG_ROOT = "wrong-root"
    WRONG_KEY = "wrong-key"  # the right chip and TCB, for a key it does not have
    EXPIRED = "expired"
    CONTENT_TYPE = "content-type"  # the right body by another name
    HTML = "html"
    EMPTY = "empty"
    HUGE = "huge"  # a body without end
    REDIRECT = "redirect"  # to another server
    REDIRECT_HERE = "redirect-here"  # to another path of this one


def faults_of_names(names: Iterable[str]) -> frozenset[Fault]:
    """The faults of those names; :class:`UsageError`, naming all there are, for another."""
    known = {fault.value: fault for fault in Fault}
    found: set[Fault] = set()
    for name in names:
        if name not in known:
            raise UsageError(f"no fault {name!r}", hint=f"there are: {', '.join(known)}")
        found.add(known[name])
    return frozenset(found)


class Faults:
    """The faults of one server, which may be changed while it serves."""

    def __init__(self, always: Iterable[Fault] = ()) -> None:
        self._lock = threading.Lock()
        self._always = frozenset(always)
        self._next: list[frozenset[Fault]] = []

    def set(self, *faults: Fault) -> None:
        """From now on every request meets these, and none other."""
        with self._lock:
            self._always, self._next = frozenset(faults), []

    def clear(self) -> None:
        """From now on all is well."""
        self.set()

    def next(self, *faults: Fault, times: int = 1) -> None:
        """The next requests (after those spoken for already) meet these instead."""
        with self._lock:
            self._next += [frozenset(faults)] * times

    def take(self) -> frozenset[Fault]:
        """The faults of the request that is being answered."""
        with self._lock:
            return self._next.pop(0) if self._next else self._always


class Throttled(enum.Enum):
    """Who, or what, may have only one VCEK in so many seconds."""

    ADDRESS = "address"  # whichever VCEK it asks for, as AMD's server
    CERTIFICATE = "certificate"  # each address, each VCEK by itself


@dataclass(frozen=True, slots=True)
class Throttle:
    """One VCEK in ``interval`` seconds. No interval lets everybody have everything.

    Where it ``lengthens``, a refused request starts the interval anew: one who
    goes on asking gets nothing. Public reports tell of both.
    """

    interval: float = 0.0
    by: Throttled = Throttled.ADDRESS
    lengthens: bool = False


class ThrottleMemory:
    """Who asked a server for what, and when."""

    def __init__(self, throttle: Throttle) -> None:
        self.throttle = throttle
        self._lock = threading.Lock()
        self._free_at: OrderedDict[tuple[str, str], float] = OrderedDict()

    def wait(self, client: str, target: str, now: float) -> float:
        """Seconds until this client may have that; 0 means that it has it now."""
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
