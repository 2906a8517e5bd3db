# SPDX-License-Identifier: Apache-2.0
"""How long to wait before asking the key server again.

Sources: RFC 9110 section 10.2.3 (Retry-After) and 5.6.7 (dates). AMD's server
takes about one request for the same certificate in ten seconds.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

# What a server may ask for at most: it must not be able to stop us for good.
MAX_RETRY_AFTER: Final = 3600.0

_SECONDS = re.compile(r"[0-9]{1,9}")
_random = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds on asking for one thing. All times in seconds.

    ``budget`` bounds everything together: tries and the waits between them.
    ``connect`` and ``silence`` bound how long one try waits for a connection
    and for the next bytes. After a failure the wait is ``first_wait``, doubled
    each time up to ``longest_wait``, and at least ``throttled_wait`` after a 429
    that names no time. Each is stretched by up to a fifth, so that a fleet does
    not come back all at once.
    """

    attempts: int = 4
    budget: float = 60.0
    connect: float = 5.0
    silence: float = 15.0
    first_wait: float = 1.0
    longest_wait: float = 15.0
    throttled_wait: float = 10.0

    def wait_after(self, failures: int, *, throttled: bool, retry_after: float | None) -> float:
        """How long to wait after that many failures, the last of them as told."""
        if retry_after is not None:
            wait = retry_after
        else:
            wait = min(self.first_wait * 2.0 ** (failures - 1), self.longest_wait)
            if throttled:
                wait = max(wait, self.throttled_wait)
        return wait * (1 + _random.random() / 5)


def parse_retry_after(value: str | None, date: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, 0 to an hour; None if it says nothing.

    ``date`` is the answer's Date header. A time of day is counted from it, so
    that a wrong clock on this machine does not matter.
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
