# SPDX-License-Identifier: Apache-2.0
"""Bytes in hexadecimal, as commands print them and people copy them."""

from __future__ import annotations

import re
from typing import Final

from snpcerts.errors import UsageError

_BETWEEN: Final = re.compile(r"[\s:]+")


def hex_bytes(option: str, text: str) -> bytes:
    """Parse the bytes; ``0x`` before them, blanks and colons between them, and any case are taken.

    Raises :class:`UsageError`, naming the option, for anything else.
    """
    bare = _BETWEEN.sub("", text.strip()).removeprefix("0x").removeprefix("0X")
    try:
        return bytes.fromhex(bare)
    except ValueError:
        raise UsageError(f"{option} {text[:80]}: is not hexadecimal") from None
