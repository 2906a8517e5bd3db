# SPDX-License-Identifier: Apache-2.0
"""The structures of X.509, declared under their names in RFC 5280.

:mod:`cryptography.hazmat.asn1` reads and writes these structures. It accepts only DER: lengths in
shortest form, no encoded default values, no trailing bytes. Parts that are signed or compared as
bytes are declared as ``TLV``.

snpcerts does not load certificates with ``cryptography.x509``, because all AMD leaf certificates
have serial number 0. RFC 5280 forbids that number, and a future release of the library will refuse
such certificates.

Source: RFC 5280 sections 4.1, 4.2.1 and 5.1, appendix A.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, TypeVar

from cryptography import x509
from cryptography.hazmat import asn1

V2_LIST, V3 = 1, 2  # X.509 encodes v1 as 0

_T = TypeVar("_T")


@asn1.sequence
class SubjectPublicKeyInfo:
    """A public key and its algorithm."""

    algorithm: asn1.TLV
    subject_public_key: asn1.BitString


@asn1.sequence
class ExtensionDer:
    """One extension. Its value is in DER, or in AMD's own format."""

    extn_id: x509.ObjectIdentifier
    critical: Annotated[bool, asn1.Default(False)]
    extn_value: bytes


@asn1.sequence
class Validity:
    """A certificate's period of validity, both ends inclusive."""

    not_before: asn1.UTCTime | asn1.GeneralizedTime
    not_after: asn1.UTCTime | asn1.GeneralizedTime


@asn1.sequence
class TbsCertificate:
    """The part of a certificate that is signed."""

    version: Annotated[int, asn1.Explicit(0), asn1.Default(0)]
    serial_number: int
    signature: asn1.TLV
    issuer: asn1.TLV
    validity: Validity
    subject: asn1.TLV
    subject_public_key_info: asn1.TLV
    issuer_unique_id: Annotated[asn1.BitString | None, asn1.Implicit(1)]
    subject_unique_id: Annotated[asn1.BitString | None, asn1.Implicit(2)]
    extensions: Annotated[list[ExtensionDer] | None, asn1.Explicit(3)]


@asn1.sequence
class RevokedCertificateDer:
    """An entry of a revocation list."""

    user_certificate: int
    revocation_date: asn1.UTCTime | asn1.GeneralizedTime
    crl_entry_extensions: list[ExtensionDer] | None


@asn1.sequence
class TbsCertList:
    """The part of a revocation list that is signed. The entries in it are parsed later, one by
    one.
    """

    version: int | None
    signature: asn1.TLV
    issuer: asn1.TLV
    this_update: asn1.UTCTime | asn1.GeneralizedTime
    next_update: asn1.UTCTime | asn1.GeneralizedTime | None
    revoked_certificates: list[asn1.TLV] | None
    crl_extensions: Annotated[list[ExtensionDer] | None, asn1.Explicit(0)]


@asn1.sequence
class Signed:
    """A certificate or a revocation list: the signed part, and its signature."""

    tbs: asn1.TLV
    signature_algorithm: asn1.TLV
    signature: asn1.BitString


@asn1.sequence
class BasicConstraintsDer:
    """Whether a certificate belongs to an authority, and how many authorities may be below it."""

    ca: Annotated[bool, asn1.Default(False)]
    path_len_constraint: int | None


def read(structure: type[_T], der: bytes) -> _T:
    """Parse ``der``, which must be exactly one ``structure``. Raises ValueError for anything
    else.
    """
    return asn1.decode_der(structure, der)


def der_of(part: object) -> bytes:
    """Return the DER of a structure or of a part of a structure."""
    return asn1.encode_der(part)


def name_of(part: asn1.TLV) -> x509.Name:
    """Parse a distinguished name. Raises ValueError if it is malformed."""
    name = part.parse(x509.Name)
    if not isinstance(name, x509.Name):
        raise TypeError("the parser returned something other than a Name")
    return name


def time_of(time: asn1.UTCTime | asn1.GeneralizedTime) -> datetime:
    """Return a time of a certificate as a datetime in UTC."""
    return time.as_datetime()
