# SPDX-License-Identifier: Apache-2.0
"""One connection to the mirror.

The connection is closed if a request arrives too slowly, if the head of a request is too long, or
if the client does not read an answer. The trailers after a chunked body have the same limit as a
head. uvicorn itself limits only the time between requests. If the client sent a certificate that
a CA of ``--client-ca`` signed, the connection also provides the names in that certificate.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

REQUEST_TIME: Final = 20.0  # seconds from a request's first byte to its last
ANSWER_TIME: Final = 60.0  # time limit for a client to read an answer, in seconds
MAX_HEAD: Final = 32 << 10  # bytes of request line and headers, or of trailers
_PIECE: Final = 4096  # bytes that the parser gets at once
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: closing resets the connection
# The key in an ASGI scope's extensions for the names in a client's certificate.
CLIENT_NAMES: Final = "snpcerts.client_names"


class MirrorConnection(HttpToolsProtocol):
    """A connection that limits the duration of each request, the size of its head (request line
    and headers), and the time that the client takes to read the answer.
    """

    request_time = REQUEST_TIME
    answer_time = ANSWER_TIME
    _deadline: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None  # runs while parts of an answer may be unread
    _answers = 0  # number of answers that were given to the transport
    _names: frozenset[str] | None = None
    _head = 0  # bytes that are not part of a body, since the last part of a body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's
        """Start the timer of the first request, because a client that connects must send
        something.
        """
        super().connection_made(transport)
        self._names = _names(transport.get_extra_info("peercert"))
        self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers of the connection."""
        self._stop()
        if self._reading is not None:
            self._reading.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle a part of a request, and count the bytes of its head.

        A large part is handled in small pieces. The end of a body resets the count, so trailers in
        the same piece as that end are not counted, but those in later pieces are.
        """
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            self._head += len(piece)
            super().data_received(piece)
            if self.transport.is_closing():
                return
            if self._head > MAX_HEAD:
                self.send_400_response("The request's head is too long.")
                return

    def on_message_begin(self) -> None:
        """Start the timer of a request."""
        super().on_message_begin()
        if self._names is not None:
            self.scope["extensions"] = {CLIENT_NAMES: self._names}  # type: ignore[dict-item]  # ours
        self._start()

    def on_headers_complete(self) -> None:
        """Reset the count of the head's bytes, because trailers may follow."""
        self._head = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Leave the body out of the count, because it has a limit of its own."""
        self._head = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Stop the timer of the request, because it is complete and the mirror must answer now."""
        self._stop()
        self._head = 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Start the timer of an answer, because the transport holds much data that the client has
        not read.
        """
        super().pause_writing()
        self._expect_reading()

    def on_response_complete(self) -> None:
        """Start the timer of an answer, because the transport may still hold a part of the
        answer.
        """
        self._answers += 1
        super().on_response_complete()
        self._expect_reading()

    def _expect_reading(self) -> None:
        if self._reading is None and self.transport.get_write_buffer_size():
            self._reading = self.loop.call_later(self.answer_time, self._unread, self._answers)

    def _unread(self, answers: int) -> None:
        """Close the connection if the client has not read an answer in time.

        This also applies to a connection that is being closed, which would otherwise wait for the
        client.
        """
        self._reading = None
        if answers != self._answers:  # a later answer, which has its own timer
            self._expect_reading()
        elif self.transport.get_write_buffer_size():
            # Otherwise the kernel would keep the rest of the answer and wait for the client too.
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _RESET
            )
            self.transport.abort()

    def _start(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.request_time, self._too_slow)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        self.transport.abort()


def _names(certificate: Mapping[str, Any] | None) -> frozenset[str] | None:
    """Return the DNS names and common names in a verified client certificate, in lower case."""
    return frozenset(_each_name(certificate)) if certificate else None


def _each_name(certificate: Mapping[str, Any]) -> Iterator[str]:
    for kind, value in certificate.get("subjectAltName", ()):
        if kind == "DNS":
            yield value.lower()
    for part in certificate.get("subject", ()):
        for kind, value in part:
            if kind == "commonName":
                yield value.lower()
