# SPDX-License-Identifier: Apache-2.0
"""Decodes bytes that people copied as text: in hexadecimal, base64, PEM or JSON.

The time and memory that a function takes are proportional to the length of the text. Functions
return None (or yield nothing) for text that they do not recognise, and the caller decides whether
that is an error.

Sources: RFC 4648 for base64 and base64url; RFC 7468 section 2 for PEM, which lets text precede
BEGIN and asks readers to ignore blanks; RFC 8259 for JSON.
"""

from __future__ import annotations

import ast
import base64
import binascii
import codecs
import collections
import json
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from snpcerts.errors import FormatError

# More than the longest text that this package reads: a table of 1 MiB in base64 or hexadecimal.
MAX_TEXT: Final = 4 << 20

_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
_FILLING: Final = re.compile(r"[\s,;:{}\[\]()'\"\\`]+")
_PREFIX: Final = re.compile(r"(?:0[xX]|(?<!\\)\\++x)(?=[0-9a-fA-F])")
_NUMBER: Final = re.compile(r"0[xX]([0-9a-fA-F]{1,2})")
_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2})++")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_DATA_URL: Final = re.compile(r"data:[-\w.+/;=]{0,100};base64,")
_DUMP_OFFSET: Final = re.compile(r"([0-9a-fA-F]{6,8})(:[ ]|[ ]{1,2}|$)")
# In a dump, * stands for repeated lines, so a short text can stand for a lot of data. The limit is
# this many bytes for each character of the dump.
_MOST_REPEATED: Final = 16
_DUMP_WORDS: Final = re.compile(r"[0-9a-fA-F]{4}(?: [0-9a-fA-F]{4})*+")
# Possessive quantifiers, so that a long text needs no memory for backtracking.
_DECIMALS: Final = re.compile(r"[{\[(]?\s*\d{1,3}(?:[\s,]++\d{1,3}+){63,}+[\s,]*[}\])]?")
# What may precede bytes that were copied from a settings file or from source code.
_ASSIGNED: Final = re.compile(r"(?:export\s+)?[A-Za-z_][\w.-]{0,63}\s*[:=]\s*(?:[|>][-+]?\s+)?")
_ARRAY: Final = re.compile(r"[\w\s*\[\]:=&.!;]{0,160}[{\[(](?=\s*(?:0[xX])?[0-9a-fA-F]{1,3}\s*,)")
_CALL: Final = re.compile(r"(?:[\w.]{1,40}\s*=\s*)?(?:(?:bytes|bytearray)\.fromhex\(|[xX](?='))")
_BYTES_LITERAL: Final = re.compile(
    r"b(['\"])(?:\\(?:x[0-9a-fA-F]{2}|[\\'\"abfnrtv]|[0-3][0-7]{0,2}|[4-7][0-7]?(?![0-7]))"
    r"|(?!\1)[\x20-\x5b\x5d-\x7e])*+\1"
)
_BASE64_IN_PEM: Final = re.compile(r"[A-Za-z0-9+/=]*")


def text_of(data: bytes) -> str | None:
    """Return ``data`` as text, without a byte order mark; None if ``data`` is not text."""
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
    """Return the bytes that ``text`` encodes in hexadecimal, base64 or base64url, or as a dump.

    The text may have white space anywhere, quotes around it, ``0x`` or ``\\x`` before bytes, and
    colons or commas between them. Base64 may lack its padding. A name may precede the bytes
    (``REPORT=``), and they may be a literal in a program (``xxd -i``, ``[]byte{...}``, ``b'...'``).
    Returns None for any other text.
    """
    text = text.strip()
    for read in (bytes_in_numbers, _in_program, _encoded, _in_setting):
        found = read(text)
        if found is not None:
            return found
    return None


def bytes_in_numbers(text: str) -> bytes | None:
    """Return the bytes in a list of 64 or more decimal numbers, as Go prints them: ``[3 0 255]``.

    Returns None for any other text.

    A text in which every number has two digits is not accepted, because it could also be
    hexadecimal.
    """
    if not _DECIMALS.fullmatch(text):
        return None
    numbers = re.findall(r"\d+", text)
    if all(len(each) == 2 for each in numbers) or any(int(each) > 255 for each in numbers):
        return None
    return bytes(map(int, numbers))


def _in_program(text: str) -> bytes | None:
    """Return the bytes of a literal in a program; None if ``text`` is not such a literal."""
    literal = _BYTES_LITERAL.fullmatch(text)
    if literal is not None:
        value: bytes = ast.literal_eval(text)
        return value
    array = _ARRAY.match(text)
    if array is not None:
        end = re.search(r"[}\])]", text[array.end() :])
        body = text[array.end() :] if end is None else text[array.end() :][: end.start()]
        return bytes_in_numbers(body.strip()) or _encoded(body)
    call = _CALL.match(text)
    return None if call is None else _encoded(text[call.end() :])


