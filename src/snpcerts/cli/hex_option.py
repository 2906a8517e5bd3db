# SPDX-License-Identifier: Apache-2.0
"""Bytes in hexadecimal, as commands print them and as people copy them."""

from __future__ import annotations

import re
from typing import Final

from snpcerts.errors import UsageError

_BETWEEN: Final = re.compile(r"[\s:]+")


def hex_bytes(option: str, text: str) -> bytes:
    """Parse the bytes. A leading ``0x``, blanks and colons between bytes, and any case are
    accepted.

    Raises :class:`UsageError`, naming the option, for anything else.
    """
    bare = _BETWEEN.sub("", text.strip()).removeprefix("0x").removeprefix("0X")
    try:
        return bytes.fromhex(bare)
    except ValueError:
        raise UsageError(f"{option} {text[:80]}: must be hexadecimal") from None
