# SPDX-License-Identifier: Apache-2.0
"""ATTESTATION_REPORT, versions 2 to 5.

Source: SNP ABI (56860) table "ATTESTATION_REPORT Structure", checked against genuine reports of
Milan, Genoa and Turin. All integers are little-endian. The report has 1184 bytes in every version.
The signature covers the first 672.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

from snpcerts.abi.cstruct import Buffer, CStruct, raw, u8, u32, u64
from snpcerts.abi.product import (
    CHIP_ID_SIZE,
    Product,
    product_of_cpuid,
    products_of_chip_id,
)
from snpcerts.errors import FormatError

WHAT = "attestation report"
REPORT_SIZE = 0x4A0
SIGNED_SIZE = 0x2A0
VERSIONS = (2, 3, 4, 5)

SIGNATURE_OFFSET = 0x2A0
SIGNATURE_SIZE = 0x200
SIGNATURE_PART_SIZE = 72  # R, then S, each little-endian and zero-extended
CURVE_SIZE = 48  # bytes of a P-384 integer

SIGNATURE_ALGO_ECDSA_P384_SHA384 = 1
VMPL_HOST = 0xFFFF_FFFF  # in a report that the host requested

POLICY_RESERVED_ONE = 1 << 17
POLICY_KNOWN = (1 << 26) - 1
FLAGS_KNOWN = (1 << 5) - 1


class SigningKey(enum.IntEnum):
    """Values of SIGNING_KEY, which is bits 4:2 of the flags word at offset 0x48."""

    VCEK = 0
    VLEK = 1
    NONE = 7


_SIGNING_KEYS = {key.value: key for key in SigningKey}


@dataclass(frozen=True, slots=True)
class ReportLayout(CStruct):
    """The report's fields at their offsets. Use :class:`Report` to read a report."""

    SIZE: ClassVar[int] = REPORT_SIZE
    version: int = u32(0x000)
    guest_svn: int = u32(0x004)
    policy: int = u64(0x008)
    family_id: bytes = raw(0x010, 16)
    image_id: bytes = raw(0x020, 16)
    vmpl: int = u32(0x030)
    signature_algo: int = u32(0x034)
    current_tcb: bytes = raw(0x038, 8)
    platform_info: int = u64(0x040)
    flags: int = u32(0x048)
    report_data: bytes = raw(0x050, 64)
    measurement: bytes = raw(0x090, 48)
    host_data: bytes = raw(0x0C0, 32)
    id_key_digest: bytes = raw(0x0E0, 48)
    author_key_digest: bytes = raw(0x110, 48)
    report_id: bytes = raw(0x140, 32)
    report_id_ma: bytes = raw(0x160, 32)
    reported_tcb: bytes = raw(0x180, 8)
    cpuid_family: int = u8(0x188)  # version 3 and later
    cpuid_model: int = u8(0x189)
    cpuid_stepping: int = u8(0x18A)
    chip_id: bytes = raw(0x1A0, 64)
    committed_tcb: bytes = raw(0x1E0, 8)
    current_build: int = u8(0x1E8)
    current_minor: int = u8(0x1E9)
    current_major: int = u8(0x1EA)
    committed_build: int = u8(0x1EC)
    committed_minor: int = u8(0x1ED)
    committed_major: int = u8(0x1EE)
    launch_tcb: bytes = raw(0x1F0, 8)
    launch_mit_vector: int = u64(0x1F8)  # version 5
    current_mit_vector: int = u64(0x200)
    signature: bytes = raw(SIGNATURE_OFFSET, SIGNATURE_SIZE)


_NEWEST = VERSIONS[-1]
# (first version, last version, offset, end): bytes that are zero in these versions.
_RESERVED = (
    (2, _NEWEST, 0x04C, 0x050),
    (2, 2, 0x188, 0x18B),
    (2, _NEWEST, 0x18B, 0x1A0),
    (2, _NEWEST, 0x1EB, 0x1EC),
    (2, _NEWEST, 0x1EF, 0x1F0),
    # Sources disagree on whether version 4 already has the mitigation vectors.
    (2, 3, 0x1F8, 0x208),
    (2, _NEWEST, 0x208, 0x2A0),
    (2, _NEWEST, SIGNATURE_OFFSET + 48, SIGNATURE_OFFSET + 72),
    (2, _NEWEST, SIGNATURE_OFFSET + 72 + 48, SIGNATURE_OFFSET + 144),
    (2, _NEWEST, SIGNATURE_OFFSET + 144, REPORT_SIZE),
)


def _reserved_reader(version: int) -> tuple[struct.Struct, tuple[bytes, ...]]:
    """Return a struct that reads the bytes reserved in ``version``, and the values that it reads if
    all these bytes are zero.
    """
    form, at = "", 0
    for first, last, start, end in _RESERVED:
        if first <= version <= last:
            form += f"{start - at}x{end - start}s"
            at = end
    reader = struct.Struct(f"{form}{REPORT_SIZE - at}x")
    return reader, reader.unpack(bytes(REPORT_SIZE))


_RESERVED_READERS = {version: _reserved_reader(version) for version in VERSIONS}


