# SPDX-License-Identifier: Apache-2.0
"""Wakes callers that wait for a certificate, when this instance or another has an answer.

With PostgreSQL, instances send each other a NOTIFY. This module also polls, because a connection
pooler may drop notifications and SQLite has none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Final

from sqlalchemy import select

from snpcerts.mirror.database import CHANNEL, DatabaseUnavailableError, MirrorDatabase
from snpcerts.mirror.tables import QUEUE

log = logging.getLogger(__name__)

POLL: Final = 1.0  # seconds
_BATCH: Final = 500
_LISTEN: Final = 5.0  # seconds between two checks whether to end
_AGAIN: Final = 1.0


class WaitingCallers:
    """The callers in one event loop, by the resource that they wait for."""

    def __init__(self, database: MirrorDatabase) -> None:
        self._database = database
        self._events: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return sum(len(each) for each in self._events.values())

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set the event loop in which the callers wait."""
        self._loop = loop

    @contextlib.contextmanager
    def event(self, resource: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set when the resource leaves the queue."""
        event = asyncio.Event()
        self._events[resource].add(event)
        try:
            yield event
        finally:
            self._events[resource].discard(event)
            if not self._events[resource]:
                del self._events[resource]

    def done(self, resource: str) -> None:
        """Wake the callers that wait for a resource. Any thread may call this."""
        if self._loop is not None and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # the loop is closing
                self._loop.call_soon_threadsafe(self._set, resource)

    async def poll(self) -> None:
        """Check the queue every second, and wake the callers whose resource has left it."""
        while True:
            await asyncio.sleep(POLL)
            wanted = list(self._events)
            for start in range(0, len(wanted), _BATCH):
                part = wanted[start : start + _BATCH]
                with contextlib.suppress(DatabaseUnavailableError):
                    for gone in set(part) - await asyncio.to_thread(self._queued, part):
                        self._set(gone)

    def _queued(self, resources: list[str]) -> set[str]:
        q = QUEUE.c.resource
        with self._database.read() as connection:
            return set(connection.execute(select(q).where(q.in_(resources))).scalars())

    def _set(self, resource: str) -> None:
        for event in self._events.get(resource, ()):
            event.set()


class NotificationListener:
    """A thread that receives the other instances' notifications.

    ``heard`` is called with the path of each resource in a notification.
    """

    def __init__(self, database: MirrorDatabase, heard: Callable[[str], None]) -> None:
        self._database = database
        self._heard = heard
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, which listens until :meth:`close` is called. With SQLite, do
        nothing.
        """
        if not self._database.is_sqlite:
            self._thread = threading.Thread(target=self._run, name="mirror listener", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop listening. The thread ends within seconds."""
        self._ending.set()

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self._listen()
            except Exception as error:
                log.info(
                    "notifications from other instances cannot be received at present: %s", error
                )
            self._ending.wait(_AGAIN)

    def _listen(self) -> None:
        import psycopg

        url = self._database.engine.url.set(drivername="postgresql")
        with psycopg.connect(
            url.render_as_string(hide_password=False), autocommit=True
        ) as connection:
            connection.execute(f"LISTEN {CHANNEL}")
            while not self._ending.is_set():
                for notification in connection.notifies(timeout=_LISTEN):
                    self._heard(notification.payload)
