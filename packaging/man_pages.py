# SPDX-License-Identifier: Apache-2.0
"""Write the manual pages from the commands' own help.

``python packaging/man_pages.py docs/man`` writes ``snpcerts.1`` and one
``snpcerts-COMMAND.1`` for each command, in man(7) macros.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from snpcerts import __version__
from snpcerts.cli.main import COMMANDS, cli

EXIT_CODES = (
    ("0", "done"),
    ("1", "refused or failed"),
    ("2", "wrong usage or unreadable input"),
    ("3", "try again later"),
)
FILES = {
    "host": (
        ("/etc/snpcerts.toml", "configuration; docs/operators.md describes it"),
        ("/var/lib/snpcerts/certs.bin", "the certificate file, unless configured otherwise"),
        ("/var/cache/snpcerts", "verified certificates"),
        ("/dev/sev", "the firmware"),
    )
}


def pages() -> dict[str, str]:
    """Return the text of each page, by file name."""
    context = click.Context(cli, info_name="snpcerts")
    found = {"snpcerts.1": _page("snpcerts", cli, context)}
    for name in COMMANDS:
        command = cli.get_command(context, name)
        if command is not None:
            full = f"snpcerts-{name}"
            found[f"{full}.1"] = _page(full, command, context)
    return found


def _page(title: str, command: click.Command, above: click.Context) -> str:
    name = title.partition("-")[2]
    context = click.Context(command, info_name=name or "snpcerts", parent=above if name else None)
    summary = COMMANDS[name][1] if name else (command.help or "")
    lines = [
        '.\\" SPDX-License-Identifier: Apache-2.0',
        '.\\" Written by packaging/man_pages.py.',
        f'.TH "{title.upper()}" "1" "" "snpcerts {__version__}" "User Commands"',
        ".SH NAME",
        f"{_text(title)} \\- {_text(summary.strip().rstrip('.'))}",
        ".SH SYNOPSIS",
        *_synopsis(command, context),
        ".SH DESCRIPTION",
        *_paragraphs(command.help or summary),
    ]
    own = list(_options(command, context))
    if own:
        lines += [".SH OPTIONS", *own]
    if name and command.epilog:
        lines += [".SH EXAMPLE", ".nf", *map(_text, _example(command)), ".fi"]
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for each in command.list_commands(context):
            inner = command.get_command(context, each)
            if inner is not None:
                lines += _of_command(each, inner, context, brief=not name)
    lines.append(".SH EXIT STATUS")
    for code, meaning in EXIT_CODES:
        lines += [".TP", f".B {code}", _text(meaning)]
    if name in FILES:
        lines.append(".SH FILES")
        for path, meaning in FILES[name]:
            lines += [".TP", f".I {_text(path)}", _text(meaning)]
    others = [f"snpcerts-{each}" for each in COMMANDS if each != name]
    if name:
        others.insert(0, "snpcerts")
    lines += [".SH SEE ALSO", *(f".BR {_text(each)} (1)" for each in others)]
    return "\n".join(lines) + "\n"


def _of_command(
    name: str, command: click.Command, above: click.Context, *, brief: bool
) -> Iterator[str]:
    """Yield the lines about a subcommand on the page of its group."""
    context = click.Context(command, info_name=name, parent=above)
    if brief:
        yield from (".TP", f".BR snpcerts\\-{_text(name)} (1)", _text(COMMANDS[name][1]))
        return
    yield f".SS {_text(context.command_path)}"
    yield from _synopsis(command, context)
    yield ".PP"
    yield from _paragraphs(command.help or "")
    yield from _options(command, context)
    if command.epilog:
        yield from (".PP", "Example:", ".PP", ".nf", *map(_text, _example(command)), ".fi")
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            inner = command.get_command(context, each)
            if inner is not None:
                yield from _of_command(each, inner, context, brief=False)


def _example(command: click.Command) -> list[str]:
    """Return the command lines of the example at the end of a command's help."""
    return [line.strip() for line in (command.epilog or "").splitlines() if "$ " in line]


def _synopsis(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f".B {_text(context.command_path)}"
    yield ".RI " + " ".join(f'"{_text(piece)} "' for piece in command.collect_usage_pieces(context))


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield ".TP"
            yield f".B {_text(record[0])}"
            yield _text(record[1]) or "\\&"


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", inspect.cleandoc(text))):
        if number:
            yield ".PP"
        yield _text(" ".join(paragraph.split()))


def _text(text: str) -> str:
    """Escape text for troff, where a leading dot or single quote would start a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return "\\&" + text if text.startswith((".", "'")) else text


def main(folder: str) -> None:
    """Write all pages into ``folder``."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, page in pages().items():
        (Path(folder) / name).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
