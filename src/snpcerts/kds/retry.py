# SPDX-License-Identifier: Apache-2.0
"""Decides how long to wait before the next request to the key server.

AMD's server throttles by client address. Its users agree that each address gets roughly one VCEK
certificate every ten seconds, whatever the chip and TCB, and that the server answers further
requests with 429 and Retry-After. Some users saw longer refusals after more requests. None reports
that requests for chains or revocation lists are throttled. Therefore requests for VCEK certificates
are spaced, and a 429 stops all requests.

Sources: RFC 9110 sections 10.2.3 (Retry-After) and 5.6.7 (dates); attestation-rs issue 88, NVFlare
3764, dstack 746, c8s 627.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

# The longest pause that a server may ask for, because it must not be able to stop us for good.
MAX_RETRY_AFTER: Final = 3600.0
# The longest pause between VCEKs that a server can cause by refusals.
MAX_GAP: Final = 60.0
# AMD's server sends one address one VCEK certificate in this many seconds.
AMD_GAP: Final = 10.0

_SOON: Final = 1.0  # seconds; a shorter wait may be only the rounding error of a date
_SECONDS = re.compile(r"[0-9]{1,9}")
_random = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The limits for requesting one resource. All times are in seconds.

    ``attempts`` limits the number of tries, and ``budget`` the total time of tries and waits.
    ``request`` limits the time of one try, ``connect`` its wait for a connection, and ``silence``
    its wait for the next bytes. The wait after a failure is ``first_wait``, doubled with each
    further failure up to ``longest_wait``. The wait after a 429 is the time that the server names,
    or ``throttled_wait`` if it names no future time, doubled with each further 429 up to
    ``longest_hold_off``. Each wait is lengthened by up to a fifth, so that the hosts of a fleet do
    not all return at once. ``gap`` is the shortest time between two requests for VCEK certificates;
    None means AMD's gap for AMD's server, and 0 for other servers. If the server was observed to
    require a longer gap, that one applies.
    """

    attempts: int = 4
    budget: float = 60.0
    request: float = 20.0
    connect: float = 5.0
    silence: float = 15.0
    first_wait: float = 1.0
    longest_wait: float = 15.0
    throttled_wait: float = 10.0
    longest_hold_off: float = 300.0
    gap: float | None = None

    def wait_after(self, failures: int, retry_after: float | None) -> float:
        """Return how long to wait before the next try for a resource. ``failures`` counts the tries
        that failed so far.
        """
        wait = min(self.first_wait * 2.0 ** (failures - 1), self.longest_wait)
        return _stretched(max(wait, retry_after or 0.0))

    def hold_off(self, refusals: int, retry_after: float | None) -> float:
        """Return how long to stop sending requests after ``refusals`` consecutive 429s."""
        named = self.named_wait(retry_after)
        doubled = min(named * 2.0 ** min(refusals - 1, 16), self.longest_hold_off)
        return _stretched(max(named, doubled))

    def named_wait(self, retry_after: float | None) -> float:
        """Return how long to wait after a single 429: ``retry_after``, or a default if that is None
        or less than a second.
        """
        if retry_after is None or retry_after < _SOON:
            return self.throttled_wait
        return retry_after


def _stretched(wait: float) -> float:
    return min(wait * (1 + _random.random() / 5), MAX_RETRY_AFTER)


def parse_retry_after(value: str | None, date: str | None) -> float | None:
    """Return the seconds in a Retry-After header, from 0 to an hour; None if it cannot be read.

    ``date`` is the answer's Date header. A date in Retry-After is compared with it, so that a wrong
    clock on this machine does not matter.
    """
    if value is None:
        return None
    text = value.strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), MAX_RETRY_AFTER)
    until = _date(text)
    if until is None:
        return None
    since = _date(date) or datetime.now(UTC)
    return min(max((until - since).total_seconds(), 0.0), MAX_RETRY_AFTER)


def _date(text: str | None) -> datetime | None:
    if text is None or len(text) > 64:
        return None
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)
