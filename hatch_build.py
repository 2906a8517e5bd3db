# SPDX-License-Identifier: Apache-2.0
"""Build hook: compiles native/shim.c into the package, for ``snpcerts run``.

Without a C compiler, or elsewhere than on Linux x86-64, the rest is built without
it, and ``snpcerts run`` says what is missing.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "native/shim.c"
LIBRARY = "src/snpcerts/vmm/libsnpcerts_shim.so"
FLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden"]
LINK = ["-Wl,-z,relro,-z,now", "-pthread", "-ldl"]


class ShimBuildHook(BuildHookInterface[Any]):
    """Runs before the wheel is put together, for an editable installation too."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 (hatch's)
        """Compile, and say that the wheel is for this platform if it has the library."""
        library = Path(self.root, LIBRARY)
        library.unlink(missing_ok=True)
        problem = self._compile(Path(self.root, SOURCE), library)
        if problem is not None:
            self.app.display_warning(f"snpcerts run will not work: {problem}")
            return
        build_data["artifacts"].append(LIBRARY)
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"

    @staticmethod
    def _compile(source: Path, library: Path) -> str | None:
        """What is in the way, or None."""
        if sys.platform != "linux" or platform.machine() != "x86_64":
            return "the shim is for Linux on x86-64"
        compiler = shlex.split(os.environ.get("CC") or "cc")
        if shutil.which(compiler[0]) is None:
            return f"no C compiler: {compiler[0]} not found"
        # A new file for each build: a VMM may be running with the old one.
        words = [*compiler, *FLAGS, "-o", str(library), str(source), *LINK]
        made = subprocess.run(words, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            library.unlink(missing_ok=True)
            return f"{shlex.join(words)} failed: {made.stderr.strip()}"
        return None
