# SPDX-License-Identifier: Apache-2.0
"""The C library has the same bounds and waits as the reader in Python, and the shim prints the exit
number in the form that ``host prove`` parses.

KVM's numbers are compared with released headers, in tests/kernel.
"""

from __future__ import annotations

import re

from snpcerts.abi import cert_table
from snpcerts.certfile import reader
from snpcerts.vmm import preload

from .conftest import ROOT

FILES = ("snpcerts.c", "include/snpcerts.h")
SOURCE = "".join((ROOT / "native" / name).read_text(encoding="utf-8") for name in FILES)


def defined() -> dict[str, int]:
    """Every ``#define`` of a plain number."""
    found = re.findall(r"^#define (\w+) (0x[0-9A-Fa-f]+|\d+)(?:ull|u)?(?:\s*/\*.*)?$", SOURCE, re.M)
    return {name: int(value, 0) for name, value in found}


def test_the_bounds_and_waits_of_the_reader() -> None:
    named = defined()
    assert named["PAGE"] == cert_table.PAGE_SIZE
    assert "#define SNPCERTS_MAX_SIZE (1ull << 20)" in SOURCE
    assert cert_table.MAX_SIZE == 1 << 20
    assert f"zeros[{cert_table.ENTRY_SIZE}]" in SOURCE
    assert named["FIRST_PAUSE"] == reader._FIRST_PAUSE * 1e9
    assert named["LONGEST_PAUSE"] == reader._LONGEST_PAUSE * 1e9
    assert named["SNPCERTS_LOCK_WAIT"] == reader.DEFAULT_LOCK_WAIT * 1e9


def test_the_shim_says_the_exit_number_as_host_prove_reads_it() -> None:
    shim = (ROOT / "native" / "shim.c").read_text(encoding="utf-8")
    assert f'getenv("{preload.TELL_EXIT}")' in shim
    assert f'SAY_ONCE("{preload.EXIT_TOLD.format("%u")}"' in shim
