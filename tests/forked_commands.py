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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, number)

    def over(self, wait: float = 0) -> bool:
        return bool(select.select([self.handle], [], [], wait)[0])

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        code = self.server.ended(self.pid)
        os.close(self.handle)
        return code

    def said(self) -> str:
        return self.out.read_text(errors="replace") + self.err.read_text(errors="replace")


class Commands:
    """A process that commands are forked from."""

    def __init__(self, folder: Path, modules: Sequence[str], *prefix: str) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [*prefix, sys.executable, str(SERVER), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._ended: dict[int, int] = {}
        self._numbers = itertools.count()
        self._unread = b""

    def _answer(self) -> list[str]:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            assert select.select([fd], [], [], LIMIT)[0], "no command has started or ended"
            data = os.read(fd, 65536)
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

    def start(self, *arguments: str, out: Path | None = None) -> Running:
        place = self._folder / str(next(self._numbers) % 8)
        out = out or place.with_suffix(".out")
        err = place.with_suffix(".err")
        order = {"arguments": arguments, "out": str(out), "err": str(err)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        while (answer := self._answer())[0] != "started":
            pass
        pid = int(answer[1])
        # It is not reaped before the end is announced, so the number is still its own unless it is.
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            handle = os.open(os.devnull, os.O_RDONLY)  # always readable: over
        return Running(self, pid, handle, out, err)

    def run(self, *arguments: str) -> tuple[int, str]:
        running = self.start(*arguments)
        code = running.wait()
        return code, running.said()

    def ended(self, pid: int) -> int:
        while pid not in self._ended:
            self._answer()
        return self._ended.pop(pid)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait(LIMIT)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
