# SPDX-License-Identifier: Apache-2.0
"""Reads the output of the VMM under test; of a long output, keeps only the beginning and the end.

A VMM may write endlessly, so its output does not go to a file while it runs.
"""

from __future__ import annotations

import os
from typing import Final

from snpcerts.printable import printable

_KEPT: Final = 64 << 10  # bytes kept from the beginning and from the end, each
_SHOWN: Final = 300  # characters of the last output that are shown
_PIECE: Final = 64 << 10


class VmmOutput:
    """The read end of a pipe, and the output read from it.

    ``lines`` and ``size`` count all output. The VMM gets the write end, :attr:`writer`.
    """

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.reader, False)
        self.lines = 0
        self.size = 0
        self._head = b""
        self._tail = b""

    def read(self) -> None:
        """Read what is available, at most a few chunks. Call it again when the pipe is readable."""
        for _ in range(16):
            try:
                piece = os.read(self.reader, _PIECE)
            except OSError:  # nothing more for now
                return
            if not piece:
                return
            self.lines += piece.count(b"\n")
            self.size += len(piece)
            room = _KEPT - len(self._head)
            self._head += piece[: max(0, room)]
            self._tail = (self._tail + piece[max(0, room) :])[-_KEPT:]

    def close_writer(self) -> None:
        """Close this process's copy of the write end."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def close(self) -> None:
        """Close the pipe, and keep the output that was read."""
        self.close_writer()
        os.close(self.reader)

    def kept(self) -> bytes:
        """Return the output; if it was too long, with a note in place of the bytes left out."""
        missing = self.size - len(self._head) - len(self._tail)
        note = f"\n[{missing} bytes left out]\n".encode() if missing > 0 else b""
        return self._head + note + self._tail

    def last_words(self) -> str:
        """Return the lines in the last 300 characters of the output, made printable; empty if the
        VMM wrote nothing. Of a line that is longer, return the end.
        """
        text = (self._head + self._tail)[-4096:].decode(errors="replace").strip()
        shown = text[-_SHOWN:]
        if len(text) > _SHOWN:
            shown = shown.partition("\n")[2].strip() or shown
        return printable(shown)
