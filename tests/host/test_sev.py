# SPDX-License-Identifier: Apache-2.0
"""The client of ``/dev/sev`` against the emulated device, by real system calls."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from snpcerts.abi import psp
from snpcerts.errors import RefusedError
from snpcerts.host.sev import Sev, SevError

from ..emulated import Emulated

PREAMBLE = """
from snpcerts.abi.psp import SnpConfig
from snpcerts.errors import SnpCertsError
from snpcerts.host.sev import Sev
sev = Sev()
before = sev.snp_platform_status()
"""


def run(platform: Emulated, program: str) -> str:
    made = platform.python(["host"], PREAMBLE + program)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def test_commit_moves_reported_to_current(emulated: Emulated) -> None:
    program = """
low = bytearray(before.reported_tcb); low[7] -= 1
sev.snp_set_config(SnpConfig(reported_tcb=bytes(low)))
print(sev.snp_platform_status().reported_tcb == bytes(low))
sev.snp_commit()
after = sev.snp_platform_status()
print(after.reported_tcb == after.current_tcb)
"""
    assert run(emulated, program) == "True\nTrue"


def test_a_refusal_by_the_firmware_is_named(emulated: Emulated) -> None:
    program = """
high = bytearray(before.current_tcb); high[7] += 1
try:
    sev.snp_set_config(SnpConfig(reported_tcb=bytes(high)))
except SnpCertsError as error:
    print(error, error.status)
"""
    assert run(emulated, program) == (
        "SNP_SET_CONFIG: the firmware answered with status 0x16 (INVALID_PARAM) 22"
    )


def test_a_vlek_is_loaded_for_the_tcb_it_was_made_for(
    emulated: Emulated,
    tmp_path: Path,
) -> None:
    made = emulated.run("certificates", str(tmp_path), "--vlek", "CN=cloud")
    assert made.returncode == 0, made.stderr
    program = f"""
from pathlib import Path
stick = Path({str(tmp_path / "hashstick.bin")!r}).read_bytes()
sev.snp_vlek_load(stick)
print(sev.snp_platform_status().flags >> 2 & 1)
try:
    sev.snp_vlek_load(bytes(432))
except SnpCertsError as error:
    print(type(error).__name__)
try:
    sev.snp_vlek_load(stick[:-1])
except SnpCertsError as error:
    print(error)
"""
    lines = run(emulated, program).splitlines()
    assert lines == ["1", "SevError", "wrapped VLEK hashstick: expected 432 bytes, found 431"]


def test_no_device_says_where_it_would_be(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="on an SEV-SNP host"):
        Sev(str(tmp_path / "sev"))


def test_a_hashstick_that_the_firmware_refuses_gets_a_hint() -> None:
    refused = SevError(psp.Command.SNP_VLEK_LOAD, errno.EIO, psp.SevStatus.BAD_MEASUREMENT)
    assert "BAD_MEASUREMENT" in refused.message
    assert "'host set-config --again' first" in (refused.hint or "")
    other = SevError(psp.Command.SNP_COMMIT, errno.EIO, psp.SevStatus.BAD_MEASUREMENT)
    assert other.hint is None
