# SPDX-License-Identifier: Apache-2.0
"""Reads certificates from the bodies of the key server's answers, or from files of the cache.

A body that cannot be read, such as an error page or a truncated answer, raises
:class:`~snpcerts.errors.FormatError`. Such a body says nothing about the chip.
:mod:`snpcerts.endorsement.judge` decides whether a readable body is the requested certificate.

Source: KDS (57230) chapter 3 for the bodies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from snpcerts.endorsement.certificate import Certificate, load_certificate
from snpcerts.errors import FormatError

# AMD's chains are 4.6 KB long, its revocation lists about 1 KB.
MAX_BODY: Final = 64 << 10

_PEM_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ChainPair:
    """The two certificates above a leaf, parsed: the ASK or ASVK, and the ARK."""

    intermediate: Certificate
    root: Certificate

    @property
    def not_before(self) -> datetime:
        """The time from which both certificates are valid."""
        return max(self.intermediate.not_valid_before_utc, self.root.not_valid_before_utc)

    @property
    def not_after(self) -> datetime:
        """The time until which both certificates are valid."""
        return min(self.intermediate.not_valid_after_utc, self.root.not_valid_after_utc)

    def der(self) -> tuple[bytes, bytes]:
        """Return the issuer (ASK or ASVK) and the root, both in DER."""
        return der_of(self.intermediate), der_of(self.root)

    def pem(self) -> bytes:
        """Return both certificates as the key server writes them: in PEM, the issuer first."""
        pem = Encoding.PEM
        return self.intermediate.public_bytes(pem) + self.root.public_bytes(pem)


def der_of(certificate: Certificate) -> bytes:
    """Return a certificate in DER."""
    return certificate.der


def read_vcek(body: bytes) -> Certificate:
    """Return the certificate in ``body``. Raises :class:`FormatError` unless ``body`` is one
    certificate and nothing else.
    """
    return load_certificate(body, "VCEK")


def read_chain(body: bytes) -> ChainPair:
    """Return the two PEM certificates in ``body``: first the issuer (ASK or ASVK), then the root.

    Raises :class:`FormatError` for any other number of certificates, and if there is more than
    white space around them.
    """
    blocks = _PEM_BLOCK.findall(body)
    others = _PEM_BLOCK.sub(b"", body).strip()
    if len(blocks) != 2 or others:
        raise FormatError(
            "certificate chain",
            f"expected 2 PEM certificates and nothing else, found {len(blocks)} certificates"
            f"{' and other bytes' if others else ''}",
        )
    return ChainPair(
        load_certificate(blocks[0], "certificate chain, first certificate"),
        load_certificate(blocks[1], "certificate chain, second certificate"),
    )


def same_key(one: bytes, other: bytes) -> bool:
    """Return whether two certificates (DER or PEM) certify the same key for the same chip and TCB.

    The key server issues a new certificate for each request, with different bytes but the same
    public key and extensions. Raises :class:`FormatError` if one of the two cannot be read.
    """
    first, second = (load_certificate(data, "certificate") for data in (one, other))
    return _key_and_extensions(first) == _key_and_extensions(second)


def _key_and_extensions(certificate: Certificate) -> tuple[bytes, frozenset[object]]:
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    extensions = frozenset(
        (extension.oid, extension.critical, extension.value) for extension in certificate.extensions
    )
    return spki, extensions
