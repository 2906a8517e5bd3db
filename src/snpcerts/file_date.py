# SPDX-License-Identifier: Apache-2.0
"""Finds out when a file was written, and rejects dates that lie in the future.

A host whose clock is ahead gives its files dates in the future. Until those dates, the files would
look new. A cached revocation list, for example, would not be fetched again.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final

LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)
"""Replaces a date that cannot be right. The file then counts as infinitely old."""

_SLACK: Final = 300.0  # seconds; the clocks of file servers may differ by this much


def written_at(seconds: float) -> datetime:
    """Return the date of a file with this ``st_mtime``, or :data:`LONG_AGO` if it is not
    credible.
    """
    if seconds > time.time() + _SLACK:
        return LONG_AGO
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        # A file system can store times outside the calendar's range.
        return LONG_AGO
