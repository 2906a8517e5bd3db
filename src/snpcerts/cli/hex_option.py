# SPDX-License-Identifier: Apache-2.0
"""Parses hexadecimal bytes in the forms in which commands print them and people copy them."""

from __future__ import annotations

import re
from typing import Final

from snpcerts.errors import UsageError

_BETWEEN: Final = re.compile(r"[\s:]+")


def hex_bytes(option: str, text: str) -> bytes:
    """Parse hexadecimal bytes in either case. A leading ``0x``, and blanks or colons between the
    bytes, are allowed.

    Raises :class:`UsageError`, which names the option, for anything else.
    """
    bare = _BETWEEN.sub("", text.strip()).removeprefix("0x").removeprefix("0X")
    try:
        return bytes.fromhex(bare)
    except ValueError:
        raise UsageError(f"{option} {text[:80]}: expected bytes in hexadecimal") from None
