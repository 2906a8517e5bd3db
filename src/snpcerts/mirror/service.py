# SPDX-License-Identifier: Apache-2.0
"""The mirror's HTTP service: answers requests for URLs of AMD's form, below any prefix.

Stored certificates are served from memory or the database. Others are added to the queue, and the
caller waits for a while. Another application answers all other URLs.

Sources: KDS (57230) chapter 3 for forms and types; RFC 9110 for conditional requests and
Retry-After; RFC 7240 for ``Prefer: wait``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy import Connection

from snpcerts.errors import FormatError
from snpcerts.kds.url import ChainResource, CrlResource, Resource
from snpcerts.mirror import stored
from snpcerts.mirror.body_cache import BodyCache, KeptAnswer
from snpcerts.mirror.database import DatabaseUnavailableError, MirrorDatabase
from snpcerts.mirror.direct_reader import DirectReader
from snpcerts.mirror.stored import NoCertificate, StoredCertificate
from snpcerts.mirror.target import (
    MAX_TARGET,
    PrivateResourceError,
    is_key_servers,
    read_target,
)
from snpcerts.mirror.waiting import WaitingCallers
from snpcerts.mirror.wanted import MAX_QUEUE, Need, QueuePlace, WantedQueue, enrolled

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
T = TypeVar("T")

MAX_WAITING: Final = 4096  # number of callers that may wait at a time
_LONGEST_CACHING: Final = 30 * 86400
_CHAIN_CACHING: Final = 86400
_CRL_CACHING: Final = 3600
# Short, because other instances replace chains and lists.
_KEPT_REPLACEABLE: Final = 5.0
_WAIT = re.compile(rb"(?:^|[,;\s])wait\s*=\s*([0-9]{1,6})(?:$|[,;\s])")
_READ: Final = (b"GET", b"HEAD")
_CORS: Final = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"ETag, Retry-After"),
)
_NOT_STORED: Final = ((b"cache-control", b"no-store"), *_CORS)


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """How long callers may wait, and what the mirror fetches for them.

    ``patience`` is the number of seconds for which a caller may wait. ``budget`` limits, for
    each address, the number of chips in the queue that no host has announced. With
    ``enrolled_only``, certificates for such chips are not fetched at all. A stored revocation list
    that was fetched more than ``crl_age`` seconds ago is fetched again.
    """

    patience: float = 15.0
    budget: int = 16
    enrolled_only: bool = False
    crl_age: float = 86400.0


@dataclass(frozen=True, slots=True)
class _Refusal:
    """An answer that says why no certificate is served."""

    status: int
    outcome: str
    message: str
    retry_after: int | None = None


class MirrorService:
    """The ASGI application of one instance. ``others`` answers all URLs that are not of AMD's form.

    ``wake`` is called when something was added to the queue. ``count`` is called for each answer,
    with the resource's kind, the outcome and the duration in seconds.
    """

    def __init__(
        self,
        database: MirrorDatabase,
        queue: WantedQueue,
        waiting: WaitingCallers,
        others: Application,
        *,
        limits: CallerLimits | None = None,
        wake: Callable[[], None] = lambda: None,
        count: Callable[[str, str, float], None] = lambda *_: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.cache = BodyCache()
        self._reader = DirectReader(database) if database.is_sqlite else None
        self._database = database
        self._queue = queue
        self._waiting = waiting
        self._others = others
        self._limits = limits or CallerLimits()
        self._wake = wake
        self._count = count
        self._wall = wall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http" or not is_key_servers(scope["raw_path"]):
            await self._others(scope, receive, send)
            return
        started = time.perf_counter()
        method = scope["method"].encode("ascii", "replace")
        if method not in _READ:
            await self._other_method(method, send)
            return
        target = scope["raw_path"] + b"?" + scope["query_string"]
        kept = self.cache.get(target, self._wall())
        kind, outcome = "unknown", "failed" if kept is None else "hit"
        try:
            if kept is None:
                found = await self._answer(scope)
                if isinstance(found, _Refusal):
                    outcome = found.outcome
                    await _refuse(send, found, method)
                    return
                kept, outcome = found
                if len(target) < MAX_TARGET:
                    self.cache.put(target, kept)
            kind = kept.kind
            await _give(send, kept, method, scope["headers"])
        finally:
            self._count(kind, outcome, time.perf_counter() - started)

    def close(self) -> None:
        """Close the service's own connection to the database."""
        if self._reader is not None:
            self._reader.close()

    async def _other_method(self, method: bytes, send: Send) -> None:
        if method == b"OPTIONS":  # a browser's preflight
            allowed = (
                (b"access-control-allow-methods", b"GET, HEAD"),
                (b"access-control-allow-headers", b"If-None-Match, Prefer"),
                (b"access-control-max-age", b"86400"),
            )
            await _send(send, 204, (*_CORS, *allowed), b"")
            return
        headers = ((b"allow", b"GET, HEAD, OPTIONS"), (b"content-type", _TEXT), *_NOT_STORED)
        await _send(send, 405, headers, b"certificates can only be read: use GET\n")

    async def _answer(self, scope: Scope) -> tuple[KeptAnswer, str] | _Refusal:
        try:
            resource = read_target(scope["raw_path"], scope["query_string"])
        except PrivateResourceError as error:
            return _Refusal(403, "private", str(error))
        except FormatError as error:
            status = 414 if len(scope["raw_path"]) > MAX_TARGET else 400
            return _Refusal(status, "bad_request", str(error))
        try:
            direct = self._direct(resource)
            if direct is not None:
                return self._kept(resource, direct), "hit"
            found = await self._run(self._look, resource)
            if isinstance(found, StoredCertificate):
                return self._kept(resource, found), "hit"
            if isinstance(found, NoCertificate):
                return _negative(resource, found, self._wall())
            return await self._miss(scope, resource)
        except DatabaseUnavailableError as error:
            log.warning("%s", error)
            return _Refusal(503, "database", "the mirror's database does not answer", 5)

    async def _miss(self, scope: Scope, resource: Resource) -> tuple[KeptAnswer, str] | _Refusal:
        client = scope.get("client")
        caller = client[0] if client else "unknown"
        path = resource.path
        if len(self._waiting) >= MAX_WAITING:
            return _Refusal(
                503, "queued", "too many callers are waiting for this mirror's answers", 10
            )
        patience = _patience(scope["headers"], self._limits.patience)
        with self._waiting.event(path) as event:
            refusal = await asyncio.to_thread(self._join, resource, caller)
            if refusal is not None:
                return refusal
            self._wake()
            until = time.monotonic() + patience
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(event.wait(), max(0.0, until - time.monotonic()))
                event.clear()
                found = await asyncio.to_thread(self._look, resource)
                if isinstance(found, StoredCertificate):
                    return self._kept(resource, found), "fetched"
                if isinstance(found, NoCertificate):
                    return _negative(resource, found, self._wall())
                place, problem = await asyncio.to_thread(self._place, resource)
                # Wait again while the resource is in the queue: WaitingCallers.poll() may have set
                # the event before the resource was put there.
                if place is None or time.monotonic() >= until:
                    break
        if place is None:
            return _Refusal(
                503, "queued", f"{resource}: the mirror could not fetch it{problem}", 10
            )
        behind = f", behind {place.ahead:,} others" if place.ahead else ""
        return _Refusal(
            503,
            "queued",
            f"{resource}: in the mirror's queue{behind}{problem}",
            _retry_after(place.wait),
        )

    def _direct(self, resource: Resource) -> StoredCertificate | None:
        """Return the stored certificate, without waiting for a thread, if it is valid and the
        database is SQLite; otherwise None.
        """
        found = None if self._reader is None else self._reader.find(resource.path)
        return found if found is not None and found.not_after > self._wall() else None

    async def _run(self, look: Callable[[Resource], T], resource: Resource) -> T:
        # Reading SQLite takes less time than switching to a thread and back.
        if self._database.is_sqlite:
            return look(resource)
        return await asyncio.to_thread(look, resource)

    def _look(self, resource: Resource) -> StoredCertificate | NoCertificate | None:
        with self._database.read() as connection:
            found = stored.find(connection, resource.path)
            if found is not None and found.not_after > self._wall():
                return found
            return stored.find_negative(connection, resource.path, self._database.now(connection))

    def _join(self, resource: Resource, caller: str) -> _Refusal | None:
        """Put the resource into the queue, or return an answer that says why that is not
        possible.
        """
        with self._database.write() as connection:
            known = enrolled(connection, resource)
            if not known:
                refusal = self._over_budget(connection, resource, caller)
                if refusal is not None:
                    return refusal
            if not known and self._queue.size(connection) >= MAX_QUEUE:
                return _Refusal(503, "queued", "the mirror's queue is full", 600)
            need = Need.HOST if known else Need.STRANGER
            now = self._database.now(connection)
            if self._queue.want(connection, resource, need, now, caller=caller):
                self._database.notify(connection, "")
        return None

    def _over_budget(
        self, connection: Connection, resource: Resource, caller: str
    ) -> _Refusal | None:
        if self._limits.enrolled_only:
            return _Refusal(
                403,
                "not_enrolled",
                f"{resource}: no host with this chip has announced itself to this mirror",
            )
        if self._queue.has(connection, resource):
            return None  # not counted, because it causes no further request to upstream
        if self._queue.strangers(connection, caller) < self._limits.budget:
            return None
        now = self._database.now(connection)
        wait = self._queue.budget_free_in(connection, caller, now)
        return _Refusal(
            429,
            "over_budget",
            (
                f"{self._limits.budget} chips that no host has announced to this mirror are "
                f"already queued for {caller}"
            ),
            _retry_after(wait),
        )

    def _place(self, resource: Resource) -> tuple[QueuePlace | None, str]:
        with self._database.read() as connection:
            now = self._database.now(connection)
            place = self._queue.place(connection, resource, now)
            problem = self._queue.problem(connection, resource)
        return place, "" if problem is None else f" ({problem})"

    def _kept(self, resource: Resource, found: StoredCertificate) -> KeptAnswer:
        now = self._wall()
        if isinstance(resource, CrlResource):
            control, until = f"public, max-age={_CRL_CACHING}", now + _KEPT_REPLACEABLE
        elif isinstance(resource, ChainResource):
            control, until = f"public, max-age={_CHAIN_CACHING}", now + _KEPT_REPLACEABLE
        else:
            lasts = min(max(0, int(found.not_after - now)), _LONGEST_CACHING)
            control, until = f"public, max-age={lasts}, immutable", found.not_after
        return KeptAnswer(
            stored.kind_of(resource),
            found.body,
            found.etag.encode(),
            (
                (b"content-type", stored.content_type(resource).encode()),
                (b"content-length", str(len(found.body)).encode()),
                (b"cache-control", control.encode()),
                (b"etag", found.etag.encode()),
                *_CORS,
            ),
            min(until, found.not_after),
        )


