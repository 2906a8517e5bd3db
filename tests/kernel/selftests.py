# SPDX-License-Identifier: Apache-2.0
"""KVM's selftests, compiled from the sources of a release.

The programs stay in the cache directory of ``fetch.sh``: the kernel is under the GPL, so we do
not distribute them.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from . import headers
from .oracle.build import SOURCES

BUILT: Final = headers.FETCHED / "selftests"
_KVM: Final = Path("tools", "testing", "selftests", "kvm")
_FLAGS: Final = (
    *("-D_GNU_SOURCE=", "-DCONFIG_64BIT", "-O1", "-w", "-std=gnu99", "-march=x86-64-v2"),
    *("-U_FORTIFY_SOURCE", "-fno-stack-protector", "-fno-PIE", "-fno-strict-aliasing"),
    *("-fno-builtin-memcmp", "-fno-builtin-memcpy", "-fno-builtin-memset", "-fno-builtin-strnlen"),
)


class SelftestError(Exception):
    """The release lacks a selftest, or the selftest does not compile. The message says why."""


def build(version: str, name: str) -> Path:
    """The program of one selftest; ``name`` is a path below ``selftests/kvm``, without ``.c``."""
    library = _library(version)
    made = _folder(version) / Path(name).name
    if not made.exists():
        _compile(version, [f"{name}.c", *library, "-pthread", "-no-pie"], made)
    return made


def build_part(version: str, source: Path) -> Path:
    """A program of our own that includes a selftest, to run a part of it."""
    library = _library(version)
    made = _folder(version) / source.stem
    if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
        _compile(version, ["-I.", str(source), *library, "-pthread", "-no-pie"], made)
    return made


def _library(version: str) -> list[str]:
    """The objects of libkvm."""
    sources = [
        each.relative_to(SOURCES / version / _KVM)
        for folder in ("lib", "lib/x86")
        for each in sorted((SOURCES / version / _KVM / folder).glob("*.[cS]"))
    ]
    if not sources:
        raise SelftestError(f"Linux {version}: {_KVM}/lib holds no sources")

    def compiled(source: Path) -> str:
        made = _folder(version) / "lib" / (str(source).replace("/", "_") + ".o")
        if not made.exists():
            # string_override defines memcpy() and the like. The compiler must not turn the loop in
            # such a function into a call to the same function.
            free = ["-ffreestanding"] if source.stem == "string_override" else []
            _compile(version, [*free, "-c", str(source)], made)
        return str(made)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compiled, sources))


def _folder(version: str) -> Path:
    return BUILT / version


def _compile(version: str, arguments: list[str], made: Path) -> None:
    made.parent.mkdir(parents=True, exist_ok=True)
    place = SOURCES / version / _KVM
    missing = [word for word in arguments if word.endswith(".c") and not (place / word).is_file()]
    if missing:
        raise SelftestError(f"Linux {version} has no {_KVM / missing[0]}")
    # Another process may be building the same file, so write to one of our own, then rename it.
    unfinished = made.with_name(f"{made.name}.{os.getpid()}")
    done = subprocess.run(
        ["gcc", *_FLAGS, *_includes(version), *arguments, "-o", str(unfinished)],
        cwd=place,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SelftestError(f"{made.name} of Linux {version}:\n{done.stderr[:4000]}")
    unfinished.rename(made)


def _includes(version: str) -> Iterator[str]:
    tools = SOURCES / version / "tools"
    yield from (f"-I{tools / 'include'}", f"-I{tools / 'arch/x86/include'}")
    yield from headers.user_headers(headers.releases()[version])
    yield from ("-Iinclude", "-Iinclude/x86", "-I..", "-I../rseq")
