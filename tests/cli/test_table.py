# SPDX-License-Identifier: Apache-2.0
"""``snpcerts table`` as a user runs it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from snpcerts.abi.cert_table import ASK_GUID, VCEK_GUID, VLEK_GUID, CertTable, TableEntry
from snpcerts.abi.lock import EXCLUSIVE, F_OFD_SETLK
from snpcerts.certfile.file import CertFile
from snpcerts.cli.main import main
from tests.documented_json import documented
from tests.verify.test_documented_reasons import CHAIN, sound_report

OTHER = "fbb6ed74-e73e-44ab-8893-4252792d737a"


def build(output: Path, folder: Path, *names: str) -> int:
    options = [word for name in names for word in (f"--{name}", str(folder / f"{name}.der"))]
    return main(["table", "build", "-o", str(output), *options])


def test_one_entry_and_one_page_are_not_plural(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "certs.bin"
    file.write_bytes(CertTable((TableEntry(VCEK_GUID, b"x"),)).encode())
    assert main(["table", "show", str(file)]) == 0
    assert "1 entry, 49 bytes, 1 page\n" in capsys.readouterr().out


def test_build_show_extract(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = tmp_path / "table.bin", tmp_path / "out"
    assert build(table, vectors / "milan", "vcek", "ask", "ark") == 0
    assert "3 entries, 4772 bytes, 2 pages" in capsys.readouterr().out
    assert main(["table", "show", str(table)]) == 0
    assert "SEV-VCEK issued by SEV-Milan" in capsys.readouterr().out
    assert main(["table", "extract", str(table), str(out)]) == 0
    for name in ("vcek", "ask", "ark"):
        assert (out / f"{name}.der").read_bytes() == (
            vectors / "milan" / f"{name}.der"
        ).read_bytes()


def test_force_is_suggested_only_where_it_helps(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It accepts the only certificate of a file, but cannot choose between two."""
    pem = {
        name: x509.load_der_x509_certificate(
            (vectors / "milan" / f"{name}.der").read_bytes()
        ).public_bytes(Encoding.PEM)
        for name in ("ask", "ark")
    }
    for content, helps in ((pem["ark"], True), (pem["ask"] + pem["ark"], False)):
        (tmp_path / "given.pem").write_bytes(content)
        argv = ["table", "build", "-o", str(tmp_path / "t"), "--vcek", str(tmp_path / "given.pem")]
        assert main(argv) == 1
        assert ("--force" in capsys.readouterr().err) == helps


