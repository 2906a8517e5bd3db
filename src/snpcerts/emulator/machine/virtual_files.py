# SPDX-License-Identifier: Apache-2.0
"""The files that tools read to recognise an SNP host or an SNP guest.

Sources: virtee/snphost ``src/ok`` and virtee/snpguest ``src/ok.rs`` for the files that each tool
reads; AMD64 Architecture Programmer's Manual volume 2 for the MSRs (SYSCFG C001_0010, SEV_STATUS
C001_0131, RMP_BASE C001_0132, RMP_END C001_0133); msr(4) for ``/dev/cpu/*/msr``, where a register
is the eight bytes at the offset equal to its number; Linux 7.3's ``drivers/crypto/ccp/sev-dev.c``,
``sev_snp_register_verify_mitigation``, for ``/sys/firmware/sev``, which exists only for firmware
with mitigation vectors. The CPUID instruction cannot be emulated here: it is not a system call.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from snpcerts.emulator.psp.chip_model import CpuId
from snpcerts.emulator.psp.firmware import Firmware

Content = bytes | Mapping[int, bytes]

_SYSCFG, _SEV_STATUS, _RMP_BASE, _RMP_END = 0xC001_0010, 0xC001_0131, 0xC001_0132, 0xC001_0133
_SME_ENABLED, _SNP_ENABLED = 1 << 23, 1 << 24
_SEV, _SEV_ES, _SEV_SNP = 1 << 0, 1 << 1, 1 << 2
_MSRS = "/dev/cpu/0/msr"
_CPUINFO = "/proc/cpuinfo"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_SMT = "/sys/devices/system/cpu/smt"
_MITIGATIONS = "/sys/firmware/sev/vulnerabilities"
_FIRST_INODE = 1 << 10


def host_files(firmware: Firmware) -> dict[str, Callable[[], Content]]:
    """Return the files of an SNP host that has ``firmware`` and this machine's number of
    processors.
    """
    processor = firmware.processor
    parameters = {
        f"/sys/module/kvm_amd/parameters/{name}": lambda: b"Y\n"
        for name in ("sev", "sev_es", "sev_snp")
    }
    registers = {
        _SYSCFG: _register(_SME_ENABLED | _SNP_ENABLED),
        _RMP_BASE: _register(0x1_0000_0000),
        _RMP_END: _register(0x1_3FFF_FFFF),
    }
    mitigations: dict[str, Callable[[], Content]] = {}
    if firmware.knows_mitigations:
        mitigations = {
            f"{_MITIGATIONS}/supported_mitigations": lambda: _vector(
                firmware.snp_verify_mitigation().supported
            ),
            f"{_MITIGATIONS}/verified_mitigations": lambda: _vector(
                firmware.snp_verify_mitigation().verified
            ),
        }
    smt = {"active": lambda: b"%d\n" % firmware.smt, "control": lambda: _smt_control(firmware)}
    return {
        **parameters,
        **{f"{_SMT}/{name}": content for name, content in smt.items()},
        **mitigations,
        _MSRS: lambda: registers,
        _BOOT_ID: lambda: _boot_id(firmware),
        _CPUINFO: lambda: _cpuinfo(Path(_CPUINFO).read_text(errors="replace"), processor),
    }


def host_inodes(firmware: Firmware) -> dict[str, Callable[[], int]]:
    """Return the directories whose inode numbers change while the host runs, each with a function
    that returns its current number.

    sysfs gives ``kvm_amd`` a new number each time the module is loaded. Linux initialises SNP when
    it loads this module and at no other time.
    """
    return {"/sys/module/kvm_amd": lambda: _FIRST_INODE + firmware.state.initialisations}


def guest_files() -> dict[str, Callable[[], Content]]:
    """Return the files of an SNP guest at VMPL 0."""
    return {
        _MSRS: lambda: {_SEV_STATUS: _register(_SEV | _SEV_ES | _SEV_SNP)},
        "/sys/devices/system/cpu/sev/vmpl": lambda: b"0\n",
        "/sys/devices/platform/sev-guest/uevent": lambda: b"DRIVER=sev-guest\n",
    }


def _boot_id(firmware: Firmware) -> bytes:
    """Return the emulated host's ``boot_id``: a UUID that is different after each boot.

    In Linux it is random (random(4)); here it depends on the chip and the number of boots.
    """
    name = f"{firmware.chip.chip_id.hex()} {firmware.state.boots}"
    return f"{uuid.uuid5(uuid.NAMESPACE_OID, name)}\n".encode()


def _smt_control(firmware: Firmware) -> bytes:
    return b"on\n" if firmware.smt else b"off\n"


def _cpuinfo(text: str, processor: CpuId) -> bytes:
    """Return ``text``, a ``/proc/cpuinfo``, with the names and numbers of ``processor``
    (proc_cpuinfo(5)).
    """
    for name, value in (
        ("vendor_id", "AuthenticAMD"),
        ("cpu family", processor.family),
        ("model", processor.model),
        ("model name", "AMD EPYC (emulated)"),
        ("stepping", processor.stepping),
    ):
        text = re.sub(rf"^({name}\s*): .*$", rf"\1: {value}", text, flags=re.MULTILINE)
    return text.encode()


def _vector(value: int) -> bytes:
    return f"{value:#x}\n".encode()


def _register(value: int) -> bytes:
    return value.to_bytes(8, "little")
