# SPDX-License-Identifier: Apache-2.0
"""An independent VMM in C with four vCPUs, and a writer that changes the key."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from snpcerts.abi.cert_table import CertTable
from snpcerts.certfile.file import CertFile
from snpcerts.demo.demo_host import EmulatedHost
from snpcerts.emulator.machine.home import PlatformHome
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.judging import verify
from snpcerts.verify.verdict import Status

from ..emulated import Emulated
from ..sizes import sized

SOURCE = Path(__file__).with_name("vmm.c")
VCPUS = 4
REQUESTS = 1000


def build(folder: Path, *flags: str) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    program = folder / "vmm"
    subprocess.run(
        [compiler, "-O1", "-Wall", "-Werror", *flags, "-o", program, SOURCE, "-lpthread"],
        check=True,
    )
    return program


def run(
    emulated: Emulated, folder: Path, vmm: Path, requests: int, updates: int, seconds: int
) -> list[Status]:
    """Let the VMM's guest make its requests while a writer updates; judge every report."""
    home = PlatformHome(emulated.directory)
    host = EmulatedHost.of(home.firmware(), home.authority())
    file, tables, outcomes = folder / "certs.bin", folder / "tables", folder / "outcomes.jsonl"
    tables.mkdir()
    for tcb, table in host.tables.items():
        (tables / f"{tcb.pack().hex()}.bin").write_bytes(table.encode())
    CertFile(str(file)).publish(host.table())
    argv = ["snpcerts.demo.demo_writer", str(file), str(tables), str(updates), str(seconds), "seed"]
    writer = subprocess.Popen(
        emulated.command("host", "--", sys.executable, "-P", "-m", *argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdin is not None
    writer.stdin.write("go\n")
    writer.stdin.flush()
    per_vcpu = str(requests // VCPUS)
    options = ["--requests", per_vcpu, "--busy-delay", "0.01", "--outcomes", str(outcomes)]
    made = emulated.run("host", *options, "--", str(vmm), str(file), str(VCPUS))
    assert made.returncode == 0, made.stderr
    out, _ = writer.communicate()
    assert writer.returncode == 0
    assert len(out.splitlines()) == updates
    anchors, now = (host.anchor,), datetime.now(UTC)
    verdicts = []
    for line in outcomes.read_text().splitlines():
        outcome = json.loads(line)
        assert outcome["errno"] == 0
        table = CertTable.decode(base64.b64decode(outcome["table"]))
        if table.entries:
            report = base64.b64decode(outcome["report"])
            collateral = Collateral.from_table(table)
            verdicts.append(verify(report, collateral, anchors=anchors, at=now).status)
    return verdicts


def test_every_report_matches_its_table(emulated: Emulated, tmp_path: Path) -> None:
    requests, updates, seconds = sized((240, 10, 2), (REQUESTS, 40, 6))
    verdicts = run(emulated, tmp_path, build(tmp_path), requests, updates, seconds)
    assert verdicts == [Status.VERIFIED] * requests


def test_the_same_vmm_without_its_lock_is_detected(emulated: Emulated, tmp_path: Path) -> None:
    verdicts = run(emulated, tmp_path, build(tmp_path, "-DNO_LOCK"), REQUESTS, 40, 6)
    assert Status.REFUSED in verdicts
    assert Status.VERIFIED in verdicts
