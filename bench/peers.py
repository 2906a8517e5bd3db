# SPDX-License-Identifier: Apache-2.0
"""Other projects' verifiers: their libraries, with small programs of ours around them.

The libraries come from the public registries. The programs are built in the user's cache, and stay
there.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.compare import Skip

_PATIENCE: Final = 3600
_HERE: Final = Path(__file__).parent


@dataclass(frozen=True)
class Peer:
    """A library, our program around it, and the command that builds the program."""

    name: str
    source: str
    tools: tuple[str, ...]
    build: Callable[[Path], list[str]]
    program: str

    @property
    def home(self) -> Path:
        """The directory in which the program is built."""
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(cache) / "snpcerts" / "bench" / self.source

    def built(self) -> Path:
        """Build the program; return its path. Raises :class:`Skip` if it cannot be built."""
        missing = [tool for tool in self.tools if shutil.which(tool) is None]
        if missing:
            raise Skip(f"no {', '.join(missing)} on this machine")
        if not (self.home / self.program).exists():
            print(f"{self.name}: building it for the first time; this may take minutes", flush=True)
        self.home.mkdir(parents=True, exist_ok=True)
        argv = self.build(self.home)
        try:
            subprocess.run(
                argv, cwd=_HERE / self.source, check=True, capture_output=True, timeout=_PATIENCE
            )
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode(errors="replace").strip().splitlines()
            raise Skip(f"it cannot be built: {said[-1] if said else error}") from None
        except (subprocess.SubprocessError, OSError) as error:
            raise Skip(f"it cannot be built: {error}") from None
        return self.home / self.program

    def timer(self, mode: str, files: list[Path], count: int) -> Callable[[], float]:
        """Return a function that runs the program in one thread, and returns the processor time of
        one verification in seconds.

        The program's start and its first verification do not count.
        """
        program = self.built()

        def spent(times: int) -> float:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(
                [program, mode, *files, str(times)],
                check=True,
                env=os.environ | {"GOMAXPROCS": "1"},
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

        return lambda: (spent(count + 1) - spent(1)) / count


GO_SEV_GUEST: Final = Peer(
    "go-sev-guest 0.15.0",
    "go_sev_guest",
    ("go",),
    lambda home: ["go", "build", "-o", str(home / "bench"), "."],
    "bench",
)
VIRTEE_SEV: Final = Peer(
    "virtee/sev 8.0.0",
    "virtee_sev",
    ("cargo", "cc", "make", "perl"),
    lambda home: ["cargo", "build", "--release", "--target-dir", str(home)],
    "release/snpcerts-bench-virtee-sev",
)
