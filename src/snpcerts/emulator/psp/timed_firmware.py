# SPDX-License-Identifier: Apache-2.0
"""A firmware that reports when its commands ran."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from snpcerts.abi.psp import SnpConfig, SnpPlatformStatus
from snpcerts.emulator.psp.firmware import Firmware
from snpcerts.emulator.psp.guest_context import GuestContext


@dataclass(frozen=True, slots=True)
class TimedCommand:
    """One firmware command and when it ran, in ``time.monotonic`` seconds. ``guest`` is the guest
    that the command served.
    """

    name: str
    start: float
    end: float
    guest: GuestContext | None = None


class TimedFirmware(Firmware):
    """A firmware that calls ``tell`` after each command that concerns keys or reports, even if it
    refuses the command.
    """

    tell: Callable[[TimedCommand], None] = staticmethod(lambda _: None)

    @classmethod
    def of(cls, firmware: Firmware, tell: Callable[[TimedCommand], None]) -> TimedFirmware:
        """Return a firmware of the same platform, without guests, that reports its commands to
        ``tell``.
        """
        timed = cls.from_state(firmware.save_state())
        timed.tell = tell
        return timed

    @contextmanager
    def _timed(self, name: str, guest: GuestContext | None = None) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.tell(TimedCommand(name, start, time.monotonic(), guest))

    def snp_platform_status(self) -> SnpPlatformStatus:
        """Run and time :meth:`Firmware.snp_platform_status`."""
        with self._timed("SNP_PLATFORM_STATUS"):
            return super().snp_platform_status()

    def snp_commit(self) -> None:
        """Run and time :meth:`Firmware.snp_commit`."""
        with self._timed("SNP_COMMIT"):
            super().snp_commit()

    def snp_set_config(self, config: SnpConfig) -> None:
        """Run and time :meth:`Firmware.snp_set_config`."""
        with self._timed("SNP_CONFIG"):
            super().snp_set_config(config)

    def snp_vlek_load(self, blob: bytes) -> None:
        """Run and time :meth:`Firmware.snp_vlek_load`."""
        with self._timed("SNP_VLEK_LOAD"):
            super().snp_vlek_load(blob)

    def guest_request(self, context: GuestContext, page: bytes) -> bytes:
        """Run and time :meth:`Firmware.guest_request`."""
        with self._timed("SNP_GUEST_REQUEST", context):
            return super().guest_request(context, page)
