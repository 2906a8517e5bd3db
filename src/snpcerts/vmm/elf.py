# SPDX-License-Identifier: Apache-2.0
"""Reads what an ELF program needs at run time: its machine, its loader, its imports.

Source: System V ABI, "Object Files" and "Program Loading and Dynamic Linking"; AMD64 supplement for
the relocations. Like the loader, this module follows only the program headers, because section
headers may be stripped. It parses only little-endian 64-bit files; of others, it reads only the
class and the machine. The file may be hostile, so every offset is checked against the file's size,
and sizes are bounded.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from typing import Final

from snpcerts.errors import FormatError

WHAT = "ELF file"
MACHINE_X86_64: Final = 62

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")
_RELOCATION = struct.Struct("<QQq")
_SYMBOL = struct.Struct("<IBBHQQ")
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ = 0, 2, 5, 6, 7, 8
_DT_STRSZ, _DT_JMPREL, _DT_RELACOUNT = 10, 23, 0x6FFFFFF9
_MAX_SEGMENTS = 256
_MAX_DYNAMIC = 4096  # entries
_MAX_RELOCATIONS = 4_000_000
_MAX_NAME = 4096


@dataclass(frozen=True, slots=True)
class Elf:
    """An ELF file. ``interpreter`` is None for a static program; ``imports`` are the symbols that
    other files must define.
    """

    bits: int
    machine: int
    interpreter: str | None
    imports: frozenset[str]


def read_elf(path: str) -> Elf:
    """Read the program or library at ``path``.

    Raises :class:`FormatError` if it is not a valid ELF file, and ``OSError`` if it cannot be read.
    """
    with open(path, "rb") as file:
        try:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise FormatError(WHAT, "the file is empty") from None
        with view:
            return parse_elf(view)


def parse_elf(data: bytes | mmap.mmap) -> Elf:
    """Parse ``data``, the bytes of an ELF file, as :func:`read_elf` does for a path."""
    if data[:4] != b"\x7fELF" or len(data) < _HEADER.size:
        raise FormatError(WHAT, "the file has no ELF header")
    bits = {1: 32, 2: 64}.get(data[4])
    if bits is None or data[5] not in (1, 2):
        raise FormatError(WHAT, "the ELF class or byte order is unknown", offset=4)
    if bits != 64 or data[5] != 1:
        order = "<" if data[5] == 1 else ">"
        (machine,) = struct.unpack_from(order + "H", data, 18)
        return Elf(bits, machine, None, frozenset())
    return _Reader(data).elf()


class _Reader:
    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data = data
        _, _, self._machine, _, _, at, _, _, _, size, count, _, _, _ = _HEADER.unpack_from(data)
        if count and size != _SEGMENT.size:
            raise FormatError(
                WHAT,
                f"expected {_SEGMENT.size} bytes for each program header, found {size}",
                field="e_phentsize",
            )
        if count > _MAX_SEGMENTS:
            raise FormatError(
                WHAT,
                f"the file has {count} program headers; the limit is {_MAX_SEGMENTS}",
                field="e_phnum",
            )
        table = self._slice(at, count * _SEGMENT.size, "program header")
        self._segments = list(_SEGMENT.iter_unpack(table))

    def elf(self) -> Elf:
        interpreter: str | None = None
        imports: frozenset[str] = frozenset()
        for kind, _, offset, _, _, size, _, _ in self._segments:
            if kind == _PT_INTERP:
                raw = self._slice(offset, min(size, _MAX_NAME), "PT_INTERP")
                interpreter = raw.partition(b"\0")[0].decode(errors="replace")
            elif kind == _PT_DYNAMIC:
                imports = self._imports(self._slice(offset, size, "PT_DYNAMIC"))
        return Elf(64, self._machine, interpreter, imports)

    def _imports(self, section: bytes) -> frozenset[str]:
        """Return the symbols to which relocations refer and which this file does not define."""
        found: dict[int, int] = {}
        section = section[: len(section) // _DYNAMIC.size * _DYNAMIC.size]
        for index, (tag, value) in enumerate(_DYNAMIC.iter_unpack(section)):
            if tag == _DT_NULL or index == _MAX_DYNAMIC:
                break
            found[tag] = value
        if _DT_STRTAB not in found or _DT_SYMTAB not in found:
            return frozenset()
        strings = self._at_address(found[_DT_STRTAB], found.get(_DT_STRSZ, 0), "DT_STRTAB")
        wanted: set[int] = set()
        # The relocations without a symbol come first. DT_RELACOUNT gives their number.
        relative = found.get(_DT_RELACOUNT, 0) * _RELOCATION.size
        for start, size, skip in (
            (_DT_RELA, _DT_RELASZ, relative),
            (_DT_JMPREL, _DT_PLTRELSZ, 0),
        ):
            length = found.get(size, 0) - skip
            if start not in found or length <= 0:
                continue
            if length > _MAX_RELOCATIONS * _RELOCATION.size:
                raise FormatError(
                    WHAT,
                    f"the relocation table has {length} bytes; the limit is "
                    f"{_MAX_RELOCATIONS * _RELOCATION.size}",
                )
            table = self._at_address(found[start] + skip, length, "relocations")
            table = table[: len(table) // _RELOCATION.size * _RELOCATION.size]
            wanted.update(info >> 32 for _, info, _ in _RELOCATION.iter_unpack(table))
        names: set[str] = set()
        for index in wanted - {0}:
            at = found[_DT_SYMTAB] + index * _SYMBOL.size
            name, _, _, defined_in, _, _ = _SYMBOL.unpack(
                self._at_address(at, _SYMBOL.size, "DT_SYMTAB")
            )
            if defined_in == 0 and name < len(strings):
                end = strings.find(b"\0", name, name + _MAX_NAME)
                names.add(strings[name : max(end, name)].decode(errors="replace"))
        return frozenset(names)

    def _at_address(self, address: int, size: int, field: str) -> bytes:
        """Return the bytes that the loader would map to ``address``."""
        for kind, _, offset, start, _, length, _, _ in self._segments:
            if kind == _PT_LOAD and start <= address and address + size <= start + length:
                return self._slice(offset + address - start, size, field)
        raise FormatError(
            WHAT, f"{size} bytes at address {address:#x} are not in any segment", field=field
        )

    def _slice(self, offset: int, size: int, field: str) -> bytes:
        if offset + size > len(self._data):
            raise FormatError(
                WHAT,
                f"the file ends before the {size} bytes at {offset:#x}",
                field=field,
                offset=offset,
            )
        return bytes(self._data[offset : offset + size])
