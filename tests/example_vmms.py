# SPDX-License-Identifier: Apache-2.0
"""The VMMs of ``examples/``, built with the installed library and judged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.documented_json import documented

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
LIMIT = 900.0  # seconds for a build on a slow machine, or for a judgement


def installed_library(prefix: Path) -> dict[str, str]:
    """Install the library below ``prefix`` with make; return environment variables.

    With these variables, builds find the library, and programs find the shared library.
    """
    arguments = [f"PREFIX={prefix}", f"BUILD={prefix / 'build'}"]
    run(["make", "-s", "-C", str(ROOT / "native"), "install", *arguments], {})
    return {
        "PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig"),
        "LD_LIBRARY_PATH": str(prefix / "lib"),
    }


def run(argv: list[str], variables: dict[str, str]) -> str:
    """Run a program that must succeed; return what it prints."""
    made = subprocess.run(
        argv,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert made.returncode == 0, f"{argv}: exit code {made.returncode}\n{made.stdout}{made.stderr}"
    return made.stdout


def assert_passes(program: Path, variables: dict[str, str], checks: tuple[str, ...] = ()) -> None:
    """Assert that a VMM with two vCPUs passes every check, or, if ``checks`` is given, these."""
    only = [word for check in checks for word in ("--only", check)]
    argv = [sys.executable, "-m", "snpcerts", "conformance", "--json", "--timeout", "40", *only]
    made = subprocess.run(
        [*argv, "--", str(program), "{certs}", "2"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert made.returncode in (0, 1), made.stderr
    assert made.stdout, made.stderr
    report: dict[str, Any] = documented("conformance", made.stdout)
    # Only root may mount what this check needs.
    not_judged = set() if os.geteuid() == 0 else {"same-device"}
    others = {
        each["id"]: (each["state"], each["detail"])
        for each in report["checks"]
        if each["state"] != "passed" and each["id"] not in not_judged
    }
    assert others == {}


def assert_short(source: Path) -> None:
    """Check that an example is short enough to read in one sitting."""
    assert len(source.read_text(encoding="utf-8").splitlines()) < 200
