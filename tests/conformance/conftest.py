# SPDX-License-Identifier: Apache-2.0
"""Fixtures that build VMMs and judge them."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snpcerts.emulator.frontdoor import seccomp
from tests.documented_json import documented

from ..emulated_hosts import HOSTS, name, options
from ..forked_commands import Commands
from .table import compile_vmm

Build = Callable[[str], Path]


MODULES = ("snpcerts.cli.conformance", "snpcerts.conformance.suite")
_forked: list[Commands] = []


@pytest.fixture(scope="session", autouse=True)
def _commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start a process that imports the command. Each use of the command is a fork of it."""
    commands = Commands(tmp_path_factory.mktemp("commands"), MODULES)
    with contextlib.closing(commands):
        commands.ready()
        _forked.append(commands)
        yield
        _forked.clear()


@pytest.fixture(scope="session", autouse=True)
def _kernel() -> None:
    try:
        seccomp.check()
    except seccomp.FrontDoorUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Return a function that compiles one of the VMMs in vmm.c, such as ``NO_LOCK``."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc on this machine to build the VMMs with")
    directory = tmp_path_factory.mktemp("vmms")
    return lambda wrong: compile_vmm(wrong, directory)


def conformance(
    *arguments: str | Path, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the command; return its exit code and what it printed."""
    (commands,) = _forked
    return commands.completed("conformance", *options, "--", *map(str, arguments))


def judged(*arguments: str | Path, options: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Judge a VMM; return the report's checks by id."""
    made = conformance(*arguments, options=("--json", *options))
    assert made.returncode in (0, 1), made.stdout + made.stderr
    report = documented("conformance", made.stdout)
    judged_none = report["skipped"] == len(report["checks"])
    assert (made.returncode == 1) is bool(report["failed"] or judged_none)
    return {check["id"]: check for check in report["checks"]}


def failed(checks: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the checks that failed or have advice, and why."""
    bad = ("failed", "advice")
    return {name: each["detail"] for name, each in checks.items() if each["state"] in bad}


@pytest.fixture(params=HOSTS, ids=name)
def host(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The emulated host, as options of the command."""
    return options(request.param)
