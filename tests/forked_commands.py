# SPDX-License-Identifier: Apache-2.0
"""Commands of snpcerts, forked from a process that has imported them (:mod:`tests.fork_server`)."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

# Modules that commands import: those of a host, those in a guest, and all others.
HOST = (
    "snpcerts.cli.host.sync",
    "snpcerts.cli.host.change",
    "snpcerts.cli.host.status",
    "snpcerts.cli.host.prove",
    "snpcerts.host.agent",
    "snpcerts.host.plan",
    "snpcerts.host.proof",
    "snpcerts.host.status",
    "snpcerts.host.watch",
    "snpcerts.kds.source",
)
GUEST = ("snpcerts.cli.guest", "snpcerts.guest.dev_sev_guest")
PLAIN = (
    "snpcerts.cli.verify",
    "snpcerts.cli.verify_run",
    "snpcerts.verify",
    "snpcerts.cli.emulate",
    "snpcerts.emulator.machine.vmm_program",
    *GUEST,
)
SERVER = Path(__file__).with_name("fork_server.py")
LIMIT = 180  # seconds that one command may take on a slow machine


@dataclass
class Running:
    """A command that has been started."""

    server: Commands
    pid: int
    handle: int
    out: Path
    err: Path
    code: int | None = None

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.code is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, number)

    def over(self, wait: float = 0) -> bool:
        return bool(select.select([self.handle], [], [], wait)[0])

    def wait(self, limit: float = LIMIT) -> int:
        """Wait until the command ends; return its exit code."""
        if self.code is None:
            assert self.over(limit), "a command has not ended in time"
            self.code = self.server.ended(self.pid)
            os.close(self.handle)
        return self.code

    def said(self) -> str:
        return self.out.read_text(errors="replace") + self.err.read_text(errors="replace")


class Commands:
    """A process that commands are forked from. Threads may share it.

    The process has a command line that begins with ``prefix``. If ``start`` is given, the process
    is forked from that of ``start``, as a command whose arguments begin with ``prefix``.
    """

    def __init__(
        self, folder: Path, modules: Sequence[str], *prefix: str, start: Commands | None = None
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._ended: dict[int, int] = {}
        self._numbers = itertools.count()
        self._unread = b""
        self._lock = threading.Lock()
        orders, answers = folder / "orders", folder / "answers"
        for fifo in (orders, answers):
            if not fifo.exists():
                os.mkfifo(fifo)
        self._orders = os.open(orders, os.O_RDWR | os.O_CLOEXEC)
        self._answers = os.open(answers, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        argv = [*prefix, sys.executable, str(SERVER), *modules]
        self._process: subprocess.Popen[bytes] | Running
        if start is None:
            with orders.open("rb") as given, answers.open("wb") as out:
                self._process = subprocess.Popen(argv, stdin=given, stdout=out)
        else:
            self._process = start.start(*argv, given=orders, out=answers)

    def _answer(self) -> list[str]:
        while b"\n" not in self._unread:
            assert select.select([self._answers], [], [], LIMIT)[0], (
                "no command has started or ended in time"
            )
            data = os.read(self._answers, 65536)
            assert data, "the process that commands are forked from has ended"
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        words = line.decode().split()
        if words[0] == "ended":
            self._ended[int(words[1])] = int(words[2])
        return words

    def ready(self) -> None:
        while self._answer() != ["ready"]:
            pass

    def start(self, *arguments: str, given: Path | None = None, out: Path | None = None) -> Running:
        """Start a command, with the FIFO ``given`` as its standard input."""
        with self._lock:
            return self._start(arguments, given, out)

    def _start(self, arguments: Sequence[str], given: Path | None, out: Path | None) -> Running:
        number = next(self._numbers)
        place = self._folder / str(number % 8 if given is None and out is None else number)
        out = out or place.with_suffix(".out")
        err = place.with_suffix(".err")
        order = {"arguments": arguments, "out": str(out), "err": str(err)}
        if given is not None:
            order["in"] = str(given)
        data = json.dumps(order).encode() + b"\n"
        assert os.write(self._orders, data) == len(data)
        while (answer := self._answer())[0] != "started":
            pass
        pid = int(answer[1])
        # The server reaps it when it announces the end; until then its PID cannot be reused.
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            handle = os.open(os.devnull, os.O_RDONLY)  # always readable: over
        return Running(self, pid, handle, out, err)

    def piped(self, *arguments: str) -> tuple[Running, TextIO]:
        """Start a command; return it and its standard output, to read while it runs."""
        fifo = self._folder / f"{next(self._numbers)}.pipe"
        os.mkfifo(fifo)
        running = self.start(*arguments, out=fifo)
        out = fifo.open()  # waits until the command opens it, too
        fifo.unlink()
        return running, out

    def run(self, *arguments: str) -> tuple[int, str]:
        running = self.start(*arguments)
        code = running.wait()
        return code, running.said()

    def completed(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command as :func:`subprocess.run` does when it captures text."""
        running = self.start(*arguments)
        code = running.wait()
        out, err = running.out.read_text(), running.err.read_text()
        return subprocess.CompletedProcess(arguments, code, out, err)

    def ended(self, pid: int) -> int:
        with self._lock:
            while pid not in self._ended:
                self._answer()
            return self._ended.pop(pid)

    def close(self) -> None:
        os.close(self._orders)
        try:
            self._process.wait(LIMIT)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._answers)
