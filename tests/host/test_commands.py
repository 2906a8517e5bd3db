# SPDX-License-Identifier: Apache-2.0
"""``snpcerts host`` as an operator runs it: real processes, an emulated machine and key server."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from snpcerts.abi.cert_table import EMPTY, CertTable
from snpcerts.endorsement.anchors import Anchor, anchor_from_certificate
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.judging import verify
from snpcerts.verify.verdict import Status
from tests.documented_json import documented

from ..emulated import SNPCERTS, Emulated
from ..sizes import sized
from .site import LOWER, PATIENCE, Lines, Site, key_server, watching

GUESTS = sized(4, 16)


def test_a_new_host_is_checked_synced_and_its_guests_reports_verify(site: Site) -> None:
    checked = documented("host check", site.done("check", "--json", "--online"))
    assert checked["passed"]
    assert {line["check"] for line in checked["checks"]} >= {
        "kernel", "KVM certificate requests", "/dev/sev", "locks", "key server",
    }  # fmt: skip
    missing = site.status()
    assert missing["files"][0]["standing"] == "missing"
    assert not missing["in_step"]
    site.done("sync")
    assert site.attest() == 0
    status = site.status()
    assert status["in_step"]
    assert status["committed_tcb"] is None
    assert status["files"][0]["leaf"]["tcb"] == status["reported_tcb"]
    assert status["files"][0]["leaf"]["hwid"] == status["hwid"]
    text = site.host("status").stdout
    assert "committed TCB  shown only by attestation reports" in text
    assert text.endswith("in step\n")


def test_a_dry_run_prints_the_plan_and_changes_nothing(site: Site) -> None:
    site.done("sync")
    before = site.file.read_bytes()
    text = site.done("set-config", "--reported-tcb", site.lowered(), "--dry-run")
    assert "1. fetch" in text
    assert "SNP_SET_CONFIG" in text
    plan = documented("host commit", site.done("commit", "--dry-run", "--json"))
    assert plan["command"] == "SNP_COMMIT"
    assert any("cannot be undone" in note for note in plan["notes"])
    assert site.file.read_bytes() == before
    assert site.status()["in_step"]


class Guests:
    """The reports that the guests of several VMMs have received so far, one line each."""

    def __init__(self, outcomes: Path, vmms: list[subprocess.Popen[bytes]]) -> None:
        self.outcomes = outcomes
        self.vmms = vmms
        self._read = 0

    def reports(self, each: int) -> None:
        """Wait until every guest has received ``each`` reports that it requested from now on."""
        self._read = self.outcomes.stat().st_size
        lines = Counter[str]()
        # The first report may have been requested before this call.
        while len(lines) < len(self.vmms) or min(lines.values()) < 1 + each:
            with self.outcomes.open() as file:
                file.seek(self._read)
                new = [line for line in iter(file.readline, "") if line.endswith("\n")]
            self._read += sum(map(len, new))
            found = map(json.loads, new)
            lines.update(line["vm"] for line in found if not line["errno"])
            select = selectors.DefaultSelector()
            select.select(0.1)
            select.close()
            assert all(vmm.poll() is None for vmm in self.vmms)


@contextlib.contextmanager
def guests_at_work(site: Site, count: int) -> Iterator[Guests]:
    """VMMs, each with a guest that asks for one report after another."""
    outcomes = site.folder / "outcomes.jsonl"
    outcomes.touch()
    program = [sys.executable, "-P", "-m", "snpcerts.emulator.machine.vmm_program", str(site.file)]
    pause = sized(0.1, 0.5)  # of each guest
    options = ["--requests=1000000", f"--pause={pause}", "--busy-delay=0.1"]
    options.append(f"--outcomes={outcomes}")
    argv = site.emulated.command("host", *options, "--", *program)
    vmms = [subprocess.Popen(argv) for _ in range(count)]
    limit = threading.Timer(10 * PATIENCE, vmms[0].kill)  # after this long, a waiting test fails
    limit.start()
    try:
        yield Guests(outcomes, vmms)
    finally:
        limit.cancel()
        for vmm in vmms:
            vmm.kill()
            vmm.wait()


@pytest.mark.slow
def test_no_report_mismatches_while_the_firmware_is_updated_under_guests(site: Site) -> None:
    """Each report verifies through set-config, load-vlek, the drop of the VLEK, and commit."""
    config = site.folder / "snpcerts.toml"
    config.write_text(f'[[file]]\npath = "{site.file}"\nkind = "vlek"\nwithout_vlek = "vcek"\n')
    options = {"file": "", "config": str(config)}
    site.done("sync", **options)

    with guests_at_work(site, GUESTS) as guests:

        def change(command: str, *arguments: str) -> None:
            said = documented("host commit", site.done(command, *arguments, "--json", **options))
            assert said["done"]
            assert said["in_step"]
            assert said["lock_held_ms"] >= said["firmware_ms"] > 0
            guests.reports(2)  # with the key that is in use now

        guests.reports(2)
        change("set-config", "--reported-tcb", site.lowered())
        made = site.emulated.run("certificates", str(site.folder / "issued"), "--vlek", "CN=cloud")
        assert made.returncode == 0
        issued = site.folder / "issued"
        change("load-vlek", str(issued / "hashstick.bin"), f"--vlek-cert={issued / 'vlek.der'}")
        change("set-config", "--reported-tcb", site.lowered())
        change("set-config", "--reset")
        change("set-config", "--reported-tcb", site.lowered())
        change("commit")
    tally = _judge(site, guests.outcomes)
    assert tally["mismatched"] == 0, tally
    assert tally["vcek"] >= 6 * 2 * GUESTS
    assert tally["vlek"] >= 2 * GUESTS


def _judge(site: Site, outcomes: Path) -> dict[str, int]:
    trusted: tuple[Anchor, ...] = (
        anchor_from_certificate(load_certificate(site.anchor.read_bytes(), "root")),
    )
    tally = dict.fromkeys(("vcek", "vlek", "empty", "busy", "mismatched"), 0)
    for line in map(json.loads, outcomes.read_text().splitlines()):
        if line["errno"]:
            tally["busy"] += 1
            continue
        table = CertTable.decode(base64.b64decode(line["table"]))
        if not table.entries:
            tally["empty"] += 1
            continue
        report = base64.b64decode(line["report"])
        verdict = verify(
            report, Collateral.from_table(table), anchors=trusted, at=datetime.now(UTC)
        )
        if verdict.status is Status.VERIFIED:
            tally[table.entries[0].name] += 1
        else:
            tally["mismatched"] += 1
    return tally


@pytest.mark.parametrize("fault", ["wrong-chip", "wrong-root", "404"])
def test_a_lying_key_server_gets_nothing_published(
    site: Site, emulated: Emulated, fault: str
) -> None:
    with key_server(emulated, fault) as liar:
        made = site.host("sync", kds=liar)
        assert made.returncode == 3, made.stderr
        assert "snpcerts: warning: " in made.stderr
        assert site.file.read_bytes() == EMPTY
        changed = site.host("set-config", "--reported-tcb", site.lowered(), kds=liar)
        assert changed.returncode == 3
        assert "nothing has been changed" in changed.stderr
    site.done("sync")
    assert site.attest() == 0


def test_what_is_cached_works_offline(site: Site) -> None:
    site.done("sync")
    site.file.unlink()
    site.done("sync", "--offline", kds="")
    assert site.attest() == 0


def test_the_watch_repairs_what_was_changed_behind_our_back(site: Site, tmp_path: Path) -> None:
    """Another program lowers the TCB, then commits; the watch warns of drift each time."""
    metrics = tmp_path / "snpcerts.prom"
    with watching(site, f"--metrics-file={metrics}") as process:
        lines = Lines(process)
        lines.until("published")
        for program in (LOWER, "sev.snp_commit()\n"):
            site.change_firmware_without_lock(program)
            drift = lines.until("drift")
            assert drift["level"] == "warning"
            assert "tcb-mismatch" in drift["message"]
            lines.until("published")
            assert site.status()["in_step"]
        process.send_signal(signal.SIGHUP)
        while "configuration reloaded" not in lines.until("started")["message"]:
            continue
        process.send_signal(signal.SIGTERM)
        lines.until("stopped")
        assert process.wait(PATIENCE) == 0
    text = metrics.read_text()
    assert "snpcerts_drift_total 2.0" in text
    assert f'snpcerts_in_step{{file="{site.file}"}} 1.0' in text
    assert 'snpcerts_certificate_fetches_total{result="ok"}' in text
    assert "snpcerts_lock_held_seconds_count" in text
    assert "snpcerts_certificate_expiry_timestamp_seconds" in text


def test_the_service_manager_is_notified_when_no_file_is_wrong(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units that wait for the agent must not have to wait for the key server or the network."""
    site.done("sync")
    site.file.write_bytes(b"something that an editor has left and is no table")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        with watching(site, "--offline", kds="") as process:
            assert manager.recv(1000) == b"READY=1"
            assert site.file.read_bytes() == EMPTY
            notified = {manager.recv(1000).partition(b"=")[0] for _ in range(3)}
            assert notified == {b"STATUS", b"WATCHDOG"}
            process.terminate()
            while manager.recv(1000) != b"STOPPING=1":
                continue
            assert process.wait(PATIENCE) == 0


