# SPDX-License-Identifier: Apache-2.0
"""Sends requests to the key server, within limits on time, size and number of attempts.

This module decides only whether there was an answer and whether it can be read.
:mod:`snpcerts.kds.source` decides whether the answer is the right one. Only an answer's body
counts, not what the headers say about the body.

Sources: KDS (57230) chapter 4, and what users of AMD's server have seen: 404 for valid chips, 429
for minutes on end, hours without a connection.
"""

from __future__ import annotations

import logging
import math
import os
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from snpcerts.errors import FormatError, InputError
from snpcerts.kds.body import MAX_BODY
from snpcerts.kds.clock import Clock
from snpcerts.kds.errors import KdsNotFoundError, KdsUnavailableError, KdsUntrustedError
from snpcerts.kds.proxy import Proxy, proxy_for
from snpcerts.kds.request_deadline import RequestTrace, cut_off_at
from snpcerts.kds.request_queue import RequestQueue, Turn
from snpcerts.kds.retry import AMD_GAP, RetryPolicy, parse_retry_after
from snpcerts.kds.server_state import Failure, KdsError, ServerState
from snpcerts.kds.trust import places_of_roots, trusted
from snpcerts.kds.url import AMD_URL, Resource, VcekResource, checked_base, checked_target

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_REDIRECTS: Final = 3


@dataclass(frozen=True, slots=True)
class FailedRequest:
    """A failed attempt. A later one may succeed.

    ``result`` is a key of :attr:`KdsClient.results`. ``retry_after`` is the server's Retry-After in
    seconds. ``again`` is false if another attempt soon would fail in the same way.
    """

    result: str
    problem: str
    retry_after: float | None = None
    again: bool = True

    @property
    def throttled(self) -> bool:
        return self.result == "throttled"


@dataclass(frozen=True, slots=True)
class _Asked(Generic[T]):
    """One call of :meth:`KdsClient.get`. Its times are those of the client's clock."""

    resource: Resource
    read: Callable[[bytes], T]
    since: float
    deadline: float
    budget: float
    tries: int
    patient: bool

    @property
    def paced(self) -> bool:
        """Whether the server is known to require a pause between two requests of this kind."""
        return isinstance(self.resource, VcekResource)


@dataclass(frozen=True, slots=True)
class _BackOff:
    """Why a request must not be sent now, and for how many seconds."""

    problem: str
    wait: float


