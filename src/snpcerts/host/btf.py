# SPDX-License-Identifier: Apache-2.0
"""Reads structures and enumerations from BTF, the type information of the running kernel.

Source: Linux ``Documentation/bpf/btf.rst``. ``/sys/kernel/btf/vmlinux`` has all types of the kernel
itself; a module's file has only the types that the module adds. Preprocessor constants, such as the
numbers of exits, are not in BTF.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from snpcerts.errors import FormatError

KERNEL: Final = Path("/sys/kernel/btf")
_MAGIC: Final = 0xEB9F
_HEADER: Final = struct.Struct("<HBBIIIII")
_TYPE: Final = struct.Struct("<III")
_MEMBER: Final = struct.Struct("<III")
_LIMIT: Final = 64 << 20  # bytes; the BTF of vmlinux has about 5 MiB
_INT, _ARRAY, _STRUCT, _UNION, _ENUM = 1, 3, 4, 5, 6
_FUNC_PROTO, _VAR, _DATASEC, _DECL_TAG, _ENUM64 = 13, 14, 15, 17, 19
_BYTE: Final = 8  # bits
# How many bytes follow a type's header: _EACH for each of its ``vlen`` items, _ONCE once per type.
_EACH: Final = {_STRUCT: 12, _UNION: 12, _ENUM: 8, _FUNC_PROTO: 8, _DATASEC: 12, _ENUM64: 12}
_ONCE: Final = {_INT: 4, _ARRAY: 12, _VAR: 4, _DECL_TAG: 4}


@dataclass(frozen=True, slots=True)
class _BtfType:
    name: str
    kind: int
    members: tuple[tuple[str, int, int], ...] = ()  # name, type, offset in bits


@dataclass(slots=True)
class Btf:
    """The types of a kernel and its modules, by type number."""

    _types: list[_BtfType] = field(default_factory=lambda: [_BtfType("void", 0)])
    _strings: bytes = b""
    _constants: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of_kernel(cls, module: str | None = None, folder: Path = KERNEL) -> Self:
        """Read the BTF of the running kernel, and that of a module if the module has any.

        Raises ``OSError`` if a file cannot be read, and :class:`FormatError` if it is not BTF.
        """
        found = cls()
        for name in ("vmlinux", *([] if module is None else [module])):
            if name == "vmlinux" or (folder / name).exists():
                found.add((folder / name).read_bytes())
        return found

    def add(self, data: bytes) -> None:
        """Add the types in ``data``, the content of a BTF file, after the types already read."""
        try:
            self._add(data)
        except (struct.error, IndexError, ValueError) as error:
            raise FormatError("BTF", f"the data is corrupt: {error}") from None

    def offset_of(self, structure: str, member: str) -> int | None:
        """Return a member's offset in bytes; None if there is no such member.

        The members of unnamed structures and unions inside ``structure`` count as its own.
        """
        for each in self._types:
            if each.kind in (_STRUCT, _UNION) and each.name == structure:
                bits = self._find(each, member, 0)
                if bits is not None:
                    return bits // _BYTE
        return None

    def constant(self, name: str) -> int | None:
        """Return the value of an enumeration's member; None if there is no such member."""
        return self._constants.get(name)

    def _find(self, inside: _BtfType, member: str, depth: int) -> int | None:
        if depth > 8:
            return None
        for name, number, bits in inside.members:
            if name == member:
                return bits
            if not name and 0 < number < len(self._types):
                found = self._find(self._types[number], member, depth + 1)
                if found is not None:
                    return bits + found
        return None

    def _add(self, data: bytes) -> None:
        if not _HEADER.size <= len(data) <= _LIMIT:
            raise ValueError(f"expected {_HEADER.size} to {_LIMIT} bytes, found {len(data)}")
        magic, _, _, size, types, types_size, strings, strings_size = _HEADER.unpack_from(data)
        if magic != _MAGIC or size + types + types_size > len(data):
            raise ValueError("the header is invalid")
        self._strings += data[size + strings : size + strings + strings_size]
        at, end = size + types, size + types + types_size
        while at < end:
            at = self._add_type(data, at)

    def _add_type(self, data: bytes, at: int) -> int:
        name: int
        info: int
        name, info, _ = _TYPE.unpack_from(data, at)
        kind, count, bitfields = info >> 24 & 0x1F, info & 0xFFFF, info >> 31
        at += _TYPE.size
        members: list[tuple[str, int, int]] = []
        if kind in (_STRUCT, _UNION):
            for number in range(count):
                place, of, bits = _MEMBER.unpack_from(data, at + number * _MEMBER.size)
                members.append((self._text(place), of, bits & 0xFFFFFF if bitfields else bits))
        elif kind == _ENUM:
            for number in range(count):
                place, value = struct.unpack_from("<II", data, at + number * 8)
                self._constants.setdefault(self._text(place), value)
        self._types.append(_BtfType(self._text(name), kind, tuple(members)))
        return at + _ONCE.get(kind, 0) + _EACH.get(kind, 0) * count

    def _text(self, at: int) -> str:
        return self._strings[at : self._strings.index(b"\0", at)].decode("ascii", "replace")
