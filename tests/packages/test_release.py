# SPDX-License-Identifier: Apache-2.0
"""The release that packaging/build.py makes is reproducible, complete and installable by pip."""

from __future__ import annotations

import json
import os
import re
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.packages.bare_root import FETCHED, BareRoot
from tests.packages.conftest import NEWEST, ROOT, build


def test_two_builds_are_the_same_byte_by_byte(release: Path, tmp_path: Path) -> None:
    build(tmp_path)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert [Path(name).suffix for name in files] == [".rpm", ".whl", ".json", ".gz", ".deb"]
    for name in files:
        assert (tmp_path / name).read_bytes() == (release / name).read_bytes(), name


def test_the_sbom_lists_every_locked_package_with_its_hashes(release: Path) -> None:
    (path,) = release.glob("*.cdx.json")
    sbom = json.loads(path.read_text())
    assert (sbom["bomFormat"], sbom["metadata"]["component"]["name"]) == ("CycloneDX", "snpcerts")
    locked = re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "packaging/locked.txt").read_text(), re.M)
    assert {(each["name"], each["version"]) for each in sbom["components"]} == set(locked)
    for each in sbom["components"]:
        references = each["externalReferences"]
        assert any(reference.get("hashes") for reference in references), each["name"]


def test_the_wheel_is_for_any_linux_and_has_its_data(release: Path) -> None:
    (wheel,) = release.glob("*.whl")
    assert "manylinux_2_34_x86_64" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    for end in (
        "data/share/man/man1/snpcerts-host.1",
        "data/share/bash-completion/completions/snpcerts",
        "data/share/zsh/site-functions/_snpcerts",
        "data/lib/systemd/system/snpcerts-sync.service",
        "data/lib/tmpfiles.d/snpcerts.conf",
        "snpcerts/vmm/libsnpcerts_shim.so",
        "snpcerts/host/system_files/snpcerts.toml",
    ):
        assert any(name.endswith(end) for name in names), end


def test_a_build_leaves_the_libraries_of_an_editable_installation_alone(tmp_path: Path) -> None:
    libraries = sorted((ROOT / "src/snpcerts/vmm").glob("*.so"))
    before = [(path.name, path.stat().st_ino, path.stat().st_mtime_ns) for path in libraries]
    assert before
    made = subprocess.run(
        [FETCHED / "venv/bin/python", "-m", "build", "--wheel", "--outdir", tmp_path, ROOT],
        capture_output=True,
        text=True,
        env={**os.environ, "CC": "/nowhere/cc"},
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert "snpcerts run will not work: no C compiler" in made.stdout + made.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["snpcerts-0.1.0-py3-none-any.whl"]
    after = [(path.name, path.stat().st_ino, path.stat().st_mtime_ns) for path in libraries]
    assert after == before


@pytest.mark.parametrize("bare", NEWEST, indirect=True)
def test_pip_installs_wheel_and_sdist_without_a_compiler(bare: BareRoot) -> None:
    made = bare.run(
        """
set -u
for kind in whl tar.gz; do
    python3 -m venv $kind
    $kind/bin/pip install -v /run/packages/snpcerts-0.1.0*.$kind >log 2>&1 || cat log
    grep -o 'snpcerts run will not work: no C compiler' log
    $kind/bin/snpcerts --version
    test -e $kind/share/man/man1/snpcerts.1 && echo has manual pages
    touch certs.bin
    $kind/bin/snpcerts run --certs-filename certs.bin --print-environment
    $kind/bin/snpcerts host check | grep 'snpcerts run'
    $kind/bin/snpcerts host install
done
"""
    )
    said = made.stdout.split("snpcerts, version ")
    assert len(said) == 3, made.stdout + made.stderr
    assert "no C compiler" not in said[0]
    assert "LD_PRELOAD=" in said[1]
    assert "has manual pages" in said[1]
    assert "pass  snpcerts run" in said[1]
    assert "no C compiler" in said[1].split("pass  snpcerts run")[1]
    assert "LD_PRELOAD=" not in said[2]
    assert "warn  snpcerts run: the shim is not installed" in said[2]
    # The unit cannot see root's home, where these virtual environments are.
    assert made.stderr.count("the unit cannot see") == 2


def test_bash_completes_the_commands(bare: BareRoot) -> None:
    made = bare.run(
        """
dpkg --install /run/packages/snpcerts_0.1.0_amd64.deb >/dev/null
bash -c '. /usr/share/bash-completion/completions/snpcerts
    COMP_WORDS=(snpcerts host in); COMP_CWORD=2; _snpcerts_completion snpcerts 2>/dev/null
    echo "${COMPREPLY[@]}"'
"""
    )
    assert "install" in made.stdout.split(), made.stdout + made.stderr
