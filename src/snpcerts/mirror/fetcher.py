# SPDX-License-Identifier: Apache-2.0
"""Fetches the queued resources from the upstream server, and stores those that verify.

Each instance has one fetcher, in a thread. If the database is not available, the fetcher keeps an
answer from upstream for a few minutes, so that the answer survives a restart of the database.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection

from snpcerts.errors import FormatError
from snpcerts.kds.body import ChainPair, read_chain, read_vcek
from snpcerts.kds.client import FailedRequest, KdsClient
from snpcerts.kds.errors import KdsNotFoundError, KdsUntrustedError
from snpcerts.kds.url import ChainResource, CrlResource, Resource, VcekResource
from snpcerts.mirror import stored
from snpcerts.mirror.admission import Admission, OtherIssuerError, chain_of
from snpcerts.mirror.database import DatabaseUnavailableError, MirrorDatabase
from snpcerts.mirror.stored import Admitted
from snpcerts.mirror.wanted import LEASE, REQUEST, NothingToTake, Taken, WantedQueue

log = logging.getLogger(__name__)

_POLL: Final = 1.0  # seconds between polls, because a connection pooler may drop notifications
_DATABASE_AGAIN: Final = 0.2
_LONGEST_DATABASE_WAIT: Final = 2.0
# Seconds until the next request if upstream has no chain, without which no answer verifies.
_CHAIN_AGAIN: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Known:
    """What is stored before a request: the chain with which the answer will be verified, and the
    body that the answer would replace.

    Both are read before the request, because the database may be unavailable when the answer
    arrives.
    """

    chain: bytes | None
    body: bytes | None

    @classmethod
    def read(cls, connection: Connection, resource: Resource) -> _Known:
        chain = stored.find(connection, chain_of(resource).path)
        own = stored.find(connection, resource.path)
        return cls(None if chain is None else chain.body, None if own is None else own.body)


@dataclass(frozen=True, slots=True)
class _UpstreamAnswer:
    """The outcome of a request to upstream. ``at`` is the time of the outcome, by this process's
    clock.
    """

    taken: Taken
    at: float
    took: float
    admitted: tuple[Admitted, ...] = ()
    reason: str | None = None  # not-found or refused
    failed: FailedRequest | None = None

    @property
    def problem(self) -> str:
        return self.failed.problem if self.failed is not None else ""


class Waiter:
    """Lets one thread wait until another wakes it. Tests can replace its clock."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether :meth:`end` has been called."""
        return self._ended

    def monotonic(self) -> float:
        """Return the seconds since some fixed moment."""
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        """Wait until :meth:`wake` is called, for at most ``seconds``."""
        self._event.wait(seconds)
        self._event.clear()

    def sleep(self, seconds: float) -> None:
        """Sleep for ``seconds``, or until :meth:`end` is called."""
        until = self.monotonic() + seconds
        while not self._ended and (left := until - self.monotonic()) > 0:
            self._event.wait(left)
            if self._event.is_set() and not self._ended:
                self._event.clear()

    def wake(self) -> None:
        """End the current or the next :meth:`wait`."""
        self._event.set()

    def end(self) -> None:
        """End all waits, now and in the future."""
        self._ended = True
        self._event.set()


