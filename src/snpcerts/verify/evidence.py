# SPDX-License-Identifier: Apache-2.0
"""Reads evidence in many formats into one form.

========================  ====================================================
shape                     from
========================  ====================================================
report                    the firmware, ``snpguest report``, ``attest`` of
                          go-sev-guest, configfs-tsm's ``outblob``
report and table          ``attest -extended``; ``outblob`` and ``auxblob``
driver response           the ioctl of ``/dev/sev-guest``: 32 bytes before the
                          report, up to 4000 in all
HCL report                the TPM of an Azure confidential VM
protocol buffers          ``attest -outform proto`` of go-sev-guest; go-tpm-tools
JSON                      :mod:`snpcerts.verify.json_evidence`
CBOR                      ``application/vnd.veraison.tsm-report+cbor``
SCALE                     Dstack, version 0
========================  ====================================================

Each of these may be encoded in hexadecimal, base64 or base64url, and one may be inside another, a
few levels deep. Before any other format is tried, a plain report, with or without a table, is
recognised by its first bytes.

This module verifies nothing. A host can put any certificates into a table, and anyone can write
runtime data. The memory and the time for reading evidence are proportional to the size of the
evidence.
"""

from __future__ import annotations

import binascii
import enum
import hashlib
import json
import re
import struct
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from snpcerts.abi.cert_table import MAX_SIZE, CertTable
from snpcerts.abi.guest_message import ResponseStatus
from snpcerts.abi.report import REPORT_SIZE, Report
from snpcerts.endorsement.bundle import read_bundle
from snpcerts.endorsement.encoded_text import (
    MAX_TEXT,
    bytes_in,
    bytes_of_json,
    read_json,
    starts_like_json,
    text_of,
)
from snpcerts.endorsement.file_kind import (
    FileKind,
    kind_of,
    looks_like_report,
    looks_like_table,
    resembles_report,
)
from snpcerts.errors import FormatError
from snpcerts.verify import attestation_proto
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.hcl import SIGNATURE, HclReport
from snpcerts.verify.json_evidence import blobs, keys_of, other_kind_of_guest, report_by_fields
from snpcerts.verify.message_pack import is_message_pack, read_message_pack
from snpcerts.verify.scale import START as SCALE_START
from snpcerts.verify.scale import read_dstack

MAX_EVIDENCE: Final = REPORT_SIZE + MAX_SIZE
# Enough for MAX_EVIDENCE bytes in hexadecimal, with blanks and line ends. JSON has the same limit.
MAX_FILE: Final = MAX_TEXT
_MAX_DEPTH: Final = 5
_RESPONSE: Final = struct.pack("<II24x", ResponseStatus.SUCCESS, REPORT_SIZE)
_MESSAGE_SIZE: Final = 4000
_USER_DATA: Final = "user-data"
_TEXT_MESSAGE: Final = re.compile(rb"\s*(report\s*+:?\s*+[{<]|version\s*:\s*[0-9])")
_NO_COLLATERAL: Final = Collateral()


class Shape(enum.StrEnum):
    """The format in which evidence was found."""

    REPORT = "report"
    REPORT_AND_TABLE = "report-and-table"
    DRIVER_RESPONSE = "driver-response"
    HCL = "hcl-report"
    PROTO = "protobuf"
    TPM_PROTO = "go-tpm-tools"
    JSON = "json"
    CBOR = "cbor"
    SCALE = "scale"
    MESSAGE_PACK = "message-pack"


class _UnknownKindError(FormatError):
    """The content is not in any known format."""


@dataclass(frozen=True, slots=True)
class RuntimeData:
    """Bytes whose digest, zero-extended to 64 bytes, should be REPORT_DATA.

    ``digest`` is hashlib's name of the algorithm.
    """

    data: bytes
    digest: str

    def report_data(self) -> bytes:
        """Return the REPORT_DATA that binds these bytes."""
        return hashlib.new(self.digest, self.data).digest().ljust(64, b"\0")

    def user_data(self) -> bytes | None:
        """Return the user data that the guest put into the runtime data (on Azure, the content
        of the NV index 0x01400002).

        The result is None if the runtime data is not JSON or does not contain user data.
        """
        try:
            claims = json.loads(self.data)
        # JSON that is nested too deeply raises RecursionError.
        except (ValueError, RecursionError):
            return None
        text = claims.get(_USER_DATA) if isinstance(claims, dict) else None
        if not isinstance(text, str):
            return None
        try:
            return binascii.unhexlify(text)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True, init=False)
