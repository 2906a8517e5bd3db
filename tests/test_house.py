# SPDX-License-Identifier: Apache-2.0
"""The structure of the code: imports point down and never in a circle, and the product does
not import the emulator."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import click
import pytest

from snpcerts.cli.main import cli

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "snpcerts"
# Modules and packages from the ground up; each may import those listed before it.
LAYERS = [
    "exports",
    "schemas",
    "printable",
    "trace",
    "errors",
    "device_file",
    "device_ioctl",
    "fidelity",
    "parent_process",
    "uninterrupted",
    "temporary_directory",
    "file_date",
    "toml_file",
    "abi",
    "endorsement",
    "verify",
    "kds",
    "mirror",
    "certfile",
    "host",
    "vmm",
    "guest",
    "emulator",
    "conformance",
    "demo",
    "cli",
]
# The rooms are the emulator's packages; each may import the rooms that are listed for it.
ROOMS: dict[str, set[str]] = {
    "syscall": set(),
    "psp": {"syscall"},
    "amd": {"syscall", "psp"},
    "guest": {"syscall", "psp"},
    "kvm": {"syscall", "psp", "guest"},
    "frontdoor": {"syscall"},
    "machine": {"syscall", "psp", "amd", "guest", "kvm", "frontdoor"},
}
# Only these packages and commands use the emulator.
RUN_THE_EMULATOR = ("emulator", "conformance", "demo")
COMMANDS_THAT_DO = {"conformance.py", "demo.py", "emulate.py"}
MODULES = sorted(SOURCE.rglob("*.py"))
_EXPRESSION = re.compile(r"\{[a-z_]+[.(\[!:}]")
PACKAGES = sorted(path.parent for path in SOURCE.rglob("__init__.py"))
_QUOTED = re.compile(r"``([^`]+)``")
# Names that several modules may share, because the package distinguishes them. Modules of commands
# may share names too, because each is named after its command.
SHARED_MODULE_NAMES = {"__init__", "__main__", "errors"}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}


def layer_of(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def module_of(path: Path) -> str:
    """Return the name by which a file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "src" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_of(path): path
    for top in ("src", "tests", "explore", "fuzz", "bench")
    for path in sorted((ROOT / top).rglob("*.py"))
}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(tree_of(path)))


@cache
def imported(path: Path) -> frozenset[str]:
    """Full names of the modules that a file imports, at its top or anywhere else in it."""
    found: set[str] = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.relative_to(ROOT).parts[: -node.level]
                base = ".".join((*package, base)) if base else ".".join(package)
            found.add(base)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return frozenset(found)


@cache
def graph() -> dict[str, set[str]]:
    """For each of our modules, those it imports. A package's name stands for its ``__init__``."""
    found: dict[str, set[str]] = {}
    for module, path in FILES.items():
        names = set(imported(path) & FILES.keys())
        # "from package import module" counts for the module only, not for the package's __init__.
        packages = {name.rpartition(".")[0] for name in names}
        asked = {name for name in imported(path) if name not in FILES}
        faces = {name for name in packages & names if any(_is_in(each, name) for each in asked)}
        found[module] = ((names - packages) | faces) - {module}
    return found


def _is_in(name: str, package: str) -> bool:
    return name.rpartition(".")[0] == package


def test_no_file_imports_itself_by_way_of_others() -> None:
    """Imports inside functions and imports only for type checking count too."""
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(" < ".join(error.args[1]))


