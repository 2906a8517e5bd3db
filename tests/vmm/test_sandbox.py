# SPDX-License-Identifier: Apache-2.0
"""VMMs' options for a sandbox, and what they mean for the shim."""

from __future__ import annotations

from pathlib import Path

import pytest

from snpcerts.errors import RefusedError
from snpcerts.vmm.preload import sandbox_warnings

CERTS = "/var/lib/snpcerts/certs.bin"


@pytest.mark.parametrize("options", [[], ["--seccomp", "true"], ["--seccomp=true"]])
def test_a_sandbox_that_would_kill_the_vmm_is_refused(options: list[str]) -> None:
    with pytest.raises(RefusedError) as refused:
        sandbox_warnings(["/usr/bin/cloud-hypervisor", "--cpus", "boot=2", *options], CERTS)
    assert "--seccomp false" in str(refused.value)


@pytest.mark.parametrize(
    ("printed", "fits"),
    [("v52.0.0", True), ("v53.1", True), ("v51.1.0", False), ("v5.0", False), ("52", False)],
)
def test_the_version_says_whether_the_sandbox_allows_locks(
    tmp_path: Path, printed: str, fits: bool
) -> None:
    program = tmp_path / "cloud-hypervisor-static"
    program.write_text(f"#!/bin/sh\n[ $1 = --version ] && echo cloud-hypervisor {printed}\n")
    program.chmod(0o755)
    if fits:
        assert sandbox_warnings([str(program)], CERTS) == []
        return
    with pytest.raises(RefusedError, match="expected version 52 or later"):
        sandbox_warnings([str(program)], CERTS)


@pytest.mark.parametrize("options", [["--seccomp", "false"], ["--seccomp=log"]])
def test_a_sandbox_that_is_off_is_not_refused(options: list[str]) -> None:
    assert sandbox_warnings(["cloud-hypervisor", *options], CERTS) == []


def test_a_file_outside_the_new_root_is_said(tmp_path: Path) -> None:
    for options in (["-run-with", f"chroot={tmp_path},user=qemu"], ["-chroot", str(tmp_path)]):
        (said,) = sandbox_warnings(["qemu-system-x86_64", *options], CERTS)
        assert f"{tmp_path}{CERTS}" in said


def test_a_file_inside_the_new_root_is_found(tmp_path: Path) -> None:
    inside = tmp_path / CERTS.lstrip("/")
    inside.parent.mkdir(parents=True)
    inside.touch()
    options = ["-run-with", f"chroot={tmp_path}"]
    assert sandbox_warnings(["qemu-system-x86_64", *options], CERTS) == []
