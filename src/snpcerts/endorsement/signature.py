# SPDX-License-Identifier: Apache-2.0
"""The only signature algorithm of AMD's authorities, for certificates and revocation lists.

It is RSASSA-PSS with SHA-384, MGF1 with SHA-384 and 48 bytes of salt, with RSA keys of 4096 to
16384 bits. Nothing else is accepted.

Sources: KDS (57230) chapter 3; RFC 4055 section 3.1 for the parameters.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from snpcerts.endorsement.certificate import Certificate

MIN_RSA_BITS = 4096
MAX_RSA_BITS = 16384  # with larger keys, a hostile host could make each check expensive
SALT_SIZE = 48
ALGORITHM_WANTED = (
    f"RSASSA-PSS with SHA-384, MGF1 with SHA-384 and {SALT_SIZE} bytes of salt"  # for messages
)

_SHA384 = hashes.SHA384()
_PSS = padding.PSS(mgf=padding.MGF1(_SHA384), salt_length=SALT_SIZE)

_SHOWN = 80  # bytes of an unknown algorithm that a message shows


def authority_key(certificate: Certificate) -> rsa.RSAPublicKey | None:
    """Return a certificate's key if it is an RSA key with which an authority may sign, otherwise
    None.
    """
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey) and MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        return key
    return None


def is_signed(signed: bytes, signature: bytes, key: rsa.RSAPublicKey) -> bool:
    """Return whether ``key`` made ``signature`` over ``signed`` with AMD's algorithm.

    The algorithm that the certificate or revocation list names is ignored.
    """
    try:
        key.verify(signature, signed, _PSS, _SHA384)
    except InvalidSignature:
        return False
    return True


def bears_signature_of(certificate: Certificate, key: rsa.RSAPublicKey) -> bool:
    """Return whether ``key`` signed the certificate with AMD's algorithm. The algorithm that the
    certificate names is ignored.
    """
    # A certificate says how many bits at the end of its signature are unused. If other numbers than
    # 0 were accepted, anyone could change that number, and the signature would still be valid.
    if certificate.unused_bits:
        return False
    return is_signed(certificate.tbs_certificate_bytes, certificate.signature, key)


def sign(signed: bytes, key: rsa.RSAPrivateKey) -> bytes:
    """Return the signature by ``key`` over ``signed`` with AMD's algorithm."""
    return key.sign(signed, _PSS, _SHA384)


def algorithm_problem(inner: bytes, outer: bytes) -> str | None:
    """Check the two AlgorithmIdentifiers (DER) of a certificate or revocation list: the one inside
    its signed part, and the one outside. Return what is wrong, or None.
    """
    if inner != outer:
        return (
            f"has the signature algorithm {_short(inner)} inside its signed part, but "
            f"{_short(outer)} outside it"
        )
    if outer not in _ENCODINGS:
        return f"has the signature algorithm {_short(outer)} instead of {ALGORITHM_WANTED}"
    return None


def _short(algorithm: bytes) -> str:
    text = algorithm[:_SHOWN].hex()
    return f"{text}..." if len(algorithm) > _SHOWN else text


def _encodings() -> Iterator[bytes]:
    """Yield every DER encoding of the algorithm, with and without the optional hash parameters and
    trailer field.
    """

    def der(tag: int, *parts: bytes) -> bytes:
        content = b"".join(parts)
        return bytes((tag, len(content))) + content

    pss, mgf1, sha384 = (
        bytes.fromhex(oid)
        for oid in ("06092a864886f70d01010a", "06092a864886f70d010108", "0609608648016503040202")
    )
    salt = der(0xA2, der(0x02, bytes((SALT_SIZE,))))
    for null, trailer in itertools.product((b"\x05\x00", b""), (der(0xA3, b"\x02\x01\x01"), b"")):
        digest = der(0x30, sha384, null)
        mask = der(0xA1, der(0x30, mgf1, digest))
        yield der(0x30, pss, der(0x30, der(0xA0, digest), mask, salt, trailer))


_ENCODINGS = frozenset(_encodings())
# The form in AMD's Milan certificates, which omits nothing.
ALGORITHM: Final = next(_encodings())
