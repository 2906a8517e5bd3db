# SPDX-License-Identifier: Apache-2.0
"""Commands that are ended by a signal, and what they leave behind."""

from __future__ import annotations

import os
import secrets
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .emulated import SNPCERTS

LIMIT = 180.0  # seconds that anything may take on a slow machine
_MARK = "SNPCERTS_TEST_MARK"


@dataclass
class Marked:
    """Commands with a TMPDIR of their own, whose processes carry a mark in their environment."""

    place: Path
    mark: str = field(default_factory=lambda: secrets.token_hex(16))

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start ``snpcerts`` in a process group of its own."""
        return self.run(*SNPCERTS, *arguments)

    def run(self, *argv: str, ignored: bool = False) -> subprocess.Popen[bytes]:
        """Start any program. SIGHUP has its default action, even if nohup runs these tests.

        With ``ignored``, SIGINT is ignored, as in a background process of a script.
        """
        self.place.mkdir(exist_ok=True)
        shell = ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh"] if ignored else []
        return subprocess.Popen(
            ["env", "--default-signal=HUP", *shell, *argv],
            env=os.environ | {"TMPDIR": str(self.place), _MARK: self.mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )

    def processes(self) -> dict[int, str]:
        """Return the command lines of the running processes that carry the mark, by PID."""
        found = {}
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    if self.mark.encode() in (process / "environ").read_bytes():
                        line = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                        found[int(process.name)] = line.decode(errors="replace")
                except OSError:
                    continue  # gone
        return found

    def wait_until(self, there: Callable[[dict[int, str]], bool]) -> dict[int, str]:
        """Wait until the condition holds for the processes."""
        end = time.monotonic() + LIMIT
        while not there(found := self.processes()):
            assert time.monotonic() < end, found
            select.select([], [], [], 0.01)
        return found

    def gone(self) -> None:
        """Wait until no process is left."""
        self.wait_until(lambda found: not found)

    def files(self) -> list[str]:
        """Return the files that are left."""
        return sorted(str(path.relative_to(self.place)) for path in self.place.iterdir())


def has(words: Sequence[str], count: int = 1) -> Callable[[dict[int, str]], bool]:
    """Return a condition: at least ``count`` command lines contain all of the words."""
    return lambda found: (
        sum(all(word in line for word in words) for line in found.values()) >= count
    )


def end(started: subprocess.Popen[bytes], number: signal.Signals, *, group: bool) -> str:
    """Send the signal, wait for the end, and return what the command printed."""
    (os.killpg if group else os.kill)(started.pid, number)
    said, _ = started.communicate(timeout=LIMIT)
    return said.decode(errors="replace")
