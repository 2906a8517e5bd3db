# SPDX-License-Identifier: Apache-2.0
"""Ask the key server, within bounds of time, size and number.

Only the moment is judged here: whether there was an answer, and whether it can
be read at all. Whether it is the right one is for
:mod:`snpcerts.kds.source`. An answer goes by its body; what its headers call
it does not matter.

Sources: KDS (57230) chapter 4, and what users of AMD's server have reported:
404 for valid chips, 429 that outlasts minutes, hours without a connection.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from urllib.parse import urljoin, urlsplit

from snpcerts.errors import FormatError, UsageError
from snpcerts.kds.errors import KdsNotFoundError, KdsUnavailableError
from snpcerts.kds.judge import MAX_BODY
from snpcerts.kds.retry import RetryPolicy, parse_retry_after
from snpcerts.kds.url import AMD_URL, Resource, checked_base

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_REDIRECTS: Final = 3
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class _Failed:
    """A try that may go better next time."""

    result: str  # for the counter
    problem: str
    retry_after: float | None = None
    again: bool = True  # within this call

    @property
    def throttled(self) -> bool:
        return self.result == "throttled"


class KdsClient:
    """Asks one key server, AMD's or a mirror. Safe for use by several threads.

    ``notice`` is told, in a sentence, of every wait; ``sleep`` waits.
    """

    def __init__(
        self,
        url: str = AMD_URL,
        *,
        policy: RetryPolicy | None = None,
        notice: Callable[[str], None] = log.info,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = checked_base(url)
        self.policy = policy or RetryPolicy()
        self._notice = notice
        self._sleep = sleep
        self._lock = threading.Lock()
        self._http: httpx.Client | None = None
        self._results: Counter[str] = Counter()

    @property
    def results(self) -> Mapping[str, int]:
        """How many requests ended how.

        Keys: ``ok``, ``not-found``, ``throttled``, ``server-error``,
        ``unreachable``, ``unreadable``, ``refused``.
        """
        with self._lock:
            return dict(self._results)

    def get(
        self,
        resource: Resource,
        read: Callable[[bytes], T],
        *,
        hold_off: float = 0.0,
        attempts: int | None = None,
        budget: float | None = None,
    ) -> T:
        """What ``read`` makes of the answer's body.

        A body that ``read`` refuses with :class:`FormatError` counts as no
        answer: error pages come with status 200 too. ``hold_off`` is how long
        to wait before the first try; ``attempts`` and ``budget`` stand for the
        policy's where they are given.

        Raises :class:`KdsUnavailableError` when there was no answer within the
        policy's bounds, and :class:`KdsNotFoundError`, at once, for a 404.
        """
        budget = self.policy.budget if budget is None else budget
        deadline = time.monotonic() + budget
        tries = self.policy.attempts if attempts is None else attempts
        failed = _Failed("throttled", "the key server asked to be left alone", hold_off)
        if hold_off:
            self._wait(resource, failed, hold_off, deadline)
        for count in range(1, tries + 1):
            answer = self._try(resource, read, deadline, budget)
            self._count(answer.result if isinstance(answer, _Failed) else "ok")
            if not isinstance(answer, _Failed):
                return answer.value
            failed = answer
            if not failed.again or count == tries:
                break
            wait = self.policy.wait_after(
                count, throttled=failed.throttled, retry_after=failed.retry_after
            )
            self._wait(resource, failed, wait, deadline)
        raise self._unavailable(resource, failed)

    def close(self) -> None:
        """Let go of connections; the client can still be used."""
        with self._lock:
            http, self._http = self._http, None
        if http is not None:
            http.close()

    def _wait(self, resource: Resource, failed: _Failed, wait: float, deadline: float) -> None:
        if time.monotonic() + wait >= deadline:
            raise self._unavailable(resource, failed)
        self._notice(f"{resource}: {failed.problem}; asking again in {wait:.0f} s")
        self._sleep(wait)

    def _unavailable(self, resource: Resource, failed: _Failed) -> KdsUnavailableError:
        retry_after = failed.retry_after
        if retry_after is None and failed.throttled:
            retry_after = self.policy.throttled_wait
        hint = "this says nothing about the certificate; " + (
            "try again later" if retry_after is None else f"try again in {retry_after:.0f} s"
        )
        return KdsUnavailableError(
            f"{resource}: no answer from {self.url}: {failed.problem}",
            retry_after=retry_after,
            hint=hint,
        )

    def _count(self, result: str) -> None:
        with self._lock:
            self._results[result] += 1

    def _try(
        self, resource: Resource, read: Callable[[bytes], T], deadline: float, budget: float
    ) -> _Read[T] | _Failed:
        import httpx

        try:
            status, headers, body = self._exchange(f"{self.url}/{resource.path}", deadline)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            said = str(error) or type(error).__name__
            if time.monotonic() >= deadline:
                said = f"took longer than {budget:.0f} s"
            return _Failed("unreachable", said)
        except _NotOursError as error:
            return _Failed(error.result, str(error), again=False)
        if status == 404:
            self._count("not-found")
            raise KdsNotFoundError(
                f"{resource}: {self.url} answered 404",
                hint="it has no such chip or TCB, or is out of order: the key server has "
                "answered 404 for valid chips for days; a cached certificate stays good",
            )
        retry_after = parse_retry_after(headers.get("retry-after"), headers.get("date"))
        if status == 429:
            return _Failed("throttled", "it answers 429, too many requests", retry_after)
        if status >= 500 or status in (408, 425):
            return _Failed("server-error", f"it answers {status}", retry_after)
        if status != 200:
            return _Failed(
                "refused",
                f"it answers {status}; is there a proxy or another server in between?",
                again=False,
            )
        try:
            return _Read(read(body))
        except FormatError as error:
            log.info("%s: body of %d bytes: %s", resource, len(body), error)
            return _Failed(
                "unreadable", f"it answers 200 with something else ({error}), as error pages do"
            )

    def _exchange(self, url: str, deadline: float) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body; redirects are followed on the same server only."""
        for _ in range(_MAX_REDIRECTS + 1):
            status, headers, body = self._request(url, deadline)
            location = headers.get("location")
            if status not in (301, 302, 303, 307, 308) or location is None:
                return status, headers, body
            try:
                target = urljoin(url, location)
                same = _origin(target) == _origin(url)
            except ValueError:
                same = False
            if not same:
                raise _NotOursError("refused", f"it sends us to another server, {location[:120]!r}")
            url = target
        raise _NotOursError("refused", f"it redirects more than {_MAX_REDIRECTS} times")

    def _request(self, url: str, deadline: float) -> tuple[int, Mapping[str, str], bytes]:
        import httpx

        with _cut_off_at(deadline) as trace:
            left = max(deadline - time.monotonic(), 0.001)
            timeout = httpx.Timeout(
                min(self.policy.silence, left), connect=min(self.policy.connect, left)
            )
            with self._open().stream(
                "GET", url, timeout=timeout, extensions={"trace": trace}
            ) as response:
                body = bytearray()
                if response.status_code == 200:
                    for part in response.iter_raw():
                        body += part
                        if len(body) > MAX_BODY:
                            raise _NotOursError(
                                "unreadable", f"its answer has more than {MAX_BODY} bytes"
                            )
                if time.monotonic() >= deadline:
                    # Cut off by us: without a length, that looks like a body's end.
                    raise httpx.ReadTimeout("")
                return response.status_code, dict(response.headers), bytes(body)

    def _open(self) -> httpx.Client:
        import httpx

        from snpcerts import __version__

        with self._lock:
            if self._http is not None:
                return self._http
            headers = {
                "Accept": "*/*",
                "Accept-Encoding": "identity",
                "User-Agent": f"snpcerts/{__version__}",
            }
            # Requests are rare, and each is watched from its connection on.
            limits = httpx.Limits(max_keepalive_connections=0)
            try:
                self._http = httpx.Client(headers=headers, limits=limits, follow_redirects=False)
            except (ValueError, ImportError, httpx.InvalidURL) as error:
                raise UsageError(
                    f"cannot make HTTP requests: {error}",
                    hint="look at the proxy settings in the environment (HTTPS_PROXY and others)",
                ) from None
            return self._http


@dataclass(frozen=True, slots=True)
class _Read(Generic[T]):
    value: T


class _NotOursError(Exception):
    """An answer that asking again will not better."""

    def __init__(self, result: str, message: str) -> None:
        super().__init__(message)
        self.result = result


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)


@contextmanager
def _cut_off_at(deadline: float) -> Iterator[Callable[[str, Mapping[str, Any]], None]]:
    """Break the connection at the deadline, however slowly bytes drip in.

    The library's own time limits start anew with every byte. Yields what it is
    to call at each stage; the connection's socket is shut down from here.
    """
    sockets: list[socket.socket] = []

    def trace(event: str, info: Mapping[str, Any]) -> None:
        if event.endswith("connect_tcp.complete"):
            connected = info["return_value"].get_extra_info("socket")
            if isinstance(connected, socket.socket):
                # A duplicate, since TLS takes the original over.
                sockets.append(connected.dup())
                if time.monotonic() >= deadline:
                    shut()

    def shut() -> None:
        for each in tuple(sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(deadline - time.monotonic(), 0.0), shut)
    timer.daemon = True
    timer.start()
    try:
        yield trace
    finally:
        timer.cancel()
        timer.join()
        for each in sockets:
            each.close()
