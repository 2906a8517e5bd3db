# SPDX-License-Identifier: Apache-2.0
"""A host as operators use it: real commands, an emulated machine and key server."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from snpcerts.abi.cert_table import VCEK_GUID, VLEK_GUID, CertTable
from snpcerts.cli.main import main
from snpcerts.emulator.machine.home import PlatformHome
from tests.documented_json import documented
from tests.x509_library import by_the_library

from ..emulated import SNPCERTS, Emulated
from ..forked_commands import HOST, Commands

PATIENCE = 60.0  # seconds that anything may take on a slow machine

_PYTHON = ("host", "--", *SNPCERTS)

# A program for Site.change_firmware_without_lock.
LOWER = (
    "tcb = bytearray(sev.snp_platform_status().reported_tcb); tcb[7] -= 1\n"
    "sev.snp_set_config(SnpConfig(reported_tcb=bytes(tcb)))\n"
)
RESET = "sev.snp_set_config(SnpConfig())\n"


@dataclass
class Site:
    """A host, its certificate file, and a key server that may be faulty."""

    emulated: Emulated
    folder: Path
    url: str
    commands: Commands | None = None  # they are forked here; without it, each starts Python

    @property
    def file(self) -> Path:
        return self.folder / "certs.bin"

    @property
    def anchor(self) -> Path:
        return self.emulated.certs / "ark.der"

    def arguments(self, command: str, *arguments: str, **options: str) -> list[str]:
        chosen = {
            "file": str(self.file),
            "cache": str(self.folder / "cache"),
            "vlek-certs": str(self.folder / "vlek"),
            "anchor": str(self.anchor),
            "kds": self.url,
        } | {name.replace("_", "-"): value for name, value in options.items()}
        listed = [f"--{name}={value}" for name, value in chosen.items() if value]
        return [*_PYTHON, "host", command, *listed, *arguments]

    def host(
        self, command: str, *arguments: str, **options: str
    ) -> subprocess.CompletedProcess[str]:
        return self.run(self.arguments(command, *arguments, **options))

    def run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run what :meth:`arguments` has returned."""
        if self.commands is None:
            return self.emulated.run(*arguments)
        return self.commands.completed(*arguments[len(_PYTHON) :])

    @contextlib.contextmanager
    def with_new_commands(self) -> Iterator[Site]:
        """Yield this site with commands that see what has been mounted by now."""
        argv = self.emulated.command("host", "--")
        with contextlib.closing(Commands(self.folder / "commands", HOST, *argv)) as commands:
            commands.ready()
            yield replace(self, commands=commands)

    def done(self, command: str, *arguments: str, **options: str) -> str:
        made = self.host(command, *arguments, **options)
        assert made.returncode == 0, made.stdout + made.stderr
        return made.stdout

    def status(self) -> Any:
        return documented("host status", self.host("status", "--json", kds="", offline="").stdout)

    def change_firmware_without_lock(self, program: str) -> None:
        made = self.emulated.python(
            ["host"],
            "from snpcerts.abi.psp import SnpConfig\n"
            "from snpcerts.host.sev import Sev\n"
            "sev = Sev()\n" + program,
        )
        assert made.returncode == 0, made.stderr

    def lowered(self, by: int = 1) -> str:
        """Return a value for --reported-tcb that is below the reported TCB."""
        status = self.status()
        return f"ucode={status['reported_tcb']['microcode'] - by}"

    def attest(self) -> int:
        """A guest asks for a report, and a verifier judges it with the table that came with it."""
        report, table = self.folder / "report.bin", self.folder / "table.bin"
        argv = [*SNPCERTS, "guest", "report", "-o", str(report), "--table-out", str(table)]
        made = self.emulated.run("guest", "--certs", str(self.file), "--", *argv)
        assert made.returncode == 0, made.stderr
        return main(["verify", str(report), "--table", str(table), "--anchor", str(self.anchor)])


def reset_reported_tcb(emulated: Emulated) -> None:
    """Set the reported TCB back to the current one, should an earlier test have lowered it.

    The agent of a new test remembers no key of this host, and cannot know which VCEK
    signs while the two differ.
    """
    state = PlatformHome(emulated.directory).firmware().state
    if state.reported != state.current:
        Site(emulated, emulated.directory, "").change_firmware_without_lock(RESET)


def seen_by_guest(path: Path, home: PlatformHome) -> str:
    """Return what a guest gets: ``empty``, ``right`` or ``wrong``, judged by the keys alone."""
    table = CertTable.decode(path.read_bytes()) if path.exists() else CertTable()
    if not table.entries:
        return "empty"
    leaves = [table.get(guid) for guid in (VCEK_GUID, VLEK_GUID)]
    keys = [by_the_library(leaf).public_key() for leaf in leaves if leaf]
    return "right" if keys == [home.firmware().signing_public_key()] else "wrong"


@contextlib.contextmanager
def key_server(emulated: Emulated, *faults: str) -> Iterator[str]:
    """Run the platform's key server; yield its URL."""
    options = [word for fault in faults for word in ("--fault", fault)]
    argv = emulated.command("key-server", *options)
    if emulated.commands is not None:
        running, out = emulated.commands.piped(*argv[len(SNPCERTS) :])
        try:
            yield out.readline().split()[-1]
        finally:
            running.kill(signal.SIGTERM)
            running.wait()
            out.close()
        return
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().split()[-1]
        finally:
            server.terminate()


class Lines:
    """The JSON lines that a process prints."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.seen: list[dict[str, Any]] = []

    def until(self, event: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            line: dict[str, Any] = documented("host sync", text)
            self.seen.append(line)
            if line["event"] == event:
                return line
        raise AssertionError(f"no {event} in {self.seen}")


@contextlib.contextmanager
def watching(
    site: Site, *arguments: str, patience: float = PATIENCE, **options: str
) -> Iterator[subprocess.Popen[str]]:
    if not any(word.startswith("--interval") for word in arguments):
        arguments = (*arguments, "--interval=0.2")
    command = site.emulated.command(
        *site.arguments("sync", "--watch", "--log=json", *arguments, **options)
    )
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    limit = threading.Timer(patience, process.kill)  # after this long, a waiting test fails
    limit.start()
    try:
        yield process
    finally:
        limit.cancel()
        process.kill()
        process.communicate()
