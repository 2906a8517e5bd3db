# SPDX-License-Identifier: Apache-2.0
"""Each command's help ends with an example that the command accepts."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click
import pytest

from snpcerts.cli.examples import EXAMPLES
from snpcerts.cli.main import cli


def leaves(command: click.Command, name: str = "") -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield name, command
        return
    context = click.Context(command)
    for word in command.list_commands(context):
        inner = command.get_command(context, word)
        assert inner is not None
        yield from leaves(inner, f"{name} {word}".strip())


COMMANDS = dict(leaves(cli))


def test_every_command_has_an_example() -> None:
    assert COMMANDS.keys() == EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_has_what_is_required_and_nothing_unknown(name: str) -> None:
    command = COMMANDS[name]
    context = click.Context(command, **command.context_settings)
    argv = shlex.split(EXAMPLES[name])
    # An unknown option is an error here; values are not checked.
    given, _, _ = command.make_parser(context).parse_args(list(argv))
    for parameter in command.params:
        if parameter.required:
            assert given.get(parameter.name or ""), f"{parameter.name} is required"
    text = command.get_help(context)
    assert f"snpcerts {name}" in text
    assert text.count("Example") == 1
