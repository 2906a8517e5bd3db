# SPDX-License-Identifier: Apache-2.0
"""The map of the house holds: imports point down, the product does not know the emulator."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "snpcerts"
# From the ground up; each may import what stands before it.
FLOORS = [
    "exports",
    "printable",
    "errors",
    "temporary_directory",
    "abi",
    "endorsement",
    "verify",
    "kds",
    "certfile",
    "host",
    "vmm",
    "guest",
    "emulator",
    "conformance",
    "demo",
    "cli",
]
MODULES = sorted(SOURCE.rglob("*.py"))
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}


def floor_of(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    mine = floor_of(path)
    if mine in ("__init__", "__main__"):
        return
    allowed = set(FLOORS[: FLOORS.index(mine) + 1])
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "snpcerts" and len(parts) > 1 and parts[1] != "__version__":
            assert parts[1] in allowed, f"{mine} imports {name}"


@pytest.mark.parametrize(
    "path", [path for path in MODULES if floor_of(path) == "abi"], ids=lambda path: path.name
)
def test_the_ground_floor_needs_only_the_standard_library(path: Path) -> None:
    for name in imported(path):
        top = name.split(".")[0]
        assert top == "snpcerts" or top in sys.stdlib_module_names, name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_module_has_a_licence_line_a_docstring_and_a_name_that_says_something(
    path: Path,
) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert ast.get_docstring(ast.parse(text)) or path.name == "__main__.py"
    assert path.stem not in FORBIDDEN_NAMES
