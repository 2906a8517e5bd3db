# SPDX-License-Identifier: Apache-2.0
"""Ends a request at its deadline, even if bytes keep arriving slowly."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class RequestTrace:
    """Receives the events of a request from the HTTP library, and remembers the sockets of the
    connections.
    """

    def __init__(self, deadline: float) -> None:
        self.connected = False
        self._deadline = deadline
        self._sockets: list[socket.socket] = []

    def event(self, event: str, info: Mapping[str, Any]) -> None:
        if event.endswith("connect_tcp.complete"):
            self.connected = True
            connected = info["return_value"].get_extra_info("socket")
            if isinstance(connected, socket.socket):
                # Duplicate it, because TLS takes over the original.
                self._sockets.append(connected.dup())
                if time.monotonic() >= self._deadline:
                    self.shut()

    def shut(self) -> None:
        """Shut down all connections of the request."""
        for each in tuple(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the duplicates of the connections' sockets."""
        for each in self._sockets:
            each.close()


@contextmanager
def cut_off_at(deadline: float) -> Iterator[RequestTrace]:
    """Shut down the block's connections at the deadline, even if bytes keep arriving slowly.

    The HTTP library's own time limits start again with every byte, so they are not enough.
    """
    trace = RequestTrace(deadline)
    timer = threading.Timer(max(deadline - time.monotonic(), 0.0), trace.shut)
    timer.daemon = True
    timer.start()
    try:
        yield trace
    finally:
        timer.cancel()
        timer.join()
        trace.close()
