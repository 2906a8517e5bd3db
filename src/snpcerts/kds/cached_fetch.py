# SPDX-License-Identifier: Apache-2.0
"""Gets verified resources from the cache, or from the key server, and caches the server's answers.

This module treats all kinds of resource alike: each caller passes a function that judges what was
fetched. Concurrent requests for one resource are merged.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Generic, TypeVar, cast

from snpcerts.endorsement.reason import UNTIMELY, Reason
from snpcerts.errors import FormatError
from snpcerts.kds.client import KdsClient
from snpcerts.kds.errors import (
    CacheError,
    KdsNotFoundError,
    KdsUnavailableError,
    KdsUntrustedError,
)
from snpcerts.kds.request_queue import RequestQueue
from snpcerts.kds.store import Store
from snpcerts.kds.url import Resource

T = TypeVar("T")

# Seconds to wait after a failed renewal before the next attempt.
RENEWAL_PAUSE: Final = 3600.0
# At most this many resources, a few KB each, are kept in memory if the cache could not store them.
_MAX_UNKEPT: Final = 64


@dataclass(frozen=True, slots=True)
class Verified(Generic[T]):
    """A verified resource, its bytes in the cache, its period of validity, and the time to renew
    it.
    """

    value: T
    kept_as: bytes
    not_before: datetime
    not_after: datetime
    renew_at: datetime


@dataclass(frozen=True, slots=True)
class FetchRequest(Generic[T]):
    """The resource that a caller wants, the time at which it must be valid, and how to judge its
    bytes.

    ``judge`` returns the resource in a body, or the reasons against that resource, and raises
    :class:`FormatError` for a body that cannot be read. ``prepare`` fetches what ``judge`` needs.
    ``retry_after_repair`` tries to remove the reasons, for example by fetching a newer chain, and
    returns whether to judge the body again. ``reject_replacement`` returns why the new resource
    (first argument) must not replace the cached one (second), or None. ``budget``, for a resource
    that is not essential, limits the request to one attempt of that many seconds. ``lenient`` says
    that ``judge`` accepts resources that the judges of other requests reject.
    """

    resource: Resource
    at: datetime
    refresh: bool
    judge: Callable[[bytes], Verified[T] | list[Reason]]
    prepare: Callable[[], object] = lambda: None
    retry_after_repair: Callable[[list[Reason]], bool] = lambda _reasons: False
    reject_replacement: Callable[[Verified[T], Verified[T]], Reason | None] = lambda _new, _old: (
        None
    )
    budget: float | None = None
    lenient: bool = False

    @property
    def cache_key(self) -> tuple[object, ...]:
        """The key by which requests are merged: concurrent requests with the same key get the same
        answer.
        """
        return (self.resource, self.refresh, self.budget, self.lenient)


@dataclass(slots=True)
class _Cached(Generic[T]):
    """The cached resource as it was last read, and the version of its file before the renewal."""

    value: Verified[T] | None
    version: object


class CachedFetch:
    """Gets resources from the cache, or from the key server through a client. Without a client, it
    uses only the cache.

    ``warn`` is called with problems that do not stop the work. Objects of this class are
    thread-safe. Processes that share the cache take turns at the key server.
    """

    def __init__(self, store: Store, client: KdsClient | None, warn: Callable[[str], None]) -> None:
        self.store = store
        self.client = client
        self._warn = warn
        self._line = None if client is None else RequestQueue(store.root, client.url, client.clock)
        self._lock = threading.Lock()
        self._asking: dict[tuple[object, ...], Future[Any]] = {}
        self._renewal_failed: dict[Resource, float] = {}
        self._unkept: OrderedDict[Resource, bytes] = OrderedDict()

    def kept(self, resource: Resource) -> bytes | None:
        """Return the cached body of a resource, of any age, without verifying it and without asking
        the key server.
        """
        with self._lock:
            kept = self._unkept.get(resource)
        with contextlib.suppress(CacheError):
            return self.store.read(resource) if kept is None else kept
        return None

    def get(self, request: FetchRequest[T]) -> Verified[T]:
        """Return the resource from the cache, from a request that is already in progress, or from a
        new request.

        Raises :class:`KdsUnavailableError`, :class:`KdsNotFoundError` or :class:`KdsUntrustedError`
        if neither the cache nor the key server provides a copy that verifies.
        """
        cached = None if request.refresh else self._cached(request)
        if cached is not None and not self._due(request, cached):
            return cached
        key = request.cache_key
        with self._lock:
            under_way = self._asking.get(key)
            if under_way is None:
                mine: Future[Verified[T]] = Future()
                self._asking[key] = mine
        if under_way is not None:
            shared = cast("Verified[T]", under_way.result())
            timely = shared.not_before <= request.at <= shared.not_after
            return shared if timely else self._renew(request)
        try:
            found = self._renew(request)
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(found)
            return found
        finally:
            with self._lock:
                del self._asking[key]

    def _renew(self, request: FetchRequest[T]) -> Verified[T]:
        """Wait for this process's turn and ask the key server. If that fails, return the cached
        resource if it is valid. Without a client, use only the cache.
        """
        client = self.client
        if client is None:
            cached = self._cached(request, report=True)
            if cached is None:
                raise KdsUnavailableError(
                    (
                        f"{request.resource}: the cache {self.store.root} has no valid copy, and "
                        "--offline forbids a request to the key server"
                    ),
                    hint=(
                        "fetch this resource on a machine with network access, and copy that "
                        "machine's cache to this machine"
                    ),
                )
            return cached
        request.prepare()
        known = _Cached(self._cached(request, report=True), self.store.version(request.resource))

        def settled() -> Verified[T] | None:
            """Return the resource if another process fetched it while this process waited for its
            turn.
            """
            cached = self._cached(request)
            if cached is None:
                return None
            renewed = self.store.version(request.resource) != known.version
            known.value = cached
            return (
                cached if renewed or not (request.refresh or self._due(request, cached)) else None
            )

        def read(body: bytes) -> Verified[T]:
            found = self._judged(client, request, body, known.value)
            self._keep(request.resource, found.kept_as)
            return found

        cached = known.value
        try:
            return client.get(
                request.resource,
                read,
                line=self._line,
                settled=settled,
                # A renewal can wait, so one attempt is enough for now.
                attempts=None if cached is None and request.budget is None else 1,
                budget=request.budget,
                patient=request.budget is None and (cached is None or request.refresh),
            )
        except (KdsUnavailableError, KdsNotFoundError, KdsUntrustedError) as error:
            if known.value is None:
                raise
            with self._lock:
                self._renewal_failed[request.resource] = time.monotonic()
            self._warn(f"the cached copy stays in use, because its renewal failed: {error}")
            return known.value

    def _judged(
        self, client: KdsClient, request: FetchRequest[T], body: bytes, cached: Verified[T] | None
    ) -> Verified[T]:
        judged = request.judge(body)
        if isinstance(judged, list) and request.retry_after_repair(judged):
            judged = request.judge(body)
        if not isinstance(judged, list) and cached is not None:
            worse = request.reject_replacement(judged, cached)
            judged = judged if worse is None else [worse]
        if not isinstance(judged, list):
            return judged
        raise KdsUntrustedError(
            f"{request.resource}: {client.url} sent an answer that does not verify",
            reasons=[str(reason) for reason in judged],
            hint=_hint(judged, request.at),
        )

    def _cached(self, request: FetchRequest[T], *, report: bool = False) -> Verified[T] | None:
        """Return the cached resource if it verifies, otherwise None.

        With ``report``, warn if it does not verify.
        """
        with self._lock:
            kept = self._unkept.get(request.resource)
        path = self.store.path_of(request.resource)
        problem = ""
        try:
            if kept is None:
                kept = self.store.read(request.resource)
            if kept is None:
                return None
            judged = request.judge(kept)
        except CacheError as error:
            problem = str(error)
        except FormatError as error:
            problem = f"{path}: the file is damaged: {error}"
        else:
            if not isinstance(judged, list):
                return judged
            problem = f"{path}: {'; '.join(map(str, judged))}"
        if report:
            self._warn(f"a file in the cache was not used: {problem}")
        return None

    def _due(self, request: FetchRequest[T], cached: Verified[T]) -> bool:
        """Return whether to try to renew a cached resource that is still valid."""
        if self.client is None or request.at < cached.renew_at:
            return False
        with self._lock:
            failed = self._renewal_failed.get(request.resource)
        return failed is None or time.monotonic() - failed > RENEWAL_PAUSE

    def _keep(self, resource: Resource, data: bytes) -> None:
        """Write the resource to the cache. If that fails, keep it in memory for a while."""
        with self._lock:
            self._renewal_failed.pop(resource, None)
            self._unkept.pop(resource, None)
        try:
            self.store.write(resource, data)
        except CacheError as error:
            with self._lock:
                self._unkept[resource] = data
                while len(self._unkept) > _MAX_UNKEPT:
                    self._unkept.popitem(last=False)
            self._warn(f"{resource}: the fetched copy could not be cached: {error}")


def _hint(reasons: list[Reason], at: datetime) -> str:
    if all(reason.code in UNTIMELY for reason in reasons):
        return f"check this machine's clock, which shows {at:%Y-%m-%dT%H:%M:%SZ}"
    return (
        "try again later, or use another key server or mirror; the answer was neither cached "
        "nor used"
    )