class KdsClient:
    """A client for one key server, AMD's or a mirror. Thread-safe.

    Before every wait, the client calls ``notice`` with a sentence.
    """

    def __init__(
        self,
        url: str = AMD_URL,
        *,
        policy: RetryPolicy | None = None,
        notice: Callable[[str], None] = log.info,
        clock: Clock | None = None,
    ) -> None:
        self.url = checked_base(url)
        self.policy = policy or RetryPolicy()
        self.clock = clock or Clock()
        self._notice = notice
        self._line = RequestQueue(None, self.url, self.clock)
        self._lock = threading.Lock()
        self._http: dict[tuple[str | None, bool], httpx2.Client] = {}
        self._results: Counter[str] = Counter()

    @property
    def results(self) -> Mapping[str, int]:
        """The number of requests so far, by outcome.

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
        line: RequestQueue | None = None,
        settled: Callable[[], T | None] = lambda: None,
        attempts: int | None = None,
        budget: float | None = None,
        patient: bool = True,
    ) -> T:
        """Request a resource, and return what ``read`` returns for the answer's body.

        If ``read`` raises :class:`FormatError`, the body counts as no answer, because some error
        pages come with status 200. ``read`` runs in this process's turn in ``line``. Before the
        request, ``settled`` is called, which returns what another process has fetched in the
        meantime, if anything. Processes in ``line`` that want the same resource share the attempts
        and their outcome. ``attempts`` and ``budget`` override the policy's. Without ``patient``,
        the call fails if it would have to wait before the request.

        Raises :class:`KdsUnavailableError` if there was no answer within the policy's limits,
        :class:`KdsNotFoundError` immediately after a 404, and :class:`KdsUntrustedError` if
        ``read`` does.
        """
        line = self._line if line is None else line
        budget = self.policy.budget if budget is None else budget
        since = self.clock.now()
        tries = self.policy.attempts if attempts is None else attempts
        asked = _Asked(resource, read, since, since + budget, budget, tries, patient)
        while True:
            with line.turn(asked.deadline) as turn:
                found = settled()
                if found is not None:
                    return found
                pause = self._pause(turn, asked)
                if pause is None:
                    answer = self._ask(turn, asked)
                    if answer is not None:
                        return answer.value
                    continue
            self._wait(asked, pause)

    def ask_once(
        self, resource: Resource, read: Callable[[bytes], T], *, limit: float
    ) -> T | FailedRequest:
        """Make one request now, within ``limit`` seconds. Callers of this method have a queue and a
        pace of their own.

        Raises :class:`KdsNotFoundError` for a 404, and the errors of ``read`` except
        :class:`FormatError`.
        """
        since = self.clock.now()
        answer = self._try(_Asked(resource, read, since, since + limit, limit, 1, patient=False))
        if isinstance(answer, FailedRequest):
            self._count(answer.result)
            return answer
        self._count("ok")
        return answer.value

    def _pause(self, turn: Turn, asked: _Asked[T]) -> _BackOff | None:
        """Return why and how long to wait before the request; None if the request may be sent now.

        Raises the error of the last attempt for this resource, whichever process made it, if that
        process has given up, no attempt is left, or the deadline has passed.
        """
        state, now = turn.state, self.clock.now()
        if turn.cut_off:
            log.info("another process was stopped during its request to %s", self.url)
            state.cut_off(now, self._gap(state), self.policy.request)
            turn.cut_off = False
            turn.save()
        last = state.failures.get(asked.resource.path)
        ours = last is not None and last.counts_for(asked.since, now)
        late = now >= asked.deadline
        if last is not None and ours and (late or last.over or last.tries >= asked.tries):
            error = last.error()
            if error is not None:
                raise error
        if late:
            waited = (
                f"this host's other processes used the key server for {asked.budget:.0f} s, "
                "which left no time for this request"
            )
            raise self._unavailable(asked, waited, self._gap(state))
        pauses = [_BackOff("the key server asked for a pause", state.hold_until - now)]
        if asked.paced:
            gap = self._gap(state)
            pauses.append(
                _BackOff(
                    f"the key server sends one VCEK certificate every {gap:.0f} s",
                    state.next_at - now,
                )
            )
        if last is not None and (ours or last.retry_after is not None):
            pauses.append(_BackOff(last.problem, last.again_at - now))
        longest = max(pauses, key=lambda pause: pause.wait)
        return longest if longest.wait > 0 else None

    def _ask(self, turn: Turn, asked: _Asked[T]) -> _Received[T] | None:
        """Make one attempt, and record its outcome for the other processes.

        Returns None if another attempt should follow.
        """
        state, path = turn.state, asked.resource.path
        started = self.clock.now()
        last = state.failures.get(path)
        count = 1 + (
            last.tries if last is not None and last.counts_for(asked.since, started) else 0
        )
        if asked.paced:
            state.asking = started
            turn.save()
        answer: _Received[T] | FailedRequest | KdsError
        try:
            answer = self._try(asked)
        except (KdsUnavailableError, KdsNotFoundError, KdsUntrustedError) as error:
            answer = error  # this error is a final answer
        now = again_at = self.clock.now()
        failed = answer if isinstance(answer, FailedRequest) else None
        if asked.paced:
            state.asking = None
            if failed is None:
                state.refusals = 0
        if failed is not None:
            self._count(failed.result)
            again_at += self._hold_off(state, failed, count, now)
        if asked.paced and (failed is None or failed.result != "unreachable"):
            state.next_at = now + self._gap(state)
        if isinstance(answer, _Received):
            self._count("ok")
            state.failures.pop(path, None)
            turn.save()
            return answer
        if isinstance(answer, FailedRequest):
            over = not answer.again or count >= asked.tries
            problem = answer.problem
            final: KdsError = self._unavailable(asked, problem, again_at - now, answer)
        else:
            over, problem, final = True, answer.message, answer
        state.failures[path] = Failure.of(
            final, problem, at=now, tries=count, over=over, again_at=again_at
        )
        turn.save()
        if over:
            raise final
        return None

    def _hold_off(self, state: ServerState, failed: FailedRequest, count: int, now: float) -> float:
        """Return the seconds until this resource or, after a 429, any resource may be requested
        again.
        """
        if not failed.throttled:
            return self.policy.wait_after(count, failed.retry_after)
        wait = self.policy.hold_off(state.refusals + 1, failed.retry_after)
        state.refused(now, wait, self.policy.named_wait(failed.retry_after))
        return wait

    def _gap(self, state: ServerState) -> float:
        if self.policy.gap is not None:
            known = self.policy.gap
        else:
            known = AMD_GAP if self.url == AMD_URL else 0.0
        return max(known, state.gap)

    def close(self) -> None:
        """Close the connections. The client remains usable."""
        with self._lock:
            clients, self._http = self._http, {}
        for client in clients.values():
            client.close()

    def _wait(self, asked: _Asked[T], pause: _BackOff) -> None:
        if not asked.patient or self.clock.now() + pause.wait >= asked.deadline:
            raise self._unavailable(asked, pause.problem, pause.wait)
        self._notice(f"{asked.resource}: {pause.problem}; trying again in {pause.wait:.0f} s")
        self.clock.sleep(pause.wait)

    def _unavailable(
        self, asked: _Asked[T], problem: str, wait: float, failed: FailedRequest | None = None
    ) -> KdsUnavailableError:
        """Return the error to give up with. It tells the caller to wait ``wait`` seconds, unless
        the last attempt, ``failed``, got an error for which no wait is known.
        """
        named = failed is None or failed.throttled or failed.retry_after is not None
        if named:
            then = f"try again in {math.ceil(wait)} s"
        elif failed is not None and not failed.again:
            then = "remove the cause, then try again"
        else:
            then = "try again later"
        return KdsUnavailableError(
            f"{asked.resource}: no usable answer from {self.url}: {problem}",
            retry_after=float(math.ceil(wait)) if named else None,
            hint=f"{then}; the failure says nothing about the certificate",
        )

    def _count(self, result: str) -> None:
        with self._lock:
            self._results[result] += 1

    def _try(self, asked: _Asked[T]) -> _Received[T] | FailedRequest:
        import httpx2

        resource = asked.resource
        left = min(asked.deadline - self.clock.now(), self.policy.request)
        deadline = time.monotonic() + left
        try:
            status, headers, body = self._exchange(f"{self.url}/{resource.path}", deadline)
        except _FinalError as error:
            return FailedRequest(error.result, str(error), again=False)
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError) as error:
            said = str(error) or type(error).__name__
            if time.monotonic() >= deadline:
                said = (
                    f"the request took longer than {min(asked.budget, self.policy.request):.0f} s"
                )
            return FailedRequest("unreachable", said)
        if status == 404:
            self._count("not-found")
            raise KdsNotFoundError(
                f"{resource}: {self.url} answered 404",
                hint=(
                    "check the chip ID and the TCB. If both are right, try again later, because "
                    "AMD's key server has answered 404 for valid chips for a day or longer. "
                    "Cached certificates remain valid"
                ),
            )
        retry_after = parse_retry_after(headers.get("retry-after"), headers.get("date"))
        if status == 429:
            return FailedRequest(
                "throttled", "the server answered 429, too many requests", retry_after
            )
        if status >= 500 or status in (408, 425):
            return FailedRequest("server-error", f"the server answered {status}", retry_after)
        if status != 200:
            return FailedRequest(
                "refused",
                f"the server answered {status}; check for a proxy or another server in between",
                again=False,
            )
        try:
            return _Received(asked.read(body))
        except (KdsUnavailableError, KdsNotFoundError, KdsUntrustedError):
            self._count("ok")  # the server has answered
            raise
        except FormatError as error:
            log.info("%s: body of %d bytes: %s", resource, len(body), error)
            return FailedRequest(
                "unreadable",
                f"the server answered 200 with unexpected content ({error}), perhaps an error page",
            )

    def _exchange(self, url: str, deadline: float) -> tuple[int, Mapping[str, str], bytes]:
        """Request a URL and follow redirects. Return the status, headers and body of the last
        answer.

        A redirect may lead to any server, because the body is verified. Only the redirects that
        :func:`~snpcerts.kds.url.checked_target` rejects are not followed: one from https to http,
        for example, would let others on the network read the request.
        """
        for _ in range(_MAX_REDIRECTS + 1):
            status, headers, body = self._request(url, deadline)
            location = headers.get("location")
            if status not in (301, 302, 303, 307, 308) or location is None:
                return status, headers, body
            try:
                target = checked_target(url, location)
            except ValueError as error:
                raise _FinalError(
                    "refused",
                    f"the redirect to {location[:120]!r} was not followed: {error}",
                ) from None
            url = target
        raise _FinalError("refused", f"the server redirected more than {_MAX_REDIRECTS} times")

    def _request(self, url: str, deadline: float) -> tuple[int, Mapping[str, str], bytes]:
        import httpx2

        try:
            proxy = proxy_for(url, os.environ)
        except InputError as error:
            raise _FinalError("unreachable", f"{error.message}; {error.hint}") from None
        client = self._open(proxy, url.startswith("https:"))
        with cut_off_at(deadline) as trace:
            left = max(deadline - time.monotonic(), 0.001)
            timeout = httpx2.Timeout(
                min(self.policy.silence, left), connect=min(self.policy.connect, left)
            )
            extensions = {"trace": trace.event}
            try:
                with client.stream("GET", url, timeout=timeout, extensions=extensions) as response:
                    body = bytearray()
                    if response.status_code == 200:
                        for part in response.iter_raw():
                            body += part
                            if len(body) > MAX_BODY:
                                raise _FinalError(
                                    "unreadable",
                                    f"the server's answer has more than {MAX_BODY} bytes",
                                )
            except httpx2.TransportError as error:
                lasting = None if time.monotonic() >= deadline else _lasting(error, proxy, trace)
                if lasting is None:
                    raise
                raise _FinalError("unreachable", lasting) from None
            if time.monotonic() >= deadline:
                # The connection was cut off at the deadline. If the answer has no Content-Length,
                # the cut-off looks like the end of the body.
                raise httpx2.ReadTimeout("")
            return response.status_code, dict(response.headers), bytes(body)

    def _open(self, proxy: Proxy | None, tls: bool) -> httpx2.Client:
        import httpx2

        from snpcerts import __version__

        key = (None if proxy is None else proxy.url, tls)
        with self._lock:
            if key in self._http:
                return self._http[key]
            headers = {
                "Accept": "*/*",
                "Accept-Encoding": "identity",
                "User-Agent": f"snpcerts/{__version__}",
            }
            # Keep no connection open. Requests are rare, and each needs a new connection, so that
            # its trace learns of the connection's socket.
            limits = httpx2.Limits(max_keepalive_connections=0)
            try:
                client = httpx2.Client(
                    headers=headers,
                    limits=limits,
                    follow_redirects=False,
                    trust_env=False,
                    proxy=None if proxy is None else proxy.url,
                    verify=trusted(os.environ) if tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
                )
            except InputError as error:
                raise _FinalError("unreachable", f"{error.message}; {error.hint}") from None
            except (ValueError, ImportError, httpx2.InvalidURL) as error:
                raise _FinalError("unreachable", f"{proxy} cannot be used: {error}") from None
            self._http[key] = client
            return client


def _lasting(error: Exception, proxy: Proxy | None, trace: RequestTrace) -> str | None:
    """Return the problem that would make another attempt fail too, such as a wrong proxy; None if
    there is no such problem.
    """
    import httpx2

    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return (
            f"the server's TLS certificate does not verify ({error}). If a proxy replaces that "
            "certificate, the proxy's root must be among the trusted roots "
            f"({places_of_roots(os.environ)})"
        )
    if proxy is None:
        return None
    if isinstance(error, httpx2.ProxyError):
        refused = re.match(r"4[0-9][0-9]\b", str(error))
        return f"{proxy} refused the request: {error}" if refused else None
    if not trace.connected and isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return f"{proxy} cannot be reached: {str(error) or type(error).__name__}"
    return None


@dataclass(frozen=True, slots=True)
class _Received(Generic[T]):
    value: T


class _FinalError(Exception):
    """A request failed, and another attempt would fail in the same way."""

    def __init__(self, result: str, message: str) -> None:
        super().__init__(message)
        self.result = result
