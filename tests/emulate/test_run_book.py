# SPDX-License-Identifier: Apache-2.0
"""The operators' run book, carried out on an emulated machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from snpcerts.cli.main import main

from ..emulated import SNPCERTS, Emulated
from ..host.site import key_server

UPDATED = "snp=25,ucode=220"


@dataclass
class Laptop:
    """An emulated machine, its key server, and the directory for the agent's files."""

    emulated: Emulated
    server: str
    place: Path

    def host(self, *argv: str, code: int = 0) -> str:
        """Run ``snpcerts host ...`` on the machine."""
        files = ["--file", str(self.place / "certs.bin"), "--cache", str(self.place / "cache")]
        options = [*files, "--anchor", str(self.emulated.certs / "ark.der")]
        if argv[0] != "status":
            options += ["--kds", self.server]
        made = self.emulated.run("host", "--", *SNPCERTS, "host", *argv, *options)
        assert made.returncode == code, f"{argv}: {made.returncode}\n{made.stdout}{made.stderr}"
        return made.stdout + made.stderr

    def status(self, code: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.host("status", "--json", code=code))
        return found

    def machine(self, *argv: str, code: int = 0) -> str:
        """Run ``snpcerts emulate ...``."""
        made = self.emulated.run(*argv)
        assert made.returncode == code, f"{argv}: {made.returncode}\n{made.stdout}{made.stderr}"
        return made.stdout + made.stderr

    def verified_guest(self) -> None:
        """Check that a guest's report verifies with the certificates that came with it."""
        report, table = str(self.place / "report.bin"), str(self.place / "table.bin")
        argv = [*SNPCERTS, "guest", "report", "-o", report, "--table-out", table]
        served = str(self.place / "certs.bin")
        made = self.emulated.run("guest", "--certs", served, "--", *argv)
        assert made.returncode == 0, made.stderr
        anchor = str(self.emulated.certs / "ark.der")
        assert main(["verify", report, "--table", table, "--anchor", anchor]) == 0


@pytest.fixture
def laptop(emulated: Emulated, tmp_path: Path) -> Iterator[Laptop]:
    if not emulated.certs.exists():
        emulated.issue_certificates()
    with key_server(emulated) as url:
        yield Laptop(emulated, url, tmp_path)


def test_an_update_from_load_to_commit_and_the_rollback_that_is_refused(laptop: Laptop) -> None:
    laptop.host("sync")
    before = laptop.status()
    printed = laptop.machine("firmware", "update", "--current", UPDATED)
    assert "current TCB   bootloader=4 tee=0 snp=25 microcode=220\n" in printed
    assert "committed TCB bootloader=4 tee=0 snp=24 microcode=219\n" in printed
    loaded = laptop.status()
    assert loaded["reported_tcb"] == before["reported_tcb"]
    assert (loaded["current_tcb"]["snp"], loaded["current_tcb"]["microcode"]) == (25, 220)
    assert loaded["in_step"], "must stay in step: loading firmware does not change the signing key"
    assert "certificates of the VCEK at bootloader=4 tee=0 snp=25" in laptop.host(
        "commit", "--dry-run"
    )
    laptop.host("commit")
    assert laptop.status()["reported_tcb"]["snp"] == 25
    laptop.verified_guest()
    refused = laptop.machine("firmware", "update", "--current", "snp=24", code=1)
    assert "below the committed firmware" in refused
    assert "below the committed firmware" in laptop.machine("reboot", "--bios", "ucode=219", code=1)

    # After a BIOS update that raises the current TCB, some firmware signs with the VCEK of the
    # current TCB. So the file stays empty until a commit, a proof or set-config --again.
    laptop.machine("reboot", "--bios", "bl=5,snp=26")
    booted = laptop.status(code=1)
    assert (booted["current_tcb"]["bootloader"], booted["current_tcb"]["snp"]) == (5, 26)
    assert booted["reported_tcb"]["snp"] == 25
    assert booted["initialisation"]["boot"] != before["initialisation"]["boot"]
    laptop.host("sync")
    assert "empty, since" in laptop.host("status")
    laptop.host("commit")
    laptop.verified_guest()


def test_a_reboot_takes_what_was_not_committed(laptop: Laptop) -> None:
    laptop.host("commit")
    start = laptop.status()
    laptop.machine("firmware", "update", "--current", "bl=9")
    laptop.host("set-config", "--mask-chip-id")
    assert laptop.status()["mask_chip_id"]
    laptop.machine("reboot")
    after = laptop.status(code=1)
    assert after["current_tcb"] == start["current_tcb"]
    assert not after["mask_chip_id"]
    laptop.host("sync")
    laptop.verified_guest()


def test_a_commit_drops_the_vlek(laptop: Laptop) -> None:
    laptop.machine("certificates", str(laptop.place / "csp"), "--vlek", "A_CSP")
    certs = laptop.place / "csp"
    laptop.host("sync")
    loaded = [str(certs / "hashstick.bin"), "--vlek-cert", str(certs / "vlek.der")]
    laptop.host("load-vlek", *loaded)
    assert laptop.status()["signing_key"] == "vlek"
    said = laptop.host("status")
    assert "get no certificates" in said
    assert "empty, since" in said
    laptop.machine("firmware", "update", "--current", "tee=1")
    laptop.host("commit")
    after = laptop.status()
    assert (after["vlek_loaded"], after["signing_key"]) == (False, "vcek")
    laptop.verified_guest()


def firmware_of(emulated: Emulated) -> list[str]:
    """Return what ``emulate status`` prints, without VMs: another test's VM may still be ending."""
    lines = emulated.run("status").stdout.splitlines()
    return [line for line in lines if not line.lstrip().startswith("VM ")]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["firmware", "update", "--current", "fmc=1"], "has no component fmc"),
        (["firmware", "update", "--current", "snp=1,snp=2"], "twice"),
        (["firmware", "update", "--current", "snp=30", "--snp", "31"], "already sets"),
        (["reboot", "--bios", "snp=300"], "expected components"),
        (["reboot", "--bios", "snp=30", "--version", "1.2"], "three numbers"),
    ],
)
def test_what_is_mistyped_changes_nothing(emulated: Emulated, argv: list[str], said: str) -> None:
    before = firmware_of(emulated)
    made = emulated.run(*argv)
    assert (made.returncode, said in made.stderr) == (2, True), made.stderr
    assert firmware_of(emulated) == before
