# SPDX-License-Identifier: Apache-2.0
"""Records the agent's locks, firmware commands and key server requests in a timeline.

The timeline shows only this process. While the agent waits for a lock, ``snpcerts host status``
names the process that holds it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from snpcerts.abi import psp
from snpcerts.certfile.span import Span
from snpcerts.host.event import Event, EventKind
from snpcerts.host.host_firmware import SevDriver
from snpcerts.trace import Timeline, TimelineStream

_TITLE: Final = "snpcerts host sync"


class AgentTrace:
    """Records the agent's work in a timeline, and writes the timeline to a stream. It writes new
    spans only while no lock is held.
    """

    def __init__(self, stream: TimelineStream) -> None:
        self._stream = stream
        self._timeline = stream.timeline
        self._agent, self._firmware, self._key_server = (
            self._timeline.track(name) for name in ("agent", "firmware", "key server")
        )

    @classmethod
    def timeline(cls) -> Timeline:
        """Return an empty timeline with the agent's title."""
        return Timeline(_TITLE)

    def span(self, span: Span) -> None:
        """Record one span of the protocol. The lock may be held during this call, so nothing is
        written yet.
        """
        values = {} if span.path is None else {"file": span.path}
        self._timeline.slice(self._agent, span.kind.value, span.start, span.end, values)

    def listen(self, event: Event) -> None:
        """Record an event of the agent, and write the spans that are not yet written."""
        now = time.monotonic()
        seconds = event.fields.get("seconds")
        if event.kind is EventKind.FETCHED and isinstance(seconds, float):
            self._timeline.slice(self._key_server, event.message, now - seconds, now)
        elif event.kind is not EventKind.CHECKED:
            values = {"message": event.message} | ({"file": event.file} if event.file else {})
            self._timeline.instant(self._agent, event.kind.value, now, values)
        self._stream.flush()

    def driver(self, driver: SevDriver) -> SevDriver:
        """Return a driver that passes commands to ``driver`` and records each of them."""
        return _TimedSev(driver, self)

    @contextmanager
    def command(self, name: str) -> Iterator[None]:
        """Record the firmware command ``name``, which the ``with`` block issues."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._timeline.slice(self._firmware, name, start, time.monotonic())


@dataclass(frozen=True, slots=True)
class _TimedSev:
    """Passes commands to a driver and records each one in a trace."""

    driver: SevDriver
    trace: AgentTrace

    def snp_platform_status(self) -> psp.SnpPlatformStatus:
        with self.trace.command("SNP_PLATFORM_STATUS"):
            return self.driver.snp_platform_status()

    def hwid(self) -> bytes:
        with self.trace.command("GET_ID2"):
            return self.driver.hwid()

    def snp_commit(self) -> None:
        with self.trace.command("SNP_COMMIT"):
            self.driver.snp_commit()

    def snp_set_config(self, config: psp.SnpConfig) -> None:
        with self.trace.command("SNP_SET_CONFIG"):
            self.driver.snp_set_config(config)

    def snp_vlek_load(self, hashstick: bytes) -> None:
        with self.trace.command("SNP_VLEK_LOAD"):
            self.driver.snp_vlek_load(hashstick)
