# SPDX-License-Identifier: Apache-2.0
"""Reads DER where the X.509 library does not, or would read too much.

This module reads the values of AMD's extensions (INTEGER, IA5String or OCTET STRING), the outer
parts of PKCS #7 structures and of revocation lists whose signature is checked first, and the start
and end of each element in a file.

Source: X.690 sections 8.1 (tag, length) and 10.1 (definite, shortest lengths).
"""

from __future__ import annotations

from typing import NamedTuple

from snpcerts.errors import FormatError

INTEGER = 0x02
OCTET_STRING = 0x04
IA5_STRING = 0x16

_LONG_FORM = 0x80
_MAX_LENGTH_BYTES = 4


class Element(NamedTuple):
    """A tag-length-value element: its tag byte, its content, and the offsets of its start and
    end.
    """

    tag: int
    content: bytes
    start: int
    end: int


def read_element(data: bytes, at: int, what: str) -> Element:
    """Return the DER element that starts at offset ``at`` of ``data``.

    Raises :class:`FormatError`, which names the offset, if the data ends too early, the tag has
    more than one byte, or the length is not in its shortest form.
    """
    if at + 2 > len(data):
        raise FormatError(what, "the data ends within a DER tag or length", offset=at)
    tag, length = data[at], data[at + 1]
    start = at + 2
    if tag & 0x1F == 0x1F:
        raise FormatError(
            what,
            f"expected a one-byte DER tag, found {tag:#04x}, which starts a longer tag",
            offset=at,
        )
    if length >= _LONG_FORM:
        count = length - _LONG_FORM
        encoded = data[start : start + count]
        if not 1 <= count <= _MAX_LENGTH_BYTES:
            raise FormatError(
                what,
                f"DER length byte {length:#04x}: expected 1 to {_MAX_LENGTH_BYTES} more length "
                f"bytes, but the byte announces {count}",
                offset=at + 1,
            )
        if len(encoded) != count:
            raise FormatError(
                what,
                f"the data ends after {len(encoded)} of {count} more DER length bytes",
                offset=at + 1,
            )
        length = int.from_bytes(encoded, "big")
        if length < _LONG_FORM or encoded[0] == 0:
            raise FormatError(what, "the DER length is not in its shortest form", offset=at + 1)
        start += count
    end = start + length
    if end > len(data):
        raise FormatError(
            what,
            f"the DER length is {length}, but only {len(data) - start} bytes follow",
            offset=at,
        )
    return Element(tag, data[start:end], at, end)


def _read_whole(data: bytes, tag: int, name: str, what: str) -> bytes:
    element = read_element(data, 0, what)
    if element.tag != tag:
        raise FormatError(
            what, f"expected the DER tag {tag:#04x} ({name}), found {element.tag:#04x}"
        )
    if element.end != len(data):
        raise FormatError(
            what,
            f"expected only one {name}, found {len(data) - element.end} bytes after the first",
        )
    return element.content


def read_byte_integer(data: bytes, what: str, name: str) -> int:
    """Parse ``data`` as an INTEGER from 0 to 255.

    Raises :class:`FormatError`, which names ``what`` and ``name``, for anything else.
    """
    if len(data) == 3 and data[0] == INTEGER and data[1] == 1 and data[2] < 0x80:
        return data[2]  # nearly all values have this form
    what = f"{what} {name}"
    content = _read_whole(data, INTEGER, "INTEGER", what)
    if not content:
        raise FormatError(what, "expected an INTEGER with content, found an empty one")
    value = int.from_bytes(content, "big", signed=True)
    shortest = (value if value >= 0 else ~value).bit_length() // 8 + 1
    if len(content) != shortest:
        raise FormatError(
            what, f"expected an INTEGER in its shortest form, found {content[:8].hex()}"
        )
    if not 0 <= value <= 255:
        raise FormatError(what, f"expected an INTEGER from 0 to 255, found {content[:8].hex()}")
    return value


def read_ia5_string(data: bytes, what: str) -> str:
    """Parse ``data`` as an IA5String (7-bit text). Raises :class:`FormatError` for anything
    else.
    """
    content = _read_whole(data, IA5_STRING, "IA5String", what)
    if not content.isascii():
        raise FormatError(what, "expected an IA5String of 7-bit characters, found bytes above 0x7f")
    return content.decode("ascii")


def read_octet_string(data: bytes, what: str) -> bytes:
    """Parse ``data`` as an OCTET STRING. Raises :class:`FormatError` for anything else."""
    return _read_whole(data, OCTET_STRING, "OCTET STRING", what)