def reached(module: str) -> set[str]:
    """Return every file that importing a module may load, now or later."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        for name in graph()[waiting.pop()] - found:
            found.add(name)
            waiting.append(name)
    return found


def test_nothing_of_the_product_leads_to_the_emulator() -> None:
    for module, path in FILES.items():
        if SOURCE not in path.parents or layer_of(path) in RUN_THE_EMULATOR:
            continue
        if layer_of(path) == "cli" and path.name in COMMANDS_THAT_DO:
            continue
        found = {name for name in reached(module) if name.startswith("snpcerts.emulator")}
        assert not found, f"{module} must not lead to {sorted(found)}"


def test_the_emulators_rooms_are_those_of_the_table() -> None:
    folders = {path.parent for path in (SOURCE / "emulator").glob("*/__init__.py")}
    assert {folder.name for folder in folders} == ROOMS.keys()
    flat = [path.name for path in (SOURCE / "emulator").glob("*.py") if path.stem != "__init__"]
    assert flat == []
    TopologicalSorter(ROOMS).prepare()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_of_the_emulator_imports_only_rooms_below(room: str) -> None:
    for path in (SOURCE / "emulator" / room).rglob("*.py"):
        for name in imported(path):
            parts = name.split(".")
            if parts[:2] == ["snpcerts", "emulator"] and len(parts) > 2:
                assert parts[2] in {room, *ROOMS[room]}, f"{path}: imports {name}"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_package_says_which_file_holds_what(package: Path) -> None:
    described = ast.get_docstring(tree_of(package / "__init__.py")) or ""
    files = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    packages = {path.parent.name for path in package.glob("*/__init__.py")}
    assert {name for name in files | packages if not _names(described, name)} == set()


def _names(described: str, name: str) -> bool:
    return re.search(rf"\b{name}\b", " ".join(_QUOTED.findall(described))) is not None


@pytest.mark.parametrize(
    "package",
    [path for path in PACKAGES if path not in (SOURCE, SOURCE / "schemas", SOURCE / "emulator")],
    ids=lambda path: str(path.relative_to(SOURCE)),
)
def test_a_package_says_which_packages_it_imports(package: Path) -> None:
    described = " ".join((ast.get_docstring(tree_of(package / "__init__.py")) or "").split())
    sentence = re.search(r"\bImports (.*?)\.(?: |$)", described)
    assert sentence is not None, "the docstring must have a sentence 'Imports ...'"
    found = {
        _package_as_named(name, package)
        for path in package.glob("*.py")
        for name in imported(path)
        if name in FILES and SOURCE in FILES[name].parents
    }
    assert set(_QUOTED.findall(sentence[1])) == found - {None}


def _package_as_named(module: str, package: Path) -> str | None:
    """How ``package`` must name the package of ``module``; None if it need not name it at all."""
    path = FILES[module]
    folder = path.parent.relative_to(SOURCE)
    if path.name != "__init__.py" and not folder.parts:
        return None  # errors.py and its neighbours, which everything imports
    if package == path.parent or package in path.parents or not folder.parts:
        return None
    mine = package.relative_to(SOURCE)
    return folder.parts[1] if folder.parts[0] == mine.parts[0] == "emulator" else folder.parts[0]


def test_the_package_imports_by_full_names() -> None:
    """When a file moves, one search for its full name then finds every import."""
    relative = [
        f"{path}:{node.lineno}"
        for path in MODULES
        for node in nodes_of(path)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_imports_point_down() -> None:
    wrong = []
    for path in MODULES:
        mine = layer_of(path)
        if mine in ("__init__", "__main__"):
            continue
        allowed = {*LAYERS[: LAYERS.index(mine) + 1], "__version__"}
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "snpcerts" and len(parts) > 1 and parts[1] not in allowed:
                wrong.append(f"{path}: {mine} imports {name}")
    assert wrong == []


def test_abi_needs_only_the_standard_library() -> None:
    ground = [path for path in MODULES if layer_of(path) == "abi"]
    tops = {name.split(".")[0] for path in ground for name in imported(path)}
    assert tops - {"snpcerts"} <= sys.stdlib_module_names


def test_every_module_has_a_licence_line_a_docstring_and_a_name_that_says_something() -> None:
    licence = "# SPDX-License-Identifier: Apache-2.0\n"
    without = {
        "licence": [
            path for path in MODULES if not path.read_text(encoding="utf-8").startswith(licence)
        ],
        "docstring": [
            path
            for path in MODULES
            if not ast.get_docstring(tree_of(path)) and path.name != "__main__.py"
        ],
        "name": [path for path in MODULES if path.stem in FORBIDDEN_NAMES],
    }
    assert without == {"licence": [], "docstring": [], "name": []}


def test_no_table_of_a_docstring_was_filled_as_a_paragraph() -> None:
    """A rule (``====``) in a docstring must be alone on its line."""
    for path in MODULES:
        for line in (ast.get_docstring(tree_of(path)) or "").splitlines():
            assert "====" not in line or not line.strip("= "), f"{path}: {line}"


def test_no_table_of_a_page_was_filled_as_a_paragraph() -> None:
    """Each row, and the rule below the first row, must be alone on its line."""
    for path in sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")}):
        text = re.sub(r"^ *```.*?^ *```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
        for line in map(str.strip, text.splitlines()):
            row = line.startswith("|")
            assert not row or line.endswith("|"), f"{path}: {line}"
            assert "| ---" not in line or not line.strip("|-: "), f"{path}: {line}"


def test_a_class_name_means_one_thing() -> None:
    """No two classes share a name, even if private, so that a search finds only one."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        for node in nodes_of(path):
            if isinstance(node, ast.ClassDef):
                found[node.name.lstrip("_")].append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


