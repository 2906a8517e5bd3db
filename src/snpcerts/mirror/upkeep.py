# SPDX-License-Identifier: Apache-2.0
"""Does an instance's periodic work: queues renewals of certificates, and removes old rows."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection, delete, select

from snpcerts.errors import FormatError
from snpcerts.kds.source import RENEW_BEFORE
from snpcerts.kds.url import Resource, parse_target
from snpcerts.mirror.database import DatabaseUnavailableError, MirrorDatabase
from snpcerts.mirror.fleet_records import FleetRecords
from snpcerts.mirror.tables import CERTIFICATE, NEGATIVE, QUEUE, ROLL_HOST
from snpcerts.mirror.wanted import Need, WantedQueue

log = logging.getLogger(__name__)

EVERY: Final = 20.0  # seconds
_AT_ONCE: Final = 500  # renewals in one round
# A certificate that was fetched less than this many seconds ago is not renewed, even if it expires
# soon.
_RENEWED_AT_MOST: Final = timedelta(days=1).total_seconds()


class Upkeep:
    """The periodic work of one instance, in a thread."""

    def __init__(
        self,
        database: MirrorDatabase,
        queue: WantedQueue,
        records: FleetRecords,
        *,
        crl_age: float,
        instance: str,
        wake: Callable[[], None],
    ) -> None:
        self._database = database
        self._queue = queue
        self._records = records
        self._crl_age = crl_age
        self._instance = instance
        self._wake = wake
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start a thread that works until :meth:`close` is called."""
        self._thread = threading.Thread(target=self._run, name="mirror upkeep", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(5)

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self.round()
            except DatabaseUnavailableError as error:
                log.warning("%s", error)
            except Exception:
                log.exception("the upkeep continues after an unexpected error")
            self._ending.wait(EVERY)

    def round(self) -> None:
        """Do all periodic work once. Raises :class:`DatabaseUnavailableError`."""
        self._records.alive(self._instance)
        with self._database.write() as connection:
            now = self._database.now(connection)
            connection.execute(delete(NEGATIVE).where(NEGATIVE.c.until <= now))
            new = self._queue.want_all(connection, self._old(connection, now), Need.REFRESH, now)
            new += self._queue.want_all(connection, self._of_rolls(connection), Need.ROLL, now)
        if new:
            self._wake()

    def _old(self, connection: Connection, now: float) -> list[Resource]:
        """Return what to renew: revocation lists that were fetched long ago, and certificates that
        expire soon.
        """
        c, n = CERTIFICATE.c, NEGATIVE.c.resource
        negative = select(n)
        lists = select(c.resource).where(
            c.kind == "crl", c.fetched_at < now - self._crl_age, c.resource.not_in(negative)
        )
        expiring = (
            select(c.resource)
            .where(
                c.kind != "crl",
                c.not_after < now + RENEW_BEFORE.total_seconds(),
                c.fetched_at < now - _RENEWED_AT_MOST,
                c.resource.not_in(negative),
            )
            .order_by(c.not_after)
            .limit(_AT_ONCE)
        )
        paths = [*connection.execute(lists).scalars(), *connection.execute(expiring).scalars()]
        return _resources(paths)

    def _of_rolls(self, connection: Connection) -> list[Resource]:
        """Return the certificates that rolls need and that are neither stored nor queued.

        After a 404, a certificate leaves the queue without being stored. It is returned here when
        the 404 is no longer remembered.
        """
        r = ROLL_HOST.c
        rows = connection.execute(
            select(r.resource).where(
                r.stored_at.is_(None),
                r.resource.not_in(select(QUEUE.c.resource)),
                r.resource.not_in(select(NEGATIVE.c.resource)),
            )
        ).scalars()
        return _resources(rows.all())


def _resources(paths: Iterable[str]) -> list[Resource]:
    found: list[Resource] = []
    for path in paths:
        try:
            found.append(parse_target(path))
        except FormatError as error:
            log.warning("a resource in the database cannot be read: %s", error)
    return found
