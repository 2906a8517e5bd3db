# SPDX-License-Identifier: Apache-2.0
"""The clock that measures waits for the key server."""

from __future__ import annotations

import contextlib
import time
from functools import cached_property
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Clock:
    """A clock that counts the seconds since this machine booted (CLOCK_BOOTTIME), the same for all
    processes.

    Setting the time of day does not change this clock, and it keeps running while the machine
    sleeps.
    """

    @cached_property
    def boot(self) -> str:
        """The identifier of the boot from which :meth:`now` counts; empty if unknown."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return _BOOT_ID.read_text(encoding="ascii").strip()
        return ""

    def now(self) -> float:
        """Return the seconds since the machine booted."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> float:
        """Return the time of day, in seconds since the epoch. It jumps when the time is set."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Sleep for ``seconds``."""
        time.sleep(seconds)
