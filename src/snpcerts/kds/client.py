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
import math
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
from snpcerts.kds.clock import Clock
from snpcerts.kds.errors import KdsNotFoundError, KdsUnavailableError, KdsUntrustedError
from snpcerts.kds.judge import MAX_BODY
from snpcerts.kds.retry import AMD_GAP, RetryPolicy, parse_retry_after
from snpcerts.kds.server_state import Failure, KdsError, ServerState
from snpcerts.kds.turn import Line, Turn
from snpcerts.kds.url import AMD_URL, Resource, VcekResource, checked_base

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


@dataclass(frozen=True, slots=True)
class _Asked(Generic[T]):
    """One call of :meth:`KdsClient.get`. Times are the clock's."""

    resource: Resource
    read: Callable[[bytes], T]
    since: float
    deadline: float
    budget: float
    tries: int
    patient: bool

    @property
    def paced(self) -> bool:
        """Whether the server is known to want a pause between two of these."""
        return isinstance(self.resource, VcekResource)


@dataclass(frozen=True, slots=True)
class _Pause:
    """What keeps us from asking now, and for how long, in seconds."""

    problem: str
    wait: float


class KdsClient:
    """Asks one key server, AMD's or a mirror. Safe for use by several threads.

    ``notice`` is told, in a sentence, of every wait.
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
        self._line = Line(None, self.url, self.clock)
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
        line: Line | None = None,
        settled: Callable[[], T | None] = lambda: None,
        attempts: int | None = None,
        budget: float | None = None,
        patient: bool = True,
    ) -> T:
        """What ``read`` makes of the answer's body.

        A body that ``read`` refuses with :class:`FormatError` counts as no
        answer: error pages come with status 200 too. ``read`` runs in our turn
        in ``line``, which is also when ``settled`` says, if it can, what another
        got meanwhile. Those in the line who want the same thing share the tries
        and what comes of them. ``attempts`` and ``budget`` stand for the policy's
        where they are given. Who is not ``patient`` asks now or not at all.

        Raises :class:`KdsUnavailableError` when there was no answer within the
        policy's bounds, :class:`KdsNotFoundError`, at once, for a 404, and
        :class:`KdsUntrustedError` where ``read`` does.
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

    def _pause(self, turn: Turn, asked: _Asked[T]) -> _Pause | None:
        """What to wait for, if anything; raises what another met who wanted the same."""
        state, now = turn.state, self.clock.now()
        if turn.cut_off:
            log.info("another process was stopped while it asked %s", self.url)
            state.cut_off(now, self._gap(state), self.policy.request)
            turn.cut_off = False
            turn.save()
        last = state.failures.get(asked.resource.path)
        ours = last is not None and last.ours(asked.since, now)
        if last is not None and ours and (last.over or last.tries >= asked.tries):
            error = last.error()
            if error is not None:
                raise error
        if now >= asked.deadline:
            waited = f"others of this host ask it, and it was not our turn in {asked.budget:.0f} s"
            raise self._unavailable(asked, waited, self._gap(state))
        pauses = [_Pause("the key server asked to be left alone", state.hold_until - now)]
        if asked.paced:
            gap = self._gap(state)
            pauses.append(_Pause(f"it gives one VCEK in {gap:.0f} s", state.next_at - now))
        if last is not None and (ours or last.retry_after is not None):
            pauses.append(_Pause(last.problem, last.again_at - now))
        longest = max(pauses, key=lambda pause: pause.wait)
        return longest if longest.wait > 0 else None

    def _ask(self, turn: Turn, asked: _Asked[T]) -> _Read[T] | None:
        """Make one try, and let the others know; None where there is to be another."""
        state, path = turn.state, asked.resource.path
        started = self.clock.now()
        last = state.failures.get(path)
        count = 1 + (last.tries if last is not None and last.ours(asked.since, started) else 0)
        if asked.paced:
            state.asking = started
            turn.save()
        answer: _Read[T] | _Failed | KdsError
        try:
            answer = self._try(asked)
        except (KdsUnavailableError, KdsNotFoundError, KdsUntrustedError) as error:
            answer = error  # there was an answer, and it is final
        now = again_at = self.clock.now()
        failed = answer if isinstance(answer, _Failed) else None
        if asked.paced:
            state.asking = None
            if failed is None:
                state.refusals = 0
        if failed is not None:
            self._count(failed.result)
            again_at += self._hold_off(state, failed, count, now)
        if asked.paced and (failed is None or failed.result != "unreachable"):
            state.next_at = now + self._gap(state)
        if isinstance(answer, _Read):
            self._count("ok")
            state.failures.pop(path, None)
            turn.save()
            return answer
        if isinstance(answer, _Failed):
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

    def _hold_off(self, state: ServerState, failed: _Failed, count: int, now: float) -> float:
        """Seconds until it may be asked for this again; after a 429, for anything."""
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
        """Let go of connections; the client can still be used."""
        with self._lock:
            http, self._http = self._http, None
        if http is not None:
            http.close()

    def _wait(self, asked: _Asked[T], pause: _Pause) -> None:
        if not asked.patient or self.clock.now() + pause.wait >= asked.deadline:
            raise self._unavailable(asked, pause.problem, pause.wait)
        self._notice(f"{asked.resource}: {pause.problem}; asking again in {pause.wait:.0f} s")
        self.clock.sleep(pause.wait)

    def _unavailable(
        self, asked: _Asked[T], problem: str, wait: float, failed: _Failed | None = None
    ) -> KdsUnavailableError:
        """``failed`` is the try that makes us say so; what it names as a time is passed on."""
        named = failed is None or failed.throttled or failed.retry_after is not None
        then = f"try again in {math.ceil(wait)} s" if named else "try again later"
        return KdsUnavailableError(
            f"{asked.resource}: no answer from {self.url}: {problem}",
            retry_after=float(math.ceil(wait)) if named else None,
            hint=f"this says nothing about the certificate; {then}",
        )

    def _count(self, result: str) -> None:
        with self._lock:
            self._results[result] += 1

    def _try(self, asked: _Asked[T]) -> _Read[T] | _Failed:
        import httpx

        resource = asked.resource
        left = min(asked.deadline - self.clock.now(), self.policy.request)
        deadline = time.monotonic() + left
        try:
            status, headers, body = self._exchange(f"{self.url}/{resource.path}", deadline)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            said = str(error) or type(error).__name__
            if time.monotonic() >= deadline:
                said = f"took longer than {min(asked.budget, self.policy.request):.0f} s"
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
            return _Read(asked.read(body))
        except (KdsUnavailableError, KdsNotFoundError, KdsUntrustedError):
            self._count("ok")  # an answer it was
            raise
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
