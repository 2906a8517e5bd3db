# SPDX-License-Identifier: Apache-2.0
"""``snpcerts emulate --firmware`` and ``emulate firmware`` as an operator runs them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snpcerts.abi.product import Product
from snpcerts.emulator.psp.choices import choices_of
from tests.documented_json import documented
from tests.emulated import SNPCERTS, Emulated
from tests.forked_commands import Commands
from tests.keys import prepare_platform

LOWER = (
    "from snpcerts.abi.psp import SnpConfig\n"
    "from snpcerts.host.sev import Sev\n"
    "with Sev() as sev:\n"
    "    tcb = bytearray(sev.snp_platform_status().reported_tcb)\n"
    "    tcb[6] -= 1\n"
    "    sev.snp_set_config(SnpConfig(reported_tcb=bytes(tcb), flags=1))\n"
)
MITIGATIONS = (
    "import os\n"
    "folder = '/sys/firmware/sev/vulnerabilities'\n"
    "print(os.path.isdir(folder))\n"
    "for name in ('supported', 'verified'): print(open(f'{folder}/{name}_mitigations').read())\n"
)


Prepare = Callable[..., Emulated]


@pytest.fixture
def prepared(forked: Commands) -> Iterator[Prepare]:
    """Makes platforms, whose servers run until the test ends."""
    with contextlib.ExitStack() as stack:

        def prepare(directory: Path, product: Product = Product.MILAN) -> Emulated:
            prepare_platform(directory, product)
            emulated = Emulated(directory, directory / "certs", forked)
            stack.enter_context(emulated.in_use())
            return emulated

        yield prepare


def made(directory: Path, *options: str) -> Emulated:
    command = [*SNPCERTS, "emulate", "--platform", str(directory), *options, "status"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return Emulated(directory, directory / "certs")


def status(emulated: Emulated) -> dict[str, object]:
    answer = documented("emulate status", emulated.run("status", "--json").stdout)
    assert isinstance(answer, dict)
    return answer


@pytest.mark.parametrize(
    ("played", "keeps"), [("genoa-1.55.25", False), ("documented", True), ("observed-2022", True)]
)
def test_a_platform_keeps_the_firmware_it_was_made_with(
    tmp_path: Path, forked: Commands, played: str, keeps: bool
) -> None:
    """The firmware decides whether a reload keeps the reported TCB's VCEK; no ioctl shows it."""
    if played == "documented":
        emulated = made(tmp_path, "--product", "genoa", "--firmware", played)
    else:
        prepare_platform(tmp_path, Product.GENOA, choices_of(played))
        emulated = Emulated(tmp_path, tmp_path / "certs", forked)
    before = status(emulated)
    assert before["firmware"] == played
    lowered = emulated.python(["host"], LOWER)
    assert lowered.returncode == 0, lowered.stderr
    reloaded = emulated.run("firmware", "reload")
    assert reloaded.returncode == 0, reloaded.stderr
    after = status(emulated)
    assert after["reported_tcb"] != after["current_tcb"] == before["current_tcb"]
    assert (after["vcek_tcb"] == after["reported_tcb"]) is keeps
    assert (after["vcek_tcb"] == after["current_tcb"]) is not keeps
    other = {"documented": "genoa-1.55.25"}.get(played, "documented")
    refused = subprocess.run(
        [*SNPCERTS, "emulate", "--platform", str(tmp_path), "--firmware", other, "status"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert refused.returncode == 2
    assert f"has firmware {played}, not {other}" in refused.stderr


def test_an_update_moves_current_and_a_commit_the_rest(tmp_path: Path, prepared: Prepare) -> None:
    emulated = prepared(tmp_path)
    before = status(emulated)
    updated = emulated.run("firmware", "update", "--snp", "25", "--version", "1.55.30")
    assert updated.returncode == 0, updated.stderr
    after = status(emulated)
    assert after["version"] == "1.55.30"
    assert after["current_tcb"] == "04000000000019db" != before["current_tcb"]
    assert after["committed_tcb"] == after["reported_tcb"] == before["current_tcb"]
    commit = "from snpcerts.host.sev import Sev\nwith Sev() as sev: sev.snp_commit()\n"
    assert emulated.python(["host"], commit).returncode == 0
    assert status(emulated)["reported_tcb"] == after["current_tcb"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["update", "--snp", "1"], 1, "INVALID_CONFIG"),
        (["update", "--fmc", "1"], 2, "TCB has no component fmc"),
        (["update", "--version", "1.x.3"], 2, "expected an integer"),
        (["update", "--version", "1.2"], 2, "three numbers"),
        (["update", "--version", "1.2.999"], 2, "three numbers"),
        (["update", "--mitigations", "-1"], 2, "64-bit"),
        (["verify-mitigation", "1"], 1, "INVALID_COMMAND"),
        (["verify-mitigation", "one"], 2, "expected an integer"),
    ],
)
def test_wrong_orders_are_reported_in_one_line(
    emulated: Emulated, arguments: list[str], code: int, message: str
) -> None:
    ran = emulated.run("firmware", *arguments)
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.returncode == code


