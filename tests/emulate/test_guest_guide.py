# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/guest-authors.md run as written."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from snpcerts.abi.cert_table import CertTable
from snpcerts.abi.report import Report
from snpcerts.emulator.frontdoor import namespace

from ..emulated import Emulated

GUIDE = Path(__file__).parents[2] / "docs" / "guest-authors.md"


def test_the_shell_commands_make_a_report(emulated: Emulated, tmp_path: Path) -> None:
    if namespace.missing() or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("configfs-tsm needs a mount namespace and /dev/fuse")
    (block,) = (each for each in _blocks() if "mkdir mine" in each)
    commands = re.findall(r"^\$ (.*)$", block, re.MULTILINE)
    script = "\n".join(commands).replace("/tmp/", f"{tmp_path}/")  # noqa: S108 (the guide's)
    emulated.issue_certificates()
    served = str(emulated.certs / "table.bin")
    made = emulated.run("guest", "--certs", served, "--", "sh", "-e", "-c", script)
    assert made.returncode == 0, made.stderr
    assert made.stdout == "1\n", "must print the generation that the guide shows"
    assert Report.unpack((tmp_path / "report").read_bytes()).fields.vmpl == 0
    assert (tmp_path / "report").stat().st_size == 1184
    assert len(CertTable.decode((tmp_path / "table").read_bytes()).entries) == 3


def _blocks() -> list[str]:
    return re.findall(r"```console\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
