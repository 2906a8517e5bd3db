# SPDX-License-Identifier: Apache-2.0
"""Serves the metrics on a port. Any local user can connect, so the number of connections and their
idle time are bounded.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

MOST_CONNECTIONS: Final = 16
IDLE_SECONDS: Final = 10.0


class MetricsServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A server on 127.0.0.1. If there are too many connections, it closes the oldest ones."""

    allow_reuse_address = True
    # If more clients than this connect at once, the others try again after a second.
    request_queue_size = 4 * MOST_CONNECTIONS
    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: list[Any] = []  # oldest first
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for the connection. If there are too many, close the oldest one."""
        request.settimeout(IDLE_SECONDS)
        with self._lock:
            while len(self._open) >= MOST_CONNECTIONS:
                oldest = self._open.pop(0)
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread wakes up and closes it
            self._open.append(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close the connection."""
        with self._lock:
            if request in self._open:
                self._open.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors on connections that the client or this server has closed."""
