# SPDX-License-Identifier: Apache-2.0
"""Prints text for people, and escapes it so that untrusted text cannot harm a terminal or log."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Final

import click

from snpcerts.printable import printable, printable_lines

if TYPE_CHECKING:
    from rich.console import Console

_GOOD: Final = "green"
_DOUBTFUL: Final = "magenta"  # yellow is hard to read on a light background
_BAD: Final = "bold red"
# Verdicts and states, at the start of a line or after a file's name.
STYLES: Final = {
    "verified": _GOOD,
    "verified, with a root that is not AMD's": _DOUBTFUL,
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
_COLUMN: Final = re.compile(r"(?<=\S) {2,}")
_PIECE: Final = re.compile(r"\s*\S+")
_HANG: Final = 2


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return for example "1 page" or "2 pages"."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def say(text: object = "", *, err: bool = False) -> None:
    """Print one or more lines to standard output or, with ``err``, to standard error.

    Line breaks stay; all other characters that are not printable are escaped. Pass untrusted text,
    which may contain a line break, through :func:`snpcerts.printable.printable` first.
    """
    click.echo(printable_lines(str(text)), err=err)


def present(text: object = "", *, err: bool = False) -> None:
    """Print text for people. On a terminal, colour words such as "verified", and wrap to the
    terminal's width.

    Elsewhere, print as :func:`say` does, so that pipes and logs get plain, whole lines.
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
        # Wrapping changes only white space between words, so a state at the start keeps its
        # distance from the start, and a state at the end keeps its distance from the end.
        start, end = state.span(group)
        if group == "last":
            start, end = (len(shown.plain) - len(line) + each for each in (start, end))
        shown.stylize(STYLES[state[group]], start, end)
    console.print(shown, no_wrap=True, overflow="ignore", crop=False)


def wrapped(line: str, width: int) -> str:
    """Wrap ``line`` between words. If ``line`` is a label, two or more spaces and further text, the
    new lines are indented to where the text starts.

    A word that is too long for any line (a measurement) stays whole.
    """
    if len(line) <= width:
        return line
    # Ignore columns further right, which leave too little room for the text.
    columns = (found.end() for found in _COLUMN.finditer(line, 0, width * 3 // 5))
    indent = max(columns, default=len(line) - len(line.lstrip()) + _HANG)
    lines = [""]
    for piece in _PIECE.findall(line):
        word = piece.lstrip()
        fits = len(lines[-1]) + len(piece) <= width
        if fits or not lines[-1].strip() or indent + len(word) > width:
            lines[-1] += piece
        else:
            lines.append(" " * indent + word)
    return "\n".join(lines)


def shows_progress() -> bool:
    """Whether to show progress on standard error: only if standard output is a terminal too.

    In ``snpcerts verify DIR | head``, head writes to the same terminal as a progress bar.
    """
    return sys.stderr.isatty() and sys.stdout.isatty()


def say_line(text: object, *, err: bool = False) -> None:
    """Print as :func:`present` does, with line breaks escaped so that the text stays on one line.

    Untrusted text, such as a file's name, therefore cannot begin a line of its own.
    """
    present(printable(str(text)), err=err)
