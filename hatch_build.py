# SPDX-License-Identifier: Apache-2.0
"""Build hook: compiles the libraries of ``native/`` into the package.

One is for ``snpcerts run``, the other for the exit service in Python. Without a C
compiler, or elsewhere than on Linux x86-64, the rest is built without them:
``snpcerts run`` says what is missing, and the exit service does without.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# The libraries, and what each is made of.
SOURCES = {
    "src/snpcerts/vmm/libsnpcerts_shim.so": (
        "native/shim.c",
        "native/snpcerts.c",
        "-fvisibility=hidden",  # but for what the shim is there to replace
    ),
    "src/snpcerts/vmm/libsnpcerts.so": ("native/snpcerts.c",),
}
FLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared"]
LINK = ["-Wl,-z,relro,-z,now", "-pthread", "-ldl"]


class ShimBuildHook(BuildHookInterface[Any]):
    """Runs before the wheel is put together, for an editable installation too."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 (hatch's)
        """Compile, and say that the wheel is for this platform if it has the libraries."""
        for library in SOURCES:
            Path(self.root, library).unlink(missing_ok=True)
        for library, sources in SOURCES.items():
            problem = self._compile(sources, library)
            if problem is not None:
                self.app.display_warning(f"snpcerts run will not work: {problem}")
                return
        build_data["artifacts"] += SOURCES
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"

    def _compile(self, sources: Sequence[str], library: str) -> str | None:
        """What is in the way, or None."""
        if sys.platform != "linux" or platform.machine() != "x86_64":
            return "it is for Linux on x86-64"
        compiler = shlex.split(os.environ.get("CC") or "cc")
        if shutil.which(compiler[0]) is None:
            return f"no C compiler: {compiler[0]} not found"
        # A new file for each build: a VMM may be running with the old one.
        words = [*compiler, *FLAGS, "-o", library, *sources, *LINK]
        made = subprocess.run(words, cwd=self.root, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            Path(self.root, library).unlink(missing_ok=True)
            return f"{shlex.join(words)} failed: {made.stderr.strip()}"
        return None
