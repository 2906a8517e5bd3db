# SPDX-License-Identifier: Apache-2.0
"""Decodes version 0 of Dstack's attestation: a report and its certificates in SCALE.

=========  ==================================================
bytes      what
=========  ==================================================
1          version, 0
1          platform, 3 for SEV-SNP
compact n  bytes of the report, n is 1184
compact m  certificates, each a compact length and its bytes
rest       configuration and event logs: not read here
=========  ==================================================

A compact number has its size in its lowest two bits: 0 one byte, 1 two bytes, 2 four.

Sources: Dstack ``dstack-attest``; Substrate's SCALE codec.
"""

from __future__ import annotations

from typing import Final

from snpcerts.abi.report import REPORT_SIZE
from snpcerts.errors import FormatError

WHAT: Final = "Dstack attestation"
START: Final = b"\0\3" + (REPORT_SIZE << 2 | 1).to_bytes(2, "little")
_MOST: Final = 16


def read_dstack(data: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """Return the report's 1184 bytes and the certificates in a Dstack attestation.

    Raises :class:`FormatError` if the data is truncated or has too many certificates.
    """
    report, at = _bytes(data, 2)
    count, at = _compact(data, at)
    if count > _MOST:
        raise FormatError(WHAT, f"expected at most {_MOST} certificates, found {count}")
    certificates: list[bytes] = []
    for _ in range(count):
        certificate, at = _bytes(data, at)
        certificates.append(certificate)
    return report, tuple(certificates)


def _bytes(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = _compact(data, at)
    if size > len(data) - at:
        raise FormatError(
            WHAT, f"expected {size} bytes, but only {len(data) - at} follow", offset=at
        )
    return data[at : at + size], at + size


def _compact(data: bytes, at: int) -> tuple[int, int]:
    if at >= len(data):
        raise FormatError(WHAT, "expected another number, found the end of the data", offset=at)
    size = (1, 2, 4, 0)[data[at] & 3]
    if not size or at + size > len(data):
        raise FormatError(WHAT, "the number is invalid or truncated", offset=at)
    return int.from_bytes(data[at : at + size], "little") >> 2, at + size
