# SPDX-License-Identifier: Apache-2.0
"""``snpcerts host install`` and ``uninstall``, in the root directory of another system."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from snpcerts.cli.host.install import own_path
from snpcerts.cli.main import main
from snpcerts.host import installation
from snpcerts.host.config import load
from snpcerts.host.installation import InstallTarget, StepOutcome, carry_out, plan_installation
from tests.documented_json import validator
from tests.emulated import SNPCERTS
from tests.verify.test_documented_reasons import sound_table

COMMAND = "/opt/snpcerts/bin/snpcerts"
UNIT = "etc/systemd/system/snpcerts-sync.service"
NOBODY = 65534


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system without our files, with a group for its VMMs."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/group").write_text("root:x:0:\nkvm:x:104:\n")
    return tmp_path


def install(root: Path, *argv: str, command: str = COMMAND) -> int:
    return main(["host", "install", "--root", str(root), "--command", command, *argv])


def uninstall(root: Path, *argv: str, command: str = COMMAND) -> int:
    return main(["host", "uninstall", "--root", str(root), "--command", command, *argv])


def content(root: Path) -> dict[str, bytes | str]:
    """Return every file and link by its path."""
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def test_an_installation_has_units_configuration_directories_and_the_command(root: Path) -> None:
    assert install(root) == 0
    unit = (root / UNIT).read_text()
    assert f"ExecStart={COMMAND} host sync --watch\n" in unit
    assert "/usr/bin/snpcerts" not in unit
    config = load(str(root / "etc/snpcerts.toml"))
    assert [(file.group, file.mode) for file in config.files] == [("kvm", 0o640)]
    assert os.readlink(root / "usr/local/bin/snpcerts") == COMMAND
    for folder in ("var/lib/snpcerts", "var/lib/snpcerts/vlek", "var/cache/snpcerts"):
        assert (root / folder).stat().st_mode & 0o7777 == 0o755
    assert (root / "etc/tmpfiles.d/snpcerts.conf").exists()
    if shutil.which("systemd-analyze"):
        copy = root / "snpcerts-sync.service"
        copy.write_text(unit.replace(COMMAND, "/bin/true"))
        made = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True
        )
        assert (made.returncode, made.stderr) == (0, "")


def test_what_it_says_is_what_it_did(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install(root, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    validator("host install").validate(said)
    created = {each["path"] for each in said["steps"] if each["outcome"] == "created"}
    for path in content(root):
        assert path == "etc/group" or f"/{path}" in created
    assert uninstall(root, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    validator("host uninstall").validate(said)
    removed = {each["path"] for each in said["steps"] if each["outcome"] == "removed"}
    assert removed == {
        path for path in created if Path(path).suffix in (".service", ".conf", "")
    } - {
        "/var/lib/snpcerts",
        "/var/lib/snpcerts/vlek",
        "/var/cache/snpcerts",
    }
    assert set(content(root)) == {"etc/group", "etc/snpcerts.toml"}


def test_a_dry_run_changes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(root)
    assert install(root, "--dry-run") == 0
    assert "created" in capsys.readouterr().out
    assert content(root) == before
    assert install(root) == 0
    before = content(root)
    assert uninstall(root, "--purge", "--dry-run") == 0
    assert content(root) == before


def test_again_is_unchanged_and_completes_what_is_missing(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install(root) == 0
    whole = content(root)
    capsys.readouterr()
    assert install(root) == 0
    assert "created" not in capsys.readouterr().out
    for path in set(whole) - {"etc/group", "etc/snpcerts.toml"}:
        (root / path).unlink()
        assert install(root) == 0
        assert content(root) == whole


def test_an_upgrade_replaces_units_and_keeps_the_configuration(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install(root) == 0
    unit = root / UNIT
    first, rest = unit.read_text().split("\n", 1)
    earlier = rest.replace("RestartSec=5", "RestartSec=9")
    digest = hashlib.sha256(earlier.encode()).hexdigest()
    unit.write_text(f"{first.rpartition(' ')[0]} {digest}\n{earlier}")
    config = root / "etc/snpcerts.toml"
    config.write_text(config.read_text().replace('"kvm"', '"vmms"'))
    kept = config.read_bytes()
    capsys.readouterr()
    assert install(root) == 0
    out = capsys.readouterr().out
    assert f"/{UNIT}: replaced" in out
    assert "/etc/snpcerts.toml: kept (the configured files have the group 'vmms')" in out
    assert "RestartSec=5" in unit.read_text()
    assert config.read_bytes() == kept


@pytest.mark.parametrize("change", [install, uninstall])
def test_an_edited_unit_is_not_touched_without_being_asked(
    root: Path, capsys: pytest.CaptureFixture[str], change: object
) -> None:
    assert callable(change)
    assert install(root) == 0
    unit = root / UNIT
    unit.write_text(unit.read_text() + "Environment=HTTPS_PROXY=http://proxy\n")
    before = content(root)
    assert change(root) == 1
    assert "systemctl edit" in capsys.readouterr().err
    assert content(root) == before
    assert change(root, "--replace") == 0


@pytest.mark.parametrize("change", [install, uninstall])
def test_two_installations_are_told_apart(
    root: Path, capsys: pytest.CaptureFixture[str], change: object
) -> None:
    assert callable(change)
    assert install(root, command="/opt/other/bin/snpcerts") == 0
    before = content(root)
    assert change(root) == 1
    error = capsys.readouterr().err
    assert "/opt/other/bin/snpcerts host uninstall" in error
    assert content(root) == before
    assert change(root, "--replace") == 0


def test_a_packages_unit_is_not_hidden(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unit = root / "usr/lib/systemd/system/snpcerts-sync.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\n")
    assert install(root, "--replace") == 1
    assert "remove it first" in capsys.readouterr().err
    assert not (root / UNIT).exists()


def test_a_masked_unit_stays_masked(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / UNIT).parent.mkdir(parents=True)
    (root / UNIT).symlink_to("/dev/null")
    assert install(root) == 1
    assert "masked" in capsys.readouterr().err
    assert os.readlink(root / UNIT) == "/dev/null"


def test_a_wrong_configuration_is_named_with_its_line_before_anything_changes(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "etc/snpcerts.toml").write_text("[watch]\ninterval = 0\n")
    before = content(root)
    assert install(root) == 2
    assert "snpcerts.toml, line 2" in capsys.readouterr().err
    assert content(root) == before


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["--group", "-x y"], 2, "not a valid group name"),
        (["--command", "snpcerts"], 2, "absolute path"),
        (["--command", "/opt/a b/snpcerts"], 2, "absolute path"),
        (["--root", "/nowhere/at/all"], 2, ": not a directory"),
    ],
)
def test_wrong_options_are_refused(
    root: Path, capsys: pytest.CaptureFixture[str], argv: list[str], code: int, said: str
) -> None:
    assert install(root, *argv) == code
    assert said in capsys.readouterr().err
    assert set(content(root)) == {"etc/group"}


def test_a_command_that_the_unit_could_not_run_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command must exist, be visible to the unit, and be replaceable by root alone."""
    here = ["host", "install", "--dry-run", "--command"]
    for place in ("/nowhere/snpcerts", "/usr/bin"):
        assert main([*here, place]) == 2
        assert f"{place}: not a program" in capsys.readouterr().err
    with tempfile.TemporaryDirectory(dir="/tmp") as hidden:
        program = Path(hidden) / "snpcerts"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        assert main([*here, str(program)]) == 1
    error = capsys.readouterr().err
    assert "unit cannot see" in error or "another user" in error


