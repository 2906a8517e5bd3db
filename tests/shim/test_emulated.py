# SPDX-License-Identifier: Apache-2.0
"""``snpcerts run`` with a VMM that knows nothing of certificates, on the emulated platform."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
from pathlib import Path

import pytest

from snpcerts.cli.main import main
from snpcerts.vmm.preload import shim_library

from ..emulated import SNPCERTS, Emulated
from .conftest import build
from .soak import problems, soak


@pytest.fixture(scope="module")
def plain_vmm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the VMM."""
    shim_library()  # installed with every compiler
    folder = tmp_path_factory.mktemp("plain_vmm")
    return build(folder / "plain_vmm", Path(__file__).with_name("plain_vmm.c"), "-pthread")


def outcomes_of(
    emulated: Emulated, plain_vmm: Path, tmp_path: Path, certs: Path, *options: str, vcpus: int = 1
) -> tuple[list[dict[str, object]], str]:
    """The guests' answers, and the shim's output."""
    outcomes = tmp_path / "outcomes.jsonl"
    argv = ["host", "--outcomes", str(outcomes), *options, "--", *SNPCERTS]
    argv += ["run", "--certs-filename", str(certs), "--certs-timeout", "20", "--"]
    made = emulated.run(*argv, str(plain_vmm), str(vcpus))
    assert made.returncode == 0, made.stderr
    return [json.loads(line) for line in outcomes.read_text().splitlines()], made.stderr


def test_every_vcpus_report_verifies_with_its_table(
    emulated: Emulated, plain_vmm: Path, tmp_path: Path
) -> None:
    served = emulated.certs / "table.bin"
    lines, said = outcomes_of(
        emulated, plain_vmm, tmp_path, served, "--requests", "3", "--pages", "0", vcpus=4
    )
    assert said == ""
    assert len(lines) == 12
    report, table = tmp_path / "report.bin", tmp_path / "table.bin"
    anchor = str(emulated.certs / "ark.der")
    for line in lines:
        report.write_bytes(base64.b64decode(str(line["report"])))
        table.write_bytes(base64.b64decode(str(line["table"])))
        assert table.read_bytes().startswith(served.read_bytes())
        assert main(["verify", str(report), "--table", str(table), "--anchor", anchor]) == 0
    assert {line["tries"] for line in lines} == {1, 2}, "each vCPU's first buffer must be too small"


@pytest.mark.parametrize("exit_number", ["43", "42"])
def test_a_vmm_that_keeps_requests_in_an_int_is_served(
    emulated: Emulated, tmp_path: Path, exit_number: str
) -> None:
    """QEMU up to 9.1 keeps ioctl requests in an int. The patch series as posted uses exit 42."""
    source = Path(__file__).with_name("plain_vmm.c")
    vmm = build(tmp_path / "int_vmm", source, "-pthread", "-DREQUEST_TYPE=int")
    served = emulated.certs / "table.bin"
    lines, _ = outcomes_of(emulated, vmm, tmp_path, served, "--exit-number", exit_number)
    (table,) = [base64.b64decode(str(line["table"])) for line in lines]
    assert table.startswith(served.read_bytes())


def test_a_missing_file_costs_no_guest_its_report(
    emulated: Emulated, plain_vmm: Path, tmp_path: Path
) -> None:
    lines, said = outcomes_of(
        emulated, plain_vmm, tmp_path, tmp_path / "missing", "--requests", "3"
    )
    assert [line["errno"] for line in lines] == [0, 0, 0]
    assert all(not any(base64.b64decode(str(line["table"]))) for line in lines)
    warning, once = said.splitlines()
    assert warning.startswith("snpcerts: warning: ")
    assert once.startswith("snpcerts shim: ")


@pytest.mark.parametrize("kind", ["pipe", "file", "socket"])
def test_a_vmm_that_allows_its_vcpus_few_calls_is_not_killed(
    emulated: Emulated, tmp_path: Path, kind: str
) -> None:
    """The shim has to report that the file is missing, but may not call poll or write."""
    source = Path(__file__).with_name("plain_vmm.c")
    vmm = build(tmp_path / "cloud-hypervisor", source, "-pthread", "-DFEW_CALLS")
    argv = ["host", "--", *SNPCERTS, "run", "--certs-filename", str(tmp_path / "missing"), "--"]
    argv = emulated.command(*argv, str(vmm), "1", "--seccomp", "false")
    said = tmp_path / "said"
    ours, theirs = socket.socketpair()
    with said.open("wb") as file, ours, theirs:
        where = {"pipe": subprocess.PIPE, "file": file.fileno(), "socket": theirs.fileno()}[kind]
        made = subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=where, timeout=60)
        text = made.stderr or said.read_bytes()
        if kind == "socket":
            text = ours.recv(1 << 16)
    assert made.returncode == 0, text
    assert b"\nsnpcerts shim: " in text
    assert b"missing: guests get no certificates: No such file or directory\n" in text


def test_under_load_with_updates_and_kicks(
    emulated: Emulated,  # skips if there is no front door
    plain_vmm: Path,
    tmp_path: Path,
) -> None:
    """A short run of ``python -m tests.shim.soak``."""
    seen = soak(tmp_path, plain_vmm, seconds=3)
    assert problems(seen) == [], seen
