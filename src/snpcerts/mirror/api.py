# SPDX-License-Identifier: Apache-2.0
"""The mirror's own URLs: pages, agents' announcements, rolls, metrics and health.

Reading certificates and pages needs no token. The pages show chip IDs and host names, so only
people who may see these should be able to reach the mirror. Writing needs a bearer token. A host
can also announce itself with a client certificate that contains the host's name.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeGuard

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from snpcerts.abi.product import Product, product_of_keyword
from snpcerts.errors import FormatError, InputError, RefusedError, SnpCertsError
from snpcerts.mirror.announcement import (
    MAX_BYTES,
    MAX_HOSTS,
    MAX_NAME,
    read_announcement,
    tcb_of,
)
from snpcerts.mirror.connection import CLIENT_NAMES
from snpcerts.mirror.database import DatabaseUnavailableError, MirrorDatabase
from snpcerts.mirror.fleet_page import fleet_page, host_filter
from snpcerts.mirror.fleet_records import AnnouncerIdentity, FleetRecords
from snpcerts.mirror.fleet_view import Fleet, FleetHost, Roll
from snpcerts.mirror.host_page import host_page
from snpcerts.mirror.mirror_metrics import FleetCache, MirrorMetrics
from snpcerts.mirror.page import page_headers

_MAX_ROLL: Final = 8 << 20  # bytes of MAX_HOSTS chip IDs and names


@dataclass(frozen=True, slots=True)
class Tokens:
    """The bearer tokens of agents and operators. The tokens in ``admin`` also allow what those in
    ``agent`` allow.

    ``hosts`` has the names, in lower case, of the hosts that a token belongs to. All hosts share a
    token that is in ``agent`` but not in ``hosts``.
    """

    agent: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()
    hosts: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def announcer(self, given: str) -> AnnouncerIdentity | None:
        """Return which hosts may announce themselves with a token; None for a wrong token.

        The comparison takes the same time for every wrong token.
        """
        found: AnnouncerIdentity | None = None
        for each in self.agent:
            if _same(each, given):
                found = AnnouncerIdentity(self.hosts.get(each))
        return AnnouncerIdentity(operator=True) if self.operator(given) else found

    def operator(self, given: str) -> bool:
        """Return whether the token is an operator's. The comparison takes the same time for every
        wrong token.
        """
        return any([_same(each, given) for each in self.admin])  # noqa: C419 (compares all)


def _same(known: str, given: str) -> bool:
    return hmac.compare_digest(known.encode(), given.encode("utf-8", "replace"))


class _RejectedError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class MirrorApi:
    """The handlers of the mirror's own URLs. ``wake`` is called when something has been added to
    the queue.
    """

    def __init__(
        self,
        database: MirrorDatabase,
        records: FleetRecords,
        fleet: FleetCache,
        metrics: MirrorMetrics,
        tokens: Tokens,
        wake: Callable[[], None],
    ) -> None:
        self._database = database
        self._records = records
        self._fleet = fleet
        self._metrics = metrics
        self._tokens = tokens
        self._wake = wake
        self._shown: tuple[Fleet, bytes] | None = None

    def app(self) -> Starlette:
        """Return the ASGI application for these URLs."""
        hosts = "/api/v1/hosts/{product}/{hwid}"
        return Starlette(
            routes=[
                Route("/", self.page),
                Route("/hosts/{product}/{hwid}", self.host_page),
                Route("/metrics", self.metrics),
                Route("/healthz", self.healthz),
                Route("/readyz", self.readyz),
                Route("/api/v1/fleet", self.fleet),
                Route("/api/v1/rolls", self.rolls),
                Route("/api/v1/rolls", self.start_roll, methods=["POST"]),
                Route("/api/v1/forget", self.forget, methods=["POST"]),
                Route(hosts, self.host),
                Route(hosts, self.announce, methods=["PUT"]),
            ],
            exception_handlers={
                _RejectedError: _rejected,
                FormatError: _unreadable,
                InputError: _unreadable,
                RefusedError: _refused,
                DatabaseUnavailableError: _no_database,
            },
        )

    async def healthz(self, _request: Request) -> Response:
        """Answer a liveness probe: the process is alive."""
        return JSONResponse({"ok": True})

    def readyz(self, _request: Request) -> Response:
        """Answer a readiness probe: the instance can serve if the database answers."""
        self._database.check()
        return JSONResponse({"ok": True})

    def metrics(self, _request: Request) -> Response:
        """Answer with all metrics, for Prometheus."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def page(self, request: Request) -> Response:
        """Answer with the fleet's page."""
        html = fleet_page(self._fleet.get(), host_filter(dict(request.query_params)))
        return Response(html, headers=page_headers())

    def host_page(self, request: Request) -> Response:
        """Answer with the page of one host."""
        product, hwid = _chip(request)
        found = self._records.host(product, hwid)
        if found is None:
            raise _RejectedError(404, "unknown-host", "no host with this chip has announced itself")
        return Response(host_page(found), headers=page_headers())

    def fleet(self, _request: Request) -> Response:
        """Answer with the state of the fleet, as JSON."""
        fleet = self._fleet.get()
        shown = self._shown
        # For a large fleet, the answer is megabytes long, and stays in memory until the client has
        # read it. So all clients get the same bytes object.
        if shown is None or shown[0] is not fleet:
            shown = self._shown = fleet, bytes(JSONResponse(_fleet_json(fleet)).body)
        return Response(shown[1], media_type="application/json")

    def host(self, request: Request) -> Response:
        """Answer with the state of one host, as JSON."""
        product, hwid = _chip(request)
        found = self._records.host(product, hwid)
        if found is None:
            raise _RejectedError(404, "unknown-host", "no host with this chip has announced itself")
        seen = [
            {"at": each.at.isoformat(), "announcement": each.announcement.to_json()}
            for each in found.seen
        ]
        return JSONResponse({**_host_json(found.host, found.now), "history": seen})

    def rolls(self, _request: Request) -> Response:
        """Answer with the rolls, newest first, as JSON."""
        return JSONResponse({"rolls": [_roll_json(each) for each in self._records.rolls()]})

    async def announce(self, request: Request) -> Response:
        """Record an agent's announcement. Answer with the states of the certificates that the host
        needs.
        """
        names = request.scope.get("extensions", {}).get(CLIENT_NAMES)
        announcer = self._announcer(request) if names is None else AnnouncerIdentity(names)
        announcement = read_announcement(await _body(request, MAX_BYTES))
        if names is not None and announcement.host.lower() not in names:
            if "authorization" not in request.headers:
                raise _RejectedError(
                    403,
                    "wrong-certificate",
                    f"expected a client certificate for {announcement.host!r}, found one for "
                    "another host",
                )
            announcer = self._announcer(request)
        if announcer.names is not None and announcement.host.lower() not in announcer.names:
            raise _RejectedError(
                403,
                "wrong-token",
                f"expected a token for {announcement.host!r}, found one for another host",
            )
        product, hwid = _chip(request)
        if (announcement.product, announcement.hwid) != (product, hwid):
            raise _RejectedError(400, "input", "the announcement and the URL name different chips")
        wanted = await run_in_threadpool(self._records.announce, announcement, announcer)
        self._wake()
        return JSONResponse({"wanted": [each.to_json() for each in wanted]})

    async def start_roll(self, request: Request) -> Response:
        """Start a roll: queue the certificates that hosts need for new firmware. The answer
        says how long the queue will take.
        """
        self._require_operator(request)
        given = _object(await _body(request, _MAX_ROLL))
        product = product_of_keyword(str(given.get("product")))
        if product is None:
            raise FormatError(
                "roll", "expected a known product, found another value", field="product"
            )
        tcb = tcb_of(given.get("tcb"), product)
        names = given.get("hosts")
        if names is not None and not _are_names(names):
            raise FormatError(
                "roll",
                f"expected a list of at most {MAX_HOSTS} names or chip IDs, found another value",
                field="hosts",
            )
        found = await run_in_threadpool(self._records.start_roll, product, tcb, names)
        self._wake()
        done = datetime.now(UTC) + timedelta(seconds=found.wait)
        return JSONResponse(
            {
                "roll": found.number,
                "hosts": found.hosts,
                "stored": found.stored,
                "queued": found.queued,
                "wait_seconds": round(found.wait, 1),
                "done_at": done.isoformat(timespec="seconds"),
            },
            201,
        )

    async def forget(self, request: Request) -> Response:
        """Remove hosts, so that any host can announce the removed hosts' chips."""
        self._require_operator(request)
        names = _object(await _body(request, _MAX_ROLL), "forget").get("hosts")
        if not _are_names(names) or not names:
            raise FormatError(
                "forget",
                f"expected a list of 1 to {MAX_HOSTS} names or chip IDs, found another value",
                field="hosts",
            )
        found = await run_in_threadpool(self._records.forget, names)
        return JSONResponse(
            {
                "forgotten": [
                    {"product": each.product, "hwid": each.hwid, "host": each.name}
                    for each in found
                ]
            }
        )

    def _announcer(self, request: Request) -> AnnouncerIdentity:
        """Return which hosts may announce themselves with this request's token. Reject the request
        if the token is neither an agent's nor an operator's.
        """
        given = _token(request, "agent", known=bool(self._tokens.agent or self._tokens.admin))
        found = self._tokens.announcer(given)
        if found is None:
            raise _RejectedError(403, "wrong-token", "expected an agent's token, found another")
        return found

    def _require_operator(self, request: Request) -> None:
        if not self._tokens.operator(_token(request, "admin", known=bool(self._tokens.admin))):
            raise _RejectedError(403, "wrong-token", "expected an operator's token, found another")


