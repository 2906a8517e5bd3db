# SPDX-License-Identifier: Apache-2.0
"""Stock QEMU on the emulated platform: an SNP host without a real KVM."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from snpcerts.emulator.frontdoor import seccomp

from ..emulated_hosts import EVERY_HOST, HOSTS
from ..sizes import sized
from .rig import LIMIT, Qemu

SNPCERTS = (sys.executable, "-m", "snpcerts")


def snpcerts(qemu: Qemu, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command with the libraries that the unpacked QEMU needs."""
    return subprocess.run(
        qemu.started([*SNPCERTS, *map(str, arguments)]),
        capture_output=True,
        text=True,
        env=qemu.environment(fake=False),
        timeout=20 * LIMIT,  # 57 checks, on a busy machine
    )


@pytest.mark.parametrize(("kernel", "firmware"), HOSTS)
def test_qemu_with_the_shim_passes_every_check_for_vmms(
    qemu: Qemu, kernel: str, firmware: str
) -> None:
    seccomp.check()
    vmm = qemu.snp_command(qemu.tools.rom(1, 1), "-smp", "2")
    run = [*SNPCERTS, "run", "--certs-filename", "{certs}", "--"]
    options = ["--json", "--timeout", "60", "--kernel", kernel, "--firmware", firmware]
    made = snpcerts(qemu, "conformance", *options, "--", *run, *vmm)
    checks = json.loads(made.stdout)["checks"]
    found = {each["id"]: each["detail"] for each in checks if each["state"] != "passed"}
    assert found.keys() <= {"same-device"}, found  # which wants the right to mount
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize("exit_number", [43, 42])
def test_its_guest_attests_with_the_certificates_of_the_file(
    qemu: Qemu, tmp_path: Path, exit_number: int
) -> None:
    attests(qemu, tmp_path, [], ["--exit-number", str(exit_number)])


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "firmware"), sized(HOSTS, EVERY_HOST))
def test_its_guest_attests_on_every_kernel_and_firmware(
    qemu: Qemu, tmp_path: Path, kernel: str, firmware: str
) -> None:
    attests(qemu, tmp_path, ["--firmware", firmware], ["--kernel", kernel])


def attests(
    qemu: Qemu, tmp_path: Path, machine: Sequence[str], host_options: Sequence[str]
) -> None:
    """Let a guest request three reports, and verify the first with the table that came with it."""
    platform, certs = tmp_path / "platform", tmp_path / "certs"
    outcomes = tmp_path / "outcomes.jsonl"
    emulate = ["emulate", "--platform", str(platform), *machine]
    made = snpcerts(qemu, *emulate, "certificates", certs)
    assert made.returncode == 0, made.stderr
    run = [*SNPCERTS, "run", "--certs-filename", str(certs / "table.bin"), "--"]
    # The emulated guest ends with a shutdown, after which QEMU 11 would start it again.
    vmm = qemu.snp_command(qemu.tools.rom(1, 1), "-no-reboot")
    options = ["--requests", "3", "--outcomes", str(outcomes), *host_options]
    made = snpcerts(qemu, *emulate, "host", *options, "--", *run, *vmm)
    assert made.returncode == 0, made.stderr
    verified(outcomes, certs, tmp_path)


def verified(outcomes: Path, certs: Path, folder: Path) -> None:
    """Check that three requests succeeded, and that the first report verifies with its table."""
    lines = [json.loads(line) for line in outcomes.read_text().splitlines()]
    assert [line["errno"] for line in lines] == [0, 0, 0]
    for name in ("report", "table"):
        (folder / name).write_bytes(base64.b64decode(lines[0][name]))
    argv = ["--table", str(folder / "table"), "--anchor", str(certs / "ark.der")]
    made = subprocess.run(
        [*SNPCERTS, "verify", str(folder / "report"), *argv], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stdout + made.stderr
