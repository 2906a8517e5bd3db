# SPDX-License-Identifier: Apache-2.0
"""The VMMs of ``examples/`` in Rust and in Go, which cargo and go build."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import pytest

from ..example_vmms import EXAMPLES, assert_passes, assert_short, installed_library, run

ROOT = EXAMPLES.parent


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Install the library; return the environment variables to build and run a VMM with it."""
    for tool in ("make", "cc", "pkg-config", "cargo", "go"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} on this machine")
    return installed_library(tmp_path_factory.mktemp("prefix"))


def test_the_vmm_in_rust_passes(variables: dict[str, str], tmp_path: Path) -> None:
    place = EXAMPLES / "rust"
    assert_short(place / "src" / "main.rs")
    manifest = ["--manifest-path", str(place / "Cargo.toml")]
    target = {"CARGO_TARGET_DIR": str(tmp_path)}
    run(["nice", "cargo", "build", "--locked", "--release", *manifest], {**variables, **target})
    assert_passes(tmp_path / "release" / "snpcerts-vmm", variables)


def test_the_vmm_in_go_passes(variables: dict[str, str], tmp_path: Path) -> None:
    place = EXAMPLES / "go"
    assert_short(place / "main.go")
    program = tmp_path / "vmm"
    # Go caches a compiled package by its directory and source, whatever pkg-config says. A cached
    # package would name the prefix of an earlier run, so the directory is new each time.
    copy = Path(tempfile.mkdtemp(dir=tmp_path))
    shutil.copytree(place, copy, dirs_exist_ok=True)
    run(["nice", "go", "vet", "-C", str(copy), "."], variables)
    run(["nice", "go", "build", "-C", str(copy), "-o", str(program), "."], variables)
    assert_passes(program, variables)


def test_what_rust_declares_is_what_the_header_says() -> None:
    """The fields must have the same order; no compiler compares the two declarations."""
    header = (ROOT / "native" / "include" / "snpcerts.h").read_text(encoding="utf-8")
    declared = (EXAMPLES / "rust" / "src" / "snpcerts.rs").read_text(encoding="utf-8")
    for c_name, name in (("snpcerts_slot", "Slot"), ("snpcerts_vm", "Certs")):
        (body,) = re.findall(rf"struct {c_name} {{(.*?)^}};", header, re.DOTALL | re.MULTILINE)
        body = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
        body = re.sub(r"\(\*(\w+)\)\s*\([^;]*\)", r" \1", body)  # pointers to functions
        fields = re.findall(r"(\w+)\s*[,;]", body)
        (rust,) = re.findall(rf"pub struct {name} {{(.*?)}}", declared, re.DOTALL)
        assert re.findall(r"pub (\w+):", rust) == fields
