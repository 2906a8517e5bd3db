# SPDX-License-Identifier: Apache-2.0
"""Parses a TCB, or a part of one, as people write it: ``bl=3,snp=8``."""

from __future__ import annotations

from typing import Final

from snpcerts.abi.tcb import SHORT_NAMES
from snpcerts.errors import UsageError

METAVAR: Final = "bl=N,tee=N,snp=N,ucode=N[,fmc=N]"


def tcb_components(option: str, text: str) -> dict[str, int]:
    """Parse TCB components such as ``bl=3,snp=8`` into names and values. Errors name ``option``."""
    found: dict[str, int] = {}
    for part in text.split(",") if text else ():
        name, _, value = part.partition("=")
        known = name in SHORT_NAMES and value.isdecimal() and len(value) <= 3
        if not known or int(value) > 255:
            raise UsageError(
                f"{option} {text}: expected components such as bl=3, found {part!r}",
                hint="write the components as bl=3,tee=0,snp=8,ucode=115, each from 0 to 255",
            )
        if SHORT_NAMES[name] in found:
            raise UsageError(f"{option} {text}: {name} is given twice")
        found[SHORT_NAMES[name]] = int(value)
    return found
