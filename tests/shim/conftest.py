# SPDX-License-Identifier: Apache-2.0
"""Compiles the shim, with warnings as errors, and the fake KVM that is preloaded with it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STRICT = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]
LIBRARY = ["-fPIC", "-shared", "-pthread", "-ldl"]


def build(output: Path, *arguments: str | Path) -> Path:
    """Compile C files with these compiler options; skip without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    argv = [compiler, *STRICT, "-o", output, *arguments]
    made = subprocess.run(argv, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return output


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of ``shim.so`` and ``fake_kvm.so``."""
    folder = tmp_path_factory.mktemp("libraries")
    shim = [ROOT / "native" / name for name in ("shim.c", "snpcerts.c")]
    build(folder / "shim.so", *shim, "-fvisibility=hidden", *LIBRARY)
    build(folder / "fake_kvm.so", Path(__file__).with_name("fake_kvm.c"), *LIBRARY)
    return folder