def test_a_reload_waits_for_the_last_vm(emulated: Emulated) -> None:
    emulated.issue_certificates()
    program = [sys.executable, "-P", "-m", "snpcerts.emulator.machine.vmm_program"]
    argv = emulated.command("host", "--serve", "--", *program, str(emulated.certs / "table.bin"))
    with subprocess.Popen(argv) as vmm:
        try:
            while not status(emulated)["vms"]:
                assert vmm.poll() is None
            refused = emulated.run("firmware", "reload")
        finally:
            vmm.kill()
    assert refused.returncode == 1
    assert "kvm_amd is in use by vm-" in refused.stderr


def test_a_host_whose_firmware_knows_mitigations_shows_them_in_sysfs(
    tmp_path: Path, prepared: Prepare
) -> None:
    emulated = prepared(tmp_path / "turin", Product.TURIN)
    shown = emulated.python(["host"], MITIGATIONS).stdout.split()
    assert shown == ["True", "0x3f", "0x3f"]
    assert emulated.run("firmware", "update", "--mitigations", "0x7f").returncode == 0
    assert emulated.python(["host"], MITIGATIONS).stdout.split() == ["True", "0x7f", "0x3f"]
    assert emulated.run("firmware", "verify-mitigation", "0x40").returncode == 0
    assert emulated.python(["host"], MITIGATIONS).stdout.split() == ["True", "0x7f", "0x7f"]
    older = prepared(tmp_path / "milan").python(["host"], MITIGATIONS)
    assert older.returncode != 0
    assert older.stdout.split() == ["False"]


def test_the_agent_shows_the_mitigations_in_status_and_metrics(
    tmp_path: Path, prepared: Prepare
) -> None:
    emulated = prepared(tmp_path / "turin", Product.TURIN)
    assert emulated.run("firmware", "update", "--mitigations", "0x7f").returncode == 0
    files = ["--file", str(tmp_path / "certs.bin"), "--cache", str(tmp_path / "cache"), "--offline"]
    host = ["host", "--", *SNPCERTS, "host"]
    shown = emulated.run(*host, "status", "--json", *files)
    found = documented("host status", shown.stdout)["mitigations"]
    assert found == {"supported": "0x7f", "verified": "0x3f"}
    assert (
        "supported 0x7f, verified 0x3f, unverified 0x40"
        in emulated.run(*host, "status", *files).stdout
    )
    figures = tmp_path / "metrics.prom"
    emulated.run(*host, "sync", *files, "--metrics-file", str(figures))
    text = figures.read_text()
    for bit, state, value in ((5, "verified", 1), (6, "supported", 1), (6, "verified", 0)):
        assert f'snpcerts_mitigation{{bit="{bit}",state="{state}"}} {value:.1f}' in text


def test_the_rows_are_shown_with_their_sources() -> None:
    argv = [*SNPCERTS, "emulate", "firmware", "rows"]
    shown = subprocess.run([*argv, "--json"], capture_output=True, text=True, timeout=60)
    table = documented("emulate firmware rows", shown.stdout)
    assert table["default"] == "documented"
    for row in table["rows"]:
        assert set(row["answers"]) == {"genoa-1.55.25", "documented", "observed-2022"}
    plain = subprocess.run(argv, capture_output=True, text=True, timeout=60).stdout
    assert all(row["question"] in plain for row in table["rows"])
