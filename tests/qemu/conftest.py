# SPDX-License-Identifier: Apache-2.0
"""Fixtures for stock QEMUs; they skip a test if this machine lacks the QEMU or KVM."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from snpcerts.abi.kvm import Ioctl
from snpcerts.errors import RefusedError
from snpcerts.vmm.preload import shim_library

from .rig import HERE, Qemu, Tools, assemble, fetched

ASKED: Final = "SNPCERTS_QEMU_TESTS"

# Prints the position of the C-bit: bits 0 to 5 of EBX of CPUID leaf 0x8000001F.
C_BIT = """
#include <cpuid.h>
#include <stdio.h>
int main(void)
{
	unsigned eax, ebx = 0, ecx, edx;

	__get_cpuid_count(0x8000001F, 0, &eax, &ebx, &ecx, &edx);
	return printf("%u", ebx & 63) < 0;
}
"""


@pytest.fixture(scope="session", autouse=True)
def _kvm() -> None:
    if not os.environ.get(ASKED):
        pytest.skip(f"stock QEMUs run only with {ASKED}=1: make test-qemu")
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.close(fcntl.ioctl(kvm, Ioctl.CREATE_VM, 0))
        finally:
            os.close(kvm)
    except OSError as error:
        pytest.skip(f"no virtual machines here: /dev/kvm: {error.strerror}")
    try:
        shim_library()
    except RefusedError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    """Build the fake SNP host and the boot sector."""
    for name in ("cc", "as", "objcopy"):
        if shutil.which(name) is None:
            pytest.skip(f"no {name} on this machine")
    folder = tmp_path_factory.mktemp("tools")
    (folder / "c_bit.c").write_text(C_BIT)
    subprocess.run(["cc", "-o", folder / "c_bit", folder / "c_bit.c"], check=True)
    tools = Tools(folder, int(subprocess.check_output([folder / "c_bit"])))
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-pthread"]
    subprocess.run(["cc", *flags, "-o", tools.fake, HERE / "fake_snp_kvm.c", "-ldl"], check=True)
    assemble(HERE / "boot.S", tools.boot_sector)
    os.truncate(tools.boot_sector, 1 << 20)  # a disk that firmware believes in
    return tools


def _unpacked(version: str, tools: Tools, folder: Path) -> Qemu:
    root = fetched() / version
    if not (root / "complete").exists():
        pytest.skip(f"no QEMU {version} in {root}: 'make test-qemu' fetches it")
    qemu = Qemu(root, tools, folder)
    if qemu.loader is not None:
        made = subprocess.run(qemu.started(["true"]), capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"QEMU {version} needs a mount namespace: {made.stderr.strip()}")
    return qemu


@pytest.fixture(params=["10", "11"])
def qemu(request: pytest.FixtureRequest, tools: Tools, tmp_path: Path) -> Qemu:
    """A QEMU that runs SNP guests, but does not serve certificates."""
    return _unpacked(request.param, tools, tmp_path)


@pytest.fixture(params=["7.2", "10", "11"])
def any_qemu(request: pytest.FixtureRequest, tools: Tools, tmp_path: Path) -> Qemu:
    """One of the same QEMUs, or QEMU 7.2, which does not run SNP guests."""
    return _unpacked(request.param, tools, tmp_path)
