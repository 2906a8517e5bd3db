# SPDX-License-Identifier: Apache-2.0
"""What programs may import: names and signatures, as ``tests/public_api.txt`` holds them.

``python -m tests.test_public_api`` writes that file anew. A line that disappears
from it breaks somebody's program: it needs an entry in CHANGELOG.md.
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from snpcerts.device_file import DeviceFile
from snpcerts.exports import lazy_exports

ROOT = Path(__file__).parents[1]
HELD = Path(__file__).with_name("public_api.txt")
# Classes that programs cannot name. Public classes inherit from them; their members count as those
# of the public class.
_INTERNAL = frozenset({DeviceFile})
PACKAGES = ("abi", "endorsement", "verify", "kds", "certfile", "vmm", "guest")
PLAIN = ("schemas",)  # packages that load nothing later


def described() -> str:
    """The public API as text, one line for each thing that a program can depend on."""
    return "".join(f"{line}\n" for package in (*PACKAGES, *PLAIN) for line in _package(package))


def _package(package: str) -> Iterator[str]:
    module = importlib.import_module(f"snpcerts.{package}")
    for name in sorted(module.__all__):
        value = getattr(module, name)
        whole = f"snpcerts.{package}.{name}"
        if inspect.isclass(value):
            bases = ", ".join(base.__name__ for base in value.__bases__ if base not in _INTERNAL)
            bases = bases or "object"
            yield f"{whole}: class ({bases})"
            yield from _members(whole, value)
        elif inspect.isfunction(value):
            yield f"{whole}{_signature(value)}"
        else:
            yield f"{whole}: {type(value).__name__}"


def _members(whole: str, kind: type) -> Iterator[str]:
    if issubclass(kind, enum.Enum):
        for member in kind:
            yield f"{whole}.{member.name} = {member.value!r}"
    elif "__init__" in vars(kind):
        yield f"{whole}{_signature(kind.__init__)}"
    members = dict(vars(kind))
    for base in _INTERNAL.intersection(kind.__bases__):
        members = vars(base) | members
    for name, value in sorted(members.items()):
        if name.startswith("_") or (issubclass(kind, enum.Enum) and name in kind.__members__):
            continue
        if isinstance(value, (classmethod, staticmethod)):
            yield f"{whole}.{name}{_signature(value.__func__)}"
        elif inspect.isfunction(value):
            yield f"{whole}.{name}{_signature(value)}"
        else:
            yield f"{whole}.{name}"


def _signature(function: object) -> str:
    assert callable(function)
    signature = inspect.signature(function)
    parts: list[str] = []
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    for place, (name, parameter) in enumerate(signature.parameters.items()):
        keyword = inspect.Parameter.KEYWORD_ONLY
        if parameter.kind is keyword and keyword not in kinds[:place]:
            parts.append("*")
        text = name
        if parameter.annotation is not inspect.Parameter.empty:
            text += f": {parameter.annotation}"
        # That there is a default is a promise; its value is left to the documentation.
        parts.append(text if parameter.default is inspect.Parameter.empty else f"{text} = ...")
    back = signature.return_annotation
    arrow = "" if back is inspect.Signature.empty else f" -> {back}"
    return f"({', '.join(parts)}){arrow}"


def test_public_names_and_signatures_are_unchanged() -> None:
    found = described().splitlines()
    promised = HELD.read_text(encoding="utf-8").splitlines()
    gone = [line for line in promised if line not in found]
    added = [line for line in found if line not in promised]
    assert not gone, "gone or changed: see the docstring of this file"
    assert not added, "new: run python -m tests.test_public_api"


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_and_the_interpreter_see_the_same_names(package: str) -> None:
    module = importlib.import_module(f"snpcerts.{package}")
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    typed = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("snpcerts.")
        and node.module != "snpcerts.exports"
        for alias in node.names
    }
    assert sorted(typed, key=str) == module.__all__
    for name, home in typed.items():
        assert home is not None
        assert name is not None
        assert getattr(module, name) is getattr(importlib.import_module(home), name)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_public_name_is_hidden_by_a_module_of_the_same_name(package: str) -> None:
    modules = {path.stem for path in (ROOT / "src" / "snpcerts" / package).glob("*.py")}
    names = set(importlib.import_module(f"snpcerts.{package}").__all__)
    assert not names & modules


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_loads_none_of_its_modules(package: str) -> None:
    program = (
        f"import json, sys, snpcerts.{package}\n"
        "print(json.dumps([name for name in sys.modules if name.startswith('snpcerts')]))"
    )
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout
    assert set(json.loads(out)) == {"snpcerts", "snpcerts.exports", f"snpcerts.{package}"}


def test_a_name_that_does_not_exist_is_an_attribute_error_that_names_the_package() -> None:
    module: ModuleType = importlib.import_module("snpcerts.verify")
    with pytest.raises(AttributeError, match=r"'snpcerts\.verify' has no attribute 'no_such'"):
        module.no_such  # noqa: B018 (the access is what is tested)


def test_dir_lists_public_names_before_they_are_imported() -> None:
    importlib.import_module("snpcerts.vmm")
    _, _, dir_ = lazy_exports("snpcerts.vmm", {"exit_service": ("ExitService",)})
    assert "ExitService" in dir_()


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_public_is_documented(package: str) -> None:
    module = importlib.import_module(f"snpcerts.{package}")
    bare = [
        name
        for name in module.__all__
        if (inspect.isclass(value := getattr(module, name)) or inspect.isfunction(value))
        and not inspect.getdoc(value)
    ]
    assert not bare


if __name__ == "__main__":
    HELD.write_text(described(), encoding="utf-8")
