# SPDX-License-Identifier: Apache-2.0
"""Make foreign text printable: the one place for it.

Command lines, certificate names, a key server's answer, a guest's evidence, a
VMM's output: whoever wrote them must not move the cursor of the terminal that
shows them, start a line of the log they end up in, or turn the direction of
what follows. What is not printable is shown as Python would write it (``\\x1b``,
``\\n``, ``\\u202e``), so that nothing is hidden either.

Errors of :mod:`snpcerts.errors` and the host's events pass through here as a
whole. Everything else that prints foreign text calls this where it puts the
line together.
"""

from __future__ import annotations

from typing import Final

LINE_LIMIT: Final = 16384  # characters of one message; foreign parts are cut where they come in
_CUT: Final = "..."


def printable(text: str, limit: int = LINE_LIMIT) -> str:
    """``text`` as one line that is safe to print: what its first ``limit`` characters are.

    Printable text stays as it is, so what has been through here once is not
    changed by another time.
    """
    if text.isprintable() and len(text) <= limit:
        return text
    shown = "".join(c if c.isprintable() else _escaped(c) for c in text[:limit])
    return shown if len(text) <= limit else shown + _CUT


def printable_lines(text: str) -> str:
    """Text of several lines, which stay lines, whole; each is made printable."""
    return "\n".join(printable(line, len(line)) for line in text.split("\n"))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")
