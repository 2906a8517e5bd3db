# SPDX-License-Identifier: Apache-2.0
"""Fixed-size little-endian structures, declared with their offsets.

A structure is a frozen dataclass. Each field states its offset in the C structure. Nothing is
computed from the order of fields, so a reader can compare the class with the specification line by
line, and a test can compare its offsets with a C compiler's.

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True, slots=True)
... class Pair(CStruct):
...     SIZE = 12
...     a: int = u32(0)
...     b: int = u64(4)
>>> Pair(a=1, b=2).pack().hex()
'010000000200000000000000'
>>> Pair.unpack(bytes(12))
Pair(a=0, b=0)
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Any, ClassVar, Self

from snpcerts.errors import FormatError

Buffer = bytes | bytearray | memoryview

_OFFSET = "snpcerts.offset"
_CODEC = "snpcerts.codec"


def _scalar(offset: int, code: str) -> Any:
    return dataclasses.field(
        default=0, metadata={_OFFSET: offset, _CODEC: struct.Struct("<" + code)}
    )


def u8(offset: int) -> Any:
    """Declare a field: an unsigned byte at ``offset``."""
    return _scalar(offset, "B")


def u16(offset: int) -> Any:
    """Declare a field: an unsigned 16-bit integer, little-endian, at ``offset``."""
    return _scalar(offset, "H")


def s16(offset: int) -> Any:
    """Declare a field: a signed 16-bit integer, little-endian, at ``offset``."""
    return _scalar(offset, "h")


def u32(offset: int) -> Any:
    """Declare a field: an unsigned 32-bit integer, little-endian, at ``offset``."""
    return _scalar(offset, "I")


def s32(offset: int) -> Any:
    """Declare a field: a signed 32-bit integer, little-endian, at ``offset``."""
    return _scalar(offset, "i")


def u64(offset: int) -> Any:
    """Declare a field: an unsigned 64-bit integer, little-endian, at ``offset``."""
    return _scalar(offset, "Q")


def s64(offset: int) -> Any:
    """Declare a field: a signed 64-bit integer, little-endian, at ``offset``."""
    return _scalar(offset, "q")


def raw(offset: int, size: int) -> Any:
    """Declare a field of ``size`` bytes at ``offset``. Its default is all zeros."""
    return dataclasses.field(
        default=bytes(size), metadata={_OFFSET: offset, _CODEC: struct.Struct(f"{size}s")}
    )


class CStruct:
    """The base class of all structures.

    ``SIZE`` is the size of the C structure in bytes, including padding. ``C_NAME`` is the
    structure's name in its C header, or empty if it has none.
    """

    __slots__ = ()
    SIZE: ClassVar[int]
    C_NAME: ClassVar[str] = ""

    @classmethod
    def layout(cls) -> dict[str, tuple[int, int]]:
        """Return a mapping from each field's name to its (offset, size) in bytes."""
        return {name: (offset, codec.size) for name, offset, codec in _members(cls)}

    @classmethod
    def unpack(cls, data: Buffer) -> Self:
        """Parse the structure in the first ``SIZE`` bytes of ``data``.

        Raises :class:`FormatError` if ``data`` is shorter.
        """
        if len(data) < cls.SIZE:
            raise FormatError(
                cls.C_NAME or cls.__name__, f"expected at least {cls.SIZE} bytes, found {len(data)}"
            )
        return cls(*_reader(cls)(data))

    def pack(self, onto: bytes = b"") -> bytes:
        """Return the structure as ``SIZE`` bytes.

        Bytes that belong to no field are copied from ``onto``, or are zero where ``onto`` is too
        short. Raises :class:`FormatError` if a value does not fit its field.
        """
        out = bytearray(onto[: self.SIZE].ljust(self.SIZE, b"\0"))
        for name, offset, codec in _members(type(self)):
            value = getattr(self, name)
            try:
                if isinstance(value, bytes) and len(value) != codec.size:
                    raise struct.error(f"{name}: expected {codec.size} bytes, found {len(value)}")
                codec.pack_into(out, offset, value)
            except struct.error:
                raise FormatError(
                    self.C_NAME or type(self).__name__,
                    f"expected a value of {codec.size} bytes, found {value!r}",
                    field=name,
                    offset=offset,
                ) from None
        return bytes(out)


_cache: dict[type[CStruct], tuple[tuple[str, int, struct.Struct], ...]] = {}
_Read = Callable[[Buffer], tuple[Any, ...]]
_readers: dict[type[CStruct], _Read] = {}


def _members(cls: type[CStruct]) -> tuple[tuple[str, int, struct.Struct], ...]:
    found = _cache.get(cls)
    if found is None:
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]  # subclasses are dataclasses
        found = tuple((f.name, f.metadata[_OFFSET], f.metadata[_CODEC]) for f in fields)
        _cache[cls] = found
    return found


def _reader(cls: type[CStruct]) -> _Read:
    """Return a function that reads all fields, in the order in which ``cls`` declares them.

    The function must be fast, because programs read millions of reports. If the offsets ascend, one
    format reads all fields and skips the gaps between them. Otherwise, as in unions, each field is
    read separately.
    """
    found = _readers.get(cls)
    if found is None:
        members = _members(cls)
        found = _in_one(members) or _one_by_one(members)
        _readers[cls] = found
    return found


def _in_one(members: tuple[tuple[str, int, struct.Struct], ...]) -> _Read | None:
    form, at = "<", 0
    for _, offset, codec in members:
        if offset < at:
            return None
        form += f"{offset - at}x{codec.format.removeprefix('<')}"
        at = offset + codec.size
    return struct.Struct(form).unpack_from


def _one_by_one(members: tuple[tuple[str, int, struct.Struct], ...]) -> _Read:
    return lambda data: tuple(codec.unpack_from(data, at)[0] for _, at, codec in members)
