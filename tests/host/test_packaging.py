# SPDX-License-Identifier: Apache-2.0
"""What ships with the program: units, manual pages, the example configuration."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from snpcerts.cli.main import cli
from snpcerts.host.config import Config, FileConfig, parse

ROOT = Path(__file__).parents[2]
PACKAGING = ROOT / "packaging"
SYSTEM_FILES = ROOT / "src" / "snpcerts" / "host" / "system_files"
UNITS = sorted(SYSTEM_FILES.glob("*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_accepts_the_unit(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not on this machine")
    # The unit must name a program that exists on this machine, or the verification fails.
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/usr/bin/snpcerts", sys.executable))
    made = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True
    )
    assert (made.returncode, made.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_units_command_is_one_of_ours_and_comes_before_vms(unit: Path) -> None:
    text = unit.read_text()
    (command,) = re.findall(r"^ExecStart=/usr/bin/snpcerts (.*)$", text, re.MULTILINE)
    found: click.Command | None = cli
    argv = command.split()
    context = click.Context(cli)
    while isinstance(found, click.Group):
        found = found.get_command(context, argv.pop(0))
    assert found is not None
    known = {option for each in found.params for option in each.opts}
    assert set(argv) <= known
    before = re.findall(r"^Before=(.*)$", text, re.MULTILINE)
    assert {"libvirtd.service", "virtqemud.service"} <= set(before[0].split())
    assert "DeviceAllow=/dev/sev rw" in text


def test_the_example_configuration_says_the_defaults() -> None:
    text = (SYSTEM_FILES / "snpcerts.toml").read_text()
    assert parse(text).files == Config().files
    # Every setting that is commented out is also understood.
    settings = re.sub(r"^# (\w+ = |\[)", r"\1", text, flags=re.MULTILINE)
    for of_vleks in ('without_vlek = "empty"', 'with_mask_chip_key = "empty"'):
        settings = settings.replace(of_vleks, "")
    whole = parse(settings)
    assert whole.files[0].strategy is FileConfig("").strategy
    assert whole.interval == Config().interval
    assert whole.lock_wait == Config().lock_wait
    assert whole.cache == Config().cache
    assert whole.vlek_certificates == Config().vlek_certificates


def _commands(command: click.Command, argv: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    yield " ".join(argv), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _commands(inner, (*argv, name))


def test_the_manual_pages_name_every_command_and_option() -> None:
    for argv, command in _commands(cli, ("snpcerts",)):
        page = "-".join(argv.split()[:2])
        text = (ROOT / "docs" / "man" / f"{page}.1").read_text().replace("\\-", "-")
        assert argv in text, argv
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                for option in (*parameter.opts, *parameter.secondary_opts):
                    assert option in text, f"{argv} {option}: run packaging/man_pages.py docs/man"


def test_the_manual_pages_are_the_ones_the_commands_make(tmp_path: Path) -> None:
    # In a separate process: click keeps what other tests have changed in a command.
    subprocess.run([sys.executable, PACKAGING / "man_pages.py", tmp_path], check=True)
    made = {page.name: page.read_text() for page in tmp_path.iterdir()}
    kept = {page.name: page.read_text() for page in (ROOT / "docs" / "man").iterdir()}
    assert made == kept, "run: python packaging/man_pages.py docs/man"


def test_the_manual_pages_have_no_mistakes() -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not on this machine")
    for page in (ROOT / "docs" / "man").iterdir():
        made = subprocess.run(
            ["groff", "-man", "-ww", "-Tascii", "-z", str(page)], capture_output=True, text=True
        )
        assert made.stderr == "", page.name
