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
import tempfile
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

    _folder: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say that the wheel is for this platform if it has the libraries.

        ``version`` is "standard" or "editable". A wheel gets the libraries from a directory of
        its own: an editable installation of the same tree may be using those in the tree, which
        are replaced only if new ones were compiled.
        """
        folder = self._folder = Path(tempfile.mkdtemp(prefix="snpcerts-libraries-"))
        editable = version == "editable"
        for library, sources in SOURCES.items():
            problem = self._compile(sources, folder / Path(library).name)
            if problem is not None:
                there = editable and all(Path(self.root, each).exists() for each in SOURCES)
                kept = " The libraries of an earlier build stay in use." if there else ""
                self._warn(f"snpcerts run will not work: {problem}.{kept}")
                return
        for library in SOURCES:
            made = folder / Path(library).name
            if editable:
                # A new file for each build: a VMM may be running with the old one.
                new = Path(self.root, f"{library}.new")
                shutil.copy(made, new)
                new.replace(Path(self.root, library))
                build_data["artifacts"].append(library)
            else:
                build_data["force_include"][str(made)] = library.removeprefix("src/")
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002 (hatch's)
        """Remove the directory in which the libraries were compiled."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _warn(self, text: str) -> None:
        line = "*" * 72
        self.app.display_warning(f"{line}\n{text}\n{line}")

    def _compile(self, sources: Sequence[str], library: Path) -> str | None:
        """What is in the way, or None."""
        if sys.platform != "linux" or platform.machine() != "x86_64":
            return "it is for Linux on x86-64"
        compiler = shlex.split(os.environ.get("CC") or "cc")
        if shutil.which(compiler[0]) is None:
            return f"no C compiler: {compiler[0]} not found"
        words = [*compiler, *FLAGS, "-o", str(library), *sources, *LINK]
        made = subprocess.run(words, cwd=self.root, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            return f"{shlex.join(words)} failed: {made.stderr.strip()}"
        return None
