# SPDX-License-Identifier: Apache-2.0
"""Runs one instance of the mirror (database, fetcher, listener and HTTP server) until a signal ends
it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import uvicorn
import uvloop

from snpcerts.endorsement.anchors import AMD_ANCHORS, Anchor
from snpcerts.errors import InputError, UsageError
from snpcerts.kds.client import KdsClient
from snpcerts.kds.retry import AMD_GAP
from snpcerts.kds.url import AMD_URL
from snpcerts.mirror.admission import Admission
from snpcerts.mirror.api import MirrorApi, Tokens
from snpcerts.mirror.connection import MirrorConnection
from snpcerts.mirror.database import MirrorDatabase
from snpcerts.mirror.fetcher import Fetcher
from snpcerts.mirror.fleet_records import FleetRecords
from snpcerts.mirror.mirror_metrics import FleetCache, MirrorMetrics
from snpcerts.mirror.service import Application, CallerLimits, MirrorService
from snpcerts.mirror.upkeep import Upkeep
from snpcerts.mirror.waiting import NotificationListener, WaitingCallers
from snpcerts.mirror.wanted import WantedQueue

_DRAIN: Final = 5  # seconds to finish answers when the server ends
_IDLE: Final = 75  # seconds that an idle connection is kept
_CONNECTIONS: Final = 8192
_TICK: Final = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The settings of one instance.

    ``gap`` is the number of seconds between two requests for VCEK certificates. None means AMD's
    gap for AMD's server, and no gap for another mirror, which spaces its own requests.
    ``client_ca`` is a file with the CAs that sign the hosts' client certificates.
    """

    database: str
    host: str = "127.0.0.1"
    port: int = 8180
    upstream: str = AMD_URL
    anchors: Sequence[Anchor] = AMD_ANCHORS
    gap: float | None = None
    limits: CallerLimits = field(default_factory=CallerLimits)
    tokens: Tokens = field(default_factory=Tokens)
    certificate: str | None = None
    key: str | None = None
    client_ca: str | None = None
    forwarded_from: str | None = None


class Mirror:
    """The parts of one instance. ``app`` is its ASGI application."""

    def __init__(self, options: ServeOptions) -> None:
        known = AMD_GAP if options.upstream.rstrip("/") == AMD_URL else 0.0
        self.database = MirrorDatabase(options.database)
        self.queue = WantedQueue(known if options.gap is None else options.gap)
        self.client = KdsClient(options.upstream)
        self.waiting = WaitingCallers(self.database)
        self.fetcher = Fetcher(
            self.database,
            self.queue,
            self.client,
            Admission(options.anchors),
            done=self.waiting.done,
        )
        self._listener = NotificationListener(self.database, self._heard)
        self.records = FleetRecords(self.database, self.queue, self.client.url)
        self._upkeep = Upkeep(
            self.database,
            self.queue,
            self.records,
            crl_age=options.limits.crl_age,
            instance=self.fetcher.instance,
            wake=self.fetcher.wake,
        )
        fleet = FleetCache(self.records.fleet)
        metrics = MirrorMetrics(
            self.client, fleet.get, lambda: len(self.waiting), self.records.crl_ages
        )
        api = MirrorApi(
            self.database, self.records, fleet, metrics, options.tokens, self.fetcher.wake
        )
        self._service = MirrorService(
            self.database,
            self.queue,
            self.waiting,
            api.app(),
            limits=options.limits,
            wake=self.fetcher.wake,
            count=metrics.count,
        )
        self.app: Application = self._service

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the fetcher, the upkeep and the listener while the block runs."""
        self.waiting.attach(asyncio.get_running_loop())
        self.fetcher.start()
        self._listener.start()
        self._upkeep.start()
        poll = asyncio.create_task(self.waiting.poll())
        try:
            yield
        finally:
            poll.cancel()
            self._listener.close()
            await asyncio.to_thread(self._upkeep.close)
            await asyncio.to_thread(self.fetcher.close)

    def close(self) -> None:
        """Close all connections of the instance."""
        self.client.close()
        self._service.close()
        self.database.close()

    def _heard(self, resource: str) -> None:
        if resource:
            self.waiting.done(resource)
        self.fetcher.wake()


def serve(options: ServeOptions, started: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM. When the server listens, ``started`` is called with its URL.

    Raises :class:`UsageError` for an address that cannot be used, :class:`InputError` for a TLS
    certificate or key that cannot be used, and the database's errors.
    """

    async def until_a_signal() -> None:
        stopping = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        await serve_until(mirror, options, started, stopping)

    mirror = Mirror(options)
    try:
        mirror.database.prepare()
        # Freeze the loaded objects. A garbage collection of all of them would take milliseconds, in
        # which no request is answered.
        gc.collect()
        gc.freeze()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(until_a_signal())
    finally:
        mirror.close()


async def serve_until(
    mirror: Mirror, options: ServeOptions, started: Callable[[str], None], stopping: asyncio.Event
) -> None:
    """Serve until ``stopping`` is set. Raises the same errors as :func:`serve`."""
    server = _Server(_config(mirror.app, options))
    with _listen(options.host, options.port) as listening:
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        async with mirror.running():
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            stop = asyncio.create_task(stopping.wait())
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            started(f"{'http' if options.certificate is None else 'https'}://{shown}:{port}")
            await asyncio.wait((serving, stop), return_when=asyncio.FIRST_COMPLETED)
            server.stop()
            stop.cancel()
            await serving


class _Server(uvicorn.Server):
    """A uvicorn server that ends without delay and does not handle signals.

    uvicorn itself would raise signals again before snpcerts cleans up. It checks ten times a second
    whether it should end, and then waits a tenth of a second for connections even if there are
    none.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Make the server end after the current answers."""
        self.should_exit = True
        self._stopping.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # with 0, each tick updates the Date header of the answers
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _TICK)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)
            return
        for each in (*self.servers, *(sockets or ())):
            each.close()


def _config(app: Application, options: ServeOptions) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        http=MirrorConnection,
        # Otherwise uvicorn logs advice to install packages if a client asks for a WebSocket.
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=_DRAIN,
        timeout_keep_alive=_IDLE,
        limit_concurrency=_CONNECTIONS,
        backlog=2048,
        proxy_headers=options.forwarded_from is not None,
        forwarded_allow_ips=options.forwarded_from or "",
        ssl_certfile=options.certificate,
        ssl_keyfile=options.key,
        ssl_ca_certs=options.client_ca,
        ssl_cert_reqs=ssl.CERT_NONE if options.client_ca is None else ssl.CERT_OPTIONAL,
    )
    if options.client_ca is not None:
        _check_client_ca(options.client_ca)
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"cannot use the TLS certificate {options.certificate} with the key from --tls-key: "
            f"{error}",
            hint=(
                "give PEM files: the certificate chain for --tls-cert, and its key for --tls-key"
            ),
        ) from None
    return config


def _check_client_ca(path: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"cannot use the CA certificates from --client-ca {path}: {error}",
            hint="give a PEM file with the certificates of the CAs that sign client certificates",
        ) from None


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except BaseException:
            listening.close()
            raise
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {host}:{port} (--listen): {error}") from None
    return listening
