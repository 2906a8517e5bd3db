# SPDX-License-Identifier: Apache-2.0
"""Escapes untrusted text before it is printed. All other modules use this one to do so.

Untrusted text is, for example, a command line, a name in a certificate, a key server's answer, a
guest's evidence, or a VMM's output. It must not move a terminal's cursor, begin a new line in a
log, or reverse the text that follows it. Characters that are not printable are shown as Python
escapes (``\\x1b``, ``\\n``, ``\\u202e``), so that nothing is hidden.

Errors of :mod:`snpcerts.errors` and the host's events are escaped as a whole. Other code that
prints untrusted text calls this module where it builds the line.
"""

from __future__ import annotations

from typing import Final

LINE_LIMIT: Final = 16384  # characters of one message; callers cut untrusted parts shorter
_CUT: Final = "..."


def printable(text: str, limit: int = LINE_LIMIT) -> str:
    """Return the first ``limit`` characters of ``text`` as one line that is safe to print.

    Printable text does not change, so a second call changes nothing.
    """
    if text.isprintable() and len(text) <= limit:
        return text
    shown = "".join(c if c.isprintable() else _escaped(c) for c in text[:limit])
    return shown if len(text) <= limit else shown + _CUT


def printable_lines(text: str) -> str:
    """Return ``text`` with each line made safe to print. Line breaks stay, and no line is
    shortened.
    """
    return "\n".join(printable(line, len(line)) for line in text.split("\n"))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")
