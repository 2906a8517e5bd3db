# SPDX-License-Identifier: Apache-2.0
"""An emulated AMD key server: real HTTP on loopback, with AMD's URL forms.

It serves certificates of the given chips for any TCB, signed with the keys of the emulated AMD.
Like AMD's server, it issues a new certificate for each request. It does not serve VLEK
certificates: AMD serves them on another port, to cloud providers that authenticate with a client
certificate.

``/stats`` returns request counts in JSON. The request parameter ``fault`` (may be repeated)
requests a fault in the answer.

Source: KDS (57230) chapters 3 and 4, and observations of AMD's server.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

from cryptography.hazmat.primitives.asymmetric import ec

from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.amd.authority import ORGANIZATION, VCEK_LIFETIME, EmulatedAuthority
from snpcerts.emulator.amd.key_server_faults import (
    Fault,
    Faults,
    Throttle,
    ThrottleMemory,
    faults_of_names,
)
from snpcerts.emulator.machine.home import PlatformHome
from snpcerts.emulator.psp.chip import Chip
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import SnpCertsError, UsageError
from snpcerts.kds.url import (
    ChainResource,
    CrlResource,
    Resource,
    VcekResource,
    parse_target,
)

RETRY_AFTER: Final = 10  # seconds, the value that AMD's server sends

_IDLE: Final = 30.0  # seconds that a client may take to send its request
_DER: Final = "application/octet-stream"
_PEM: Final = "application/x-pem-file"
_PAGE: Final = b"<!doctype html><html><body><h1>It works!</h1></body></html>\n"
_REFUSALS: Final = {
    Fault.SERVER_ERROR: 500,
    Fault.UNAVAILABLE: 503,
    Fault.NOT_FOUND: 404,
    Fault.FORBIDDEN: 403,
}
_HUGE: Final = 64 << 20
_DROP: Final = 16


@dataclass(frozen=True, slots=True)
class ProductLine:
    """One product of a key server: its authority and its chips."""

    authority: EmulatedAuthority
    chips: tuple[Chip, ...]
    revoked: tuple[int, ...] = ()  # serial numbers in its CRL


@dataclass(frozen=True, slots=True)
class _Response:
    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


class KeyServer:
    """One key server on 127.0.0.1, which listens until :meth:`close`.

    ``throttle`` applies to VCEKs, the only resource that AMD's server is known to throttle. Without
    it there is no limit. ``delay`` is the duration of a slow answer in seconds. Port 0 selects a
    free port.
    """

    def __init__(
        self,
        lines: Sequence[ProductLine],
        *,
        faults: Faults | None = None,
        throttle: Throttle | None = None,
        delay: float = 5.0,
        port: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lines = {line.authority.product: line for line in lines}
        if len(self.lines) != len(lines):
            raise UsageError("a key server needs exactly one authority per product")
        self.faults = Faults() if faults is None else faults
        self.delay = delay
        self._throttle = ThrottleMemory(throttle or Throttle())
        self._clock = clock
        self._lock = threading.Condition()
        self._requests: Counter[str] = Counter()
        self._statuses: Counter[int] = Counter()
        self._closing = threading.Event()
        handler = functools.partial(_Handler, self)
        try:
            self._http = _HttpServer(("127.0.0.1", port), handler)
        except (OSError, OverflowError) as error:
            raise UsageError(f"cannot listen on port {port}: {error}") from None
        self._waker, self._woken = socket.socketpair()
        self._thread: threading.Thread | None = None

    @classmethod
    def of_homes(cls, homes: Sequence[PlatformHome], **options: object) -> Self:
        """Return a key server for the platforms in ``homes``. It signs with the keys of the
        emulated AMD of each platform.
        """
        lines = [ProductLine(home.authority(), (home.firmware().chip,)) for home in homes]
        return cls(lines, **options)  # type: ignore[arg-type]  # names are checked at run time

    @property
    def url(self) -> str:
        """The key server's base URL."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def requests(self) -> Mapping[str, int]:
        """Counts of requests by normalised path. Requests with unknown paths count as ``other``."""
        with self._lock:
            return dict(self._requests)

    @property
    def statuses(self) -> Mapping[int, int]:
        """Counts of answers by HTTP status."""
        with self._lock:
            return dict(self._statuses)

    def wait_for_requests(self, enough: Callable[[Mapping[str, int]], bool], most: float) -> bool:
        """Wait until ``enough`` accepts the request counts, for at most ``most`` seconds.

        Returns whether it has accepted them.
        """
        with self._lock:
            return self._lock.wait_for(lambda: enough(self._requests), most)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Serve in a new thread until :meth:`close`."""
        self._thread = threading.Thread(target=self.serve, name="key server", daemon=True)
        self._thread.start()

    def serve(self) -> None:
        """Serve in this thread until :meth:`close`, or until an exception such as
        KeyboardInterrupt.
        """
        with selectors.DefaultSelector() as waiting:
            for each in (self._http, self._woken):
                waiting.register(each, selectors.EVENT_READ)
            while not self._closing.is_set():
                waiting.select()
                self._http.handle_request()

    def close(self) -> None:
        """Stop serving and release the port."""
        if not self._closing.is_set():
            self._closing.set()
            self._waker.send(b"x")
        if self._thread is not None:
            self._thread.join()
        self._http.server_close()
        self._waker.close()
        self._woken.close()

    def pause(self, seconds: float) -> None:
        """Wait for ``seconds``, or until the server ends."""
        self._closing.wait(seconds)

    def stats(self) -> bytes:
        """Return the body of the answer to ``/stats``."""
        with self._lock:
            counts = {
                "total": self._requests.total(),
                "requests": dict(self._requests),
                "statuses": {str(status): count for status, count in self._statuses.items()},
            }
        return json.dumps(counts, indent=1).encode() + b"\n"

    def answer(self, target: str, client: str) -> tuple[_Response, frozenset[Fault]]:
        """Return the answer to a request for ``target``, and the faults to apply to it."""
        faults = self.faults.take()
        try:
            plain, wanted = _without_faults(target)
            faults |= wanted
            resource = parse_target(plain)
        except SnpCertsError as error:
            return self._counted("other", _Response(404, f"{error}\n".encode())), faults
        answer = self._refusal(resource, client, faults)
        if answer is None:
            answer = self._spoilt(resource, faults)
        return self._counted(resource.path, answer), faults

    def _counted(self, name: str, answer: _Response) -> _Response:
        with self._lock:
            self._requests[name] += 1
            self._statuses[answer.status] += 1
            self._lock.notify_all()
        return answer

    def _refusal(
        self, resource: Resource, client: str, faults: frozenset[Fault]
    ) -> _Response | None:
        too_many = {Fault.TOO_MANY, Fault.TOO_MANY_DATE, Fault.TOO_MANY_SILENT} & faults
        wait = float(RETRY_AFTER) if too_many else 0.0
        if isinstance(resource, VcekResource) and not too_many:
            wait = self._throttle.wait(client, resource.path, self._clock())
        if wait:
            return _Response(429, b"Too Many Requests\n", headers=_retry_after(wait, faults))
        for fault, status in _REFUSALS.items():
            if fault in faults:
                return _Response(status, f"{status}\n".encode())
        if Fault.REDIRECT in faults:
            return _Response(302, headers=(("Location", f"http://localhost:1/{resource.path}"),))
        if Fault.REDIRECT_HERE in faults:
            return _Response(301, headers=(("Location", f"/{resource.path}"),))
        return None

    def _spoilt(self, resource: Resource, faults: frozenset[Fault]) -> _Response:
        if Fault.HTML in faults:
            return _Response(200, _PAGE, "text/html")
        if Fault.EMPTY in faults:
            return _Response(200, b"", _DER)
        answer = self._certificate(resource, faults)
        return replace(answer, content_type="text/html") if Fault.CONTENT_TYPE in faults else answer

    def _certificate(self, resource: Resource, faults: frozenset[Fault]) -> _Response:
        line = self.lines.get(resource.product)
        if line is None:
            return _Response(404, b"no such product here\n")
        authority = line.authority
        if Fault.WRONG_ROOT in faults:
            authority = _stranger(resource.product)
        if isinstance(resource, ChainResource):
            vlek = resource.kind is VekKind.VLEK
            return _Response(200, authority.chain_pem(vlek=vlek), _PEM)
        if isinstance(resource, CrlResource):
            age = timedelta(days=1000 if Fault.EXPIRED in faults else 1)
            crl = authority.crl(line.revoked, last_update=_now() - age)
            return _Response(200, crl.der, _DER)
        chip = next((chip for chip in line.chips if chip.hwid == resource.hwid), None)
        if chip is None:
            return _Response(404, b"no such chip here\n")
        return _Response(200, _vcek(authority, chip, resource.tcb, faults), _DER)


def _vcek(
    authority: EmulatedAuthority, chip: Chip, tcb: TcbVersion, faults: frozenset[Fault]
) -> bytes:
    if Fault.WRONG_CHIP in faults:
        chip = Chip.create(chip.product)
    if Fault.WRONG_TCB in faults:
        tcb = replace(tcb, snp=(tcb.snp + 1) % 256)
    key = chip.vcek_key(tcb)
    if Fault.WRONG_KEY in faults:
        key = ec.generate_private_key(ec.SECP384R1())
    age = VCEK_LIFETIME + timedelta(days=1) if Fault.EXPIRED in faults else timedelta(days=1)
    issued = authority.issue_vcek(chip.hwid, tcb, key.public_key(), not_before=_now() - age)
    return issued.der


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@functools.cache
def _stranger(product: Product) -> EmulatedAuthority:
    """Return an emulated authority for ``product`` with the usual names but other keys."""
    return EmulatedAuthority.create(product, one_key=True)


def _retry_after(wait: float, faults: frozenset[Fault]) -> tuple[tuple[str, str], ...]:
    if Fault.TOO_MANY_SILENT in faults:
        return ()
    if Fault.TOO_MANY_DATE in faults:
        until = datetime.now(UTC) + timedelta(seconds=wait)
        return (("Retry-After", format_datetime(until, usegmt=True)),)
    return (("Retry-After", str(max(1, math.ceil(wait)))),)


def _without_faults(target: str) -> tuple[str, frozenset[Fault]]:
    """Return the target without its ``fault`` parameters, and the faults that these name."""
    try:
        parts = urlsplit(target)
        pairs = parse_qsl(parts.query, keep_blank_values=True, max_num_fields=32)
    except ValueError as error:
        raise UsageError(f"the query of the URL is not valid: {error}") from None
    rest = [pair for pair in pairs if pair[0] != "fault"]
    names = [value for name, value in pairs if name == "fault"]
    query = urlencode(rest)
    return parts.path + (f"?{query}" if query else ""), faults_of_names(names)


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    # Slow answers must not delay the server's end.
    block_on_close = False
    request_queue_size = 64
    timeout = 0  # a selector has found a connection before handle_request() is called

    def handle_error(self, request: object, client_address: object) -> None:
        """Print no traceback for a client that disconnects early."""


class _Handler(BaseHTTPRequestHandler):
    """One client's connection."""

    protocol_version = "HTTP/1.1"
    server_version = ORGANIZATION.replace(" ", "-").replace(",", "")
    sys_version = ""
    timeout = _IDLE

    def __init__(self, keys: KeyServer, *arguments: object) -> None:
        self._keys = keys
        super().__init__(*arguments)  # type: ignore[arg-type]  # as socketserver passes them

    def do_GET(self) -> None:
        """Answer one request, then close the connection."""
        self.close_connection = True
        if self.path == "/stats":
            self._send(_Response(200, self._keys.stats(), "application/json"), frozenset())
            return
        answer, faults = self._keys.answer(self.path, self.client_address[0])
        if Fault.REFUSE in faults:
            return
        if Fault.SLOW in faults:
            self._keys.pause(self._keys.delay)
        with contextlib.suppress(ConnectionError, TimeoutError):
            self._send(answer, faults)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing, because /stats has the counts."""

    def _send(self, answer: _Response, faults: frozenset[Fault]) -> None:
        body = answer.body
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        for name, value in answer.headers:
            self.send_header(name, value)
        if not {Fault.CUT_SILENT, Fault.HUGE} & faults:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if {Fault.CUT, Fault.CUT_SILENT} & faults:
            body = body[: len(body) // 2]
        for part in _parts(body, faults):
            self.wfile.write(part)
            if Fault.DRIP in faults:
                self._keys.pause(self._keys.delay / 10)


def _parts(body: bytes, faults: frozenset[Fault]) -> Iterator[bytes]:
    if Fault.DRIP in faults:
        yield from (body[at : at + _DROP] for at in range(0, len(body), _DROP))
    elif Fault.HUGE in faults:
        for _ in range(_HUGE >> 16):
            yield bytes(1 << 16)
    else:
        yield body
