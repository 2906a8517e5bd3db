# SPDX-License-Identifier: Apache-2.0
"""Print for people: every line fit for a terminal and a log, whatever it quotes."""

from __future__ import annotations

import re
import sys
import textwrap
from typing import TYPE_CHECKING, Final

import click

from snpcerts.printable import printable_lines

if TYPE_CHECKING:
    from rich.console import Console

_GOOD: Final = "green"
_DOUBTFUL: Final = "yellow"
_BAD: Final = "bold red"
# Verdicts and states, as they stand at the start of a line or behind a file's name.
STYLES: Final = {
    "verified": _GOOD,
    "verified, by a root that is not AMD's": _DOUBTFUL,
    "pass": _GOOD,
    "passed": _GOOD,
    "in step": _GOOD,
    "right": _GOOD,
    "warn": _DOUBTFUL,
    "warning": _DOUBTFUL,
    "skip": _DOUBTFUL,
    "undecided": _DOUBTFUL,
    "not judged": _DOUBTFUL,
    "outdated": _DOUBTFUL,
    "empty": _DOUBTFUL,
    "missing": _DOUBTFUL,
    "locked": _DOUBTFUL,
    "refused": _BAD,
    "fail": _BAD,
    "failed": _BAD,
    "FAIL": _BAD,
    "NOT in step": _BAD,
    "wrong": _BAD,
    "garbage": _BAD,
    "foreign": _BAD,
    "unreadable": _BAD,
}
_WORDS: Final = "|".join(sorted(STYLES, key=len, reverse=True))
_STATE: Final = re.compile(rf"^\s*(?P<first>{_WORDS})(?![\w-])|: (?P<last>{_WORDS})$")
# What later lines of a paragraph stand below: the text behind a label, or some space.
_LABEL: Final = re.compile(r"\s*\S+(?: \S+){0,2} {2,}|\s*")
_WIDEST_LABEL: Final = 28
_HANG: Final = 2


def say(text: object = "", *, err: bool = False) -> None:
    """Print text, of one or several lines, to standard output or error, as it is.

    The last resort: a foreign text that may hold a line break goes through
    :func:`snpcerts.printable.printable` where it is put into its line.
    """
    click.echo(printable_lines(str(text)), err=err)


def present(text: object = "", *, err: bool = False) -> None:
    """Print text for people: on a terminal, colour its states and wrap it to the width.

    Elsewhere as :func:`say`, so that a pipe and a log get plain, whole lines.
    """
    stream = sys.stderr if err else sys.stdout
    if not stream.isatty():
        say(text, err=err)
        return
    from rich.console import Console

    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    for line in printable_lines(str(text)).split("\n"):
        _show_line(console, line)


def _show_line(console: Console, line: str) -> None:
    from rich.text import Text

    shown = Text(wrapped(line, console.width))
    if state := _STATE.search(line):
        group = "first" if state["first"] else "last"
        # Wrapping changes white space alone: a state keeps its place from either end.
        start, end = state.span(group)
        if group == "last":
            start, end = (len(shown.plain) - len(line) + each for each in (start, end))
        shown.stylize(STYLES[state[group]], start, end)
    console.print(shown, no_wrap=True, overflow="ignore", crop=False)


def wrapped(line: str, width: int) -> str:
    """``line`` broken between words, later lines below its text; a long word stays whole."""
    if len(line) <= width:
        return line
    label = _LABEL.match(line)
    indent = 0 if label is None else label.end()
    if label is None or not label[0].strip() or not indent <= _WIDEST_LABEL < width:
        indent = len(line) - len(line.lstrip()) + _HANG
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
        replace_whitespace=False,
        expand_tabs=False,
    )
