# SPDX-License-Identifier: Apache-2.0
"""When a file was written, as far as its date can be believed.

A clock that was ahead dates files into the future, and they would stay young until
that day: a revocation list of a host that came up with a wrong clock, for instance.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final

LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)
"""Stands for a date that says nothing: as old as can be."""

_SLACK: Final = 300.0  # seconds that clocks of file servers may differ


def written_at(seconds: float) -> datetime:
    """The date of a file whose ``st_mtime`` that is; :data:`LONG_AGO` where it cannot be."""
    if seconds > time.time() + _SLACK:
        return LONG_AGO
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        # A file system can hold times that no calendar has.
        return LONG_AGO
