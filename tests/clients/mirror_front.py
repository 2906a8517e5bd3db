# SPDX-License-Identifier: Apache-2.0
"""A mirror in the place of AMD's server, for programs that know only AMD's host name.

It is set up as docs/fleet.md describes: with a private CA, a certificate from it for
``kdsintf.amd.com``, and a forward proxy that sends this one name to the mirror and refuses all
others.
"""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from snpcerts.kds.url import AMD_URL
from tests.mirror.private_ca import PrivateCa

AMD_NAME: Final = urlsplit(AMD_URL).hostname or ""
_ENDS: Final = 20.0  # seconds for a mirror to end after SIGTERM


@dataclass(frozen=True)
class MirrorFront:
    """A mirror at ``url``, the environment variables that lead a program to it, and how often the
    proxy was asked for each target.
    """

    url: str
    environment: Mapping[str, str]
    connected: Counter[str]

    @property
    def program(self) -> tuple[str, ...]:
        """The words to put before a program's command, so that it finds the mirror."""
        return ("env", *(f"{name}={value}" for name, value in self.environment.items()))


@contextlib.contextmanager
def mirror_front(place: Path, upstream: str, anchor: Path) -> Iterator[MirrorFront]:
    """Run a mirror of ``upstream``. A program with the yielded ``environment`` finds the mirror
    under AMD's name.
    """
    place.mkdir()
    ca = PrivateCa(place)
    tls = str(ca.issue(AMD_NAME, "127.0.0.1"))
    options = ["--database", f"sqlite:///{place}/mirror.db", "--listen", "0", "--patience", "120"]
    options += ["--upstream", upstream, "--anchor", str(anchor)]
    options += ["--tls-cert", tls, "--tls-key", tls]
    with _serving(options) as url, _proxy(urlsplit(url).port or 0) as (proxy, connected):
        environment = {"HTTPS_PROXY": proxy, "https_proxy": proxy, "SSL_CERT_FILE": str(ca.root)}
        environment |= dict.fromkeys(("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"), "")
        yield MirrorFront(url, environment, connected)


@contextlib.contextmanager
def _serving(options: Sequence[str]) -> Iterator[str]:
    own = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    with subprocess.Popen(
        [sys.executable, "-m", "snpcerts", "mirror", "serve", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env=own,
    ) as process:
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            assert words[:1] == ["serving"], words
            yield words[1]
        finally:
            process.terminate()
            try:
                process.wait(_ENDS)
            except subprocess.TimeoutExpired:
                process.kill()


class _Proxy(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, mirror: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Connect)
        self.mirror = mirror
        self.connected: Counter[str] = Counter()


class _Connect(socketserver.StreamRequestHandler):
    """Serves one CONNECT request (RFC 9110, section 9.3.6)."""

    timeout = 30
    server: _Proxy

    def handle(self) -> None:
        method, _, rest = self.rfile.readline(4096).decode("latin-1").partition(" ")
        target = rest.partition(" ")[0]
        while self.rfile.readline(4096).strip():
            pass
        self.server.connected[target] += 1
        if (method, target) != ("CONNECT", f"{AMD_NAME}:443"):
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            return
        with socket.create_connection(self.server.mirror) as mirror:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=_copy, args=(mirror, self.connection), daemon=True)
            back.start()
            _copy(self.connection, mirror)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def _proxy(port: int) -> Iterator[tuple[str, Counter[str]]]:
    with _Proxy(("127.0.0.1", port)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", server.connected
        finally:
            server.shutdown()
            thread.join()
