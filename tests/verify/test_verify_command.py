# SPDX-License-Identifier: Apache-2.0
"""``snpcerts verify`` from files to exit codes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from snpcerts.abi.cert_table import ARK_GUID, ASK_GUID, VCEK_GUID, VLEK_GUID, CertTable, TableEntry
from snpcerts.cli.main import main
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.endorsement.vek import VekKind
from tests.documented_json import documented
from tests.endorsement.small_ca import SmallCa, flipped

CA = SmallCa()
VLEK_CA = SmallCa(kind=VekKind.VLEK)
AT = ("--at", "2025-06-01T12:00:00Z")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in a directory of evidence; return exit code, output and standard error."""
    (tmp_path / "report").write_bytes(CA.report())
    (tmp_path / "root.der").write_bytes(CA.ark.make())
    certs = tmp_path / "certs"
    certs.mkdir()
    for name, recipe in (("vcek", CA.leaf), ("ask", CA.ask), ("ark", CA.ark)):
        (certs / f"{name}.der").write_bytes(recipe.make())
    (tmp_path / "table").write_bytes(table(CA).encode())
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str, str]:
        code = main(["verify", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def table(ca: SmallCa) -> CertTable:
    leaf_guid = VCEK_GUID if ca.kind is VekKind.VCEK else VLEK_GUID
    made = ((leaf_guid, ca.leaf), (ASK_GUID, ca.ask), (ARK_GUID, ca.ark))
    return CertTable(tuple(TableEntry(guid, recipe.make()) for guid, recipe in made))


def test_a_directory_a_table_and_a_table_behind_the_report_serve(run: Run) -> None:
    joined = Path("report").read_bytes() + Path("table").read_bytes() + bytes(100)
    Path("joined").write_bytes(joined)
    for arguments in (
        ("report", "--certs", "certs"),
        ("report", "--table", "table"),
        ("joined",),
    ):
        code, out, err = run(*arguments, "--anchor", "root.der", *AT)
        assert (code, err) == (0, "")
        assert out.startswith("verified, with a root that is not AMD's: 'ARK-Milan TEST'\n")


def test_json_is_the_verdict(run: Run) -> None:
    code, out, _ = run("report", "--certs", "certs", "--anchor", "root.der", *AT, "--json")
    assert code == 0
    assert documented("verify", out)["verdict"] == "verified"
    code, out, _ = run("report", "--certs", "certs", *AT, "--json")
    assert code == 1
    assert [each["code"] for each in documented("verify", out)["reasons"]] == ["ark-untrusted"]


def test_a_refusal_says_so_first_and_lists_reasons(run: Run) -> None:
    Path("report").write_bytes(flipped(CA.report(), 0x90))
    code, out, err = run("report", "--certs", "certs", *AT)
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[0] == "refused: 2 reasons"
    assert lines[1].startswith("  ark-untrusted: ")
    assert lines[2].startswith("  report-signature: ")


def test_the_trusted_root_stands_in_for_a_missing_ark(run: Run) -> None:
    Path("certs/ark.der").unlink()
    assert run("report", "--certs", "certs", "--anchor", "root.der", *AT)[0] == 0
    code, out, _ = run("report", "--certs", "certs", *AT)
    assert code == 1
    assert "ark-missing" in out


def test_pem_files_and_an_asvk_serve(run: Run) -> None:
    certs = Path("certs")
    (certs / "vlek.der").write_bytes(VLEK_CA.leaf.make())
    pem = load_certificate(VLEK_CA.ask.make(), "ASVK").public_bytes(Encoding.PEM)
    (certs / "asvk.pem").write_bytes(pem)
    Path("vlek-report").write_bytes(VLEK_CA.report())
    for report in ("report", "vlek-report"):
        assert run(report, "--certs", "certs", "--anchor", "root.der", *AT)[0] == 0
    (certs / "ask.der").unlink()
    assert run("vlek-report", "--certs", "certs", "--anchor", "root.der", *AT)[0] == 0


def test_garbage_in_a_certificate_file_is_a_refusal(run: Run) -> None:
    Path("certs/ask.der").write_bytes(b"garbage")
    code, out, _ = run("report", "--certs", "certs", "--anchor", "root.der", *AT)
    assert code == 1
    assert "  ask-missing: " in out
    assert "ask.der is the text 'garbage', not a certificate" in out


def test_the_time_decides(run: Run) -> None:
    sound = ("report", "--certs", "certs", "--anchor", "root.der")
    code, out, _ = run(*sound, "--at", "2031-01-01T00:00:00+02:00")
    assert code == 1
    assert "leaf-expired" in out


def _joined() -> None:
    Path("report").write_bytes(CA.report() + Path("table").read_bytes())


@pytest.mark.parametrize(
    ("prepare", "arguments", "said"),
    [
        (None, ("report",), "no certificates"),
        (None, ("report", "--certs", "certs", "--order", "certs,certs"), "--order"),
        (None, ("report", "report", "--table", "table"), "one report"),
        (None, ("report", "--certs", "certs", "--crl", "table"), "revocation list"),
        (None, ("report", "--certs", "certs", "--policy", "table"), "UTF-8"),
        (None, ("report", "--certs", "certs", "--report-data", "xy"), "hexadecimal"),
        (None, ("report", "--certs", "certs", "--min-tcb", "milan:bl=1"), "tee is missing"),
        (None, ("report", "--certs", "certs", "--min-tcb", "rome:bl=1"), "product"),
        (None, ("report", "--offline", "--fetch"), "--offline"),
        (
            None,
            ("report", "--certs", "certs", "--require-crl", "--ignore-crl"),
            "cannot be combined",
        ),
        (None, ("report", "--certs", "nowhere"), "nowhere"),
        (None, ("report", "--certs", "report"), "is an attestation report"),
        (None, ("report", "--table", "nowhere"), "nowhere"),
        (None, ("report", "--table", "root.der"), "certificate table"),
        (None, ("nowhere", "--certs", "certs"), "nowhere"),
        (None, ("certs", "--certs", "certs"), "directory"),
        (None, ("root.der", "--certs", "certs"), "a certificate or"),
        (
            lambda: Path("report").write_bytes(CA.report()[:1183]),
            ("report", "--certs", "certs"),
            "1184",
        ),
        (lambda: Path("report").write_bytes(b""), ("report", "--certs", "certs"), "empty"),
        (lambda: Path("report").write_bytes(CA.report() + b"\1" * 24), ("report",), "table"),
        (_joined, ("report", "--table", "table"), "1184"),
        (None, ("report", "--certs", "certs", "--anchor", "table"), "table"),
        (None, ("report", "--certs", "certs", "--anchor", "certs/ask.der"), "common name"),
        (None, ("report", "--certs", "certs", "--at", "yesterday"), "RFC 3339"),
        (None, ("report", "--certs", "certs", "--at", "2025-06-01T12:00:00"), "time zone"),
    ],
)
def test_unreadable_input_and_wrong_usage_exit_2_with_one_line(
    run: Run, prepare: Callable[[], object] | None, arguments: tuple[str, ...], said: str
) -> None:
    if prepare is not None:
        prepare()
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("snpcerts: ")
    assert err.count("\n") == 1
    assert said in err


def test_hostile_names_cannot_write_to_the_terminal(run: Run) -> None:
    leaf = CA.leaf.but(subject="SEV-VCEK\x1b[2J\r\nverified")
    Path("certs/vcek.der").write_bytes(leaf.make())
    code, out, _ = run("report", "--certs", "certs", *AT)
    assert code == 1
    assert "\x1b" not in out
    assert "\nverified" not in out


def test_the_command_module_imports_no_cryptography() -> None:
    check = "import sys, snpcerts.cli.verify; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
