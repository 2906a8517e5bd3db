# SPDX-License-Identifier: Apache-2.0
"""Print for people: every line fit for a terminal and a log, whatever it quotes."""

from __future__ import annotations

import click

from snpcerts.printable import printable_lines


def say(text: object = "", *, err: bool = False) -> None:
    """Print text, of one or several lines, to standard output or error.

    The last resort: a foreign text that may hold a line break goes through
    :func:`snpcerts.printable.printable` where it is put into its line.
    """
    click.echo(printable_lines(str(text)), err=err)
