# SPDX-License-Identifier: Apache-2.0
"""``python -m bench [NAME...]``: run all benchmarks, or those named."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

from bench.compare import Skip

# Modules that are not benchmarks.
_PARTS = ("__main__", "compare", "fleet_hosts", "fleet_virtual", "http_load", "peers")


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all if no name is given. Return 2 if a name is unknown."""
    folder = Path(__file__).parent
    known = [
        module.name for module in pkgutil.iter_modules([str(folder)]) if module.name not in _PARTS
    ]
    if unknown := set(names) - set(known):
        print(f"unknown: {', '.join(sorted(unknown))}; the benchmarks are {', '.join(known)}")
        return 2
    for name in names or known:
        try:
            importlib.import_module(f"bench.{name}").main()
        except Skip as reason:
            print(f"{name}: skipped, {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