class Evidence:
    """A report and the data that came with it.

    ``table`` is the host's certificate table, including unknown entries (such as Google's firmware
    endorsement).
    """

    report: Report
    collateral: Collateral
    runtime_data: RuntimeData | None
    shape: Shape
    table: CertTable | None

    def __init__(
        self,
        report: Report | bytes,
        collateral: Collateral = _NO_COLLATERAL,
        runtime_data: RuntimeData | None = None,
        shape: Shape = Shape.REPORT,
        table: CertTable | None = None,
    ) -> None:
        """Create evidence from a report or its bytes. Raises :class:`FormatError` if these are not
        1184 bytes.
        """
        parsed = report if isinstance(report, Report) else Report.unpack(report)
        object.__setattr__(self, "report", parsed)
        object.__setattr__(self, "collateral", collateral)
        object.__setattr__(self, "runtime_data", runtime_data)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "table", table)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The defects of the table that decoding tolerated."""
        return () if self.table is None else self.table.warnings

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read evidence in any of this module's formats, detected from the content.

        Raises :class:`FormatError` if the content is malformed or in another format. If that format
        is known, the message names it and says how to convert the content.
        """
        if len(data) > MAX_FILE:
            raise FormatError("evidence", f"expected at most {MAX_FILE} bytes, found {len(data)}")
        if len(data) >= REPORT_SIZE and looks_like_report(data):
            return cls._from_report(data)
        found = cls._unwrapped(data, 0)
        if not resembles_report(found.report.raw):
            raise FormatError(
                "evidence",
                f"expected an attestation report in the evidence (format {found.shape.value}), "
                f"found {kind_of(found.report.raw).name}",
            )
        return found

    @classmethod
    def _from_report(cls, data: bytes) -> Self:
        if len(data) > MAX_EVIDENCE:
            raise FormatError(
                "evidence", f"expected at most {MAX_EVIDENCE} bytes, found {len(data)}"
            )
        behind = data[REPORT_SIZE:]
        if behind in (b"\n", b"\r\n"):
            behind = b""  # an editor or echo added these bytes
        try:
            found = cls.from_parts(data[:REPORT_SIZE], behind)
        except FormatError as error:
            _check_unaltered(data)
            raise FormatError(
                "evidence",
                (
                    f"expected a report of {REPORT_SIZE} bytes, alone or followed by its table, "
                    f"found {len(data)} bytes ({error})"
                ),
            ) from None
        if behind and (found.table is None or not len(found.table)):
            _check_unaltered(data)
        return found

    @classmethod
    def _unwrapped(cls, data: bytes, depth: int) -> Self:
        """Read evidence in any format. ``depth`` is the number of formats already unwrapped."""
        if depth > _MAX_DEPTH:
            raise FormatError("evidence", "the formats around the report are nested too deeply")
        if len(data) >= REPORT_SIZE and looks_like_report(data):
            return cls._from_report(data)
        binary = cls._from_binary(data)
        if binary is not None:
            return binary
        if is_message_pack(data):
            return cls._from_values(read_message_pack(data), depth, Shape.MESSAGE_PACK)
        if _TEXT_MESSAGE.match(data):
            raise FormatError(
                "evidence",
                "expected a protocol buffer in binary form, found the text form",
                hint="convert the file with go-sev-guest: show -inform textproto -outform bin",
            )
        text = text_of(data)
        printed = bytes_in(text) if text is not None and _PRINTED_BY_GO.match(text) else None
        if printed is not None:
            return cls._unwrapped(printed, depth + 1)
        if text is not None and starts_like_json(text):
            value = read_json(text, "evidence")
            inner = bytes_of_json(value) if isinstance(value, list) else None
            if inner is None:
                return cls._from_values(value, depth, Shape.JSON)
            return cls._unwrapped(inner, depth + 1)
        if text is not None and "-----BEGIN " not in text:
            inner = bytes_in(text) if len(text) >= REPORT_SIZE else None
            if inner is not None and len(inner) >= REPORT_SIZE // 2:
                try:
                    return cls._unwrapped(inner, depth + 1)
                except _UnknownKindError:
                    pass  # any text without punctuation could be base64
        if text is None and attestation_proto.is_tpm_attestation(data):
            return cls._from_message(*attestation_proto.read_tpm_attestation(data), Shape.TPM_PROTO)
        if text is None and _CBOR_START.match(data):
            return cls._from_values(_read_cbor(data), depth, Shape.CBOR)
        kind = kind_of(data)
        if kind.known:
            raise FormatError(
                "evidence",
                f"expected an attestation report, found {kind.name}",
                hint=kind.unwrap or _EXPECTED,
            )
        if data[:1] == b"\x30" and not read_bundle(data).empty:
            raise FormatError(
                "evidence",
                "expected an attestation report, found a certificate or a revocation list in DER",
                hint=_BESIDE,
            )
        if len(data) < REPORT_SIZE:
            raise _UnknownKindError(
                "evidence", f"expected a report of {REPORT_SIZE} bytes, found {len(data)} bytes"
            )
        if not resembles_report(data):
            raise _UnknownKindError(
                "evidence", f"expected an attestation report, found {kind.name}", hint=_EXPECTED
            )
        return cls._from_report(data)

    @classmethod
    def _from_binary(cls, data: bytes) -> Self | None:
        """Read the binary formats that their first bytes identify. Return None for other
        formats.
        """
        if data[:4] == SIGNATURE:
            hcl = HclReport.unpack(data)
            runtime = RuntimeData(hcl.claims, hcl.digest)
            return cls(hcl.report, runtime_data=runtime, shape=Shape.HCL)
        if attestation_proto.is_attestation(data):
            if attestation_proto.is_tpm_attestation(data):
                return cls._from_message(
                    *attestation_proto.read_tpm_attestation(data), Shape.TPM_PROTO
                )
            return cls._from_message(*attestation_proto.read_attestation(data), Shape.PROTO)
        if attestation_proto.is_report(data):
            return cls(attestation_proto.read_report(data), shape=Shape.PROTO)
        if data[4:8] == _RESPONSE[4:8] and not any(data[8:32]):
            return cls(_of_response(data), shape=Shape.DRIVER_RESPONSE)
        if data.startswith(SCALE_START):
            report, certificates = read_dstack(data)
            return cls(report, Collateral(others=certificates), shape=Shape.SCALE)
        return None

    @classmethod
    def _from_message(cls, report: bytes, table: CertTable, shape: Shape) -> Self:
        # A protocol buffer does not distinguish an empty table from none.
        given = table if len(table) else None
        return cls(report, Collateral.from_table(table), shape=shape, table=given)

    @classmethod
    def _from_values(cls, value: Any, depth: int, shape: Shape) -> Self:
        """Return the only report among the values of JSON or CBOR, with all certificates found
        there.
        """
        what = "evidence"
        other = other_kind_of_guest(value)
        if other is not None:
            raise FormatError(what, f"expected evidence from an SEV-SNP guest, found {other}")
        by_fields = report_by_fields(value)
        found: dict[bytes, Self] = {}
        if by_fields is not None:
            found[by_fields] = cls(by_fields)
        tables: list[CertTable] = []
        others: list[bytes] = []
        named: dict[str, FileKind] = {}
        for key, data in blobs(value):
            if looks_like_table(data):
                tables.append(CertTable.decode(data))
            elif not _is_binary_shape(data) and (data[:1] == b"\x30" or b"-----BEGIN " in data):
                others += read_bundle(data).certificates
            elif len(data) >= REPORT_SIZE // 2:
                try:
                    inner = cls._unwrapped(data, depth + 1)
                except FormatError:
                    named.setdefault(key, kind_of(data))
                    continue
                known = found.get(inner.report.raw)
                # Prefer an HCL report to the bare report, because it has runtime data too.
                if known is None or known.runtime_data is None:
                    found[inner.report.raw] = inner
        if len(found) > 1:
            raise FormatError(
                what,
                f"expected one report, found {len(found)}",
                hint="split the file into one file for each report",
            )
        if not found:
            raise _no_report(value, named, bool(others or tables))
        (one,) = found.values()
        collateral = one.collateral
        for table in tables:
            collateral = collateral.completed_by(Collateral.from_table(table))
        if others:
            collateral = collateral.completed_by(Collateral(others=tuple(others)))
        own = one.table or (tables[0] if tables else None)
        return cls(one.report, collateral, one.runtime_data, shape, own)

    @classmethod
    def from_parts(cls, report: Report | bytes, table: bytes = b"") -> Self:
        """Combine a report and its certificate table, such as ``outblob`` and ``auxblob`` of
        configfs-tsm.

        Empty bytes mean no table. Raises :class:`FormatError` if the report has another size or the
        table is malformed.
        """
        if not isinstance(report, Report) and len(report) != REPORT_SIZE:
            raise FormatError(
                "evidence", f"expected a report of {REPORT_SIZE} bytes, found {len(report)} bytes"
            )
        if not table:
            return cls(report)
        decoded = CertTable.decode(table)
        return cls(
            report,
            Collateral.from_table(decoded),
            shape=Shape.REPORT_AND_TABLE,
            table=decoded,
        )

    def with_table(self, table: bytes) -> Self:
        """Return a copy with this certificate table. Raises :class:`FormatError` if the table is
        malformed.
        """
        decoded = CertTable.decode(table)
        collateral = self.collateral.completed_by(Collateral.from_table(decoded))
        shape = Shape.REPORT_AND_TABLE if self.shape is Shape.REPORT else self.shape
        return replace(self, collateral=collateral, table=decoded, shape=shape)


