# SPDX-License-Identifier: Apache-2.0
"""A mirror that answers announcements as a test tells it to, and records the requests."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from snpcerts.abi.tcb import TcbVersion
from snpcerts.mirror.announcement import Announcement, read_announcement

Answer = Callable[[Announcement], Sequence[dict[str, Any]]]


def wanted(tcb: TcbVersion, state: str = "stored", wait: float | None = None) -> dict[str, Any]:
    """One item of an answer."""
    return {"tcb": tcb.components(), "state": state, "position": None, "wait_seconds": wait}


def all_stored(announced: Announcement) -> list[dict[str, Any]]:
    return [wanted(announced.reported), wanted(announced.current)]


class FakeMirror:
    """A test may change ``status`` and ``answer`` while the mirror runs."""

    def __init__(self) -> None:
        self.announced: list[Announcement] = []
        self.headers: list[dict[str, str]] = []
        self.targets: list[str] = []
        self.arrived = threading.Semaphore(0)
        self.status = 200
        self.answer: Answer = all_stored
        self.location: str | None = None
        self.url = ""

    def wait(self) -> Announcement:
        """Return the next announcement, once it has been answered."""
        assert self.arrived.acquire(timeout=60), "no announcement came"
        return self.announced[-1]


@contextlib.contextmanager
def fake_mirror() -> Iterator[FakeMirror]:
    mirror = FakeMirror()

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            announced = read_announcement(body)
            mirror.announced.append(announced)
            mirror.headers.append(dict(self.headers))
            mirror.targets.append(self.path)
            if mirror.status == 200:
                answer: dict[str, Any] = {"wanted": mirror.answer(announced)}
            else:
                answer = {"error": "as the test wants", "code": "test"}
            data = json.dumps(answer).encode()
            self.send_response(mirror.status)
            if mirror.location is not None:
                self.send_header("Location", mirror.location)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            mirror.arrived.release()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    mirror.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield mirror
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