_TEXT: Final = b"text/plain; charset=utf-8"


def _negative(resource: Resource, found: NoCertificate, now: float) -> _Refusal:
    wait = _retry_after(found.until - now)
    if found.reason == "not-found":
        return _Refusal(
            404,
            "not_found",
            f"{resource}: the upstream server does not have it; the mirror will ask again later",
            wait,
        )
    return _Refusal(502, "refused", found.problem, wait)


def _retry_after(wait: float) -> int:
    """Return the seconds for a Retry-After header: a whole number, rounded up, of at least 1."""
    return max(1, math.ceil(wait))


def _patience(headers: list[tuple[bytes, bytes]], most: float) -> float:
    """Return how many seconds a caller waits: as long as its Prefer header says, but at most
    ``most``.
    """
    for name, value in headers:
        if name == b"prefer":
            found = _WAIT.search(value[:200])
            if found is not None:
                return min(float(found[1]), most)
    return most


async def _give(
    send: Send, answer: KeptAnswer, method: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    for name, value in headers:
        if name == b"if-none-match" and _matches(value, answer.etag):
            kept = tuple(each for each in answer.headers if each[0] not in _OF_A_BODY)
            await _send_raw(send, 304, kept, b"")
            return
    await _send_raw(send, 200, answer.headers, answer.body if method == b"GET" else b"")


_OF_A_BODY: Final = (b"content-length", b"content-type")


def _matches(value: bytes, etag: bytes) -> bool:
    """Return whether an If-None-Match header names this entity tag, by weak comparison (RFC 9110
    section 13.1.2).
    """
    if value.strip() == b"*":
        return True
    return etag in {each.strip().removeprefix(b"W/") for each in value.split(b",")}


async def _refuse(send: Send, refusal: _Refusal, method: bytes) -> None:
    body = json.dumps(
        {"code": refusal.outcome.replace("_", "-"), "error": refusal.message}
    ).encode()
    body += b"\n"
    headers = [(b"content-type", b"application/json"), *_NOT_STORED]
    if refusal.retry_after is not None:
        headers.append((b"retry-after", str(refusal.retry_after).encode()))
    headers.append((b"content-length", str(len(body)).encode()))
    await _send_raw(send, refusal.status, tuple(headers), body if method == b"GET" else b"")


async def _send(
    send: Send, status: int, headers: tuple[tuple[bytes, bytes], ...], body: bytes
) -> None:
    length = () if status == 204 else ((b"content-length", str(len(body)).encode()),)
    await _send_raw(send, status, (*headers, *length), body)


async def _send_raw(
    send: Send, status: int, headers: tuple[tuple[bytes, bytes], ...], body: bytes
) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