def _is_binary_shape(data: bytes) -> bool:
    """Return whether ``data`` begins with a report or a binary format that wraps one, even if PEM
    follows.
    """
    return looks_like_report(data) or starts_in_binary_shape(data)


def starts_in_binary_shape(data: bytes) -> bool:
    """Return whether ``data`` begins like a binary format that wraps a report."""
    return (
        data[:4] == SIGNATURE
        or data.startswith(SCALE_START)
        or (data[4:8] == _RESPONSE[4:8] and not any(data[8:32]) and len(data) > len(_RESPONSE))
    )


_BESIDE: Final = "give this file with --certs FILE, in addition to the report"
_EXPECTED: Final = "give an attestation report in a format that 'snpcerts report show --help' names"
_PRINTED_BY_GO: Final = re.compile(r"\s*\[(?:\]|\d{1,3} +\d)")
# CBOR evidence begins with a map, tagged or not, whose first key is text or a number, or with
# tagged bytes.
_CBOR_TAG: Final = rb"(?:\xd9..|\xda.{4})"
_CBOR_MAP: Final = (
    rb"(?:[\xa1-\xb7\xbf]|\xb8.|\xb9..|\xba.{4})"
    rb"(?:[\x61-\x77\x7f]|\x78.[\x20-\x7e]|[\x00-\x1b\x20-\x3b])"
)
_CBOR_START: Final = re.compile(
    _CBOR_TAG + rb"*+" + _CBOR_MAP + rb"|" + _CBOR_TAG + rb"++[\x40-\x5b\x5f]", re.DOTALL
)


