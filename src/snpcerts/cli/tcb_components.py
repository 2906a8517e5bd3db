# SPDX-License-Identifier: Apache-2.0
"""Reads a TCB, or a part of one, as people write it: ``bl=3,snp=8``."""

from __future__ import annotations

from typing import Final

from snpcerts.errors import UsageError

METAVAR: Final = "bl=N,tee=N,snp=N,ucode=N[,fmc=N]"
_SHORT: Final = {
    "bl": "bootloader",
    "tee": "tee",
    "snp": "snp",
    "ucode": "microcode",
    "fmc": "fmc",
}


def tcb_components(option: str, text: str) -> dict[str, int]:
    """Return ``bl=3,snp=8`` as component names and values; ``option`` is for the error."""
    found: dict[str, int] = {}
    for part in text.split(",") if text else ():
        name, equals, value = part.partition("=")
        if name not in _SHORT or not equals or not value.isdecimal() or int(value) > 255:
            raise UsageError(
                f"{option} {text}: {part!r} is not a component",
                hint="as in bl=3,tee=0,snp=8,ucode=115; each 0 to 255",
            )
        if _SHORT[name] in found:
            raise UsageError(f"{option} {text}: {name} is given twice")
        found[_SHORT[name]] = int(value)
    return found
