# SPDX-License-Identifier: Apache-2.0
"""The command itself: help, version, and what it imports."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from snpcerts import __version__
from snpcerts.cli.main import COMMANDS, cli, main

HEAVY = ("cryptography", "rich", "httpx2", "sqlalchemy", "snpcerts.emulator")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("words", [[], ["host"], ["kds", "fetch"]])
def test_a_group_without_a_command_shows_its_help_in_lines(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Usage: snpcerts")
    assert "Commands:" in lines


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_and_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert "Usage: snpcerts " + name in capsys.readouterr().out
    command = cli.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    assert command.help


def groups(command: click.Command, path: str = "snpcerts") -> Iterator[tuple[str, click.Group]]:
    if isinstance(command, click.Group):
        yield path, command
        for name in command.list_commands(click.Context(command)):
            if each := command.get_command(click.Context(command), name):
                yield from groups(each, f"{path} {name}")


def test_each_commands_summary_fits_into_the_list_on_a_narrow_terminal() -> None:
    """If a summary does not fit, click cuts it off in the middle and adds three dots."""
    for path, group in groups(cli):
        if group is cli:
            continue  # the top-level list has its own summaries, and wraps them
        context = click.Context(group)
        names = group.list_commands(context)
        for name in names:
            each = group.get_command(context, name)
            assert each is not None
            room = 80 - 2 - 6 - max(map(len, names))
            assert not each.get_short_help_str(room).endswith("..."), f"{path} {name}"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


def test_verify_imports_nothing_that_only_network_access_needs() -> None:
    program = (
        "import sys; from snpcerts.cli.main import main; main(['verify', '/dev/null']); "
        "print([name for name in ('asyncio', 'ssl', 'httpx2') if name in sys.modules])"
    )
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert made.stdout.strip() == "[]"


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from snpcerts.cli.main import main; main(['--help']); "
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert made.stderr.strip() == "[]"