def test_a_mistyped_output_is_not_destroyed(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    assert build(hosts, vectors / "milan", "vcek", "ask", "ark") == 1
    assert "--force" in capsys.readouterr().err
    assert hosts.read_text() == "127.0.0.1 localhost\n"
    certificate = str(vectors / "milan" / "ark.der")
    assert main(["table", "build", "-o", str(hosts), "--ark", certificate, "--force"]) == 0
    assert len(CertTable.decode(hosts.read_bytes())) == 1


def test_pem_in_gives_the_same_table_as_der_in(vectors: Path, tmp_path: Path) -> None:
    certificate = x509.load_der_x509_certificate((vectors / "milan" / "ask.der").read_bytes())
    pem = tmp_path / "ask.pem"
    pem.write_bytes(certificate.public_bytes(Encoding.PEM))
    first, second = tmp_path / "first", tmp_path / "second"
    assert build(first, vectors / "milan", "ask") == 0
    assert main(["table", "build", "-o", str(second), "--ask", str(pem)]) == 0
    assert first.read_bytes() == second.read_bytes()


def test_extract_as_pem_and_build_again_is_the_same_table(vectors: Path, tmp_path: Path) -> None:
    table, out, again = tmp_path / "table", tmp_path / "out", tmp_path / "again"
    build(table, vectors / "turin-v5", "vcek", "ask", "ark")
    assert main(["table", "extract", str(table), str(out), "--encoding", "pem"]) == 0
    assert (out / "vcek.pem").read_bytes().startswith(b"-----BEGIN CERTIFICATE-----")
    options = [
        word for name in ("vcek", "ask", "ark") for word in (f"--{name}", str(out / f"{name}.pem"))
    ]
    assert main(["table", "build", "-o", str(again), *options]) == 0
    assert again.read_bytes() == table.read_bytes()


def test_vlek_comes_before_its_asvk_and_is_extracted_under_that_name(
    vectors: Path, tmp_path: Path
) -> None:
    folder = vectors / "vlek-milan-v3"
    table, out = tmp_path / "table", tmp_path / "out"
    options = ["--ask", str(folder / "asvk.der"), "--vlek", str(folder / "vlek.der")]
    assert main(["table", "build", "-o", str(table), *options]) == 0
    assert [entry.guid for entry in CertTable.decode(table.read_bytes())] == [VLEK_GUID, ASK_GUID]
    assert main(["table", "extract", str(table), str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"vlek.der", "asvk.der"}


def test_entries_of_other_guids_are_kept_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blob, table, out = tmp_path / "blob", tmp_path / "table", tmp_path / "out"
    blob.write_bytes(b"anything")
    assert main(["table", "build", "-o", str(table), "--entry", f"{OTHER}={blob}"]) == 0
    capsys.readouterr()
    assert main(["table", "show", str(table), "--json"]) == 0
    shown = documented("table show", capsys.readouterr().out)
    assert [(entry["guid"], entry["size"]) for entry in shown["entries"]] == [(OTHER, 8)]
    assert main(["table", "extract", str(table), str(out)]) == 0
    assert (out / f"{OTHER}.bin").read_bytes() == b"anything"


def test_more_than_a_linux_guest_can_fetch_needs_an_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blob, table = tmp_path / "blob", tmp_path / "table"
    blob.write_bytes(bytes(16384))
    argv = ["table", "build", "-o", str(table), "--entry", f"{OTHER}={blob}"]
    assert main(argv) == 1
    assert "at most 16384" in capsys.readouterr().err
    assert not table.exists()
    assert main([*argv, "--oversize"]) == 0


def test_a_served_file_is_not_replaced_behind_its_lock(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CertFile.publish.__kwdefaults__ or {}, "lock_wait", 0.01)
    blob, table = tmp_path / "blob", tmp_path / "table"
    blob.write_bytes(b"anything")
    table.write_bytes(bytes(24))
    fd = os.open(table, os.O_RDWR)
    try:
        fcntl.fcntl(fd, F_OFD_SETLK, EXCLUSIVE)
        code = main(["table", "build", "-o", str(table), "--entry", f"{OTHER}={blob}"])
    finally:
        os.close(fd)
    assert code == 3
    assert f"pid {os.getpid()}" in capsys.readouterr().err
    assert table.read_bytes() == bytes(24)


def test_lenient_shows_valid_entries_and_still_fails(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table"
    build(table, vectors / "milan", "vcek", "ask", "ark")
    table.write_bytes(table.read_bytes()[:-1])
    capsys.readouterr()
    assert main(["table", "show", str(table)]) == 2
    assert "entry 2 at offset 0x30" in capsys.readouterr().err
    assert main(["table", "show", str(table), "--lenient"]) == 2
    captured = capsys.readouterr()
    assert "vcek" in captured.out
    assert "ark" not in captured.out
    assert "problem: entry 2" in captured.err


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (sound_report(), "an attestation report"),
        (CHAIN["ark"], "a certificate in DER"),
        (b"<!DOCTYPE html>", "an HTML page"),
    ],
)
def test_another_kind_of_file_is_named(
    data: bytes, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "table.bin"
    file.write_bytes(data)
    assert main(["table", "show", str(file)]) == 2
    assert f"found {name}, not a certificate table" in capsys.readouterr().err


def test_a_file_that_is_not_a_certificate_is_not_put_into_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    assert main(["table", "build", "-o", str(tmp_path / "t"), "--vcek", str(bad)]) == 2
    assert "bad.pem" in capsys.readouterr().err


def test_vcek_guid_is_stored_in_rfc_4122_order(vectors: Path, tmp_path: Path) -> None:
    table = tmp_path / "table"
    build(table, vectors / "milan", "vcek")
    assert table.read_bytes()[:16] == VCEK_GUID.bytes
