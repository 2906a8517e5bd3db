# SPDX-License-Identifier: Apache-2.0
"""Reads stored certificates from SQLite with one prepared statement, to answer requests quickly.

Through SQLAlchemy, reading one row takes many times as long as SQLite itself needs, and that read
is most of the work of answering a request from the database.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import Final

from sqlalchemy.dialects import sqlite

from snpcerts.mirror.database import MirrorDatabase
from snpcerts.mirror.stored import BY_RESOURCE, StoredCertificate

_QUERY: Final = str(BY_RESOURCE.compile(dialect=sqlite.dialect()))


class DirectReader:
    """Finds stored certificates through its own connection to SQLite. For one thread only."""

    def __init__(self, database: MirrorDatabase) -> None:
        self._database = database
        self._connection: sqlite3.Connection | None = None

    def find(self, resource: str) -> StoredCertificate | None:
        """Return the stored certificate for a resource's path, however old it is.

        Raises :class:`DatabaseUnavailableError`.
        """
        with self._database.errors():
            try:
                if self._connection is None:
                    self._connection = self._database.sqlite_connection()
                row = self._connection.execute(_QUERY, (resource,)).fetchone()
            except sqlite3.Error:
                self.close()  # the next read opens the database again
                raise
        return None if row is None else StoredCertificate(*row)

    def close(self) -> None:
        """Close the connection to the database."""
        found, self._connection = self._connection, None
        if found is not None:
            with contextlib.suppress(sqlite3.Error):
                found.close()