def _token(request: Request, role: str, *, known: bool) -> str:
    if not known:
        raise _RejectedError(
            403,
            "no-tokens",
            f"this mirror accepts no {role} token, because it was started without "
            f"--{role}-token-file",
        )
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not given:
        raise _RejectedError(
            401,
            "no-token",
            f"expected an {role}'s token in the header Authorization: Bearer, found none",
        )
    return given.strip()


async def _body(request: Request, most: int) -> bytes:
    data = bytearray()
    try:
        async for part in request.stream():
            data += part
            if len(data) > most:
                raise _RejectedError(
                    413, "too-large", f"expected a body of at most {most} bytes, found more"
                )
    except ClientDisconnect:
        raise _RejectedError(400, "input", "the request's body ended too early") from None
    return bytes(data)


def _object(data: bytes, what: str = "roll") -> Mapping[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise FormatError(what, "expected valid JSON, found other bytes") from None
    if not isinstance(found, dict):
        raise FormatError(what, "expected a JSON object, found another value")
    return found


def _are_names(names: object) -> TypeGuard[list[str]]:
    return (
        isinstance(names, list)
        and len(names) <= MAX_HOSTS
        and all(isinstance(each, str) and 0 < len(each) <= MAX_NAME for each in names)
    )


def _chip(request: Request) -> tuple[Product, bytes]:
    product = product_of_keyword(request.path_params["product"])
    try:
        hwid = bytes.fromhex(request.path_params["hwid"])
    except ValueError:
        hwid = b""
    if product is None or len(hwid) != product.hwid_size:
        raise _RejectedError(
            404, "unknown-host", "expected a chip in the URL, as PRODUCT/HWID, found another path"
        )
    return product, hwid


def _fleet_json(fleet: Fleet) -> dict[str, object]:
    queue = fleet.queue
    return {
        "now": fleet.now.isoformat(),
        "version": fleet.version,
        "instances": fleet.instances,
        "hosts": [_host_json(each, fleet.now) for each in fleet.hosts],
        "queue": {
            "waiting": dict(queue.waiting),
            "gap": queue.gap,
            "ends_at": _iso(queue.ends_at),
            "hold_until": _iso(queue.hold_until),
            "fetched": queue.fetched,
            "refused": queue.refused,
            "problem": queue.problem,
            "upstream": queue.upstream,
        },
        "rolls": [_roll_json(each) for each in fleet.rolls],
        "stored": dict(fleet.stored),
        "expiring": [{"what": each.what, "at": _iso(each.at)} for each in fleet.lists],
    }


def _host_json(host: FleetHost, now: datetime) -> dict[str, object]:
    return {
        "state": host.state(now).slug,
        "reason": host.reason(now),
        "seen_at": _iso(host.seen_at),
        "first_seen_at": _iso(host.first_seen_at),
        "target_tcb": None if host.target is None else host.target.components(),
        "next": host.next_state.value.replace(" ", "-"),
        "announcement": host.announcement.to_json(),
    }


def _roll_json(roll: Roll) -> dict[str, object]:
    return {
        "roll": roll.number,
        "product": roll.product.value,
        "tcb": roll.tcb.components(),
        "started_at": _iso(roll.started_at),
        "hosts": roll.hosts,
        "stored": roll.latest.stored,
        "committed": roll.latest.committed,
        "in_step": roll.latest.in_step,
        "prefetched_at": _iso(roll.prefetched_at),
        "done": roll.done,
    }


def _iso(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat(timespec="seconds")


def _rejected(_request: Request, error: Exception) -> Response:
    assert isinstance(error, _RejectedError)  # noqa: S101 (Starlette's table says so)
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
    return JSONResponse({"code": error.code, "error": str(error)}, error.status, headers)


def _unreadable(_request: Request, error: Exception) -> Response:
    return _problem(error, 400)


def _refused(_request: Request, error: Exception) -> Response:
    return _problem(error, 409)


def _no_database(_request: Request, error: Exception) -> Response:
    return _problem(error, 503, {"Retry-After": "5"})


def _problem(error: Exception, status: int, headers: Mapping[str, str] | None = None) -> Response:
    code = error.code if isinstance(error, SnpCertsError) else "error"
    return JSONResponse({"code": code, "error": str(error)}, status, headers)
