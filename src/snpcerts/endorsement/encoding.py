# SPDX-License-Identifier: Apache-2.0
"""Converts certificates and revocation lists between DER and PEM, and describes one in a line."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from snpcerts.endorsement.certificate import load_certificate
from snpcerts.errors import FormatError, SnpCertsError

_PEM_START = b"-----BEGIN "


def to_der(data: bytes, *, crl: bool, what: str) -> bytes:
    """The DER form of one certificate (or, with ``crl``, revocation list) in DER or PEM.

    Raises :class:`FormatError`, naming ``what``, if it is neither.
    """
    return _load(data, crl, what).public_bytes(Encoding.DER)


def to_pem(data: bytes, *, crl: bool) -> bytes:
    """The PEM form of a result of :func:`to_der`."""
    return _load(data, crl, "DER").public_bytes(Encoding.PEM)


def describe(data: bytes, *, crl: bool) -> str:
    """One line about a certificate or revocation list; never raises for bad data."""
    try:
        loaded = _load(data, crl, "entry")
    except SnpCertsError:
        return "not a revocation list" if crl else "not a certificate"
    form = "PEM" if data.startswith(_PEM_START) else "DER"
    if isinstance(loaded, x509.CertificateRevocationList):
        until = loaded.next_update_utc
        end = f", next update {until:%Y-%m-%d}" if until is not None else ""
        return f"{form}, revocation list of {loaded.issuer.rfc4514_string()}{end}"
    names = [
        ", ".join(str(attribute.value) for attribute in name.get_attributes_for_oid(_COMMON_NAME))
        for name in (loaded.subject, loaded.issuer)
    ]
    until_day = f"{loaded.not_valid_after_utc:%Y-%m-%d}"
    return f"{form}, {names[0]} issued by {names[1]}, valid until {until_day}"


_COMMON_NAME = x509.NameOID.COMMON_NAME


def _load(data: bytes, crl: bool, what: str) -> x509.Certificate | x509.CertificateRevocationList:
    if not crl:
        return load_certificate(data, what)
    try:
        if data.startswith(_PEM_START):
            return x509.load_pem_x509_crl(data)
        return x509.load_der_x509_crl(data)
    except ValueError as error:
        raise FormatError(what, f"is not a certificate revocation list: {error}") from None
