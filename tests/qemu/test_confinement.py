# SPDX-License-Identifier: Apache-2.0
"""Compiles docs/stock-vmms.md's AppArmor rules and its SELinux file context.

AppArmor's rules are compiled as a part of the profile that libvirt gives its QEMUs, in the file
that the documentation names. Nothing is loaded into a kernel, so these tests do not show that the
rules are enough; that has not been tried yet.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .rig import fetched

DOCUMENT = Path(__file__).parents[2] / "docs" / "stock-vmms.md"
PROFILE = """
abi <abi/3.0>,
include <tunables/global>
profile a-domain {
  include <abstractions/libvirt-qemu>
}
"""


def unpacked(name: str) -> Path:
    root = fetched() / name
    if not (root / "complete").exists():
        pytest.skip(f"no {name} in {fetched()}: 'make test-qemu' fetches it")
    return root


def documented(pattern: str) -> str:
    found = re.search(pattern, DOCUMENT.read_text(encoding="utf-8"), re.S)
    assert found is not None, f"{DOCUMENT} has no {pattern}"
    return found[1]


def compiled_profile(rules: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Compile libvirt's profile with these rules; the compiler prints what the profile allows."""
    confinement, base = unpacked("confinement"), folder / "apparmor.d"
    for each in (confinement, unpacked("libvirt")):
        shutil.copytree(each / "etc" / "apparmor.d", base, dirs_exist_ok=True)
    local = base / documented(r"in `/etc/apparmor\.d/(local/\S+)`")
    local.parent.mkdir(parents=True, exist_ok=True)
    local.write_text(rules)
    (folder / "profile").write_text(PROFILE)
    argv = ["--skip-kernel-load", "--skip-cache", "--debug", "--base", str(base)]
    return subprocess.run(
        [str(confinement / "sbin" / "apparmor_parser"), *argv, str(folder / "profile")],
        capture_output=True,
        text=True,
    )


def test_apparmors_rules_reach_the_profile_of_a_domain(tmp_path: Path) -> None:
    rules = documented(r"\* \*\*AppArmor\*\*.*?```\n(.*?)```")
    made = compiled_profile(rules, tmp_path)
    assert made.returncode == 0, made.stderr
    allowed = dict(re.findall(r"Mode:\t(\w+):\w+\tName:\t\((\S*snpcerts\S*)\)", made.stdout))
    assert {mode: Path(path).name for mode, path in allowed.items()} == {
        "rm": "libsnpcerts_shim.so",
        "rk": "certs.bin",
    }


def test_a_malformed_rule_is_refused(tmp_path: Path) -> None:
    made = compiled_profile("/var/lib/snpcerts/certs.bin rk\n", tmp_path)
    assert made.returncode != 0
    assert "syntax error" in made.stderr


@pytest.mark.parametrize(("spoil", "code"), [(False, 0), (True, 255)])
def test_selinuxs_file_contexts_are_compiled(tmp_path: Path, spoil: bool, code: int) -> None:
    kind, path = documented(r"(semanage fcontext -a -t \w+ '[^']+')").split()[-2:]
    pattern = path.strip("'").removesuffix(")?" if spoil else "")
    (tmp_path / "contexts").write_text(f"{pattern}\tsystem_u:object_r:{kind}:s0\n")
    compiler = unpacked("confinement") / "usr" / "sbin" / "sefcontext_compile"
    argv = [str(compiler), "-o", str(tmp_path / "compiled"), str(tmp_path / "contexts")]
    made = subprocess.run(argv, capture_output=True, text=True)
    assert made.returncode == code, made.stderr