def test_a_module_name_means_one_thing() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        relative = path.relative_to(SOURCE)
        if path.stem not in SHARED_MODULE_NAMES and not _is_a_command(relative):
            found[path.stem].append(str(relative))
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


def _is_a_command(path: Path) -> bool:
    if path.parts[0] != "cli":
        return False
    group: click.Command | None = cli
    for word in path.with_suffix("").parts[1:]:
        context = click.Context(cli)
        group = group.get_command(context, word) if isinstance(group, click.Group) else None
    return group is not None


def test_devices_are_called_by_the_kernels_ioctl() -> None:
    """Since 3.14, Python's ioctl repeats a call after EINTR and drops what a failed call wrote.
    For the supervisor's listener, neither matters.
    """
    users = {
        path.relative_to(SOURCE).as_posix()
        for path in MODULES
        if re.search(r"^\s[^#`]*fcntl\.ioctl\(", path.read_text(), re.MULTILINE)
    }
    assert users == {"emulator/frontdoor/seccomp.py"}


_VERB = r"(?:is|are|has|was|must|does|needs|names|holds|contains|belongs|ends) "
_AFTER_A_NAME = re.compile(r"\0: " + _VERB)
_FIRST = re.compile(_VERB)


def _template(node: ast.expr) -> str:
    """Return the text of a string, with NUL for each {value}; empty if ``node`` is not a string."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(each) or "\0" for each in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_a_message_shows_values_and_not_their_names() -> None:
    """Doubled braces in an f-string print an expression instead of its value."""
    found = [
        f"{path}:{each.lineno}: {each.value!r}"
        for path in MODULES
        for string in nodes_of(path)
        if isinstance(string, ast.JoinedStr)
        for each in string.values
        if isinstance(each, ast.Constant) and _EXPRESSION.search(str(each.value))
    ]
    assert found == []


def test_what_follows_the_name_in_a_message_has_its_own_subject() -> None:
    """Write "FILE: not a regular file" or "FILE: the file has 5 bytes", not "FILE: has 5 bytes"."""
    wrong = []
    for path in MODULES:
        for node in nodes_of(path):
            if isinstance(node, ast.JoinedStr):
                text = _template(node)
                found = _AFTER_A_NAME.search(text)
            elif (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "FormatError"
                and len(node.args) > 1
            ):
                text = _template(node.args[1])
                found = _FIRST.match(text)
            else:
                continue
            if found:
                wrong.append(f"{path}:{node.lineno}: {text!r}")
    assert wrong == []
