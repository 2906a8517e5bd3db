# SPDX-License-Identifier: Apache-2.0
"""The long run over every kernel and firmware selects its tests, and counts their outcomes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .emulated_hosts import EVERY_HOST, name
from .every_host import ROOT, SUITES, every_run, tally, written

OUTCOMES = """
import pytest

def test_passes(): pass

def test_fails(): assert 1 == 2

@pytest.mark.xfail(strict=True)
def test_is_refused(): raise RuntimeError

@pytest.mark.xfail(strict=True)
def test_should_be_refused(): pass

@pytest.mark.skip
def test_is_skipped(): pass

@pytest.fixture
def broken(): raise OSError("no machine")

def test_has_no_machine(broken): pass
"""


def pytest_says(*arguments: str | Path, cwd: Path, **variables: str) -> str:
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, arguments)]
    environment = {**os.environ, **variables}
    environment.pop("PYTEST_XDIST_WORKER", None)
    return subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True).stdout


def test_each_suite_has_tests_for_each_host_and_for_no_other() -> None:
    asked = {f"SNPCERTS_{each}": "1" for each in ("EVERY_HOST", "CLIENTS", "QEMU_TESTS")}
    files = sorted({file for file, _ in SUITES.values()})
    found = pytest_says("--collect-only", *files, cwd=ROOT, **asked).splitlines()
    for run in every_run():
        file, before = SUITES[run.suite]
        mine = [each for each in found if each.startswith(file) and before + run.host in each]
        others = [name(host) for host in EVERY_HOST if name(host) != run.host]
        assert mine, run
        assert not [each for each in mine for other in others if other in each]


def test_what_tests_said_is_counted_and_kept(tmp_path: Path) -> None:
    (tmp_path / "test_outcomes.py").write_text(OUTCOMES)
    pytest_says("test_outcomes.py", "--junitxml=said.xml", cwd=tmp_path)
    counts, failed = tally(tmp_path / "said.xml")
    assert counts == {"passed": 1, "refused": 1, "skipped": 1}
    assert failed.keys() == {"test_fails", "test_should_be_refused", "test_has_no_machine"}
    assert "assert 1 == 2" in failed["test_fails"]
    assert "no machine" in failed["test_has_no_machine"]
    line = {"run": "qemu-10 7.3-documented", **counts, "failed": failed, "seconds": 1.0}
    said = written(line)
    assert said.startswith("qemu-10 7.3-documented: 1 passed, 1 refused, 1 skipped, 3 failed, 1 s")
    assert "test_has_no_machine: " in said
