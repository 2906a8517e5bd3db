# SPDX-License-Identifier: Apache-2.0
"""The certificate table of an extended guest request.

Source: GHCB (56421) section "SNP Extended Guest Request". The table starts with 24-byte entries
{GUID 16, offset u32, length u32}, little-endian. An entry of 24 zero bytes ends them. Offsets count
from byte 0 of the table. GUIDs are written in RFC 4122 byte order (AMD confirms this in
google/go-sev-guest issue 157).

A guest does not trust the host that supplies a table, so decoding is bounded. The decoder accepts
at most :data:`MAX_ENTRIES` entries, and no blob that begins inside the header, ends past the table,
or overlaps another blob. So it never copies more bytes than the input has.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from snpcerts.abi.cstruct import Buffer
from snpcerts.errors import FormatError

WHAT = "certificate table"
PAGE_SIZE = 4096
ENTRY_SIZE = 24

VCEK_GUID = uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd")
VLEK_GUID = uuid.UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
ASK_GUID = uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")  # also for the ASVK
ARK_GUID = uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")
CRL_GUID = uuid.UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea")  # as in virtee/sev

GUID_NAMES: dict[uuid.UUID, str] = {
    VCEK_GUID: "vcek",
    VLEK_GUID: "vlek",
    ASK_GUID: "ask",
    ARK_GUID: "ark",
    CRL_GUID: "crl",
}
# Tables may also contain these blobs, which are not certificates. The names are for people.
OTHER_NAMES: dict[uuid.UUID, str] = {
    uuid.UUID("ecae0c0f-9502-43b1-afa2-0ae2e0d565b6"): "platform-info (go-sev-guest)",
    uuid.UUID("9f4116cd-c503-4f5a-8f6f-fb68882f4ce2"): "firmware endorsement (Google)",
}

# A Linux guest's buffer is at most this large (SEV_FW_BLOB_MAX_SIZE, arch/x86/include/asm/sev.h).
LINUX_GUEST_LIMIT = 0x4000
# The largest number of entries that the header of a table of that size can contain.
MAX_ENTRIES = LINUX_GUEST_LIMIT // ENTRY_SIZE
# The limit for tables read from a file. Real tables are much smaller.
MAX_SIZE = 1 << 20

EMPTY = bytes(ENTRY_SIZE)

_ENTRY = struct.Struct("<16sII")
_KNOWN = frozenset(GUID_NAMES) | frozenset(OTHER_NAMES)


def pages_of(size: int) -> int:
    """Return the number of 4 KiB pages that ``size`` bytes occupy."""
    return -(-size // PAGE_SIZE)


@dataclass(frozen=True, slots=True)
class TableEntry:
    """One entry of a table: a blob and its GUID."""

    guid: uuid.UUID
    data: bytes

    @property
    def name(self) -> str:
        """The entry's short name, such as ``vcek``; for other GUIDs, the text form of the GUID."""
        return GUID_NAMES.get(self.guid, str(self.guid))


@dataclass(frozen=True, slots=True)
class TableProblem:
    """One defect of a table: what is wrong, in which entry, at which byte."""

    message: str
    entry: int
    offset: int

    def __str__(self) -> str:
        return f"entry {self.entry} at offset {self.offset:#x}: {self.message}"


