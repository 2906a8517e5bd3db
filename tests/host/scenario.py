# SPDX-License-Identifier: Apache-2.0
"""A host in use: the agent, the operator's commands and guests, in an order that is given.

These are real: the commands (``snpcerts host``, ``guest report``, ``verify``, ``emulate``), each a
process; the devices behind the front door; the VMMs that serve the files; and the guests.
Commands are forked from a process that has imported them (:mod:`tests.forked_commands`) instead of
starting Python for each; a guest boots once and makes a report whenever it is asked, until
kvm_amd is unloaded.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snpcerts.abi.cert_table import CertTable
from snpcerts.emulator.machine.enter import ask
from snpcerts.emulator.machine.home import PlatformHome

from ..emulated import Emulated
from ..forked_commands import GUEST, HOST, LIMIT, PLAIN, Commands, Running

VMM = (sys.executable, "-m", "snpcerts.emulator.machine.vmm_program")


@dataclass
class Guest:
    """A VM whose VMM serves one file, and whose guest asks for reports with one KEY_SEL."""

    name: str
    vmm: Running
    commands: Commands
    key_sel: str
    folder: Path


FILES = {
    # name: (configuration, KEY_SEL of its guests)
    "certs.bin": ("", "default"),
    "vlek.bin": ('kind = "vlek"\nwithout_vlek = "vcek"\n', "default"),
    "named.bin": ('key_select = "named"\n', "vcek"),
}
OPERATIONS = ("load_vlek", "set_config", "commit", "mask", "reload", "restart")


@dataclass
class Course:
    """One host in use; its methods perform operations, check their results, and count them."""

    emulated: Emulated
    folder: Path
    url: str
    chance: random.Random
    reports: int = 0
    empty: int = 0
    killed: int = 0
    refused: int = 0
    proofs: int = 0
    history: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.config = self.folder / "snpcerts.toml"
        tables = "".join(
            f'[[file]]\npath = "{self.folder / name}"\n{more}' for name, (more, _) in FILES.items()
        )
        self.config.write_text(tables + f'[memory]\nfile = "{self.folder / "signing-key.json"}"\n')
        self.anchor = self.emulated.certs / "ark.der"
        self.events = self.folder / "events"
        if not self.events.exists():
            os.mkfifo(self.events)
        self.plain = Commands(self.folder / "plain", PLAIN)
        self.hosts = Commands(self.folder / "host", HOST, *self.emulated.command("host", "--"))
        self.guests: list[Guest] = []
        self.agent: Running | None = None
        self._log = -1
        self._unread = b""
        for each in (self.plain, self.hosts):
            each.ready()

    def close(self) -> None:
        self.end_agent(signal.SIGKILL)
        self.shut_down_guests()
        self.hosts.close()
        self.plain.close()

    def rest(self) -> None:
        """End what uses processor time, because another host is in use now."""
        self.end_agent(signal.SIGTERM)
        self.shut_down_guests()

    # The agent.

    def arguments(self, command: str, *arguments: str) -> list[str]:
        return [
            "host",
            command,
            f"--config={self.config}",
            f"--cache={self.folder / 'cache'}",
            f"--vlek-certs={self.folder / 'vlek'}",
            f"--anchor={self.anchor}",
            f"--kds={self.url}",
            *arguments,
        ]

    def start_agent(self) -> None:
        self._log = os.open(self.events, os.O_RDONLY | os.O_NONBLOCK)
        self._unread = b""
        argv = self.arguments("sync", "--watch", "--log=json", "--interval=0.2")
        self.agent = self.hosts.start(*argv, out=self.events)
        self.until("checking the files every")

    def end_agent(self, number: signal.Signals) -> None:
        if self.agent is not None:
            self.agent.kill(number)
            code = self.agent.wait()
            assert code == (-number if number is signal.SIGKILL else 0), self.agent.err.read_text()
            os.close(self._log)
            self.agent = None

    def until(self, message: str) -> None:
        """Read the agent's log until a message starts with ``message``."""
        while True:
            line, newline, rest = self._unread.partition(b"\n")
            if newline:
                self._unread = rest
                if json.loads(line)["message"].startswith(message):
                    return
                continue
            assert select.select([self._log], [], [], LIMIT)[0], f"no {message!r}"
            data = os.read(self._log, 65536)
            assert data or not (self.agent and self.agent.over()), self.agent and self.agent.said()
            self._unread += data

    def look(self) -> None:
        """Wait until the agent has completed another round."""
        assert self.agent is not None
        for _ in range(2):  # the first is answered before that look, the second after it
            self.agent.kill(signal.SIGHUP)
            self.until("configuration reloaded")

    # Guests.

    def boot_guests(self) -> None:
        """Start a built-in VMM for each file, and in its guest a process that forks commands."""
        vmms = {
            name: self.plain.start(*self.emulate("host", "--serve", "--", *VMM, self.folder / name))
            for name in FILES
        }
        for name, vmm in vmms.items():
            while not (vms := [vm["name"] for vm in self.vms() if vm["pid"] == vmm.pid]):
                assert not vmm.over(0.01), vmm.said()
            folder = self.folder / f"guest-{name}"
            argv = self.emulate("guest", "--vm", *vms, "--")
            commands = Commands(folder, GUEST, *argv, start=self.plain)
            self.guests.append(Guest(name, vmm, commands, FILES[name][1], folder))
        for guest in self.guests:
            guest.commands.ready()

    def vms(self) -> list[dict[str, Any]]:
        """Return the VMs whose guests can run programs."""
        answer = ask(PlatformHome(self.emulated.directory), {"ask": "status"})
        return [vm for vm in answer["vms"] if vm["serves"]]

    def shut_down_guests(self) -> None:
        for guest in self.guests:
            guest.commands.close()
        for guest in self.guests:
            guest.vmm.kill(signal.SIGTERM)
            guest.vmm.wait()
        self.guests = []

    def emulate(self, *arguments: str | Path) -> list[str]:
        return self.emulated.command(*map(str, arguments))[3:]

    def attest(self, guest: Guest) -> bool:
        """Check that a report matches its certificates; return whether it came with any."""
        report, table = guest.folder / "report", guest.folder / "table"
        code, said = guest.commands.run(
            "guest", "report", "-o", str(report), "--table-out", str(table),
            f"--key-sel={guest.key_sel}",
        )  # fmt: skip
        assert code == 0, (self.history, guest.name, said)
        self.reports += 1
        if not CertTable.decode(table.read_bytes()).entries:
            self.empty += 1
            return False
        code, said = self.plain.run(
            "verify", str(report), f"--table={table}", f"--anchor={self.anchor}"
        )
        assert code == 0, (self.history, guest.name, said)
        return True

    # What must hold.

    def content(self, name: str) -> bool:
        """Return whether that file has certificates."""
        return bool(CertTable.decode((self.folder / name).read_bytes()).entries)

    def no_mismatch(self) -> None:
        for guest in self.guests:
            self.attest(guest)

    def status(self) -> Any:
        code, said = self.hosts.run(*self.arguments("status", "--json"))
        assert code in (0, 1), said
        return json.loads(said)

    def check(self) -> None:
        """Check that reports match their certificates, and that empty files have stated reasons."""
        served = {guest.name for guest in self.guests if self.attest(guest)}
        if len(served) == len(FILES):
            return
        for each in self.status()["files"]:
            name = Path(each["path"]).name
            if name not in served:
                assert each["wanted"].startswith("the empty table ("), (self.history, each)

    # The operations.

    def perform(self, name: str, kill: str = "") -> None:
        """Perform one operation; meanwhile the "command", the "agent" or nothing gets SIGKILL."""
        self.history.append(f"{name} (SIGKILL: {kill})" if kill else name)
        if name == "restart":
            self.end_agent(signal.SIGKILL if kill else signal.SIGTERM)
            self.killed += bool(kill)
            self.no_mismatch()
            self.start_agent()
        elif name == "reload":
            if kill:  # so that no agent notices that the firmware is gone
                self.end_agent(signal.SIGKILL)
                self.killed += 1
            self.reload()
        else:
            self.command(name, kill)
        self.look()
        self.check()

    def reload(self) -> None:
        """End all VMs and load kvm_amd again; start new VMs once the agent has noticed that."""
        self.shut_down_guests()
        code, said = self.plain.run(*self.emulate("firmware", "reload"))
        assert code == 0, said
        if self.agent is None:
            self.start_agent()
        self.look()
        self.boot_guests()

    def command(self, name: str, kill: str) -> None:
        argv: list[str] = getattr(self, f"_{name}")()
        if kill == "command":
            running = self.hosts.start(*argv)
            running.over(self.chance.uniform(0, 0.25))
            running.kill()
            self.killed += running.wait() == -signal.SIGKILL
            self.no_mismatch()
            self.look()
            self.check()
        running = self.hosts.start(*argv)
        if kill == "agent":
            self.end_agent(signal.SIGKILL)
            self.killed += 1
        while not running.over():  # guests continue to make requests
            self.attest(self.chance.choice(self.guests))
        code = running.wait()
        if code:
            # Some firmware rejects, after a reload, every hashstick for a lowered reported TCB.
            assert name == "load_vlek", (self.history, running.said())
            assert code == 1, running.said()
            assert "SNP_VLEK_LOAD" in running.said(), running.said()
            self.refused += 1
        self.no_mismatch()
        if self.agent is None:
            self.start_agent()

    def _load_vlek(self) -> list[str]:
        issued = self.folder / "issued"
        argv = self.emulate("certificates", issued, "--vlek", "CN=cloud")
        code, said = self.plain.run(*argv)
        assert code == 0, said
        return self.arguments(
            "load-vlek", str(issued / "hashstick.bin"), f"--vlek-cert={issued / 'vlek.der'}"
        )

    def _set_config(self) -> list[str]:
        status = self.status()
        reported, current = (status[f"{each}_tcb"]["microcode"] for each in ("reported", "current"))
        other = current if reported < current else current - 1
        return self.arguments("set-config", f"--reported-tcb=ucode={other}")

    def _mask(self) -> list[str]:
        masked = self.status()["mask_chip_key"]
        return self.arguments("set-config", f"--{'no-' if masked else ''}mask-chip-key")

    def _commit(self) -> list[str]:
        return self.arguments("commit")

    # Proof.

    def prove(
        self, guest: Guest, on_the_way: Callable[[bytes], bytes] = lambda report: report
    ) -> tuple[int, str]:
        """Run ``host prove-key``; its COMMAND passes the question to a guest through FIFOs."""
        ask, answer = self.folder / "ask", self.folder / "answer"
        for fifo in (ask, answer):
            if not fifo.exists():
                os.mkfifo(fifo)
        script = f'echo {{report_data}} {{key_sel}} > "{ask}"; cat "{answer}"'
        argv = self.arguments("prove-key", f"--file={self.folder / guest.name}", "--", "sh", "-c")
        running = self.hosts.start(*argv, script)
        data, key_sel = ask.read_text().split()
        report = guest.folder / "proof"
        code, said = guest.commands.run(
            "guest", "report", "-o", str(report), f"--report-data={data}", f"--key-sel={key_sel}"
        )
        assert code == 0, said
        answer.write_bytes(on_the_way(report.read_bytes()))
        code = running.wait()
        return code, running.said()

    def prove_all(self) -> None:
        """Let a guest of each file prove which key signs; the agent then serves by that proof."""
        for guest in self.guests:
            self.history.append(f"prove-key for {guest.name}")
            code, said = self.prove(guest)
            if code:
                # An unsigned report proves nothing; a contradiction ends with 1 as well.
                assert code == 1, (self.history, said)
                assert any(
                    text in said
                    for text in ("not signed", "contradicts", "no available certificate")
                ), (self.history, said)
            else:
                self.proofs += 1
            self.look()
            self.attest(guest)
        self.check()

    def settle(self) -> None:
        """Return to the state in which every course begins, with the operator's commands."""
        self.history = []
        if self.agent is None:
            self.start_agent()
        self.reload()
        status = self.status()
        if status["reported_tcb"] != status["current_tcb"] or status["vcek_doubt"]:
            current = status["current_tcb"]["microcode"]
            code, said = self.hosts.run(
                *self.arguments("set-config", f"--reported-tcb=ucode={current}")
            )
            assert code == 0, said
