# SPDX-License-Identifier: Apache-2.0
"""Build hook: compiles the libraries of ``native/`` into the package.

``snpcerts run`` needs one of them; the exit service in Python uses the other if it is there.
Without a C compiler, or on a system other than Linux on x86-64, the package is built without the
libraries; ``snpcerts run`` then says what is missing.
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

# Each library, with the sources and options that it is compiled from.
SOURCES = {
    "src/snpcerts/vmm/libsnpcerts_shim.so": (
        "native/shim.c",
        "native/snpcerts.c",
        "-fvisibility=hidden",  # export only the functions that the shim replaces
    ),
    "src/snpcerts/vmm/libsnpcerts.so": ("native/snpcerts.c",),
}
FLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared"]
LINK = ["-Wl,-z,relro,-z,now", "-pthread", "-ldl"]


class ShimBuildHook(BuildHookInterface[Any]):
    """Compiles the libraries before a wheel is built, also for an editable installation."""

    PLUGIN_NAME = "custom"

    _folder: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the libraries; if that succeeds, tag the wheel for this platform only.

        ``version`` is "standard" or "editable". A standard wheel gets the libraries from a
        temporary directory, because an editable installation may be using those in the tree. An
        editable installation replaces the latter, but only after both libraries were compiled.
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
        """Compile one library. Return why that failed, or None."""
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
