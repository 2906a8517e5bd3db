# SPDX-License-Identifier: Apache-2.0
"""``host sync --watch`` while the key server throttles, is down, lies, or answers in pieces.

There is one watch for each fault, and all run at the same time, because they mostly wait.
The key servers are in this process, so that their faults can be changed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from snpcerts.abi.cert_table import EMPTY
from snpcerts.abi.product import Product
from snpcerts.emulator.amd.key_server_faults import Fault
from snpcerts.emulator.machine.home import PlatformHome
from snpcerts.emulator.machine.key_server import KeyServer, ProductLine

from ..emulated import Emulated
from ..sizes import sized
from .site import LOWER, PATIENCE, Lines, Site, reset_reported_tcb, seen_by_guest, watching

# Faults that give no usable answer: the client itself repeats the request.
NO_ANSWER = (
    Fault.TOO_MANY,
    Fault.TOO_MANY_SILENT,
    Fault.UNAVAILABLE,
    Fault.REFUSE,
    Fault.CUT,
    Fault.CUT_SILENT,
    Fault.HTML,
)
# Faults that give an answer that the agent refuses: it asks again later.
LIES = (Fault.WRONG_CHIP, Fault.WRONG_TCB, Fault.WRONG_ROOT, Fault.EXPIRED, Fault.NOT_FOUND)
# Faults that leave the answer usable.
HARMLESS = (Fault.SLOW, Fault.CONTENT_TYPE)


@dataclass
class Watched:
    """A watch, and the key server it asks."""

    fault: Fault
    server: KeyServer
    site: Site
    process: subprocess.Popen[str]
    lines: Lines
    metrics: Path

    def metric(self, start: str) -> float:
        found = [line for line in self.metrics.read_text().splitlines() if line.startswith(start)]
        return sum(float(line.split()[-1]) for line in found)

    def has_met_its_fault(self) -> None:
        """Wait until the fault has had its effect."""
        if self.fault in LIES:
            self.lines.until("unavailable")
            return
        # A third request is sent only because the answer to an earlier one was unusable.
        _until(lambda: sum(self.server.requests.values()) >= 3)

    def right(self) -> bool:
        return seen_by_guest(self.site.file, PlatformHome(self.site.emulated.directory)) == "right"

    def looks_again(self) -> None:
        """Wait for two rounds to be over: metrics are written after each."""
        for _ in range(2):
            before = self.written()
            _until(lambda before=before: self.written() != before)  # type: ignore[misc]

    def written(self) -> int:
        """Return the inode of the metrics file; 0 before the first round is over."""
        try:
            return self.metrics.stat().st_ino
        except FileNotFoundError:
            return 0


def _until(true: Callable[[], bool]) -> None:
    tick = threading.Event()
    for _ in range(int(PATIENCE / 0.05)):
        if true():
            return
        tick.wait(0.05)
    raise AssertionError("waited in vain")


@contextlib.contextmanager
def all_watching(
    emulated: Emulated, folder: Path, faults: Sequence[Fault]
) -> Iterator[dict[Fault, Watched]]:
    reset_reported_tcb(emulated)
    with contextlib.ExitStack() as stack:
        found: dict[Fault, Watched] = {}
        for fault in faults:
            home = PlatformHome(emulated.directory)
            server = stack.enter_context(KeyServer.of_homes([home], delay=sized(0.5, 2.0)))
            server.faults.set(fault)
            place = folder / fault.value
            place.mkdir()
            site, metrics = Site(emulated, place, server.url), place / "metrics.prom"
            argv = ["--interval=1", f"--metrics-file={metrics}"]
            process = stack.enter_context(watching(site, *argv, patience=10 * PATIENCE))
            found[fault] = Watched(fault, server, site, process, Lines(process), metrics)
        yield found


@pytest.mark.slow
def test_no_fault_gets_anything_wrong_published_and_all_recover(
    emulated: Emulated, tmp_path: Path
) -> None:
    # Only a full run tries LIES: after an answer that it refuses, the agent waits ten seconds.
    faults = sized((Fault.REFUSE, Fault.CUT), (*NO_ANSWER, *LIES))
    with all_watching(emulated, tmp_path, faults) as watches:
        for each in watches.values():
            each.has_met_its_fault()
            assert each.site.file.read_bytes() == EMPTY, each.fault
        for each in watches.values():
            each.server.faults.clear()
        for each in watches.values():
            each.lines.until("published")
            assert each.right(), each.fault

        # The faults come back. Files that are right stay right: they need no new certificate.
        for each in watches.values():
            each.server.faults.set(each.fault)
        for each in watches.values():
            each.looks_again()
            assert each.right(), each.fault

        # Another program changes the signing key: files must be empty until the faults end.
        emulated_site = next(iter(watches.values())).site
        emulated_site.change_firmware_without_lock(LOWER)
        for each in watches.values():
            assert "tcb-mismatch" in each.lines.until("drift")["message"]
            each.lines.until("emptied")
            assert each.site.file.read_bytes() == EMPTY, each.fault
        for each in watches.values():
            each.server.faults.clear()
        for each in watches.values():
            each.lines.until("published")
            assert each.right(), each.fault
            each.looks_again()
            assert each.metric("snpcerts_in_step{") == 1.0
            assert each.metric("snpcerts_drift_total") == 1.0
        lied = [watches[fault] for fault in faults if fault in LIES]
        assert all(each.metric("snpcerts_failures_total") >= 1 for each in lied)
        for each in (watches[fault] for fault in faults if fault is Fault.TOO_MANY):
            assert each.metric('snpcerts_kds_requests{result="throttled"}') >= 1


@pytest.mark.slow
def test_a_slow_answer_and_one_with_another_content_type_are_used(
    emulated: Emulated, tmp_path: Path
) -> None:
    with all_watching(emulated, tmp_path, HARMLESS) as watches:
        for each in watches.values():
            each.lines.until("published")
            assert each.right(), each.fault


def test_a_revoked_ask_is_withdrawn_and_its_successor_published(
    emulated: Emulated, tmp_path: Path
) -> None:
    reset_reported_tcb(emulated)
    home = PlatformHome(emulated.directory)
    authority, chips = home.authority(), (home.firmware().chip,)
    revoked = (authority.ask.serial_number,)
    with KeyServer.of_homes([home]) as server:
        site = Site(emulated, tmp_path, server.url)
        # Each sync waits only a few seconds for the revocation list, so on a busy machine it may
        # take several syncs to get one.
        _until(lambda: "vcek" in (site.done("sync") and site.status()["revocation_lists"]))
        assert site.status()["revocation_lists"]["vcek"]["next_update"]

        # The ASK is revoked. The cached list is too old now; the key server has no new ASK yet.
        server.lines[Product.MILAN] = ProductLine(authority, chips, revoked)
        os.utime(site.folder / "cache" / "crl" / "Milan" / "vcek.crl", (0, 0))
        made = site.host("sync")
        assert made.returncode == 3
        assert "was revoked" in made.stderr
        assert "DRIFT" not in made.stderr
        assert site.file.read_bytes() == EMPTY
        # Without a network, the agent does not restore the old certificates either.
        assert site.host("sync", "--offline", kds="").returncode == 3
        assert site.file.read_bytes() == EMPTY

        server.lines[Product.MILAN] = ProductLine(authority.with_new_ask(), chips, revoked)
        site.done("sync")
        assert seen_by_guest(site.file, home) == "right"
        assert site.attest() == 0