class Fetcher:
    """The fetcher of one instance. It calls ``done`` with the path of each resource that leaves the
    queue.
    """

    def __init__(
        self,
        database: MirrorDatabase,
        queue: WantedQueue,
        client: KdsClient,
        admission: Admission,
        *,
        done: Callable[[str], None] = lambda _: None,
        waiter: Waiter | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.waiter = waiter or Waiter()
        self._database = database
        self._queue = queue
        self._client = client
        self._admission = admission
        self._done = done
        self._wall = wall
        self.instance = uuid.uuid4().hex[:12]
        self._count = 0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start a thread that fetches until :meth:`close` is called."""
        self._thread = threading.Thread(target=self.run, name="mirror fetcher", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Make the fetcher read the queue now, because something has been added."""
        self.waiter.wake()

    def close(self) -> None:
        """End the thread after it has stored the answer to the current request."""
        self.waiter.end()
        if self._thread is not None:
            self._thread.join(REQUEST + 5)

    def run(self) -> None:
        """Fetch until :meth:`close` is called."""
        trouble = _DATABASE_AGAIN
        while not self.waiter.ended:
            try:
                wait = self.step()
                trouble = _DATABASE_AGAIN
            except DatabaseUnavailableError as error:
                log.warning("%s", error)
                wait, trouble = trouble, min(trouble * 2, _LONGEST_DATABASE_WAIT)
            except Exception:
                log.exception("the fetcher continues after an unexpected error")
                wait = _LONGEST_DATABASE_WAIT
            if wait > 0:
                self.waiter.wait(min(wait, _POLL))

    def step(self) -> float:
        """Take one row from the queue and fetch its resource; return the seconds to the next step.

        Raises :class:`DatabaseUnavailableError` if no row could be taken.
        """
        self._count += 1
        token = f"{self.instance}-{self._count}"
        with self._database.write() as connection:
            self._queue.lock(connection)
            now = self._database.now(connection)
            # Read this clock after the database's, so that a wait counted from it is never too
            # short.
            taken_at = self.waiter.monotonic()
            taken = self._queue.take(connection, now, token)
            if isinstance(taken, NothingToTake):
                return taken.wait
            known = _Known.read(connection, taken.resource)
        answer: _UpstreamAnswer | None = None
        try:
            left = taken.start_in - (self.waiter.monotonic() - taken_at)
            if left > 0:
                self.waiter.sleep(left)
            late = self.waiter.monotonic() - taken_at - taken.start_in
            # If the process was stopped meanwhile, it may have lost its lease.
            if not self.waiter.ended and late < LEASE - REQUEST:
                answer = self._ask(taken, known)
        finally:
            self._settle(taken, answer)
        return 0.0

    def _settle(self, taken: Taken, answer: _UpstreamAnswer | None) -> None:
        """Record the outcome of a request. If the database is not available, try again for a few
        minutes, or for about a second if the fetcher is ending.
        """
        wait = _DATABASE_AGAIN
        until = self.waiter.monotonic() + 10 * LEASE
        while True:
            try:
                with self._database.write() as connection:
                    self._queue.lock(connection)
                    # Read this before the database's clock, so that the answer never counts as
                    # older than it is.
                    noted_at = self.waiter.monotonic()
                    now = self._database.now(connection)
                    if answer is None:
                        self._queue.give_back(connection, taken, now)
                        return
                    for each in answer.admitted:
                        stored.put(connection, each, now=now, origin=self._client.url)
                        self._queue.drop(connection, each.resource.path)
                        self._database.notify(connection, each.resource.path)
                    left = self._record(connection, answer, now, noted_at - answer.at)
                    if left:
                        self._database.notify(connection, taken.resource.path)
                break
            except DatabaseUnavailableError as error:
                if self.waiter.monotonic() > until or (self.waiter.ended and wait > 1):
                    log.error("%s: the answer was lost: %s", taken.resource, error)  # noqa: TRY400 (for people)
                    return
                log.warning(
                    "%s: the answer is kept until the database is back: %s", taken.resource, error
                )
                time.sleep(wait)
                wait = min(wait * 2, _LONGEST_DATABASE_WAIT)
        for each in answer.admitted:
            self._done(each.resource.path)
        if left:
            self._done(taken.resource.path)

    def _record(
        self, connection: Connection, answer: _UpstreamAnswer, now: float, ago: float
    ) -> bool:
        """Record the outcome of a request. Return whether the row has left the queue."""
        failed, taken = answer.failed, answer.taken
        if failed is None:
            self._queue.answered(connection, taken, now, ago=ago, took=answer.took)
            return True
        if answer.reason is not None:
            self._queue.answered(connection, taken, now, ago=ago, took=answer.took)
            self._queue.not_given(
                connection, taken, now, reason=answer.reason, problem=failed.problem
            )
            return True
        if failed.throttled:
            self._queue.throttled(
                connection,
                taken,
                now,
                ago=ago,
                retry_after=failed.retry_after,
                problem=failed.problem,
            )
            return False
        self._queue.failed(
            connection,
            taken,
            now,
            ago=ago,
            retry_after=failed.retry_after,
            problem=failed.problem,
        )
        return False

    def _ask(self, taken: Taken, known: _Known) -> _UpstreamAnswer:
        started = self.waiter.monotonic()
        arrived: list[float] = []

        def read(body: bytes) -> bytes:
            arrived.append(self.waiter.monotonic())
            return _readable(taken.resource, body)

        at = datetime.fromtimestamp(self._wall(), UTC)
        chain: ChainPair | None = None
        admitted: tuple[Admitted, ...] = ()
        reason: str | None = None
        failed: FailedRequest | None = None
        try:
            if not isinstance(taken.resource, ChainResource):
                # Get the chain first. Without it, requesting a certificate would be useless.
                chain, admitted = self._chain(chain_of(taken.resource), at, known.chain)
            left = REQUEST - (self.waiter.monotonic() - started)
            body = self._client.ask_once(taken.resource, read, limit=left)
            if isinstance(body, FailedRequest):
                failed = body
            else:
                admitted = self._admit(taken.resource, body, known, chain, admitted, at)
        except KdsNotFoundError as error:
            reason, failed = "not-found", FailedRequest("not-found", error.message)
        except KdsUntrustedError as error:
            reason, failed = "refused", FailedRequest("refused", error.message)
        except _NoChainError as error:
            failed = error.failed
        except FormatError as error:
            failed = FailedRequest("unreadable", error.message)
        except Exception as error:  # the row waits, so that it does not block those behind it
            log.exception("%s: unexpected", taken.resource)
            failed = FailedRequest("unreadable", f"{type(error).__name__}: {error}")
        ended = arrived[0] if arrived else self.waiter.monotonic()
        if failed is not None:
            log.info("%s: %s", taken.resource, failed.problem)
        return _UpstreamAnswer(taken, ended, ended - started, admitted, reason, failed)

    def _admit(
        self,
        resource: Resource,
        body: bytes,
        known: _Known,
        chain: ChainPair | None,
        fresh: tuple[Admitted, ...],
        at: datetime,
    ) -> tuple[Admitted, ...]:
        """Verify an answer, and return what to store. ``fresh`` contains the chain if it was
        fetched just now.
        """
        if isinstance(resource, ChainResource) or chain is None:
            return (self._admission.chain(chain_of(resource), body, at),)
        if isinstance(resource, CrlResource):
            return (*fresh, self._admission.crl(resource, body, chain, at, known.body))
        try:
            return (*fresh, self._admission.vcek(resource, body, chain, at, known.body))
        except OtherIssuerError:
            if fresh:
                raise
            chain, fresh = self._fetch_chain(chain_of(resource), at)
            return (*fresh, self._admission.vcek(resource, body, chain, at, known.body))

    def _chain(
        self, resource: ChainResource, at: datetime, body: bytes | None
    ) -> tuple[ChainPair, tuple[Admitted, ...]]:
        """Return the chain and what to store: nothing if a valid chain is stored already, otherwise
        the chain that this method fetches.
        """
        if body is not None:
            with contextlib.suppress(KdsUntrustedError, FormatError):
                self._admission.chain(resource, body, at)
                return read_chain(body), ()
        return self._fetch_chain(resource, at)

    def _fetch_chain(
        self, resource: ChainResource, at: datetime
    ) -> tuple[ChainPair, tuple[Admitted, ...]]:
        try:
            answer = self._client.ask_once(
                resource, lambda body: _readable(resource, body), limit=REQUEST / 2
            )
        except KdsNotFoundError as error:
            # Only the chain was not found, so the row of the VCEK or list stays in the queue.
            failed = FailedRequest("no-chain", error.message, retry_after=_CHAIN_AGAIN)
            raise _NoChainError(failed) from None
        if isinstance(answer, FailedRequest):
            raise _NoChainError(replace(answer, problem=f"{resource}: {answer.problem}"))
        found = self._admission.chain(resource, answer, at)
        return read_chain(found.body), (found,)


class _NoChainError(Exception):
    """An answer cannot be verified, because no valid chain is stored and the request for the chain
    failed (``failed``).
    """

    def __init__(self, failed: FailedRequest) -> None:
        super().__init__(failed.problem)
        self.failed = failed


def _readable(resource: Resource, body: bytes) -> bytes:
    """Return ``body``, but raise :class:`FormatError` if a VCEK or chain cannot be read from it.

    Such a body, an HTML page or a truncated answer, says nothing about a chip.
    """
    if isinstance(resource, VcekResource):
        read_vcek(body)
    elif isinstance(resource, ChainResource):
        read_chain(body)
    return body
