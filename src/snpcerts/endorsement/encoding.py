# SPDX-License-Identifier: Apache-2.0
"""Converts certificates and revocation lists between DER and PEM, and describes each in a line."""

from __future__ import annotations

from cryptography.x509.oid import NameOID

from snpcerts.endorsement.certificate import load_certificate, to_pem_block
from snpcerts.endorsement.crl import load_crl
from snpcerts.errors import SnpCertsError

_PEM_START = b"-----BEGIN "


def to_der(data: bytes, *, crl: bool, what: str) -> bytes:
    """Return ``data``, a certificate in DER or PEM, as DER. If ``crl`` is true, ``data`` is a
    revocation list.

    Raises :class:`FormatError`, which names ``what``, for anything else.
    """
    return (load_crl if crl else load_certificate)(data, what).der


def to_pem(data: bytes, *, crl: bool) -> bytes:
    """Convert DER, as :func:`to_der` returns it, to PEM."""
    return to_pem_block(to_der(data, crl=crl, what="DER"), "X509 CRL" if crl else "CERTIFICATE")


def describe(data: bytes, *, crl: bool) -> str:
    """Describe a certificate or, with ``crl``, a revocation list in one line. Never raises an error
    for bad data.
    """
    form = "PEM" if data.startswith(_PEM_START) else "DER"
    try:
        if crl:
            found = load_crl(data, "entry")
            issuer = found.issuer.rfc4514_string()
            return f"{form}, revocation list of {issuer}, next update {found.next_update:%Y-%m-%d}"
        certificate = load_certificate(data, "entry")
    except SnpCertsError:
        return "not a revocation list" if crl else "not a certificate"
    names = [
        ", ".join(str(attribute.value) for attribute in name.get_attributes_for_oid(_COMMON_NAME))
        for name in (certificate.subject, certificate.issuer)
    ]
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    return f"{form}, {names[0]} issued by {names[1]}, valid until {until}"


_COMMON_NAME = NameOID.COMMON_NAME
