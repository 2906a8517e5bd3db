# SPDX-License-Identifier: Apache-2.0
"""Untrusted text reaches terminal, log and service manager as one harmless line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.cert_table import VCEK_GUID, CertTable, TableEntry
from snpcerts.abi.product import Product
from snpcerts.certfile.file import CertFile
from snpcerts.certfile.holders import holders_of
from snpcerts.certfile.writer import LockHeldError
from snpcerts.cli.main import main
from snpcerts.errors import FormatError, RefusedError, SnpCertsError
from snpcerts.host import host_check
from snpcerts.host.config import Config, FileConfig
from snpcerts.host.event import Event, EventKind
from snpcerts.host.log import json_log, text_log
from snpcerts.kds.client import KdsClient
from snpcerts.kds.retry import RetryPolicy
from snpcerts.printable import printable, printable_lines

# Clears the screen, starts a line that looks like ours, sets the title, reverses the text.
HOSTILE = "x\x1b[2J\nsnpcerts: in step\r\x1b]0;t\x07\u202e\x9b31m"


def harmless(text: str, lines: int | None = None) -> None:
    """Check that there is no control character except our own line breaks."""
    for line in text.split("\n"):
        assert line.isprintable(), line
        assert not line.startswith("snpcerts: in step")
    if lines is not None:
        assert len(text.splitlines()) == lines, text


@given(st.text())
def test_any_text_becomes_one_printable_line(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown, "printable text must stay as it is"
    if text.isprintable():
        assert shown == text
    assert all(line.isprintable() for line in printable_lines(text).split("\n"))


def test_a_long_text_is_cut() -> None:
    assert printable("x" * 100, 10) == "x" * 10 + "..."


def test_every_error_is_one_line() -> None:
    for error in (
        RefusedError(HOSTILE, hint=HOSTILE),
        FormatError(HOSTILE, HOSTILE, field=HOSTILE),
        LockHeldError(HOSTILE, 1, (HOSTILE,)),
    ):
        for text in (str(error), error.message, error.hint or "", *map(str, error.args)):
            harmless(text, 1 if text else 0)
        assert "\\x1b[2J\\n" in str(error), "nothing is hidden"


def test_events_are_one_line_in_either_log() -> None:
    said: list[str] = []
    for listener in (text_log(said.append), json_log(said.append)):
        listener(Event(EventKind.FAILED, HOSTILE, HOSTILE))
    for line in said:
        harmless(line, 1)
    assert json.loads(said[1])["message"] == printable(HOSTILE)


@contextmanager
def holder(file: Path) -> Iterator[int]:
    program = (
        "import sys; from snpcerts.certfile.hold import hold\n"
        "with hold(sys.argv[1], shared=True): print('held', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", program, str(file), "-name", f"guest={HOSTILE},debug=on"]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process.pid
    finally:
        process.communicate("")


def test_a_lock_holders_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "certs.bin"
    table = CertTable((TableEntry(VCEK_GUID, b"certificate"),))
    CertFile(str(file)).publish(table)
    with holder(file) as pid:
        (found,) = holders_of(str(file))
        for text in (str(found), found.command, found.vm or ""):
            harmless(text, 1)
            assert "\\x1b[2J\\n" in text or text == found.command
        with pytest.raises(LockHeldError) as raised:
            CertFile(str(file)).publish(table, lock_wait=0.01)
        harmless(str(raised.value), 1)
        assert main(["lock", str(file)]) == 3
        err = capsys.readouterr().err
        harmless(err, 1)
        assert f"pid {pid}" in err


def hostile_certificate() -> bytes:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOSTILE[:60])])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA384())
        .public_bytes(Encoding.DER)
    )


def test_names_in_certificates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.bin"
    table.write_bytes(CertTable((TableEntry(VCEK_GUID, hostile_certificate()),)).encode())
    assert main(["table", "show", str(table)]) == 0
    out = capsys.readouterr().out
    harmless(out, 2)
    assert "x\\x1b[2J\\nsnpcerts" in out
    assert main(["table", "show", "--json", str(table)]) == 0
    harmless(capsys.readouterr().out, 1)


def test_names_of_files(vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The evidence is in a directory that an attacker has filled."""
    name = HOSTILE.replace("/", "")
    folder = tmp_path / name
    folder.mkdir()
    (folder / "report.bin").write_bytes(b"no report" * 200)
    (folder / name).write_bytes((vectors / "milan" / "ark.der").read_bytes())
    for argv in (
        ["verify", str(folder / "report.bin")],
        ["verify", str(folder / "report.bin"), str(folder / name)],
        ["report", "show", str(folder / name)],
        ["table", "show", str(folder / name)],
        ["table", "show", str(folder / "missing")],
        ["host", "status", "--config", str(folder / "missing")],
        ["run", "--certs-filename", str(folder / name), "--print-environment"],
        ["run", "--certs-filename", "x", str(folder / name)],
    ):
        assert main(argv) != 0
        said = capsys.readouterr()
        harmless(said.out)
        harmless(said.err)
    for line in host_check.files(Config(files=(FileConfig(str(folder / "no" / "certs.bin")),))):
        harmless(str(line), 1)


