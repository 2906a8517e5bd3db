# SPDX-License-Identifier: Apache-2.0
"""Opens the mirror's database (SQLite or PostgreSQL), provides transactions and the database's
time, and turns the database's errors into one class.

SQLite is for one instance. A transaction that writes takes the database's lock at its beginning
(BEGIN IMMEDIATE), so that no two of them conflict halfway. PostgreSQL is for several instances,
which share nothing else.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, Table, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from snpcerts.errors import InputError, RetryLaterError, UsageError
from snpcerts.mirror.migrations import NEWEST, migrate, version

CHANNEL: Final = "snpcerts_mirror"  # the channel of LISTEN and NOTIFY

_CONNECT: Final = 5  # seconds
_BUSY: Final = 5_000  # milliseconds to wait for SQLite's lock
_STATEMENT: Final = 10_000  # milliseconds
_CLOCKS: Final = {
    "sqlite": "SELECT (julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "SELECT CAST(extract(epoch FROM clock_timestamp()) AS double precision)",
}


class DatabaseUnavailableError(RetryLaterError):
    """The database does not answer, is full, is read-only, or stays locked by another process."""

    code = "mirror-database"


class MirrorDatabase:
    """The mirror's database at a URL: ``sqlite:///PATH`` or ``postgresql://USER@HOST/NAME``.

    ``clock``, which returns seconds since the epoch, replaces the database's own clock. Objects of
    this class are thread-safe. Raises :class:`UsageError` for any other URL.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] | None = None) -> None:
        parsed = _parsed(url)
        self.name = parsed.render_as_string(hide_password=True)
        self._clock = clock
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self.engine = _sqlite(parsed) if self.is_sqlite else _postgresql(parsed)

    def prepare(self) -> None:
        """Create the tables, or migrate those of an older release.

        Raises :class:`RefusedError` if a newer release wrote the database, and
        :class:`DatabaseUnavailableError`.
        """
        with self.write() as connection:
            migrate(connection)

    def check(self) -> None:
        """Raise :class:`DatabaseUnavailableError` unless the database answers and has this
        release's tables.
        """
        with self.read() as connection:
            found = version(connection)
        if found != NEWEST:
            raise DatabaseUnavailableError(
                f"{self.name}: expected schema {NEWEST}, found {found}",
                hint=(
                    "restart the mirror, which migrates an older schema; if the schema is newer "
                    "than this release, upgrade snpcerts"
                ),
            )

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection for a transaction that only reads."""
        with self.errors(), self.engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield a connection for a transaction that writes, and commit at the end of the block."""
        with (
            self.errors(),
            self.engine.connect().execution_options(snpcerts_writes=True) as connection,
            connection.begin(),
        ):
            yield connection

    def now(self, connection: Connection) -> float:
        """Return the time by the database's clock, in seconds since the epoch."""
        if self._clock is not None:
            return self._clock()
        return float(connection.exec_driver_sql(_CLOCKS[self.engine.dialect.name]).scalar_one())

    def notify(self, connection: Connection, resource: str) -> None:
        """Tell the other instances that a resource has changed, as soon as the transaction
        commits.
        """
        if not self.is_sqlite:
            connection.execute(
                text("SELECT pg_notify(:channel, :resource)"),
                {"channel": CHANNEL, "resource": resource},
            )

    def close(self) -> None:
        """Close the connections to the database."""
        self.engine.dispose()

    def sqlite_connection(self) -> sqlite3.Connection:
        """Return a separate SQLite connection for reads, in which each statement is a transaction.

        Raises :class:`sqlite3.Error`.
        """
        assert self.is_sqlite  # noqa: S101 (callers distinguish)
        connection = sqlite3.connect(
            self.engine.url.database or "", isolation_level=None, check_same_thread=False
        )
        _set_up(connection)
        return connection

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn the database's errors in the block into :class:`DatabaseUnavailableError`."""
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error) as error:
            said = str(getattr(error, "orig", None) or error).strip().splitlines()
            reason = said[0] if said else type(error).__name__
            raise DatabaseUnavailableError(
                f"{self.name}: {reason}",
                hint="make the database available again; the mirror then continues by itself",
            ) from error


def insert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT statement in the connection's dialect, which supports ON CONFLICT."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table)
    return postgresql.insert(table)


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise UsageError("--database: the value is not a URL", hint=_HINT) from None
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername == "sqlite" and parsed.database:
        return parsed
    raise UsageError(
        f"--database: expected a URL of SQLite or PostgreSQL, found {parsed.drivername!r}",
        hint=_HINT,
    )


_HINT: Final = (
    "write the URL as in sqlite:////var/lib/snpcerts/mirror.db or postgresql://user@host/name"
)


def _sqlite(url: URL) -> Engine:
    folder = Path(url.database or "").parent
    if not folder.is_dir():
        raise InputError(
            f"{folder}: expected a directory for the database, found none",
            hint="create this directory, or name another file with --database",
        )
    engine = create_engine(
        url, pool_size=8, max_overflow=8, connect_args={"check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        # We begin transactions; the driver must not.
        connection.isolation_level = None
        _set_up(connection)

    @event.listens_for(engine, "begin")
    def began(connection: Connection) -> None:
        writes = connection.get_execution_options().get("snpcerts_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _set_up(connection: Any) -> None:
    """Set up a new connection to SQLite, or close it if that fails."""
    try:
        for pragma in (
            f"busy_timeout = {_BUSY}",
            "journal_mode = WAL",
            # A power failure can lose the last transactions. Their certificates are then fetched
            # again.
            "synchronous = NORMAL",
            "cache_size = -4096",  # 4 MiB
        ):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise


def _postgresql(url: URL) -> Engine:
    # A process that is stopped in a transaction must not block the others.
    limits = (
        f"-c client_encoding=UTF8 -c statement_timeout={_STATEMENT} -c lock_timeout={_BUSY} "
        f"-c idle_in_transaction_session_timeout={_STATEMENT}"
    )
    given = url.query.get("options")
    options = f"{given} {limits}" if isinstance(given, str) else limits
    return create_engine(
        url,
        pool_size=8,
        max_overflow=8,
        pool_timeout=_CONNECT,
        pool_pre_ping=True,
        connect_args={"connect_timeout": _CONNECT, "options": options},
    )
