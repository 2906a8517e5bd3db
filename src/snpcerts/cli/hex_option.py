# SPDX-License-Identifier: Apache-2.0
"""Parses bytes in hexadecimal, as commands print them and as people copy them."""

from __future__ import annotations

import re
from typing import Final

from snpcerts.errors import UsageError

_BETWEEN: Final = re.compile(r"[\s:]+")


def hex_bytes(option: str, text: str) -> bytes:
    """Parse the bytes. Accepts a leading ``0x``, blanks and colons between bytes, and any case.

    Raises :class:`UsageError`, which names the option, for anything else.
    """
    bare = _BETWEEN.sub("", text.strip()).removeprefix("0x").removeprefix("0X")
    try:
        return bytes.fromhex(bare)
    except ValueError:
        raise UsageError(f"{option} {text[:80]}: not hexadecimal") from None
