# SPDX-License-Identifier: Apache-2.0
"""ID blocks as their owners make them: laid out and signed in AMD's format."""

from __future__ import annotations

import hashlib
import struct

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

Signed = tuple[bytes, bytes]


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def key_bytes(key: ec.EllipticCurvePrivateKey, *, curve: int = 2) -> bytes:
    """Return the public key in the format of the SNP ABI: curve, then X and Y in 72 bytes each."""
    numbers = key.public_key().public_numbers()
    both = numbers.x.to_bytes(72, "little") + numbers.y.to_bytes(72, "little")
    return (struct.pack("<I", curve) + both).ljust(0x404, b"\0")


def key_digest(key: ec.EllipticCurvePrivateKey) -> bytes:
    return hashlib.sha384(key_bytes(key)).digest()


def signature(key: ec.EllipticCurvePrivateKey, signed: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(SHA384())))
    return (r.to_bytes(72, "little") + s.to_bytes(72, "little")).ljust(512, b"\0")


def signed(
    measurement: bytes,
    policy: int,
    *,
    id_key: ec.EllipticCurvePrivateKey,
    author_key: ec.EllipticCurvePrivateKey | None = None,
    family_id: bytes = bytes(16),
    image_id: bytes = bytes(16),
    version: int = 1,
    guest_svn: int = 0,
    algorithms: tuple[int, int] = (1, 1),
    curve: int = 2,
) -> Signed:
    """Return an ID block (96 bytes) and its authentication page (4096 bytes)."""
    block = struct.pack(
        "<48s16s16sIIQ", measurement, family_id, image_id, version, guest_svn, policy
    )
    auth = struct.pack("<II56x", *algorithms)
    auth += signature(id_key, block)
    auth += key_bytes(id_key, curve=curve).ljust(0x440, b"\0")
    if author_key is not None:
        auth += signature(author_key, key_bytes(id_key))
        auth += key_bytes(author_key)
    return block, auth.ljust(4096, b"\0")
