# SPDX-License-Identifier: Apache-2.0
"""Signs drafts of certificates and revocation lists as AMD would sign them.

The library signs each draft with a throw-away key, because it can write neither AMD's form of the
signature algorithm nor serial number 0. This module takes the signed part of the draft, replaces
the algorithm with the form in AMD's Milan certificates (which includes the trailer field, although
it has the default value), sets a leaf's serial number to 0, and signs the result again.
"""

from __future__ import annotations

import functools

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA384

from snpcerts.endorsement import structure
from snpcerts.endorsement.certificate import Certificate, load_certificate
from snpcerts.endorsement.crl import RevocationList, load_crl
from snpcerts.endorsement.signature import ALGORITHM, sign


def sign_certificate(
    draft: x509.CertificateBuilder, key: rsa.RSAPrivateKey, *, serial: int | None = None
) -> Certificate:
    """Sign ``draft`` with ``key``, and return the certificate. ``serial``, if set, replaces the
    draft's serial number.
    """
    made = draft.sign(_draft_key(), SHA384())
    tbs = structure.read(structure.TbsCertificate, made.tbs_certificate_bytes)
    if serial is not None:
        tbs.serial_number = serial
    return sign_again(tbs, key)


def sign_again(tbs: structure.TbsCertificate, key: rsa.RSAPrivateKey) -> Certificate:
    """Return a certificate with the content ``tbs``, signed with ``key``."""
    tbs.signature = structure.read(asn1.TLV, ALGORITHM)
    return load_certificate(_signed(structure.der_of(tbs), key), "certificate")


def sign_list(
    draft: x509.CertificateRevocationListBuilder, key: rsa.RSAPrivateKey
) -> RevocationList:
    """Sign ``draft`` with ``key``, and return the revocation list."""
    made = draft.sign(_draft_key(), SHA384())
    tbs = structure.read(structure.TbsCertList, made.tbs_certlist_bytes)
    tbs.signature = structure.read(asn1.TLV, ALGORITHM)
    return load_crl(_signed(structure.der_of(tbs), key))


def _signed(part: bytes, key: rsa.RSAPrivateKey) -> bytes:
    return structure.der_of(
        structure.Signed(
            tbs=structure.read(asn1.TLV, part),
            signature_algorithm=structure.read(asn1.TLV, ALGORITHM),
            signature=asn1.BitString(sign(part, key), 0),
        )
    )


@functools.cache
def _draft_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())
