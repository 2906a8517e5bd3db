# SPDX-License-Identifier: Apache-2.0
"""Archives, for mirrors without a network connection. An import verifies every file."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding

from snpcerts.abi.product import Product
from snpcerts.cli.main import cli
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.machine.key_server import KeyServer
from snpcerts.errors import RefusedError, SnpCertsError
from snpcerts.kds.store import place_of
from snpcerts.mirror.database import DatabaseUnavailableError, MirrorDatabase

from ..documented_json import documented
from ..sizes import sized
from .conftest import vcek
from .running import RunningMirror, until_stored


@pytest.fixture
def roots(milan: EmulatedAuthority, turin: EmulatedAuthority, tmp_path: Path) -> list[str]:
    """The options that make a command trust both emulated roots."""
    options: list[str] = []
    for each in (milan, turin):
        path = tmp_path / f"{each.product.value}.pem"
        path.write_bytes(each.ark.public_bytes(Encoding.PEM))
        options += ["--anchor", str(path)]
    return options


def run(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(cli, ["mirror", *arguments])
    if isinstance(found.exception, SnpCertsError):
        return found.exception.exit_code, str(found.exception)
    return found.exit_code, found.output


@pytest.fixture
def archive(amd: KeyServer, mirror: RunningMirror, tmp_path: Path) -> Path:
    """The archive that a mirror exports after requests about a Milan and a Turin chip."""
    for product in (Product.MILAN, Product.TURIN):
        assert mirror.ask(vcek(amd, product).path).status == 200
    assert mirror.ask("vcek/v1/Milan/crl").status == 200
    folder = tmp_path / "archive"
    code, out = run("export", "--database", mirror.options.database, "--json", str(folder))
    assert code == 0
    assert documented("mirror export", out)["files"] == 5
    return folder


def test_what_one_mirror_exports_another_serves_without_upstream(
    amd: KeyServer,
    archive: Path,
    roots: list[str],
    database: str,
    mirror: RunningMirror,
    start: Callable[..., RunningMirror],
) -> None:
    code, out = run("import", "--database", database, *roots, "--json", str(archive))
    assert code == 0, out
    files = documented("mirror import", out)["files"]
    assert [each["stored"] for each in files] == [True] * 5
    second = start(database=database, upstream="http://127.0.0.1:1")
    for path in (vcek(amd).path, vcek(amd, Product.TURIN).path, "vcek/v1/Milan/crl"):
        assert second.ask(path).body == mirror.ask(path).body


def test_an_archives_vcek_directory_is_trustees_offline_store(
    amd: KeyServer, archive: Path
) -> None:
    hwid = vcek(amd).hwid.hex()
    assert (archive / "vcek" / hwid / "bl04_tee00_snp24_ucode219_vcek.der").is_file()
    hwid = vcek(amd, Product.TURIN).hwid.hex()
    assert (archive / "vcek" / hwid / "bl01_tee01_snp04_ucode81_fmc01_vcek.der").is_file()


SPOILT: dict[str, Callable[[bytes, bytes], bytes]] = {
    "a flipped bit": lambda mine, _: mine[:600] + bytes([mine[600] ^ 1]) + mine[601:],
    "empty": lambda *_: b"",
    "a page": lambda *_: b"<html>",
    "another chip's": lambda _, other: other,
    "too large": lambda *_: bytes(1 << 20),
}


@pytest.mark.parametrize("name", SPOILT)
def test_an_import_stores_only_what_verifies(
    amd: KeyServer, archive: Path, roots: list[str], tmp_path: Path, name: str
) -> None:
    mine, other = (archive / place_of(vcek(amd, p)) for p in (Product.MILAN, Product.TURIN))
    mine.write_bytes(SPOILT[name](mine.read_bytes(), other.read_bytes()))
    (archive / "vcek" / "notes.txt").write_text("not a directory")
    database = f"sqlite:///{tmp_path}/other.db"
    code, out = run("import", "--database", database, *roots, "--json", str(archive))
    assert code == 1
    files = {each["file"]: each for each in json.loads(out)["files"]}
    assert files.pop(str(place_of(vcek(amd))))["problem"]
    assert {each["stored"] for each in files.values()} == {True}
    with closing(MirrorDatabase(database)) as opened, opened.read() as connection:
        rows = connection.exec_driver_sql("SELECT resource FROM certificate").scalars().all()
    assert vcek(amd).path not in rows
    assert len(rows) == 4


def test_without_the_roots_option_emulated_certificates_are_refused(
    archive: Path, tmp_path: Path
) -> None:
    code, out = run("import", "--database", f"sqlite:///{tmp_path}/other.db", str(archive))
    assert code == 1
    assert "0 stored, 5 refused" in out


@pytest.mark.parametrize("command", ["export", "import"])
@pytest.mark.parametrize(
    "url", ["", "nonsense", "mysql://host/name", "sqlite://", "sqlite:////nowhere/at/all.db"]
)
def test_a_wrong_database_is_named(command: str, url: str, tmp_path: Path) -> None:
    code, out = run(command, "--database", url, str(tmp_path))
    assert code == 2
    assert "database" in out


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    code, out = run("import", "--database", f"sqlite:///{tmp_path}/x.db", str(tmp_path / "none"))
    assert code == 2
    assert "expected a directory" in out


# Faults of the database.


def test_a_database_of_a_newer_release_is_left_alone(database: str) -> None:
    opened = MirrorDatabase(database)
    opened.prepare()
    with opened.write() as connection:
        connection.exec_driver_sql("UPDATE schema_version SET version = 99")
    with pytest.raises(RefusedError, match="schema 99"):
        opened.prepare()
    with pytest.raises(DatabaseUnavailableError, match="99"):
        opened.check()
    opened.close()


def test_a_file_that_is_no_database_does_not_stay_open(tmp_path: Path) -> None:
    path = tmp_path / "mirror.db"
    path.write_bytes(b"not a database" * 100)
    with closing(MirrorDatabase(f"sqlite:///{path}")) as opened:
        # The caught errors keep their frames alive. These would keep an unclosed connection open.
        with pytest.raises(sqlite3.DatabaseError, match="not a database") as caught:
            opened.sqlite_connection()
        with pytest.raises(DatabaseUnavailableError, match="not a database") as also_caught:
            opened.check()
        open_files = {os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()}
        assert str(path) not in open_files
        assert {caught.tb, also_caught.tb} != {None}


def test_a_full_disk_loses_nothing_and_stops_nothing(amd: KeyServer, mirror: RunningMirror) -> None:
    """A limit on the database's pages stands in for a full disk: SQLite reports the same error."""
    path = vcek(amd).path
    until_stored(mirror.url, path)
    assert mirror.ask(path).status == 200
    database = mirror.mirror.database

    def limit(pages: int) -> None:
        for _ in range(8):
            with database.engine.connect() as connection:
                connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    limit(1)
    other = vcek(amd, index=1).path
    statuses = {mirror.ask(other, headers={"Prefer": "wait=1"}).status for _ in range(sized(1, 3))}
    assert statuses <= {503, 200}
    assert mirror.ask(path).status == 200
    assert mirror.ask("healthz").status == 200
    limit(1 << 30)
    until_stored(mirror.url, other)


def test_while_postgresql_is_away_hits_from_memory_go_on(
    amd: KeyServer, start: Callable[..., RunningMirror], request: pytest.FixtureRequest
) -> None:
    from .postgres import PostgresServer

    server = PostgresServer()
    request.addfinalizer(server.close)
    mirror = start(database=server.new_database())
    path = vcek(amd).path
    until_stored(mirror.url, path)
    assert mirror.ask(path).status == 200
    server.stop()
    assert mirror.ask(path).status == 200
    assert mirror.ask("readyz").status == 503
    missed = mirror.ask(vcek(amd, index=1).path)
    assert (missed.status, json.loads(missed.body)["code"]) == (503, "database")
    assert "snpcerts_mirror_database_up 0.0" in mirror.ask("metrics").text
    server.start()
    until_stored(mirror.url, vcek(amd, index=1).path)
    assert mirror.ask("readyz").status == 200
    assert amd.requests[path] == 1
