# SPDX-License-Identifier: Apache-2.0
"""Measures one exit of a VM that is not an SNP VM, in stock QEMUs with and without the shim.

The guest does nothing but port writes, which QEMU handles. The figures are QEMU's processor time,
because the machine may have other work.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.qemu.rig import ENDED, Qemu, Tools, fetched

from bench.compare import Skip, compare
from snpcerts.errors import RefusedError
from snpcerts.vmm.preload import DEFAULT_TIMEOUT, environment

EXITS = 200_000
ROUNDS = 9
# mov $EXITS, %ecx; 1: out %al, $0x80; dec %ecx; jnz 1b; then 0x10 to port 0x501; 2: hlt; jmp 2b
GUEST = (
    b"\x66\xb9" + struct.pack("<I", EXITS) + b"\xe6\x80\x66\x49\x75\xfa"
    b"\xba\x01\x05\xb0\x10\xee\xf4\xeb\xfd"
)
RESET = b"\xe9\x0d\x00"  # at 0xFFF0: jump to the segment's beginning


def _seconds(qemu: Qemu, rom: Path, variables: dict[str, str]) -> float:
    argv = qemu.command("-machine", "q35", "-bios", str(rom))
    child = os.posix_spawn(
        argv[0],
        argv,
        qemu.environment(fake=False) | variables,
        file_actions=[(os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, used = os.wait4(child, 0)
    if os.waitstatus_to_exitcode(status) != ENDED:
        raise Skip("QEMU did not run the guest")
    return (used.ru_utime + used.ru_stime) / EXITS


def main() -> None:
    """Print microseconds, and the ratios."""
    versions = [each for each in ("7.2", "10") if (fetched() / each / "complete").exists()]
    if not versions:
        raise Skip("no QEMU: tests/qemu/fetch.sh fetches them")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise Skip("no /dev/kvm")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rom = folder / "rom.bin"
        rom.write_bytes(GUEST.ljust(0xFFF0, b"\xf4") + RESET.ljust(16, b"\xf4"))
        (folder / "certs.bin").write_bytes(bytes(24))
        try:
            shim = environment(str(folder / "certs.bin"), DEFAULT_TIMEOUT, {})
        except RefusedError as error:
            raise Skip(str(error)) from None
        for version in versions:
            qemu = Qemu(fetched() / version, Tools(folder, 0), folder)
            subjects: dict[str, Callable[[], float]] = {
                "without the shim": partial(_seconds, qemu, rom, {}),
                "with the shim": partial(_seconds, qemu, rom, shim),
            }
            compare(f"QEMU {version}, one exit", subjects, unit="us", scale=1e6, rounds=ROUNDS)


if __name__ == "__main__":
    main()
