# SPDX-License-Identifier: Apache-2.0
"""What has verified, out of the cache or from the key server and then the cache.

It does not matter here what is asked for: whoever asks brings the judge. Those
that lack the same thing at the same time cause one request between them.
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

from snpcerts.errors import FormatError
from snpcerts.kds.client import KdsClient
from snpcerts.kds.errors import (
    CacheError,
    KdsNotFoundError,
    KdsUnavailableError,
    KdsUntrustedError,
)
from snpcerts.kds.judge import Fault
from snpcerts.kds.store import Store
from snpcerts.kds.turn import Line
from snpcerts.kds.url import Resource

T = TypeVar("T")

# A renewal that failed is left alone for so long, in seconds.
RENEWAL_PAUSE: Final = 3600.0
# What could not be written is kept in memory, a few KB each.
_MAX_UNKEPT: Final = 64


@dataclass(frozen=True, slots=True)
class Verified(Generic[T]):
    """Something that verified, its form in the cache, and from when to when it is good."""

    value: T
    kept_as: bytes
    not_before: datetime
    not_after: datetime
    renew_at: datetime


@dataclass(frozen=True, slots=True)
class Wanted(Generic[T]):
    """One resource at one time, and how to judge bytes for it.

    ``judge`` returns what is kept of a body, or the faults it has; it raises
    :class:`FormatError` for what cannot be read. ``prepare`` fetches what
    judging needs. ``once_more`` says whether a body with such faults should be
    judged again, after having got what may mend them. ``rather`` says why the
    first, which is new, must not take the place of the second, which is cached.
    A ``budget`` (seconds) is for what one can do without: it is asked for once,
    and no longer. A ``lenient`` judge lets pass what others do not.
    """

    resource: Resource
    at: datetime
    refresh: bool
    judge: Callable[[bytes], Verified[T] | list[Fault]]
    prepare: Callable[[], object] = lambda: None
    once_more: Callable[[list[Fault]], bool] = lambda _faults: False
    rather: Callable[[Verified[T], Verified[T]], Fault | None] = lambda _new, _old: None
    budget: float | None = None
    lenient: bool = False

    @property
    def question(self) -> tuple[object, ...]:
        """Who asks the same thing at the same time gets the same answer."""
        return (self.resource, self.refresh, self.budget, self.lenient)


@dataclass(slots=True)
class _Known(Generic[T]):
    """What the cache had when we last looked, and which file that was when we first did."""

    value: Verified[T] | None
    version: object


class ThroughCache:
    """Gets what is wanted. Without a client the cache is all there is.

    ``warn`` is told of what does not stop the work. Safe for use by several
    threads; processes that share the cache take turns.
    """

    def __init__(self, store: Store, client: KdsClient | None, warn: Callable[[str], None]) -> None:
        self.store = store
        self.client = client
        self._warn = warn
        self._line = None if client is None else Line(store.root, client.url, client.clock)
        self._lock = threading.Lock()
        self._asking: dict[tuple[object, ...], Future[Any]] = {}
        self._renewal_failed: dict[Resource, float] = {}
        self._unkept: OrderedDict[Resource, bytes] = OrderedDict()

    def kept(self, resource: Resource) -> bytes | None:
        """What the cache has, however old, unjudged; nobody is asked."""
        with self._lock:
            kept = self._unkept.get(resource)
        with contextlib.suppress(CacheError):
            return self.store.read(resource) if kept is None else kept
        return None

    def get(self, wanted: Wanted[T]) -> Verified[T]:
        """Out of the cache, or together with whoever is asking for it already.

        Raises :class:`KdsUnavailableError`, :class:`KdsNotFoundError` and
        :class:`KdsUntrustedError` where there is nothing that verifies.
        """
        cached = None if wanted.refresh else self._cached(wanted)
        if cached is not None and not self._due(wanted, cached):
            return cached
        key = wanted.question
        with self._lock:
            under_way = self._asking.get(key)
            if under_way is None:
                mine: Future[Verified[T]] = Future()
                self._asking[key] = mine
        if under_way is not None:
            shared = cast("Verified[T]", under_way.result())
            timely = shared.not_before <= wanted.at <= shared.not_after
            return shared if timely else self._renew(wanted)
        try:
            found = self._renew(wanted)
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(found)
            return found
        finally:
            with self._lock:
                del self._asking[key]

    def _renew(self, wanted: Wanted[T]) -> Verified[T]:
        """Ask, in our turn; fall back on a cached one that is valid."""
        client = self.client
        if client is None:
            cached = self._cached(wanted, report=True)
            if cached is None:
                raise KdsUnavailableError(
                    f"{wanted.resource}: the cache {self.store.root} has none that verifies, "
                    "and offline no key server is asked",
                    hint="fetch it where a key server can be reached, and bring the cache here",
                )
            return cached
        wanted.prepare()
        known = _Known(self._cached(wanted, report=True), self.store.version(wanted.resource))

        def settled() -> Verified[T] | None:
            """What another got while we waited for our turn."""
            cached = self._cached(wanted)
            if cached is None:
                return None
            renewed = self.store.version(wanted.resource) != known.version
            known.value = cached
            return cached if renewed or not (wanted.refresh or self._due(wanted, cached)) else None

        def read(body: bytes) -> Verified[T]:
            found = self._judged(client, wanted, body, known.value)
            self._keep(wanted.resource, found.kept_as)
            return found

        cached = known.value
        try:
            return client.get(
                wanted.resource,
                read,
                line=self._line,
                settled=settled,
                # What is only renewed can wait; it is not worth many tries now.
                attempts=None if cached is None and wanted.budget is None else 1,
                budget=wanted.budget,
                patient=wanted.budget is None and (cached is None or wanted.refresh),
            )
        except (KdsUnavailableError, KdsNotFoundError, KdsUntrustedError) as error:
            if known.value is None:
                raise
            with self._lock:
                self._renewal_failed[wanted.resource] = time.monotonic()
            self._warn(f"not renewed, the cached one stays in use: {error}")
            return known.value

    def _judged(
        self, client: KdsClient, wanted: Wanted[T], body: bytes, cached: Verified[T] | None
    ) -> Verified[T]:
        judged = wanted.judge(body)
        if isinstance(judged, list) and wanted.once_more(judged):
            judged = wanted.judge(body)
        if not isinstance(judged, list) and cached is not None:
            worse = wanted.rather(judged, cached)
            judged = judged if worse is None else [worse]
        if not isinstance(judged, list):
            return judged
        raise KdsUntrustedError(
            f"{wanted.resource}: the answer of {client.url} is not to be trusted",
            reasons=[str(fault) for fault in judged],
            hint=_hint(judged, wanted.at),
        )

    def _cached(self, wanted: Wanted[T], *, report: bool = False) -> Verified[T] | None:
        """What the cache has, if it verifies; otherwise, with ``report``, a warning."""
        with self._lock:
            kept = self._unkept.get(wanted.resource)
        path = self.store.path_of(wanted.resource)
        problem = ""
        try:
            if kept is None:
                kept = self.store.read(wanted.resource)
            if kept is None:
                return None
            judged = wanted.judge(kept)
        except CacheError as error:
            problem = str(error)
        except FormatError as error:
            problem = f"{path}: is damaged: {error}"
        else:
            if not isinstance(judged, list):
                return judged
            problem = f"{path}: {'; '.join(map(str, judged))}"
        if report:
            self._warn(f"cached file not used: {problem}")
        return None

    def _due(self, wanted: Wanted[T], cached: Verified[T]) -> bool:
        """Whether to try to renew what is still good."""
        if self.client is None or wanted.at < cached.renew_at:
            return False
        with self._lock:
            failed = self._renewal_failed.get(wanted.resource)
        return failed is None or time.monotonic() - failed > RENEWAL_PAUSE

    def _keep(self, resource: Resource, data: bytes) -> None:
        """Into the cache; where that fails, into memory, so as not to ask again soon."""
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
            self._warn(f"{resource}: fetched, but not kept: {error}")


def _hint(faults: list[Fault], at: datetime) -> str:
    if all(fault.code.endswith(("-not-yet-valid", "-expired")) for fault in faults):
        return f"is the clock right? It was taken to be {at:%Y-%m-%dT%H:%M:%SZ}"
    return "nothing of it is kept or used"
