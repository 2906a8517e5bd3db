# SPDX-License-Identifier: Apache-2.0
"""Reads TOML files, and finds the line of a value for error messages.

The callers, :mod:`snpcerts.host.config` and :mod:`snpcerts.verify.policy_file`, decide which values
are valid, and report every mistake with its line.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any, Final

Path = tuple[str | int, ...]
"""Where a value is in a file: its keys, and its indices in arrays of tables, outermost first."""

_NAME: Final = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_DOTTED: Final = rf"(?P<path>{_NAME}(?:\s*\.\s*{_NAME})*)"
_HEADER: Final = re.compile(rf"\s*\[\s*{_DOTTED}\s*\]\s*(?:#.*)?")
_ARRAY_HEADER: Final = re.compile(rf"\s*\[\[\s*{_DOTTED}\s*\]\]\s*(?:#.*)?")
_KEY: Final = re.compile(rf"\s*{_DOTTED}\s*=")
# Finds multi-line strings, which are group 1. The other alternatives match text that could be
# mistaken for the start of one.
_STRINGS: Final = re.compile(
    r"""(\"{3}(?:\\.|[^\\])*?\"{3,5}|'{3}.*?'{3,5})"""
    r"""|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|\#[^\n]*""",
    re.DOTALL,
)


class TomlFileError(ValueError):
    """The file cannot be read as TOML.

    ``line`` counts from 1. It is None if the message already names the line, or if no line is
    known.
    """

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.line = line


def read_toml(data: bytes | str, limit: int) -> tuple[dict[str, Any], str]:
    """Parse ``data``, a TOML file of at most ``limit`` bytes, and return its values and its text.

    Raises :class:`TomlFileError` if the file is larger, not UTF-8 or not TOML.
    """
    if len(data) > limit:
        raise TomlFileError(f"the file is larger than {limit} bytes")
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise TomlFileError(f"not UTF-8: {error.reason} at byte {error.start}", line) from None
    try:
        return tomllib.loads(text), text
    except RecursionError:
        raise TomlFileError("the values are nested too deeply") from None
    # Numbers with thousands of digits do not raise TOMLDecodeError.
    except ValueError as error:
        raise TomlFileError(f"the file is not valid TOML: {error}") from None


def line_of(text: str, path: Path) -> int | None:
    """Return the number of the line that sets ``path`` or, failing that, its nearest parent; None
    if no line does.

    ``text`` is TOML that :func:`read_toml` returned. The call takes time proportional
    to the size of ``text``.
    """
    best: tuple[int, int] = (0, 0)
    table: Path = ()
    last: dict[str, int] = {}  # name of an array of tables -> index of its latest table
    for number, line in enumerate(_STRINGS.sub(_blank, text).split("\n"), 1):
        header, array = _HEADER.fullmatch(line), _ARRAY_HEADER.fullmatch(line)
        key = None if header or array else _KEY.match(line)
        if array:
            names = _split(array["path"])
            name = ".".join(names)
            last = {each: at for each, at in last.items() if not each.startswith(f"{name}.")}
            last[name] = last.get(name, -1) + 1
            table = found = _with_indices(names, last)
        elif header:
            table = found = _with_indices(_split(header["path"]), last)
        elif key:
            found = (*table, *_split(key["path"]))
        else:
            continue
        # A line that sets a value inside ``path`` also sets ``path``. The first such line counts.
        common = min(len(found), len(path))
        if found[:common] == path[:common] and common > best[0]:
            best = (common, number)
    return best[1] or None


def _blank(match: re.Match[str]) -> str:
    return match[0] if match[1] is None else "\n" * match[1].count("\n")


def _split(path: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in path.split("."))


def _with_indices(names: tuple[str, ...], last: dict[str, int]) -> Path:
    path: list[str | int] = []
    for count, name in enumerate(names, 1):
        path.append(name)
        index = last.get(".".join(names[:count]))
        if index is not None:
            path.append(index)
    return tuple(path)
