# SPDX-License-Identifier: Apache-2.0
"""Text forms of bytes: hexadecimal, base64, PEM and JSON, as people copy them.

Everything here takes time and memory in proportion to the text, and returns None
(or nothing) for what it does not recognise: whether that is an error is for others.

Sources: RFC 4648 for base64 and base64url; RFC 7468 section 2 for PEM, which lets
text stand before BEGIN and asks readers to ignore blanks; RFC 8259 for JSON.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from snpcerts.errors import FormatError

# More than any text that this package reads: a table of 1 MiB in base64 or hexadecimal.
MAX_TEXT: Final = 4 << 20

_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
_FILLING: Final = re.compile(r"[\s,;:{}\[\]()'\"\\`]+")
_PREFIX: Final = re.compile(r"(?:0[xX]|\\+x)(?=[0-9a-fA-F])")
_NUMBER: Final = re.compile(r"0[xX]([0-9a-fA-F]{1,2})")
_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2})+")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_DATA_URL: Final = re.compile(r"data:[-\w.+/;=]{0,100};base64,")
_DUMP_OFFSET: Final = re.compile(r"([0-9a-fA-F]{7,8})(:[ ]|[ ]{2}|$)")
_BASE64_IN_PEM: Final = re.compile(r"[A-Za-z0-9+/=]*")


def text_of(data: bytes) -> str | None:
    """Return ``data`` as text without a byte order mark; None if it is not text."""
    for mark, name in _MARKS:
        if data.startswith(mark):
            try:
                text = data[len(mark) :].decode(name)
            except UnicodeDecodeError:
                return None
            return None if _CONTROL.search(text) else text
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if _CONTROL.search(text) else text


def bytes_in(text: str) -> bytes | None:
    """Return the bytes that a text in hexadecimal, base64 or base64url, or a dump, stands for.

    White space anywhere, quotes around it, ``0x``, ``\\x``, colons and commas between
    bytes, and missing padding are taken. None where it is nothing of these.
    """
    text = text.strip()
    url = _DATA_URL.match(text)
    if url is not None:
        text = text[url.end() :]
    dumped = _dumped(text)
    if dumped is not None:
        return dumped
    bare = _FILLING.sub("", text)
    numbers = _NUMBER.findall(text)
    if len(numbers) > 1 and not _NUMBER.sub("", _FILLING.sub(" ", text)).strip():
        return bytes(int(number, 16) for number in numbers)
    digits = _FILLING.sub("", _PREFIX.sub("", text)) if "x" in text or "X" in text else bare
    if _HEX.fullmatch(digits):
        return bytes.fromhex(digits)
    bare = bare.replace("-", "+").replace("_", "/")
    if not _BASE64.fullmatch(bare):
        return None
    bare = bare.rstrip("=")
    if len(bare) % 4 == 1:
        return None
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4))
    except binascii.Error:
        return None


def _dumped(text: str) -> bytes | None:
    """Return the bytes of a dump by ``xxd`` or ``hexdump -C``; ``*`` stands for repeated lines."""
    found, last, repeat = bytearray(), b"", False
    for line in map(str.strip, text.splitlines()):
        if line == "*" and found:
            repeat = True
            continue
        match = _DUMP_OFFSET.match(line)
        if match is None:
            return None
        at, rest = int(match[1], 16), line[match.end() :]
        if repeat and len(found) < at <= MAX_TEXT:
            found += last * ((at - len(found)) // len(last))
        repeat = False
        # Behind the bytes stand the same as characters.
        digits = "".join(rest.split("  " if match[2] == ": " else "|")[0].split())
        if at != len(found) or (digits and not _HEX.fullmatch(digits)):
            return None
        last = bytes.fromhex(digits)
        found += last
    return bytes(found) or None


class PemBlock(NamedTuple):
    """The part of a PEM block between BEGIN and END; ``content`` is None if it is not base64."""

    label: str
    content: bytes | None


def pem_blocks(text: str) -> Iterator[PemBlock]:
    """Yield every PEM block; ignore any text before, between and after them.

    Blanks, empty lines, header lines (``Proc-Type:``) and line breaks that were
    written out (backslash, n) are passed over.
    """
    if "\\n" in text:
        text = text.replace("\\r", "\n").replace("\\n", "\n")
    begin, end = "-----BEGIN ", "-----END "
    at = text.find(begin)
    while at >= 0:
        close = text.find("-----", at + len(begin))
        finish = text.find(end, at + len(begin))
        if close < 0 or finish < 0:
            return
        label = text[at + len(begin) : close]
        following = text.find(begin, at + len(begin))
        if 0 <= following < finish:
            at = following
            continue
        lines = text[close + 5 : finish].splitlines() if close < finish else []
        body = "".join(line.strip(" \t>\xa0") for line in lines if ":" not in line)
        body = "".join(body.split())
        content = None
        if _BASE64_IN_PEM.fullmatch(body):
            try:
                content = base64.b64decode(body, validate=True)
            except binascii.Error:
                content = None
        yield PemBlock(label.strip(), content)
        at = following


def starts_like_json(text: str) -> bool:
    """Whether the first character is that of a JSON object or array."""
    return text.lstrip()[:1] in ("{", "[")


def read_json(text: str, what: str) -> Any:
    """Return the value of a JSON text.

    Raises :class:`FormatError`, naming ``what``, for anything else, a key that an
    object has twice, and nesting that is too deep.
    """

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(found)
        if len(values) < len(found):
            keys = [key for key, _ in found]
            twice = next(key for key in values if keys.count(key) > 1)
            raise FormatError(what, f"the key {twice[:40]!r} is there twice")
        return values

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=_no_number)
    except RecursionError:
        raise FormatError(what, "is nested too deeply") from None
    except ValueError as error:
        raise FormatError(what, f"is not JSON: {str(error)[:120]}") from None


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def bytes_of_json(value: Any) -> bytes | None:
    """Return the bytes that JSON stands for: a text that :func:`bytes_in` reads, or an array of
    numbers.
    """
    if isinstance(value, str):
        return bytes_in(value)
    if isinstance(value, list) and all(type(each) is int and 0 <= each <= 255 for each in value):
        return bytes(value)
    return None