def test_a_signal_does_not_wait_for_a_slow_key_server(
    site: Site, emulated: Emulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        key_server(emulated, "slow") as slow,
    ):
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with watching(site, kds=slow) as process:
            assert manager.recv(1000) == b"READY=1"
            process.terminate()
            assert manager.recv(1000) == b"STOPPING=1", "must not wait for the round to end"
            assert process.wait(PATIENCE) == 0


def test_two_agents_at_once_end_in_step(site: Site) -> None:
    site.done("sync")
    target = site.lowered()
    commands = [
        site.arguments("set-config", f"--reported-tcb={target}"),
        site.arguments("sync"),
        site.arguments("commit"),
        site.arguments("sync"),
    ]
    running = [
        subprocess.Popen(
            site.emulated.command(*argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for argv in commands
    ]
    for process in running:
        out, err = process.communicate(timeout=PATIENCE)
        # One of the two commands may find that the firmware changed since it made its plan.
        assert process.returncode in (0, 3), out + err
    site.done("sync")
    assert site.attest() == 0


def test_a_full_disk_is_reported_and_leaves_no_wrong_file(site: Site, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k,mode=755", "tmpfs", str(small)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with site.with_new_commands() as site:
            site.done("sync", file=str(small / "certs.bin"))
            with contextlib.suppress(OSError):
                (small / "filler").write_bytes(bytes(1 << 16))
            made = site.host(
                "set-config", "--reported-tcb", site.lowered(), file=str(small / "certs.bin")
            )
            assert made.returncode == 1
            assert "No space left on device" in made.stderr
            site.change_firmware_without_lock(LOWER)
            # The old table can be emptied in place; this may free enough room for a new one.
            metrics = site.folder / "snpcerts.prom"
            argv = ["sync", f"--metrics-file={metrics}"]
            made = site.host(*argv, file=str(small / "certs.bin"))
            assert "DRIFT" in made.stderr
            in_step = 0.0 if made.returncode else 1.0
            written = metrics.read_text()
            assert f'snpcerts_in_step{{file="{small / "certs.bin"}"}} {in_step}' in written
            assert "snpcerts_drift_total 1.0" in written
            status = documented(
                "host status", site.host("status", "--json", file=str(small / "certs.bin")).stdout
            )
            assert status["files"][0]["standing"] == ("empty" if made.returncode else "right")
            (small / "filler").unlink()
            site.done("sync", file=str(small / "certs.bin"))
            status = documented(
                "host status", site.host("status", "--json", file=str(small / "certs.bin")).stdout
            )
            assert status["in_step"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_who_holds_the_lock_is_shown_with_the_vms_name(site: Site) -> None:
    site.done("sync")
    program = (
        "import sys; from snpcerts.certfile.hold import hold\n"
        "with hold(sys.argv[1], shared=True): print('held', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", program, str(site.file), "-name", "guest=web1,debug-threads=on"]
    vmm = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert vmm.stdout is not None
        assert vmm.stdout.readline() == "held\n"
        (lock,) = site.status()["files"][0]["locks"]
        assert (lock["pid"], lock["vm"], lock["exclusive"]) == (vmm.pid, "web1", False)
        assert datetime.fromisoformat(lock["started"]).tzinfo is not None
        assert f"pid {vmm.pid}" in site.host("status").stdout
    finally:
        vmm.kill()
        vmm.communicate()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["set-config"], 2, "no setting to change"),
        (["set-config", "--reset", "--reported-tcb", "bl=1"], 2, "cannot be combined"),
        (["set-config", "--reported-tcb", "bl=300"], 2, "expected components such as"),
        (["set-config", "--reported-tcb", "bl=" + "1" * 5000], 2, "expected components such as"),
        (["set-config", "--reported-tcb", "bl=1,bl=2"], 2, "given twice"),
        (["set-config", "--reported-tcb", "fmc=1"], 2, "no component fmc"),
        (["set-config", "--reported-tcb", "ucode=255"], 1, "above the current TCB"),
        (["load-vlek", "missing", "--vlek-cert", "missing"], 2, "No such file"),
        (["sync", "--interval", "5"], 2, "can only be used with --watch"),
        (["sync", "--file", ""], 2, "--file: expected a path"),
        (["sync", "--product", "turin"], 1, "of 8 bytes on Turin"),
        (["status", "--anchor", "/dev/null"], 2, "/dev/null"),
        (["status", "--config", "missing.toml"], 2, "missing.toml"),
    ],
)
def test_wrong_use_is_reported_in_one_line(
    site: Site, arguments: list[str], code: int, message: str
) -> None:
    made = site.host(arguments[0], *arguments[1:])
    assert made.returncode == code, made.stdout + made.stderr
    assert message in made.stderr
    assert "Traceback" not in made.stderr


def test_without_the_device_the_error_says_what_to_do(tmp_path: Path) -> None:
    if os.path.exists("/dev/sev"):
        pytest.skip("this is an SEV host")
    argv = [*SNPCERTS, "host", "status", "--file", str(tmp_path / "x")]
    made = subprocess.run(argv, capture_output=True, text=True)
    assert made.returncode == 1
    assert "run this on an SEV-SNP host" in made.stderr
    checked = subprocess.run([*argv[:4], "check", *argv[5:]], capture_output=True, text=True)
    assert checked.returncode == 1
    assert "fail  /dev/sev" in checked.stdout