def test_another_user_than_root_changes_nothing(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")
    if os.path.exists("/usr/lib/systemd/system/snpcerts-sync.service"):
        pytest.skip("a snpcerts package is installed on this machine")
    program = (
        "import os; from snpcerts.host.installation import *\n"
        "target = InstallTarget(command='/usr/bin/env')\n"
        "steps = plan_installation(target)\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "assert any(step.perform for step in steps)\n"
        "try: carry_out(target, steps)\n"
        "except Exception as error: print(error)\n"
    )
    made = subprocess.run(
        [SNPCERTS[0], "-c", program], capture_output=True, text=True, cwd=tmp_path
    )
    assert made.stdout.startswith("only root may change"), made.stderr
    assert not os.path.exists(f"/{UNIT}")


@pytest.mark.parametrize(
    ("options", "said"),
    [("size=4k", "free some space"), ("ro", "make the file system writable")],
)
def test_a_full_or_read_only_etc_is_reported_and_a_second_run_completes(
    root: Path, options: str, said: str
) -> None:
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare, to mount")
    etc, argv = root / "etc", [*SNPCERTS, "host", "install", "--root", str(root)]
    script = f"""
        mount -t tmpfs -o size=64k none {etc}; echo kvm:x:104: >{etc}/group
        mount -o remount,{options} {etc} || exit 9
        "$@"; echo $?; ls -A {etc} {etc}/systemd/system 2>/dev/null
        mount -o remount,rw,size=64k {etc}; "$@"; echo $?
    """
    made = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *argv, "--command", COMMAND],
        capture_output=True,
        text=True,
    )
    if made.returncode == 9:
        pytest.skip("this machine cannot mount")
    assert said in made.stderr
    lines = made.stdout.splitlines()
    assert lines[0] == "1"
    assert lines[-1] == "0"
    assert "snpcerts-new" not in made.stdout


