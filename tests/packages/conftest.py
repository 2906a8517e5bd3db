# SPDX-License-Identifier: Apache-2.0
"""The packages of a release, built once, and bare systems to install them on.

Building and installing takes minutes, and needs root and the network, so these tests run only
when asked for, by ``make test-packages``.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn

import pytest

from tests.packages.bare_root import FETCHED, BareRoot

ASKED: Final = "SNPCERTS_PACKAGE_TESTS"
ROOT: Final = Path(__file__).parents[2]
SUITES: Final = ("bookworm", "trixie")  # Debian 12 and 13: Python 3.11 and 3.13
NEWEST: Final = (*SUITES, "forky")  # Debian 14 to be: Python 3.14 and later
EPOCH: Final = "1790000000"


class _PackagesNotAskedFor(pytest.Module):
    """A test module that is skipped without being imported."""

    def collect(self) -> NoReturn:
        pytest.skip(f"packages are built and installed only with {ASKED}=1: make test-packages")


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    """Skip each module as a whole, unless these tests are asked for."""
    if os.environ.get(ASKED) == "1":
        return None
    module: pytest.Module = _PackagesNotAskedFor.from_parent(parent, path=module_path)
    return module


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the release that packaging/build.py makes, and with packages of 0.1.1."""
    out = tmp_path_factory.mktemp("release")
    build(out, "--also", "0.1.1")
    return out


def build(out: Path, *argv: str) -> None:
    """Build a release with the fetched tools, in a Python without snpcerts."""
    made = subprocess.run(
        [FETCHED / "venv/bin/python", ROOT / "packaging/build.py", out, *argv],
        capture_output=True,
        text=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH},
        check=False,
    )
    assert made.returncode == 0, made.stderr


@pytest.fixture(params=SUITES)
def bare(request: pytest.FixtureRequest, release: Path, tmp_path: Path) -> Iterator[BareRoot]:
    """A bare Debian system."""
    if not (FETCHED / str(request.param)).exists():
        pytest.skip(f"fetch.sh could not make a bare system of {request.param}")
    system = BareRoot(FETCHED / str(request.param), tmp_path / "system", release, ROOT)
    if system.run("true").returncode != 0:
        pytest.skip("this machine allows no overlay mount")
    yield system
    system.remove()
