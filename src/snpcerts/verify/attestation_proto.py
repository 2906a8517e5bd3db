# SPDX-License-Identifier: Apache-2.0
"""Decodes evidence in protocol buffers: the messages of google/go-sev-guest, in their binary form.

The messages are written by go-sev-guest's tools (``attest -outform proto``, ``show -outform
proto``) and by services that forward attestations. A *Report* message holds the report's fields one
by one; an *Attestation* message holds a Report, its certificates and a product. The signature
covers the report's bytes, so this module rebuilds them. Bytes outside all fields become zero, as in
every well-formed report.

A field that is unknown, repeated, out of range, or of the wrong type or size is an error, and so is
a number that is not in its shortest form. Reading never goes beyond the given bytes.

Sources: go-sev-guest ``proto/sevsnp.proto``; Protocol Buffers "Encoding" for the wire format; AMD
APM volume 3 (24594), CPUID Fn0000_0001_EAX, for ``cpuid1eax_fms``.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Container, Iterator
from typing import Any, Final

from snpcerts.abi.cert_table import (
    ARK_GUID,
    ASK_GUID,
    MAX_ENTRIES,
    VCEK_GUID,
    VLEK_GUID,
    CertTable,
    TableEntry,
)
from snpcerts.abi.report import ReportLayout
from snpcerts.errors import FormatError

ATTESTATION: Final = "Attestation message"
REPORT: Final = "Report message"
CHAIN: Final = "CertificateChain message"
TPM: Final = "Attestation message of go-tpm-tools"
_SEV_SNP, _TDX = 8, 9
EXTRA: Final = "CertificateChain.extras"

_VARINT, _BYTES = 0, 2
_VARINT_SIZE: Final = 10
_GUID_TEXT_SIZE: Final = 36

# Field numbers of Report with the values of ReportLayout's fields.
_FIELDS: Final = {
    1: "version",
    2: "guest_svn",
    3: "policy",
    4: "family_id",
    5: "image_id",
    6: "vmpl",
    7: "signature_algo",
    8: "current_tcb",
    9: "platform_info",
    10: "flags",
    11: "report_data",
    12: "measurement",
    13: "host_data",
    14: "id_key_digest",
    15: "author_key_digest",
    16: "report_id",
    17: "report_id_ma",
    18: "reported_tcb",
    19: "chip_id",
    20: "committed_tcb",
    21: "current_build",
    22: "current_minor",
    23: "current_major",
    24: "committed_build",
    25: "committed_minor",
    26: "committed_major",
    27: "launch_tcb",
    28: "signature",
    30: "launch_mit_vector",
    31: "current_mit_vector",
}
_CPUID: Final = 29
# Eight bytes in a report, a number in the message.
_TCBS: Final = frozenset({"current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"})
_SIZES: Final = {name: size for name, (_, size) in ReportLayout.layout().items()}
_BLOBS: Final = tuple(
    field.name
    for field in dataclasses.fields(ReportLayout)
    if isinstance(field.default, bytes) and field.name not in _TCBS
)
_CPUID_BITS: Final = 0x0FFF_0FFF
_EXTENDED: Final = 0xF  # a family of this value continues in another field


def is_attestation(data: bytes) -> bool:
    """Return whether ``data`` begins like an Attestation message that holds a report of more than
    127 bytes.

    A raw report never begins like this, because the second byte of its version is zero.
    """
    return len(data) > 1 and data[0] == 1 << 3 | _BYTES and data[1] >= 0x80


def is_report(data: bytes) -> bool:
    """Return whether ``data`` begins like a Report message: a version, then GUEST_SVN or POLICY.

    A raw report never begins like this, because all bytes of its version except the first are zero.
    """
    return len(data) > 2 and data[0] == 1 << 3 and 0 < data[1] < 0x80 and data[2] in (0x10, 0x18)


def is_tpm_attestation(data: bytes) -> bool:
    """Return whether binary ``data`` may be an Attestation message of go-tpm-tools.

    Such a message begins with a TPM's key or, without a key, with quotes or an SNP Attestation. An
    Attestation of go-sev-guest begins with a Report, whose first field is a number.
    """
    if not is_attestation(data):
        return len(data) > 2 and data[0] in (2 << 3 | _BYTES, _SEV_SNP << 3 | _BYTES)
    try:
        _, at = _varint(data, 1, TPM)
    except FormatError:
        return False
    return data[at : at + 1] != b"\x08"


def read_tpm_attestation(data: bytes) -> tuple[bytes, CertTable]:
    """Return the report's 1184 bytes and its certificates from an Attestation message of
    go-tpm-tools. The TPM's quotes are not checked.

    Raises :class:`FormatError`, which names what was found instead, if the message holds no SNP
    attestation.
    """
    found: bytes | None = None
    for number, value in _once(data, TPM, range(1, 10), repeated=(2, 7)):
        if number == _TDX:
            raise FormatError(
                TPM, "expected an attestation from an SNP guest, found one from a TDX guest"
            )
        if number == _SEV_SNP:
            found = _bytes(value, TPM, "sev_snp_attestation")
    if found is None:
        raise FormatError(
            TPM,
            "expected an SNP attestation (field 8), found only TPM quotes",
            hint="request an SNP attestation with gotpm attest --tee-technology sev-snp",
        )
    return read_attestation(found)


def read_attestation(data: bytes) -> tuple[bytes, CertTable]:
    """Return the report's 1184 bytes and its certificates, as a table, from an Attestation message.

    Raises :class:`FormatError`, which names the message and the field, if ``data`` is malformed.
    """
    report = b""
    entries: tuple[TableEntry, ...] = ()
    for number, value in _once(data, ATTESTATION, (1, 2, 3)):
        content = _bytes(value, ATTESTATION, f"field {number}")
        if number == 1:
            report = read_report(content)
        elif number == 2:
            entries = tuple(_certificates(content))
        # The product (3) describes the machine on which the tool ran, so it proves nothing.
    if not report:
        raise FormatError(
            ATTESTATION, "expected a report in the message, found none", field="report"
        )
    return report, CertTable(entries)


def read_report(data: bytes) -> bytes:
    """Return the 1184 bytes of the report in a Report message. Raises :class:`FormatError`, which
    names the field, if ``data`` is malformed.
    """
    values: dict[str, Any] = {}
    signature = 0
    for number, value in _once(data, REPORT, (*_FIELDS, _CPUID)):
        if number == _CPUID:
            signature = _number(value, 4, "cpuid1eax_fms")
            continue
        name = _FIELDS[number]
        size = _SIZES[name]
        if name in _TCBS:
            values[name] = _number(value, size, name).to_bytes(size, "little")
        elif name in _BLOBS:
            values[name] = _bytes(value, REPORT, name)
            if len(values[name]) != size:
                raise FormatError(
                    REPORT, f"expected {size} bytes, found {len(values[name])}", field=name
                )
        else:
            values[name] = _number(value, size, name)
    # A message omits numbers that are zero, but not bytes that are zero.
    for name in _BLOBS:
        if name not in values:
            raise FormatError(
                REPORT, f"expected {_SIZES[name]} bytes, but the field is missing", field=name
            )
    return ReportLayout(**values, **cpuid_fields(signature)).pack()


def cpuid_fields(signature: int) -> dict[str, Any]:
    """Return the CPUID fields of a report of version 3 or later for the processor signature in
    ``cpuid1eax_fms``.
    """
    extended_family, family = signature >> 20 & 0xFF, signature >> 8 & 0xF
    combined = family + extended_family
    if signature & ~_CPUID_BITS or (extended_family and family != _EXTENDED) or combined > 0xFF:
        raise FormatError(
            REPORT,
            f"expected a family, model and stepping, found {signature:#x}",
            field="cpuid1eax_fms",
        )
    return {
        "cpuid_family": combined,
        "cpuid_model": signature >> 12 & 0xF0 | signature >> 4 & 0xF,
        "cpuid_stepping": signature & 0xF,
    }


_SLOTS: Final = {1: VCEK_GUID, 2: ASK_GUID, 3: ARK_GUID, 6: VLEK_GUID}
_FIRMWARE, _EXTRAS = 4, 7


def _certificates(data: bytes) -> Iterator[TableEntry]:
    """Yield the certificates of a CertificateChain message as table entries. Skip the deprecated
    firmware_cert, which has no GUID.
    """
    seen: set[uuid.UUID] = set()
    for number, value in _once(data, CHAIN, (*_SLOTS, _FIRMWARE, _EXTRAS), repeated=(_EXTRAS,)):
        content = _bytes(value, CHAIN, f"field {number}")
        if number == _FIRMWARE:
            continue
        guid, blob = _extra(content) if number == _EXTRAS else (_SLOTS[number], content)
        if guid.int == 0 or not blob:
            raise FormatError(
                CHAIN, f"the GUID {guid} is zero, or its entry has no data", field=f"field {number}"
            )
        if guid in seen:
            raise FormatError(CHAIN, f"the GUID {guid} appears twice", field=f"field {number}")
        seen.add(guid)
        if len(seen) > MAX_ENTRIES:
            raise FormatError(CHAIN, f"expected at most {MAX_ENTRIES} certificates, found more")
        yield TableEntry(guid, blob)


def _extra(data: bytes) -> tuple[uuid.UUID, bytes]:
    """Read an entry of the map ``extras``: return the GUID that is the key, and the bytes that are
    the value.
    """
    parts = {
        number: _bytes(value, EXTRA, f"field {number}")
        for number, value in _once(data, EXTRA, (1, 2))
    }
    text = parts.get(1, b"")
    try:
        guid = uuid.UUID(text.decode("ascii"))
    except ValueError:
        raise FormatError(
            EXTRA, f"expected a GUID as the key, found the bytes {text[:_GUID_TEXT_SIZE].hex()}"
        ) from None
    if str(guid) != text.decode("ascii").lower():
        raise FormatError(
            EXTRA, f"expected the key in the form {guid}, found the same GUID in another form"
        )
    return guid, parts.get(2, b"")


def _once(
    data: bytes, what: str, known: Container[int], *, repeated: tuple[int, ...] = ()
) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and the value of each field of a message. A field must be in ``known``, and
    may occur more than once only if it is in ``repeated``.
    """
    seen: set[int] = set()
    at = 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at, what)
        number, wire = tag >> 3, tag & 7
        if number not in known:
            raise FormatError(what, f"expected a known field, found field {number}", offset=start)
        if number in seen and number not in repeated:
            raise FormatError(what, f"field {number} appears twice in the message", offset=start)
        seen.add(number)
        if wire == _VARINT:
            number_value, at = _varint(data, at, what)
            yield number, number_value
        elif wire == _BYTES:
            size, at = _varint(data, at, what)
            if size > len(data) - at:
                raise FormatError(
                    what,
                    f"field {number} has {size} bytes, but only {len(data) - at} follow",
                    offset=start,
                )
            yield number, data[at : at + size]
            at += size
        else:
            raise FormatError(
                what, f"expected wire type 0 or 2 for field {number}, found {wire}", offset=start
            )


def _varint(data: bytes, at: int, what: str) -> tuple[int, int]:
    """Read the number of up to 64 bits at offset ``at``. Return the number and the offset after
    it.
    """
    value = 0
    for index in range(_VARINT_SIZE):
        if at + index >= len(data):
            raise FormatError(what, "the data ends within a number", offset=at)
        byte = data[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if (not byte and index) or value >> 64:
                break
            return value, at + index + 1
    raise FormatError(
        what, "a number has more than 64 bits or is not in its shortest form", offset=at
    )


def _number(value: int | bytes, size: int, field: str) -> int:
    if not isinstance(value, int):
        raise FormatError(REPORT, "expected a number, found bytes", field=field)
    if value >> 8 * size:
        raise FormatError(REPORT, f"{value} does not fit in {size} bytes", field=field)
    return value


def _bytes(value: int | bytes, what: str, field: str) -> bytes:
    if isinstance(value, int):
        raise FormatError(what, "expected bytes, found a number", field=field)
    return value