def test_guests_keep_what_they_have(root: Path) -> None:
    assert install(root) == 0
    path = root / "var/lib/snpcerts/certs.bin"
    path.write_bytes(sound_table())
    before = path.stat()
    with path.open("rb") as served:
        fcntl.lockf(served, fcntl.LOCK_SH)  # as a VMM in the middle of a request
        assert install(root) == 0
        assert uninstall(root, "--purge") == 0
        after = path.stat()
        assert (after.st_ino, after.st_mtime_ns, after.st_mode) == (
            before.st_ino,
            before.st_mtime_ns,
            before.st_mode,
        )
        assert served.read() == sound_table()
    assert set(content(root)) == {"etc/group", "var/lib/snpcerts/certs.bin"}


def test_no_group_is_created_that_the_configuration_does_not_name(root: Path) -> None:
    assert install(root) == 0
    before = (root / "etc/group").read_text()
    assert install(root, "--group", "mistyped") == 0
    assert (root / "etc/group").read_text() == before


def test_the_link_that_an_installation_makes_is_the_same_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, link = tmp_path / "venv/snpcerts", tmp_path / "bin/snpcerts"
    for path in (program, link):
        path.parent.mkdir()
    program.touch(0o755)
    link.symlink_to(program)
    monkeypatch.setattr(installation, "COMMAND_LINK", str(link))
    for started in (program, link):
        monkeypatch.setattr("sys.argv", [str(started)])
        assert own_path() == str(program)
    another = tmp_path / "another/snpcerts"
    another.parent.mkdir()
    another.symlink_to(program)
    monkeypatch.setattr("sys.argv", [str(another)])
    assert own_path() == str(another)


def test_a_missing_group_is_created(root: Path) -> None:
    if os.getuid() != 0 or shutil.which("groupadd", path="/usr/sbin:/usr/bin") is None:
        pytest.skip("needs root and groupadd")
    for name in ("passwd", "gshadow"):
        (root / "etc" / name).touch()
    target = InstallTarget(str(root), COMMAND, group="vmms")
    steps = plan_installation(target)
    assert steps[0].outcome is StepOutcome.CREATED
    carry_out(target, steps)
    assert "vmms:" in (root / "etc/group").read_text()
    assert plan_installation(target)[0].outcome is StepOutcome.UNCHANGED
