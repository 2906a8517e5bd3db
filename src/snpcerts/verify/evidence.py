# SPDX-License-Identifier: Apache-2.0
"""Reads evidence in all its formats into one.

========================  ====================================================
shape                     from
========================  ====================================================
report                    the firmware, ``snpguest report``, ``attest`` of
                          go-sev-guest, configfs-tsm's ``outblob``
report and table          ``attest -extended``; ``outblob`` and ``auxblob``
HCL report                the TPM of an Azure confidential VM
protocol buffers          ``attest -outform proto`` of go-sev-guest
========================  ====================================================

Nothing is judged here: the host chose the certificates in a table, and anyone may have written the
runtime data. Reading takes memory and time in proportion to the size.
"""

from __future__ import annotations

import binascii
import enum
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Final, Self

from snpcerts.abi.cert_table import MAX_SIZE, CertTable
from snpcerts.abi.report import REPORT_SIZE, Report
from snpcerts.errors import FormatError
from snpcerts.verify import attestation_proto
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.hcl import SIGNATURE, HclReport

MAX_EVIDENCE: Final = REPORT_SIZE + MAX_SIZE
_USER_DATA: Final = "user-data"
_TEXT_MESSAGE: Final = re.compile(rb"\s*(report\s*:?\s*[{<]|version\s*:\s*[0-9])")
_NO_COLLATERAL: Final = Collateral()


class Shape(enum.StrEnum):
    """The format that evidence was read from."""

    REPORT = "report"
    REPORT_AND_TABLE = "report-and-table"
    HCL = "hcl-report"
    PROTO = "protobuf"


@dataclass(frozen=True, slots=True)
class RuntimeData:
    """Bytes that REPORT_DATA should be a digest of, zero-extended to 64 bytes.

    ``digest`` is hashlib's name of the algorithm.
    """

    data: bytes
    digest: str

    def report_data(self) -> bytes:
        """The REPORT_DATA that binds these bytes."""
        return hashlib.new(self.digest, self.data).digest().ljust(64, b"\0")

    def user_data(self) -> bytes | None:
        """The user data that the guest's owner asked to be bound (Azure: NV index 0x01400002). None
        if the claims are not JSON, or contain no such text.
        """
        try:
            claims = json.loads(self.data)
        # Deep nesting exhausts the parser's stack before it exhausts memory.
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
    """A report and the data that came with it. ``table`` is the host's certificate table, including
    unknown entries (such as Google's firmware endorsement).
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
        """Bytes are parsed here, once. :class:`FormatError` if they are not 1184."""
        parsed = report if isinstance(report, Report) else Report.unpack(report)
        object.__setattr__(self, "report", parsed)
        object.__setattr__(self, "collateral", collateral)
        object.__setattr__(self, "runtime_data", runtime_data)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "table", table)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was tolerated in the table."""
        return () if self.table is None else self.table.warnings

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read evidence in any of the formats above, distinguished by its first bytes. Raises
        :class:`FormatError` if it is none of them, or its content is malformed.
        """
        if len(data) > MAX_EVIDENCE:
            raise FormatError("evidence", f"{len(data)} bytes, at most {MAX_EVIDENCE}")
        if data[:4] == SIGNATURE:
            hcl = HclReport.unpack(data)
            runtime = RuntimeData(hcl.claims, hcl.digest)
            return cls(hcl.report, runtime_data=runtime, shape=Shape.HCL)
        if attestation_proto.is_attestation(data):
            report, table = attestation_proto.read_attestation(data)
            # A message cannot distinguish an empty table from none.
            given = table if len(table) else None
            return cls(report, Collateral.from_table(table), shape=Shape.PROTO, table=given)
        if attestation_proto.is_report(data):
            return cls(attestation_proto.read_report(data), shape=Shape.PROTO)
        if _TEXT_MESSAGE.match(data):
            raise FormatError(
                "evidence",
                "is a protocol buffer in its text form",
                hint="go-sev-guest turns it into bytes: show -inform textproto -outform bin",
            )
        if len(data) < REPORT_SIZE:
            raise FormatError("evidence", f"a report has {REPORT_SIZE} bytes, found {len(data)}")
        try:
            return cls.from_parts(data[:REPORT_SIZE], data[REPORT_SIZE:])
        except FormatError as error:
            raise FormatError(
                "evidence",
                f"{len(data)} bytes are neither a report of {REPORT_SIZE} bytes nor one with its "
                f"table behind it ({error})",
            ) from None

    @classmethod
    def from_parts(cls, report: Report | bytes, table: bytes = b"") -> Self:
        """A report and its certificate table: ``outblob`` and ``auxblob`` of configfs-tsm.

        Empty bytes mean no table. Raises :class:`FormatError` for a report of another size and a
        malformed table.
        """
        if not isinstance(report, Report) and len(report) != REPORT_SIZE:
            raise FormatError("evidence", f"a report has {REPORT_SIZE} bytes, found {len(report)}")
        if not table:
            return cls(report)
        decoded = CertTable.decode(table)
        return cls(
            report,
            Collateral.from_table(decoded),
            shape=Shape.REPORT_AND_TABLE,
            table=decoded,
        )
