# SPDX-License-Identifier: Apache-2.0
"""A VMM in C that takes every name from the headers of a released kernel.

It is compiled with the headers that ``fetch.sh`` has fetched (``make test-kernel``)
and includes no file of this project. So if it works on the emulated host and under
``snpcerts run``, and passes ``snpcerts conformance``, then all three implement the interface
of that release.
"""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import pytest

from ..emulated import SNPCERTS, Emulated
from . import headers
from .test_numbers import needs_compiler, needs_headers

pytestmark = [needs_compiler, needs_headers]
SOURCE = Path(__file__).with_name("vmm.c")
SHIM = (*SNPCERTS, "run", "--certs-filename")


@pytest.fixture(scope="module", params=headers.releases())
def vmm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The VMM, compiled with the headers of one release."""
    program = tmp_path_factory.mktemp("vmm") / "vmm"
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
    flags += headers.user_headers(headers.releases()[request.param])
    subprocess.run(["gcc", *flags, "-o", str(program), str(SOURCE)], check=True)
    return program


@pytest.mark.parametrize("by", ["itself", "the shim"])
def test_it_passes_every_check(vmm: Path, by: str) -> None:
    argv = [str(vmm), "2", "{certs}"]
    if by == "the shim":
        argv = [*SHIM, "{certs}", "--", str(vmm), "2"]
    made = subprocess.run(
        [*SNPCERTS, "conformance", "--json", "--", *argv],
        capture_output=True,
        text=True,
        timeout=300,
    )
    checks = json.loads(made.stdout)["checks"]
    found = {each["id"]: each["detail"] for each in checks if each["state"] != "passed"}
    assert found.keys() <= {"same-device"}, found  # which needs the right to mount
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize(
    ("by", "exit_number"), [("itself", 43), ("the shim", 43), ("the shim", 42)]
)
def test_its_guest_attests(
    vmm: Path, by: str, exit_number: int, emulated: Emulated, tmp_path: Path
) -> None:
    certs, outcomes = tmp_path / "certs", tmp_path / "outcomes.jsonl"
    assert emulated.run("certificates", str(certs)).returncode == 0
    argv = [str(vmm), "1", str(certs / "table.bin")]
    if by == "the shim":
        argv = [*SHIM, str(certs / "table.bin"), "--", str(vmm), "1"]
    options = ["--requests", "3", "--outcomes", str(outcomes), "--exit-number", str(exit_number)]
    made = emulated.run("host", *options, "--", *argv)
    assert made.returncode == 0, made.stderr
    lines = [json.loads(line) for line in outcomes.read_text().splitlines()]
    assert [line["errno"] for line in lines] == [0, 0, 0]
    for name in ("report", "table"):
        (tmp_path / name).write_bytes(base64.b64decode(lines[0][name]))
    argv = ["--table", str(tmp_path / "table"), "--anchor", str(certs / "ark.der")]
    made = subprocess.run(
        [*SNPCERTS, "verify", str(tmp_path / "report"), *argv], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stdout + made.stderr


def test_its_own_service_knows_no_other_exit(vmm: Path, emulated: Emulated, tmp_path: Path) -> None:
    """The VMM's own service refuses exit 42: the tests above that use it need the released 43."""
    certs = tmp_path / "certs"
    assert emulated.run("certificates", str(certs)).returncode == 0
    argv = ["--requests", "1", "--exit-number", "42", "--", str(vmm), "1"]
    made = emulated.run("host", *argv, str(certs / "table.bin"))
    assert made.returncode == 1
    assert "unknown exit reason 42" in made.stderr
