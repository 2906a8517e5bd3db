# SPDX-License-Identifier: Apache-2.0
"""Reports the agent's state to the service manager.

Source: sd_notify(3). Reports are datagrams of ``NAME=value`` lines to the UNIX socket in
``NOTIFY_SOCKET``. The socket is abstract if its name starts with ``@``. ``WATCHDOG_USEC`` is the
longest permitted time between two watchdog messages, in microseconds. If ``NOTIFY_SOCKET`` is not
set, nothing is sent.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

_STATUS_LIMIT = 400


class ServiceManager:
    """The service manager that started this process, if any."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog = self._watchdog(environment)

    @staticmethod
    def _watchdog(environment: Mapping[str, str]) -> float | None:
        """Return the interval between watchdog messages, in seconds: half of the service manager's
        limit. None if there is no limit.
        """
        text = environment.get("WATCHDOG_USEC", "")
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return int(text) / 2_000_000 if text.isdecimal() and int(text) and mine else None

    def ready(self) -> None:
        """Report that no certificate file is wrong, so that dependent units may start."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Set the line that ``systemctl status`` shows."""
        self._send("STATUS=" + text.replace("\n", " ")[:_STATUS_LIMIT])

    def alive(self) -> None:
        """Send a watchdog message."""
        if self.watchdog is not None:
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Report that the agent is stopping."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # Keep working even if the service manager does not read the messages.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer,
        ):
            peer.connect(self._address)
            peer.send(message.encode())
