# SPDX-License-Identifier: Apache-2.0
"""A server on loopback that answers with whatever bytes a test wants, HTTP or not."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Self


def ok(body: bytes) -> bytes:
    """Return an HTTP answer with that body."""
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


class Answering:
    """Answers each request with the bytes that ``reply`` makes from its target, then hangs up.

    If ``feed`` is given, it gets the connection instead.
    """

    def __init__(
        self,
        reply: Callable[[str], bytes],
        feed: Callable[[socket.socket], None] | None = None,
    ) -> None:
        self.reply = reply
        self.feed = feed
        self.targets: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Shutting the socket down wakes up accept(); closing it alone does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                head = b""
                while b"\r\n\r\n" not in head:
                    part = connection.recv(4096)
                    if not part:
                        break
                    head += part
                target = head.split(b" ", 2)[1].decode() if head.count(b" ") > 1 else ""
                self.targets.append(target)
                if self.feed is not None:
                    self.feed(connection)
                else:
                    connection.sendall(self.reply(target))
