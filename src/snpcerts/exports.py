# SPDX-License-Identifier: Apache-2.0
"""A package's public names, imported on first use (PEP 562).

A package's ``__init__`` lists its public objects twice: under ``if TYPE_CHECKING`` for type
checkers, and by module for the interpreter. So ``from snpcerts.verify import verify`` works, and
importing one module of a package does not load the others. ``tests/test_public_api.py`` checks that
the two lists agree.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping


def lazy_exports(
    package: str, modules: Mapping[str, tuple[str, ...]]
) -> tuple[list[str], Callable[[str], object], Callable[[], list[str]]]:
    """Return ``__all__``, ``__getattr__`` and ``__dir__`` for ``package``.

    ``modules`` maps each module to the names that it exports. A module of ``package`` is named
    without the package's name, any other module by its full name.
    """
    homes = {
        name: module if "." in module else f"{package}.{module}"
        for module, names in modules.items()
        for name in names
    }

    def getattr_(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def dir_() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return sorted(homes), getattr_, dir_
