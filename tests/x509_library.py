# SPDX-License-Identifier: Apache-2.0
"""Certificates as ``cryptography.x509`` reads them: a second opinion on our parser.

AMD's leaf certificates have the serial number 0. The library warns about this, and will refuse
it in a later version, so we give it the same bytes with the number 1.
"""

from __future__ import annotations

from cryptography import x509


def by_the_library(der: bytes) -> x509.Certificate:
    """Load a certificate, with serial number 1 in place of 0. The library's errors pass through."""
    return x509.load_der_x509_certificate(with_serial_number(der))


def with_serial_number(der: bytes) -> bytes:
    """The same bytes with serial number 1 in place of 0; unchanged if the number is not found."""
    at = serial_at(der)
    if at is None or der[at : at + 3] != b"\x02\x01\0":
        return der
    return der[: at + 2] + b"\x01" + der[at + 3 :]


def serial_at(der: bytes) -> int | None:
    """Where the serial number of a version 3 certificate starts; None if it is not found."""
    at = der.find(b"\xa0\x03\x02\x01\x02", 0, 24)
    return None if at < 0 else at + 5
