# SPDX-License-Identifier: Apache-2.0
"""The shim, strictly compiled, and what is preloaded beside it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STRICT = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]
LIBRARY = ["-fPIC", "-shared", "-pthread", "-ldl"]


def build(output: Path, source: Path, *flags: str) -> Path:
    """Compile one C file; skip where that cannot be done."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    argv = [compiler, *STRICT, "-o", str(output), str(source), *flags]
    made = subprocess.run(argv, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return output


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of ``shim.so`` and ``fake_kvm.so``."""
    folder = tmp_path_factory.mktemp("libraries")
    shim = ROOT / "native" / "shim.c"
    build(folder / "shim.so", shim, "-fvisibility=hidden", *LIBRARY)
    build(folder / "fake_kvm.so", Path(__file__).with_name("fake_kvm.c"), *LIBRARY)
    return folder