@dataclass(frozen=True, slots=True)
class Report:
    """A report: its bytes, and its fields by their names in the specification.

    The TCB fields are left as eight raw bytes, because their layout depends on the product, which a
    version 2 report does not name.
    """

    raw: bytes
    fields: ReportLayout

    def __reduce__(self) -> tuple[Callable[[bytes], Report], tuple[bytes]]:
        """Pickle only the bytes, because parsing them again is faster than unpickling 33 fields."""
        return Report.unpack, (self.raw,)

    @classmethod
    def unpack(cls, data: Buffer) -> Self:
        """Parse a report of exactly 1184 bytes.

        Raises :class:`FormatError` for any other size. Nothing else is checked;
        :func:`malformations` lists other defects.
        """
        if len(data) != REPORT_SIZE:
            raise FormatError(WHAT, f"expected {REPORT_SIZE} bytes, found {len(data)}")
        copy = bytes(data)
        return cls(copy, ReportLayout.unpack(copy))

    @property
    def signed_bytes(self) -> bytes:
        """The 672 bytes that the signature covers."""
        return self.raw[:SIGNED_SIZE]

    @property
    def signature(self) -> tuple[int, int]:
        """The signature's (R, S) as integers, each read from all of its 72 bytes."""
        part = self.fields.signature
        split = SIGNATURE_PART_SIZE
        return (
            int.from_bytes(part[:split], "little"),
            int.from_bytes(part[split : 2 * split], "little"),
        )

    @property
    def signing_key(self) -> SigningKey | None:
        """The key that signed the report; None if the field has a reserved value."""
        return _SIGNING_KEYS.get(self.fields.flags >> 2 & 7)

    @property
    def author_key_en(self) -> bool:
        """AUTHOR_KEY_EN, bit 0 of the flags word: the report has the digest of an author key."""
        return bool(self.fields.flags & 1)

    @property
    def mask_chip_key(self) -> bool:
        """MASK_CHIP_KEY, bit 1 of the flags word: the host has masked the chip's signing key.

        The VCEK then signs nothing. A loaded VLEK may still sign: AMD's published firmware (Genoa,
        1.55.25) masks only the VCEK, but others read the ABI as masking both. SIGNING_KEY says
        which key signed, if any.
        """
        return bool(self.fields.flags & 2)

    @property
    def chip_id_masked(self) -> bool:
        """Whether the chip ID is 64 zero bytes (MASK_CHIP_ID, or a VLEK provider's choice)."""
        return not any(self.fields.chip_id)

    @property
    def product(self) -> Product | None:
        """The product according to the CPUID fields. None in version 2 and for unknown models."""
        if self.fields.version < 3:
            return None
        return product_of_cpuid(self.fields.cpuid_family, self.fields.cpuid_model)

    @property
    def products(self) -> tuple[Product, ...]:
        """The products that the report may come from, most likely first.

        A report of version 3 or later has at most one.
        """
        if self.product is not None:
            return (self.product,)
        if self.fields.version >= 3:
            return ()
        # A masked chip ID does not show its size, so assume the longest.
        masked = b"\xff" * CHIP_ID_SIZE
        alike = products_of_chip_id(masked if self.chip_id_masked else self.fields.chip_id)
        return tuple(each for each in alike if each.oldest_report_version <= self.fields.version)


@dataclass(frozen=True, slots=True)
class Malformation:
    """A field with a value that no well-formed report has."""

    field: str
    offset: int
    message: str

    def __str__(self) -> str:
        return f"{self.field} at offset {self.offset:#x}: {self.message}"


def malformations(report: Report) -> tuple[Malformation, ...]:
    """Return the defects that the layout alone shows, in order of offset.

    An unknown version is returned as the only defect, because the fields are then unknown too.
    """
    fields = report.fields
    if fields.version not in VERSIONS:
        known = f"{VERSIONS[0]} to {VERSIONS[-1]}"
        return (Malformation("VERSION", 0, f"expected {known}, found {fields.version}"),)
    found: list[Malformation] = []
    if not fields.policy & POLICY_RESERVED_ONE:
        found.append(Malformation("POLICY", 0x08, "bit 17 must be 1"))
    if fields.policy & ~POLICY_KNOWN:
        found.append(Malformation("POLICY", 0x08, f"reserved bits are set in {fields.policy:#x}"))
    if fields.signature_algo != SIGNATURE_ALGO_ECDSA_P384_SHA384:
        found.append(
            Malformation(
                "SIGNATURE_ALGO",
                0x34,
                f"expected 1 (ECDSA P-384 with SHA-384), found {fields.signature_algo}",
            )
        )
    if fields.flags & ~FLAGS_KNOWN:
        found.append(Malformation("FLAGS", 0x48, f"reserved bits are set in {fields.flags:#x}"))
    if report.signing_key is None:
        found.append(Malformation("SIGNING_KEY", 0x48, f"{fields.flags >> 2 & 7} is reserved"))
    reader, zero = _RESERVED_READERS[fields.version]
    if reader.unpack(report.raw) != zero:
        found += _set_bytes(report)
    return tuple(sorted(found, key=lambda each: each.offset)) if found else ()


def _set_bytes(report: Report) -> Iterator[Malformation]:
    """Yield a malformation for the first non-zero byte of each reserved range."""
    for first, last, start, end in _RESERVED:
        if first <= report.fields.version <= last and any(report.raw[start:end]):
            at = next(i for i in range(start, end) if report.raw[i])
            yield Malformation("RESERVED", at, f"expected 0, found {report.raw[at]:#04x}")
