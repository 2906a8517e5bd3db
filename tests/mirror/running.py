# SPDX-License-Identifier: Apache-2.0
"""A mirror in this process: real sockets, a real database, and a thread for its event loop."""

from __future__ import annotations

import asyncio
import http.client
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from snpcerts.mirror.serving import Mirror, ServeOptions, serve_until


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def text(self) -> str:
        return self.body.decode()


class RunningMirror:
    """A mirror instance that runs within a ``with`` block. There, ``url`` is its address."""

    def __init__(self, options: ServeOptions) -> None:
        self.options = options
        self.mirror = Mirror(options)
        self.mirror.database.prepare()
        self._started: Future[str] = Future()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            self._stopping = asyncio.Event()
            await serve_until(self.mirror, self.options, self._started.set_result, self._stopping)

        try:
            asyncio.run(run())
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)
            raise

    def __enter__(self) -> Self:
        self._thread.start()
        self.url = self._started.result(30)
        return self

    def pause(self, until: threading.Event) -> None:
        """Block the mirror's event loop until the event is set, for at most 30 seconds."""
        self._loop.call_soon_threadsafe(until.wait, 30)

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(30)
        self.mirror.close()

    def ask(
        self,
        target: str,
        *,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send the target unchanged: no library corrects it."""
        return ask(self.url, target, method=method, body=body, headers=headers)


def ask(
    url: str,
    target: str,
    *,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=60)
    try:
        connection.request(
            method, f"/{target.removeprefix('/')}", body=body, headers=dict(headers or {})
        )
        response = connection.getresponse()
        return Reply(
            response.status,
            response.read(),
            {name.lower(): value for name, value in response.getheaders()},
        )
    finally:
        connection.close()


def until_stored(url: str, target: str, most: float = 120) -> None:
    """Repeat the request until the mirror has the certificate. It holds each one for a while."""
    until = time.monotonic() + most
    while (found := ask(url, target)).status == 503:
        assert time.monotonic() < until, found.text
    assert found.status == 200, found.text
