# SPDX-License-Identifier: Apache-2.0
"""Trust anchors: AMD's root keys (ARKs), each pinned by the digest of its public key.

A pin is the SHA-384 of the key's DER SubjectPublicKeyInfo. So a root certificate that is issued
again for the same key stays trusted, and no certificate for another key becomes trusted. The pins
are in the table of :mod:`snpcerts.abi.product`.

An anchor also holds the digest of one certificate for its key. The signature of that certificate on
itself was checked when the anchor was made; for AMD's three roots, a test checks it. A root with
the same digest is that certificate, so its signature is not checked again for each chain. Any other
root for the same key (issued again, or with altered dates or flags) has another digest, so its
signature is checked.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from snpcerts.abi.product import Product
from snpcerts.endorsement.ca_name import CaRole, parse_ca_name
from snpcerts.endorsement.certificate import Certificate, common_name
from snpcerts.endorsement.signature import authority_key, bears_signature_of
from snpcerts.errors import InputError

# The names of the emulator's authorities contain this word. Hints depend on it, but trust does not.
EMULATED: Final = "EMULATED"


@dataclass(frozen=True, slots=True)
class Anchor:
    """A root key that is trusted for one product's chains.

    ``spki_sha384`` is the 48-byte SHA-384 of the key's DER SubjectPublicKeyInfo. ``name`` is for
    people. ``certificate_sha384`` is the SHA-384 of a root certificate (DER) for this key, **whose
    signature on itself has been checked**, or None. It only saves checking that signature again,
    because trust depends on the key alone.
    """

    product: Product
    spki_sha384: bytes
    name: str
    certificate_sha384: bytes | None = field(default=None, compare=False, repr=False)

    def __hash__(self) -> int:
        """Hash only ``spki_sha384``. This is fast, because a bytes object caches its hash; anchors
        are looked up for each report.
        """
        return hash(self.spki_sha384)


AMD_ANCHORS: tuple[Anchor, ...] = tuple(
    Anchor(product, pinned, f"ARK-{product.value}", product.ark_certificate_sha384)
    for product in Product
    if (pinned := product.ark_spki_sha384) is not None
)


@functools.lru_cache(maxsize=64)
def spki_sha384(certificate: Certificate) -> bytes:
    """Return the SHA-384 of a certificate's SubjectPublicKeyInfo in DER."""
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha384(spki).digest()


def is_amds(anchor: Anchor) -> bool:
    """Return whether an anchor has the key and the product of one of AMD's pinned roots. The
    anchor's name does not matter.
    """
    return any(
        anchor.spki_sha384 == pinned.spki_sha384 and anchor.product is pinned.product
        for pinned in AMD_ANCHORS
    )


def anchor_from_certificate(certificate: Certificate) -> Anchor:
    """Return an anchor that trusts this root's key for the product in its common name.

    Raises :class:`InputError` if the common name is not that of an ARK.
    """
    cn = common_name(certificate.subject)
    name = parse_ca_name(cn)
    if cn is None or name is None or name.role is not CaRole.ARK:
        known = ", ".join(f"ARK-{product.value}" for product in Product if product.is_pinned)
        raise InputError(
            f"expected one of {known} as the root's common name, found {cn!r}",
            hint="give a root certificate (ARK) instead of an issuer or a leaf",
        )
    key = authority_key(certificate)
    signed = key is not None and bears_signature_of(certificate, key)
    digest = hashlib.sha384(certificate.der).digest() if signed else None
    return Anchor(name.product, spki_sha384(certificate), cn, digest)