_REPLACED: Final = "\ufffd".encode()
_MANY: Final = 16


def _check_unaltered(data: bytes) -> None:
    """Raise :class:`FormatError` if the report was damaged by a program that handled it as text."""
    if data.count(_REPLACED) >= _MANY:
        how = "bytes that are not valid text were replaced, so they are lost"
    elif len(data.replace(b"\r\n", b"\n")) == REPORT_SIZE:
        how = "its line ends were changed to CR LF, as on Windows"
    else:
        try:
            whole = len(data.decode("utf-8").encode("latin-1")) == REPORT_SIZE
        except UnicodeError:
            return
        if not whole:
            return
        how = "its bytes were read as Latin-1 and written as UTF-8"
    raise FormatError(
        "evidence",
        f"the report was damaged by a program that handled it as text: {how}",
        hint="copy the report again, as a binary file or in base64",
    )


def _of_response(data: bytes) -> bytes:
    """Return the report from the driver's response to a report request."""
    status = int.from_bytes(data[:4], "little")
    if status:
        raise FormatError(
            "MSG_REPORT_RSP",
            f"the firmware answered with status {status:#x} and returned no report",
        )
    end = len(_RESPONSE) + REPORT_SIZE
    if len(data) < end:
        raise FormatError(
            "MSG_REPORT_RSP",
            f"expected at least {end} bytes (to the end of the report), found {len(data)}",
            hint="copy the response again, as a binary file",
        )
    if any(data[end:]):
        raise FormatError(
            "MSG_REPORT_RSP", "expected only zero bytes after the report, found others", offset=end
        )
    return data[len(_RESPONSE) : end]


def _read_cbor(data: bytes) -> Any:
    """Return the value that CBOR data encodes. The data must use the shortest
    encodings, and no map may repeat a key.
    """
    from cbor2 import CBORDecodeError, dumps, loads

    try:
        value = loads(data)
        again = dumps(value)
    except RecursionError:
        raise FormatError("evidence", "the values in the CBOR are nested too deeply") from None
    except (CBORDecodeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise FormatError("evidence", f"the data is not valid CBOR: {str(error)[:80]}") from None
    if len(again) != len(data):
        raise FormatError(
            "evidence",
            "expected CBOR in its shortest form and without duplicate keys, found other CBOR",
        )
    return value


def _no_report(value: Any, named: dict[str, FileKind], certificates: bool) -> FormatError:
    if certificates:
        return FormatError(
            "evidence",
            f"expected a report, found {keys_of(value)}, which contains only certificates",
            hint=_BESIDE,
        )
    for key, kind in named.items():
        if kind.known:
            return FormatError(
                "evidence",
                f"expected an attestation report, found {kind.name} in {key!r}",
                hint=kind.unwrap,
            )
    return FormatError(
        "evidence", f"expected a report, found {keys_of(value)}, which contains none"
    )
