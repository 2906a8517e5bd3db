# SPDX-License-Identifier: Apache-2.0
"""Trust anchors: the AMD Root Keys (ARK), pinned by their public key.

A pin is the SHA-384 of the key's DER SubjectPublicKeyInfo. So a root certificate that is issued
again for the same key stays trusted, and no other becomes trusted. The pins are in the table of
:mod:`snpcerts.abi.product`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from snpcerts.abi.product import Product
from snpcerts.endorsement.ca_name import CaRole, parse_ca_name
from snpcerts.endorsement.certificate import Certificate, common_name
from snpcerts.errors import InputError


@dataclass(frozen=True, slots=True)
class Anchor:
    """A root key that is trusted for one product's chains.

    ``spki_sha384`` is the 48-byte SHA-384 of its DER SubjectPublicKeyInfo;
    ``name`` is for people.
    """

    product: Product
    spki_sha384: bytes
    name: str

    def __hash__(self) -> int:
        """Hash only the bytes, which cache their hash. This is part of a key looked up for each
        report.
        """
        return hash(self.spki_sha384)


AMD_ANCHORS: tuple[Anchor, ...] = tuple(
    Anchor(product, pinned, f"ARK-{product.value}")
    for product in Product
    if (pinned := product.ark_spki_sha384) is not None
)


def spki_sha384(certificate: Certificate) -> bytes:
    """Return the SHA-384 of the DER SubjectPublicKeyInfo of the certificate's key."""
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha384(spki).digest()


def is_amds(anchor: Anchor) -> bool:
    """Whether this is one of AMD's pinned roots, by its key. The name does not matter."""
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
            f"the root's common name is {cn!r}, expected one of {known}",
            hint="give a root certificate (ARK), not an issuer or a leaf",
        )
    return Anchor(name.product, spki_sha384(certificate), cn)
