# SPDX-License-Identifier: Apache-2.0
"""On each kind of database, the migrations make the tables that the queries use."""

from __future__ import annotations

import os
import pwd
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import inspect, select, text

from snpcerts.mirror.database import DatabaseUnavailableError, MirrorDatabase
from snpcerts.mirror.migrations import NEWEST, migrate, version
from snpcerts.mirror.tables import METADATA, PACE, QUEUE


def test_the_migrations_and_the_tables_agree(database: str) -> None:
    opened = MirrorDatabase(database)
    opened.prepare()
    found = inspect(opened.engine)
    made = {name: found.get_columns(name) for name in found.get_table_names()}
    made.pop("schema_version")
    named = {table.name: table for table in METADATA.sorted_tables}
    assert made.keys() == named.keys()
    for name, columns in made.items():
        wanted = {column.name: column for column in named[name].columns}
        assert {each["name"] for each in columns} == wanted.keys(), name
        for each in columns:
            if not wanted[each["name"]].primary_key:
                assert each["nullable"] == wanted[each["name"]].nullable, (name, each["name"])
        keys = found.get_pk_constraint(name)["constrained_columns"]
        assert set(keys) == {column.name for column in named[name].primary_key}
    opened.close()


def test_an_older_database_keeps_its_rows(database: str) -> None:
    """Start after the first migration, with a row in each table that a later migration rewrites."""
    opened = MirrorDatabase(database)
    with opened.write() as connection:
        migrate(connection, to=1)
        connection.execute(
            text(
                "INSERT INTO queue VALUES ('/vcek/v1/Milan/cert_chain', 'chain', 'Milan', NULL, "
                "FALSE, 2, '192.0.2.1', 10.5, 11.5, 12.5, 13.5, 'token', 3, 'no route')"
            )
        )
        connection.execute(
            text(
                "UPDATE pace SET set_at = 1.5, next_at = 2.5, hold_until = 3.5, busy_until = 4.5, "
                "busy_by = 'token', gap = 10.5, refused_at = 5.5, refusals = 2, failures = 3, "
                "latency = 0.5, problem = 'no route', requests = 4, last_ok_at = 6.5"
            )
        )
    opened.prepare()
    with opened.read() as connection:
        assert version(connection) == NEWEST
        assert [dict(row) for row in connection.execute(select(QUEUE)).mappings()] == [
            {
                "resource": "/vcek/v1/Milan/cert_chain",
                "kind": "chain",
                "product": "Milan",
                "hwid": None,
                "paced": False,
                "need": 2,
                "caller": "192.0.2.1",
                "wanted_at": 10.5,
                "not_before": 11.5,
                "asked_at": 0.0,
                "lease_until": 13.5,
                "leased_by": "token",
                "attempts": 3,
                "problem": "no route",
            }
        ]
        assert [dict(row) for row in connection.execute(select(PACE)).mappings()] == [
            {
                "id": 1,
                "set_at": 1.5,
                "next_at": 2.5,
                "hold_until": 3.5,
                "busy_until": 4.5,
                "busy_by": "token",
                "gap": 10.5,
                "refused_at": 5.5,
                "refusals": 2,
                "failures": 3,
                "fruitless": 0,
                "latency": 0.5,
                "problem": "no route",
                "requests": 4,
            }
        ]
    indexes = {each["name"] for each in inspect(opened.engine).get_indexes("queue")}
    assert indexes == {"queue_order", "queue_caller"}
    opened.close()


def test_instances_that_start_at_once_migrate_once(database: str) -> None:
    opened = [MirrorDatabase(database) for _ in range(4)]
    errors: list[BaseException] = []

    def prepare(each: MirrorDatabase) -> None:
        try:
            each.prepare()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=prepare, args=(each,)) for each in opened]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with opened[0].read() as connection:
        assert version(connection) == NEWEST
    for each in opened:
        each.close()


def test_a_database_that_cannot_be_written_is_named() -> None:
    """Root may write to any file, so a test that runs as root switches to the user nobody."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = Path(folder) / "mirror.db"
        with closing(MirrorDatabase(f"sqlite:///{path}")) as opened:
            opened.prepare()
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(pwd.getpwnam("nobody").pw_uid)
            with closing(MirrorDatabase(f"sqlite:///{path}")) as opened:
                for use in (opened.prepare, opened.check):
                    with pytest.raises(DatabaseUnavailableError, match=str(path)) as caught:
                        use()
                    assert caught.value.exit_code == 3
        finally:
            os.seteuid(user)
            Path(folder).chmod(0o755)
