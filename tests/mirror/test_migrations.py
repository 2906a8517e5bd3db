# SPDX-License-Identifier: Apache-2.0
"""The migrations make the tables that the queries name, on each database."""

from __future__ import annotations

import os
import pwd
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import inspect

from snpcerts.mirror.database import DatabaseUnavailableError, MirrorDatabase
from snpcerts.mirror.migrations import NEWEST, version
from snpcerts.mirror.tables import METADATA


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
    """In a directory that another user can enter: root may write everywhere."""
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
