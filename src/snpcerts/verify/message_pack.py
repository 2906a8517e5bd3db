# SPDX-License-Identifier: Apache-2.0
"""Reads MessagePack, the encoding of version 1 of Dstack's attestation.

Sources: the MessagePack specification (msgpack/msgpack, spec.md); the fields in Dstack-TEE/dstack,
``dstack-attest/src/v1.rs``, which writes bytes as arrays of numbers.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from snpcerts.errors import FormatError

WHAT: Final = "an attestation in MessagePack (Dstack, version 1)"
_MAX_DEPTH: Final = 32
_MAX_CONTAINERS: Final = (
    10_000  # an empty map or array takes one byte in the data, but sixty times as much in memory
)
_SIZES: Final = {
    0xC4: ">B",
    0xC5: ">H",
    0xC6: ">I",
    0xD9: ">B",
    0xDA: ">H",
    0xDB: ">I",
    0xDC: ">H",
    0xDD: ">I",
    0xDE: ">H",
    0xDF: ">I",
}
_NUMBERS: Final = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_SINGLE: Final = {0xC0: None, 0xC2: False, 0xC3: True}


def is_message_pack(data: bytes) -> bool:
    """Return whether ``data`` begins with a map that names SEV-SNP as the platform."""
    return data[:1] != b"" and 0x81 <= data[0] <= 0x8F and b"sev-snp" in data[:512]


def read_message_pack(data: bytes) -> Any:
    """Return the value that ``data`` encodes. No bytes may follow the value, and the keys of maps
    must be text.

    Raises :class:`FormatError` for anything else, such as truncated data, values nested too deeply,
    a duplicate key or an extension type.
    """
    value, at = _value(data, 0, 0, [])
    if at != len(data):
        raise FormatError(
            WHAT, f"expected the end of the data, found {len(data) - at} more bytes", offset=at
        )
    return value


def _value(data: bytes, at: int, depth: int, opened: list[int]) -> tuple[Any, int]:
    if depth > _MAX_DEPTH:
        raise FormatError(WHAT, "the values are nested too deeply", offset=at)
    if at >= len(data):
        raise FormatError(WHAT, "the data ends before its last value", offset=at)
    tag, at = data[at], at + 1
    if tag < 0x80:
        return tag, at
    if tag >= 0xE0:
        return tag - 0x100, at
    if tag in _SINGLE:
        return _SINGLE[tag], at
    if tag in _NUMBERS:
        return _number(data, at, _NUMBERS[tag])
    if tag < 0xC0:
        size = tag & (0x1F if tag >= 0xA0 else 0x0F)
    elif tag in _SIZES:
        size, at = _number(data, at, _SIZES[tag])
    else:
        raise FormatError(
            WHAT, f"expected a type that Dstack writes, found {tag:#04x}", offset=at - 1
        )
    if size > len(data) - at:  # each element takes at least one byte
        raise FormatError(
            WHAT, f"expected at least {size} bytes, but only {len(data) - at} follow", offset=at
        )
    if tag in (0xC4, 0xC5, 0xC6):
        return data[at : at + size], at + size
    if 0xA0 <= tag < 0xC0 or tag in (0xD9, 0xDA, 0xDB):
        return _text(data, at, size), at + size
    opened.append(at)
    if len(opened) > _MAX_CONTAINERS:
        raise FormatError(
            WHAT, f"expected at most {_MAX_CONTAINERS} maps and arrays, found more", offset=at
        )
    if 0x90 <= tag < 0xA0 or tag in (0xDC, 0xDD):
        items: list[Any] = []
        for _ in range(size):
            item, at = _value(data, at, depth + 1, opened)
            items.append(item)
        return items, at
    return _map(data, at, size, depth, opened)


def _map(
    data: bytes, at: int, size: int, depth: int, opened: list[int]
) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    for _ in range(size):
        start = at
        key, at = _value(data, at, depth + 1, opened)
        if not isinstance(key, str):
            raise FormatError(
                WHAT, "expected text as the key of a map, found another type", offset=start
            )
        if key in found:
            raise FormatError(WHAT, f"the key {key[:40]!r} appears twice in a map", offset=start)
        found[key], at = _value(data, at, depth + 1, opened)
    return found, at


def _number(data: bytes, at: int, form: str) -> tuple[Any, int]:
    end = at + struct.calcsize(form)
    if end > len(data):
        raise FormatError(WHAT, "the data ends within a number", offset=at)
    return struct.unpack(form, data[at:end])[0], end


def _text(data: bytes, at: int, size: int) -> str:
    try:
        return data[at : at + size].decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(WHAT, "expected text in UTF-8, found other bytes", offset=at) from None
