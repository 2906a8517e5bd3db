# SPDX-License-Identifier: Apache-2.0
"""The client of ``/dev/sev-guest`` against the emulated device, by real system calls."""

from __future__ import annotations

from pathlib import Path

import pytest

from snpcerts.cli.main import main
from snpcerts.errors import RefusedError
from snpcerts.guest.dev_sev_guest import SevGuest

from ..emulated import SNPCERTS, Emulated

PREAMBLE = """
from snpcerts.abi.guest_message import KeySelect
from snpcerts.errors import SnpCertsError
from snpcerts.guest.dev_sev_guest import SevGuest
guest = SevGuest()
"""


def run(platform: Emulated, certs: Path, program: str) -> list[str]:
    made = platform.python(["guest", "--certs", str(certs)], PREAMBLE + program)
    assert made.returncode == 0, made.stderr
    return made.stdout.splitlines()


def test_an_empty_table_means_no_certificates(emulated: Emulated, tmp_path: Path) -> None:
    empty = tmp_path / "empty.bin"
    empty.write_bytes(bytes(24))
    program = "r = guest.extended_report(bytes(64)); print(len(r.report), len(r.certificates()))"
    assert run(emulated, empty, program) == ["1184 0"]


def test_a_table_too_large_for_linux_is_an_error_and_keeps_the_key(
    emulated: Emulated,
    tmp_path: Path,
) -> None:
    large = tmp_path / "large.bin"
    large.write_bytes(b"\x01" * 16385)
    program = """
try:
    guest.extended_report(bytes(64))
except SnpCertsError as error:
    print(error)
print(len(guest.report(bytes(64))))
"""
    first, second = run(emulated, large, program)
    assert "needs 20480 bytes; a Linux guest accepts at most 16384" in first
    assert second == "1184"


def test_a_missing_signing_key_is_an_error_and_keeps_the_key(emulated: Emulated) -> None:
    program = """
try:
    guest.report(bytes(64), key=KeySelect.VLEK)
except SnpCertsError as error:
    print(error)
print(len(guest.report(bytes(64), key=KeySelect.VCEK)))
"""
    first, second = run(emulated, emulated.certs / "table.bin", program)
    assert "0x27" in first
    assert second == "1184"


@pytest.mark.parametrize("data", ["zz", "00" * 65])
def test_wrong_report_data_is_wrong_usage(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r"
    assert main(["guest", "report", "-o", str(out), "--report-data", data]) == 2
    assert "--report-data" in capsys.readouterr().err
    assert not out.exists()


def test_outside_a_guest_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["guest", "report", "-o", str(tmp_path / "r"), "--device", str(tmp_path / "none")]
    assert main(argv) == 1
    assert "inside an SEV-SNP guest" in capsys.readouterr().err
    with pytest.raises(RefusedError):
        SevGuest(str(tmp_path / "none"))


def test_a_malformed_table_from_the_host_is_an_error(emulated: Emulated, tmp_path: Path) -> None:
    nonsense, out = tmp_path / "nonsense.bin", tmp_path / "r"
    nonsense.write_bytes(b"\x01" * 100)
    argv = [*SNPCERTS, "guest", "report", "-o", str(out), "--table-out", str(tmp_path / "t")]
    made = emulated.run("guest", "--certs", str(nonsense), "--", *argv)
    assert made.returncode == 2
    assert "certificate table, entry" in made.stderr
    assert not out.exists()
