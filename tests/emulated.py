# SPDX-License-Identifier: Apache-2.0
"""Programs run on an emulated platform, as a user runs them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from snpcerts.emulator.machine.enter import connect
from snpcerts.emulator.machine.home import PlatformHome

from .forked_commands import Commands

SNPCERTS = (sys.executable, "-m", "snpcerts")


@dataclass(frozen=True)
class Emulated:
    """``snpcerts emulate`` for one platform directory, with its certificates in ``certs``."""

    directory: Path
    certs: Path
    commands: Commands | None = None  # forks what is run; if None, each command starts Python

    def started_anew(self) -> Emulated:
        """Return this platform, with each command started as a user starts it instead of forked."""
        return replace(self, commands=None)

    def command(self, *arguments: str) -> list[str]:
        return [*SNPCERTS, "emulate", "--platform", str(self.directory), *arguments]

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        argv = self.command(*arguments)
        if self.commands is not None and not options:
            return self.commands.completed(*argv[len(SNPCERTS) :])
        made: subprocess.CompletedProcess[str] = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=120,
            **options,
        )
        return made

    def python(self, role: Sequence[str], program: str) -> subprocess.CompletedProcess[str]:
        return self.run(*role, "--", sys.executable, "-c", program)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the platform's server running; otherwise each command starts a new one."""
        with contextlib.closing(connect(PlatformHome(self.directory))):
            yield

    def issue_certificates(self) -> None:
        made = self.run("certificates", str(self.certs))
        assert made.returncode == 0, made.stderr