@pytest.mark.parametrize("status", [302, 503])
def test_what_a_key_server_says(tmp_path: Path, status: int) -> None:
    """Status line, header and body are hostile; the error and the notices must be harmless."""
    import http.server
    import threading

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status, "found\x1b[2J")
            self.send_header("Location", "http://other.example/\x1b[2J\x9b31m")
            self.end_headers()
            self.wfile.write(HOSTILE.encode())

        def log_message(self, *arguments: object) -> None:
            del arguments

    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    notices: list[str] = []
    try:
        policy = RetryPolicy(attempts=2, budget=30, first_wait=0.01)
        client = KdsClient(
            f"http://127.0.0.1:{server.server_address[1]}", policy=policy, notice=notices.append
        )
        from snpcerts.endorsement.vek import VekKind
        from snpcerts.kds.url import ChainResource

        with pytest.raises(SnpCertsError) as raised:
            client.get(ChainResource(Product.MILAN, VekKind.VCEK), lambda body: body)
        harmless(str(raised.value), 1)
        assert notices, "the wait for the second attempt must be announced"
        for notice in notices:
            harmless(notice, 1)
        client.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_vmms_last_words(tmp_path: Path) -> None:
    """A check that a VMM fails quotes the VMM's output."""

    program = f"import sys; sys.stderr.write({HOSTILE!r}); sys.exit(1)"
    made = subprocess.run(
        [
            *(sys.executable, "-m", "snpcerts", "conformance", "--only=vm-starts", "--"),
            *(sys.executable, "-c", program, "{certs}"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=os.environ,
    )
    harmless(made.stdout)
    harmless(made.stderr)
    assert ": x\\x1b[2J\\nsnpcerts: in step" in made.stdout, "must quote the VMM on one line"


def test_what_was_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Usage errors quote arguments, and commands print the names of files that they write."""
    import click._compat

    # Print as to a terminal, where click does not remove escape sequences.
    monkeypatch.setattr(click.utils, "should_strip_ansi", lambda *_: False)
    folder = tmp_path / HOSTILE.replace("/", "")
    folder.mkdir()
    table, out = str(folder / "table.bin"), str(folder / "out")
    Path(table).write_bytes(CertTable((TableEntry(VCEK_GUID, hostile_certificate()),)).encode())
    for argv, code in (
        (["table", "show", "x", HOSTILE], 2),
        (["host", "status", HOSTILE, HOSTILE], 2),
        ([HOSTILE], 2),
        (["verify", f"--{HOSTILE}"], 2),
        (["table", "show", table], 0),
        (["table", "extract", table, out], 0),
        (["table", "build", "-o", f"{out}.bin", "--vcek", f"{out}/vcek.der"], 1),
        (["lock", "--shared", "--seconds", "0.01", table], 0),
        (["kds", "show", "--cache", out], 0),
        (["emulate", "--platform", f"{out}/p", "certificates", f"{out}/c"], 0),
    ):
        assert main(argv) == code
        said = capsys.readouterr()
        harmless(said.out)
        harmless(said.err)