def _in_setting(text: str) -> bytes | None:
    """Return the bytes in ``NAME=VALUE`` or ``NAME: VALUE``, as in a settings file, YAML or a form;
    None for other text.
    """
    start = _ASSIGNED.match(text)
    if start is None:
        return None
    rest = text[start.end() :]
    return _encoded(unquote(rest) if "%2" in rest or "%3" in rest else rest)


def _encoded(text: str) -> bytes | None:
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
    """Return the bytes in a dump by ``xxd``, ``hexdump`` or ``od``, where ``*`` means repeated
    lines; None for other text.
    """
    lines = [line.strip() for line in text.splitlines()]
    match = _DUMP_OFFSET.match(lines[0]) if lines else None
    if match is None:
        return None
    # od prints offsets in octal by default.
    bases = (8, 16, 10) if match[2] == " " else (16,)
    return next((found for base in bases if (found := _of_lines(lines, base)) is not None), None)


def _of_lines(lines: list[str], base: int) -> bytes | None:
    found, last, repeat = bytearray(), b"", False
    most = min(_MOST_REPEATED * sum(map(len, lines)), MAX_TEXT)
    for line in lines:
        if line == "*" and found:
            repeat = True
            continue
        match = _DUMP_OFFSET.match(line)
        if match is None:
            return None
        try:
            at, rest = int(match[1], base), line[match.end() :]
        except ValueError:
            return None
        if repeat and last and len(found) < at <= most:
            found += last * ((at - len(found)) // len(last))
        repeat = False
        # After the bytes, the line shows them again as characters.
        digits = "".join(re.split(r"\s{2}" if match[2] == ": " else r"\||\s>", rest)[0].split())
        if at != len(found) or (digits and not _HEX.fullmatch(digits)):
            return None
        last = bytes.fromhex(digits)
        if match[2] == " " and _DUMP_WORDS.fullmatch(rest.strip()):
            # Numbers of 16 bits; x86 stores the low byte first.
            last = bytes(byte for at in range(0, len(last), 2) for byte in last[at : at + 2][::-1])
        found += last
    return bytes(found) or None


class PemBlock(NamedTuple):
    """A PEM block: its label, and the bytes that it encodes. ``content`` is None if the text
    between BEGIN and END is not base64.
    """

    label: str
    content: bytes | None


def pem_blocks(text: str) -> Iterator[PemBlock]:
    """Yield every PEM block in a text, and ignore all text before, between and after the blocks.

    Inside a block, ignore blanks, empty lines, header lines (``Proc-Type:``) and escaped line
    breaks (backslash, n).
    """
    if "\\n" in text:
        text = text.replace("\\r", "\n").replace("\\n", "\n")
    begin, end = "-----BEGIN ", "-----END "
    at = text.find(begin)
    while at >= 0:
        following = text.find(begin, at + len(begin))
        finish = text.find(end, at + len(begin), following if following >= 0 else len(text))
        if finish < 0:  # the block has no end
            at = following
            continue
        close = text.find("-----", at + len(begin))
        label = text[at + len(begin) : close]
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
    """Return whether ``text`` begins like a JSON object or array."""
    return text.lstrip()[:1] in ("{", "[")


def read_json(text: str, what: str) -> Any:
    """Return the value that a JSON text encodes.

    Raises :class:`FormatError`, which names ``what``, for anything else, for a duplicate key in an
    object, and for values nested too deeply.
    """

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(found)
        if len(values) < len(found):
            counts = collections.Counter(key for key, _ in found)
            twice = next(key for key in values if counts[key] > 1)
            raise FormatError(what, f"the key {twice[:40]!r} appears twice in an object")
        return values

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=_no_number)
    except RecursionError:
        raise FormatError(what, "the values are nested too deeply") from None
    except ValueError as error:
        if str(error).startswith("Extra data"):
            raise FormatError(
                what,
                "expected one JSON value, found more text after it",
                hint="split the file into one file for each JSON value",
            ) from None
        raise FormatError(what, f"the text is not valid JSON: {str(error)[:120]}") from None


def _no_number(name: str) -> Any:
    raise ValueError(f"expected a JSON number, found {name}")


def bytes_of_json(value: Any) -> bytes | None:
    """Return the bytes that a JSON value encodes.

    The value is a text that :func:`bytes_in` reads, or an array of numbers from 0 to 255. Returns
    None for other values.
    """
    if isinstance(value, str):
        return bytes_in(value)
    if isinstance(value, list) and all(type(each) is int and 0 <= each <= 255 for each in value):
        return bytes(value)
    return None