@dataclass(frozen=True, slots=True)
class CertTable:
    """A certificate table: its entries in order, including those with unknown GUIDs.

    ``warnings`` lists defects that decoding tolerated. Comparison and :meth:`encode` ignore
    ``warnings``.
    """

    entries: tuple[TableEntry, ...] = ()
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def __iter__(self) -> Iterator[TableEntry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def get(self, guid: uuid.UUID) -> bytes | None:
        """Return the blob with ``guid``; None if there is none."""
        return next((entry.data for entry in self.entries if entry.guid == guid), None)

    @property
    def size(self) -> int:
        """The size in bytes of the table that :meth:`encode` returns."""
        return ENTRY_SIZE * (len(self.entries) + 1) + sum(len(e.data) for e in self.entries)

    @property
    def pages(self) -> int:
        """The number of 4 KiB pages that a guest's buffer needs for this table."""
        return pages_of(self.size)

    def encode(self) -> bytes:
        """Return the table as bytes: header, terminator, blobs back to back.

        Raises :class:`FormatError` for what other programs might reject: an empty blob, a repeated
        GUID, the zero GUID, too many entries, more than :data:`MAX_SIZE` bytes.
        """
        if len(self.entries) > MAX_ENTRIES:
            raise FormatError(
                WHAT, f"the table has {len(self.entries)} entries; the limit is {MAX_ENTRIES}"
            )
        if self.size > MAX_SIZE:
            raise FormatError(WHAT, f"the table has {self.size} bytes; the limit is {MAX_SIZE}")
        header, blobs = bytearray(), bytearray()
        position = ENTRY_SIZE * (len(self.entries) + 1)
        seen: set[uuid.UUID] = set()
        for index, entry in enumerate(self.entries):
            if entry.guid.int == 0:
                raise FormatError(
                    WHAT,
                    "an entry has the zero GUID, which marks the end of a table",
                    field=f"entry {index}",
                )
            if not entry.data:
                raise FormatError(WHAT, f"the entry {entry.name} is empty", field=f"entry {index}")
            if entry.guid in seen:
                raise FormatError(
                    WHAT, f"the entry {entry.name} appears twice", field=f"entry {index}"
                )
            seen.add(entry.guid)
            header += _ENTRY.pack(entry.guid.bytes, position + len(blobs), len(entry.data))
            blobs += entry.data
        return bytes(header + EMPTY + blobs)

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """Parse a table. Bytes after the last blob are padding and are ignored.

        Raises :class:`FormatError`, with the entry's index and offset, for the first defect.
        """
        table, problems = cls.decode_lenient(data)
        if problems:
            problem = problems[0]
            raise FormatError(
                WHAT, problem.message, field=f"entry {problem.entry}", offset=problem.offset
            )
        return table

    @classmethod
    def decode_lenient(cls, data: Buffer) -> tuple[Self, tuple[TableProblem, ...]]:
        """Return a table of the sound entries, and the defects of the others. Never raises."""
        view = memoryview(data)
        headers, problems = _read_header(view)
        sound, unsound = _sound_headers(headers, len(view))
        entries: list[TableEntry] = []
        warnings: list[str] = []
        for header in sound:
            if header.swapped:
                warnings.append(
                    f"entry {header.index}: GUID {header.guid} is stored in mixed-endian "
                    "order; expected the order of RFC 4122"
                )
            blob = bytes(view[header.offset : header.offset + header.length])
            entries.append(TableEntry(header.guid, blob))
        unsound.sort(key=lambda problem: problem.entry)
        return cls(tuple(entries), tuple(warnings)), tuple(problems + unsound)


@dataclass(frozen=True, slots=True)
class _Header:
    index: int
    guid: uuid.UUID
    swapped: bool  # whether the GUID was in mixed-endian order
    offset: int
    length: int

    def problem(self, message: str) -> TableProblem:
        return TableProblem(message, self.index, self.index * ENTRY_SIZE)


def _guid(stored: bytes) -> tuple[uuid.UUID, bool]:
    """Decode a GUID of 16 bytes. Also return whether it is a known GUID in mixed-endian order."""
    guid = uuid.UUID(bytes=stored)
    swapped = uuid.UUID(bytes_le=stored)
    if guid not in _KNOWN and swapped in _KNOWN:
        return swapped, True
    return guid, False


def _read_header(view: memoryview) -> tuple[list[_Header], list[TableProblem]]:
    """Read the header's entries up to the terminator, without checking them."""
    headers: list[_Header] = []
    for index in range(MAX_ENTRIES + 1):
        at = index * ENTRY_SIZE
        if at + ENTRY_SIZE > len(view):
            problem = (
                f"the table ends after {len(view)} bytes without the zero entry that must end it"
            )
            return headers, [TableProblem(problem, index, at)]
        if view[at : at + ENTRY_SIZE] == EMPTY:
            return headers, []
        if index < MAX_ENTRIES:
            stored, offset, length = _ENTRY.unpack_from(view, at)
            headers.append(_Header(index, *_guid(stored), offset, length))
    problem = f"the table has more than {MAX_ENTRIES} entries"
    return headers, [TableProblem(problem, MAX_ENTRIES, MAX_ENTRIES * ENTRY_SIZE)]


def _sound_headers(headers: list[_Header], size: int) -> tuple[list[_Header], list[TableProblem]]:
    """Return the entries that may be copied, and the defects of the others."""
    header_end = ENTRY_SIZE * (len(headers) + 1)
    in_range: list[_Header] = []
    problems: list[TableProblem] = []
    seen: set[uuid.UUID] = set()
    for header in headers:
        end = header.offset + header.length  # Python integers do not overflow
        if header.guid.int == 0:
            message = "an entry with the zero GUID must be all zero"
        elif header.length == 0:
            message = f"the entry {header.guid} has length 0"
        elif header.offset < header_end:
            message = f"the blob begins at {header.offset:#x}, inside the {header_end}-byte header"
        elif end > size:
            message = (
                f"the blob at {header.offset:#x}..{end:#x} extends past the table's {size} bytes"
            )
        elif header.guid in seen:
            message = f"GUID {header.guid} appears twice"
        else:
            seen.add(header.guid)
            in_range.append(header)
            continue
        problems.append(header.problem(message))
    overlapping: dict[int, int] = {}
    last: _Header | None = None
    for header in sorted(in_range, key=lambda each: (each.offset, each.index)):
        if last is not None and header.offset < last.offset + last.length:
            overlapping[header.index] = last.index
        else:
            last = header
    for header in in_range:
        if header.index in overlapping:
            problems.append(
                header.problem(f"the blob overlaps the blob of entry {overlapping[header.index]}")
            )
    return [header for header in in_range if header.index not in overlapping], problems
