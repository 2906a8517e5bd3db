# SPDX-License-Identifier: Apache-2.0
"""Measures how long ``host set-config`` and ``host commit`` hold the lock.

The commands are the real ones, each a process behind the front door. They run first without
guests, then with sixteen. Each guest's VMM is also a process behind the front door, and each guest
asks for one report after another. Commands fetch certificates before they lock, so the benchmark
fills the cache in advance. The target: a command holds the lock for at most 50 ms longer than the
firmware's own time.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from bench.compare import Skip
from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.amd.certificates import vcek_of
from snpcerts.emulator.frontdoor import seccomp
from snpcerts.emulator.guest.script import GuestScript
from snpcerts.emulator.machine.enter import host_program
from snpcerts.emulator.machine.home import PlatformHome
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import SnpCertsError
from snpcerts.kds.store import Store
from snpcerts.kds.url import ChainResource, VcekResource

GUESTS = 16
ROUNDS, PAUSE = 10, 0.2  # rounds of two commands; seconds between a guest's requests
TARGET = 50.0  # ms


def main() -> None:
    """Print median and maximum, in milliseconds, of the wait for the lock, of the firmware's time,
    and of the rest of the time for which the lock is held.
    """
    try:
        seccomp.check()
    except SnpCertsError as error:
        raise Skip(str(error)) from None
    print(f"firmware updates, {2 * ROUNDS} commands each")
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(Path(folder))
        bench.command("sync")
        own: dict[int, float] = {}
        for guests in (0, GUESTS):
            with bench.guests(guests) as outcomes:
                figures = [bench.command(*argv) for _ in range(ROUNDS) for argv in bench.updates]
                asked = outcomes.read_text().count("\n")
            own[guests] = _print(guests, figures, asked)
        ratio = own[GUESTS] / own[0]
        print(f"  held minus firmware, ratio of medians with 16 guests and with none: {ratio:.2f}")


class _Bench:
    """A platform, a certificate file, and a cache with the certificates of two TCBs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = PlatformHome(folder / "platform")
        self.home.prepare(Product.MILAN)
        authority, firmware = self.home.authority(), self.home.firmware()
        status = firmware.snp_platform_status()
        current = TcbVersion.unpack(status.current_tcb, firmware.product.tcb_layout)
        lower = replace(current, microcode=current.components()["microcode"] - 1)
        store = Store(folder / "cache")
        store.write(ChainResource(Product.MILAN, VekKind.VCEK), authority.chain_pem())
        for tcb in (current, lower):
            leaf = vcek_of(authority, firmware.chip, tcb).leaf
            store.write(VcekResource(Product.MILAN, firmware.chip.hwid, tcb), leaf)
        (folder / "ark.der").write_bytes(authority.ark.public_bytes(Encoding.DER))
        self.updates = (["set-config", f"--reported-tcb=ucode={lower.microcode}"], ["commit"])

    @property
    def file(self) -> str:
        return str(self.folder / "certs.bin")

    def command(self, name: str, *arguments: str) -> dict[str, Any]:
        options = [f"--file={self.file}", f"--cache={self.folder / 'cache'}", "--offline"]
        options += [f"--anchor={self.folder / 'ark.der'}"]
        form = [] if name == "sync" else ["--json"]
        argv = [sys.executable, "-m", "snpcerts", "host", name, *options, *form, *arguments]
        made = subprocess.run(
            host_program(self.home, argv, GuestScript()), capture_output=True, text=True, check=True
        )
        return {} if name == "sync" else dict(json.loads(made.stdout))

    @contextlib.contextmanager
    def guests(self, count: int) -> Iterator[Path]:
        """Run VMMs whose guests keep asking for reports. Yield the file to which they write a line
        for each report.
        """
        outcomes = self.folder / f"outcomes-{count}.jsonl"
        outcomes.touch()
        script = GuestScript(10**6, pause=PAUSE, busy_delay=PAUSE, outcomes=str(outcomes))
        argv = [sys.executable, "-P", "-m", "snpcerts.emulator.machine.vmm_program", self.file]
        vmms = [subprocess.Popen(host_program(self.home, argv, script)) for _ in range(count)]
        try:
            while count and len(_vms(outcomes)) < count:
                assert all(vmm.poll() is None for vmm in vmms)
            yield outcomes
        finally:
            for vmm in vmms:
                vmm.kill()
                vmm.wait()


def _vms(outcomes: Path) -> set[str]:
    lines = outcomes.read_text().splitlines(keepends=True)
    return {json.loads(line)["vm"] for line in lines if line.endswith("\n")}


def _print(guests: int, figures: list[dict[str, Any]], asked: int) -> float:
    rows = {
        "lock wait": [each["lock_wait_ms"] for each in figures],
        "firmware": [each["firmware_ms"] for each in figures],
        "held minus firmware": [each["lock_held_ms"] - each["firmware_ms"] for each in figures],
    }
    text = ", ".join(
        f"{name} {median(values):.1f} (max {max(values):.1f}) ms" for name, values in rows.items()
    )
    over = sum(value > TARGET for value in rows["held minus firmware"])
    print(f"  {guests:>2} guests, {asked} reports: {text}; over {TARGET:.0f} ms: {over}")
    return float(median(rows["held minus firmware"]))


if __name__ == "__main__":
    main()
