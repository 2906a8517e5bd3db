# SPDX-License-Identifier: Apache-2.0
"""``vmm/c_library.py`` declares the sizes, offsets and values that ``snpcerts.h`` has in C."""

from __future__ import annotations

import ctypes
import subprocess

import pytest

from snpcerts.vmm import c_library
from snpcerts.vmm.c_library import RequestProblem

from ..shim.conftest import ROOT, build

STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "snpcerts_slot": c_library._CSlot,
    "snpcerts_vm": c_library._CVm,
    "snpcerts_served": c_library.CServed,
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Sizes, offsets and values, by their expressions in C."""
    asked = [f"sizeof(struct {name})" for name in STRUCTURES]
    for name, structure in STRUCTURES.items():
        fields = [field[0] for field in structure._fields_]
        asked += [f"offsetof(struct {name}, {field})" for field in fields]
        asked += [f"sizeof(((struct {name} *)0)->{field})" for field in fields]
    asked += [f"SNPCERTS_{each.name}" for each in RequestProblem]
    asked += [f"SNPCERTS_{name.upper().replace('-', '_')}" for name in c_library.OUTCOMES]
    asked += ["SNPCERTS_UNREADABLE_IS_EIO"]
    lines = "".join(f'\tprintf("%ld\\n", (long)({each}));\n' for each in asked)
    folder = tmp_path_factory.mktemp("layout")
    source = folder / "layout.c"
    includes = "#include <stddef.h>\n#include <stdio.h>\n#include <snpcerts.h>\n"
    source.write_text(f"{includes}int main(void)\n{{\n{lines}\treturn 0;\n}}\n")
    program = build(folder / "layout", source, f"-I{ROOT / 'native' / 'include'}")
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return dict(zip(asked, map(int, said.split()), strict=True))


def test_structures_have_the_layout_that_c_gives_them(measured: dict[str, int]) -> None:
    for name, structure in STRUCTURES.items():
        assert measured[f"sizeof(struct {name})"] == ctypes.sizeof(structure)
        for field in (each[0] for each in structure._fields_):
            there = getattr(structure, field)
            assert measured[f"offsetof(struct {name}, {field})"] == there.offset, field
            assert measured[f"sizeof(((struct {name} *)0)->{field})"] == there.size, field


def test_numbers_are_those_of_the_header(measured: dict[str, int]) -> None:
    for problem in RequestProblem:
        assert measured[f"SNPCERTS_{problem.name}"] == problem
    for number, name in enumerate(c_library.OUTCOMES):
        assert measured[f"SNPCERTS_{name.upper().replace('-', '_')}"] == number
    assert measured["SNPCERTS_UNREADABLE_IS_EIO"] == c_library.UNREADABLE_IS_EIO
