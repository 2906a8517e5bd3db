# SPDX-License-Identifier: Apache-2.0
"""The chain of an endorsement key: VCEK or VLEK, ASK or ASVK, ARK.

Everything is checked that can be, and all that is wrong is listed: a person
who has three things to mend should not learn of them one at a time. What holds
at all times (:func:`check_chain`) is kept apart from what time decides
(:func:`windows_of`), so that the first can be remembered.

The signature algorithm is that of AMD and nothing else
(:mod:`snpcerts.endorsement.signature`). Revocation is judged in
:mod:`snpcerts.endorsement.crl`.

Sources: KDS (57230) chapter 3; RFC 5280 sections 4.2.1 and 6.1.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from snpcerts.abi.product import Product
from snpcerts.endorsement.anchors import Anchor, spki_sha384
from snpcerts.endorsement.ca_name import CaName, CaRole, parse_ca_name
from snpcerts.endorsement.certificate import common_name
from snpcerts.endorsement.der import read_element
from snpcerts.endorsement.signature import (
    MAX_RSA_BITS,
    MIN_RSA_BITS,
    SALT_SIZE,
    algorithm_problem,
    authority_key,
    is_signed,
)
from snpcerts.endorsement.vek import VekKind, is_amd_extension

__all__ = [
    "SALT_SIZE",
    "Chain",
    "ChainFault",
    "ChainProblem",
    "Place",
    "Window",
    "anchor_of",
    "check_chain",
    "windows_of",
]


class Place(enum.Enum):
    """A certificate's place in the chain. The value starts its fault codes."""

    LEAF = "leaf"
    INTERMEDIATE = "ask"
    ROOT = "ark"


class ChainFault(enum.StrEnum):
    """What can be wrong with a chain."""

    LEAF_KIND = "leaf-kind"
    LEAF_EXTENSIONS = "leaf-extensions"
    LEAF_SIGNATURE_ALGORITHM = "leaf-signature-algorithm"
    LEAF_ISSUER = "leaf-issuer"
    LEAF_SIGNATURE = "leaf-signature"
    LEAF_NOT_YET_VALID = "leaf-not-yet-valid"
    LEAF_EXPIRED = "leaf-expired"
    ASK_NAME = "ask-name"
    ASK_KEY = "ask-key"
    ASK_CA = "ask-ca"
    ASK_EXTENSIONS = "ask-extensions"
    ASK_SIGNATURE_ALGORITHM = "ask-signature-algorithm"
    ASK_ISSUER = "ask-issuer"
    ASK_SIGNATURE = "ask-signature"
    ASK_NOT_YET_VALID = "ask-not-yet-valid"
    ASK_EXPIRED = "ask-expired"
    ARK_NAME = "ark-name"
    ARK_KEY = "ark-key"
    ARK_CA = "ark-ca"
    ARK_EXTENSIONS = "ark-extensions"
    ARK_SIGNATURE_ALGORITHM = "ark-signature-algorithm"
    ARK_ISSUER = "ark-issuer"
    ARK_SIGNATURE = "ark-signature"
    ARK_UNTRUSTED = "ark-untrusted"
    ARK_NOT_YET_VALID = "ark-not-yet-valid"
    ARK_EXPIRED = "ark-expired"
    CHAIN_PRODUCT = "chain-product"


@dataclass(frozen=True, slots=True)
class ChainProblem:
    """One thing wrong with a chain."""

    fault: ChainFault
    message: str

    def __str__(self) -> str:
        return f"{self.fault.value}: {self.message}"


@dataclass(frozen=True, slots=True)
class Chain:
    """Three certificates that should belong together; None where one is not at hand.

    ``kind`` is the kind of leaf wanted, ``leaf_product`` what the leaf's
    extensions say, where they could be read.
    """

    kind: VekKind
    leaf: x509.Certificate | None
    intermediate: x509.Certificate | None
    root: x509.Certificate | None
    leaf_product: Product | None = None

    def label(self, place: Place) -> str:
        """VCEK, ASK, ...: what the certificate in that place is called."""
        if place is Place.LEAF:
            return self.kind.name
        return self.role(place).name

    def role(self, place: Place) -> CaRole:
        """Which authority belongs in that place of such a chain."""
        if place is Place.ROOT:
            return CaRole.ARK
        return CaRole.ASK if self.kind is VekKind.VCEK else CaRole.ASVK


def check_chain(chain: Chain, anchors: Sequence[Anchor]) -> tuple[ChainProblem, ...]:
    """Everything wrong with a chain at any time, leaf first.

    A certificate that is None is not a problem here, and what would need it is
    left out: the caller knows why it is missing, and must not trust the chain.
    It is :func:`check_leaf`, :func:`check_authorities` and :func:`check_products`:
    authorities are the same for all the chips of a product.
    """
    return (*check_leaf(chain), *check_authorities(chain, anchors), *check_products(chain))


def check_authorities(chain: Chain, anchors: Sequence[Anchor]) -> tuple[ChainProblem, ...]:
    """What is wrong with intermediate and root, whatever the leaf is."""
    return (*_intermediate(chain), *_root(chain, anchors))


@dataclass(frozen=True, slots=True)
class Window:
    """From when to when a certificate is valid, both inclusive, in UTC."""

    place: Place
    label: str
    not_before: datetime
    not_after: datetime

    def problem_at(self, at: datetime) -> ChainProblem | None:
        """What is wrong with the certificate at that time; ``at`` has a time zone."""
        if at < self.not_before:
            return ChainProblem(
                ChainFault(f"{self.place.value}-not-yet-valid"),
                f"the {self.label} is valid from {self.not_before:%Y-%m-%dT%H:%M:%SZ}, "
                f"judged at {at.isoformat()}",
            )
        if at > self.not_after:
            return ChainProblem(
                ChainFault(f"{self.place.value}-expired"),
                f"the {self.label} was valid until {self.not_after:%Y-%m-%dT%H:%M:%SZ}, "
                f"judged at {at.isoformat()}",
            )
        return None


def windows_of(chain: Chain) -> tuple[Window, ...]:
    """The validity of each certificate at hand, leaf first."""
    placed = zip(Place, (chain.leaf, chain.intermediate, chain.root), strict=True)
    return tuple(
        Window(
            place,
            chain.label(place),
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
        )
        for place, certificate in placed
        if certificate is not None
    )


def check_leaf(chain: Chain) -> Iterator[ChainProblem]:
    """What is wrong with the leaf, and with the intermediate as its issuer."""
    if chain.leaf is None:
        return
    cn = common_name(chain.leaf.subject)
    if cn != chain.kind.common_name:
        yield ChainProblem(
            ChainFault.LEAF_KIND,
            f"the leaf's common name is {cn!r}, must be {chain.kind.common_name!r}",
        )
    yield from _critical(chain, Place.LEAF, chain.leaf)
    yield from _issued(chain, Place.LEAF, chain.leaf, chain.intermediate)


def _intermediate(chain: Chain) -> Iterator[ChainProblem]:
    if chain.intermediate is None:
        return
    yield from _authority(chain, Place.INTERMEDIATE, chain.intermediate, below=0)
    yield from _issued(chain, Place.INTERMEDIATE, chain.intermediate, chain.root)


def _root(chain: Chain, anchors: Sequence[Anchor]) -> Iterator[ChainProblem]:
    if chain.root is None:
        return
    yield from _authority(chain, Place.ROOT, chain.root, below=1)
    yield from _issued(chain, Place.ROOT, chain.root, chain.root)
    pin = spki_sha384(chain.root)
    pinned = [anchor.product for anchor in anchors if anchor.spki_sha384 == pin]
    name = _ca_name(chain.root)
    if not pinned:
        trusted = ", ".join(anchor.name for anchor in anchors) or "none"
        yield ChainProblem(
            ChainFault.ARK_UNTRUSTED,
            f"the ARK's key (SHA-384 {pin.hex()}) is not a trusted root's (trusted: {trusted})",
        )
    elif name is not None and name.product not in pinned:
        yield ChainProblem(
            ChainFault.ARK_UNTRUSTED,
            f"the ARK's key is trusted, but not for {name.product.value}",
        )


def anchor_of(root: x509.Certificate, anchors: Sequence[Anchor]) -> Anchor | None:
    """The anchor that makes this root a trusted one, None where it is not."""
    pin, name = spki_sha384(root), _ca_name(root)
    for anchor in anchors:
        if anchor.spki_sha384 == pin and name is not None and anchor.product is name.product:
            return anchor
    return None


def _ca_name(certificate: x509.Certificate) -> CaName | None:
    return parse_ca_name(common_name(certificate.subject))


def _authority(
    chain: Chain, place: Place, certificate: x509.Certificate, *, below: int
) -> Iterator[ChainProblem]:
    """What makes a certificate an authority with ``below`` authorities under it."""
    label, code = chain.label(place), place.value
    role = chain.role(place)
    name = _ca_name(certificate)
    if name is None or name.role is not role:
        cn = common_name(certificate.subject)
        yield ChainProblem(
            ChainFault(f"{code}-name"),
            f"the {label}'s common name is {cn!r}, must be '{role.value}-' and a product",
        )
    if authority_key(certificate) is None:
        key = certificate.public_key()
        bits = f" of {key.key_size} bits" if isinstance(key, rsa.RSAPublicKey) else ""
        yield ChainProblem(
            ChainFault(f"{code}-key"),
            f"the {label}'s key is {type(key).__name__}{bits}, "
            f"must be RSA of {MIN_RSA_BITS} to {MAX_RSA_BITS} bits",
        )
    for message in _authority_flags(certificate, below):
        yield ChainProblem(ChainFault(f"{code}-ca"), f"the {label} {message}")
    yield from _critical(chain, place, certificate)


def _authority_flags(certificate: x509.Certificate, below: int) -> Iterator[str]:
    by_oid = {extension.oid: extension.value for extension in certificate.extensions}
    constraints = by_oid.get(x509.BasicConstraints.oid)
    if not isinstance(constraints, x509.BasicConstraints) or not constraints.ca:
        yield "is not marked as an authority (basicConstraints)"
    elif constraints.path_length is not None and constraints.path_length < below:
        yield f"has path length {constraints.path_length}, needs {below} (basicConstraints)"
    usage = by_oid.get(x509.KeyUsage.oid)
    if not isinstance(usage, x509.KeyUsage) or not usage.key_cert_sign:
        yield "may not sign certificates (keyUsage)"


# Extensions whose demands are met by what is checked here.
_EVALUATED = frozenset({x509.BasicConstraints.oid, x509.KeyUsage.oid})


def _critical(chain: Chain, place: Place, certificate: x509.Certificate) -> Iterator[ChainProblem]:
    """RFC 5280: a critical extension that is not evaluated must not be passed over."""
    for extension in certificate.extensions:
        if not extension.critical:
            continue
        if place is Place.LEAF:
            evaluated = is_amd_extension(extension.oid)
        else:
            evaluated = extension.oid in _EVALUATED
        if not evaluated:
            yield ChainProblem(
                ChainFault(f"{place.value}-extensions"),
                f"the {chain.label(place)} has a critical extension "
                f"{extension.oid.dotted_string} that is not known here",
            )


def _issued(
    chain: Chain, place: Place, certificate: x509.Certificate, issuer: x509.Certificate | None
) -> Iterator[ChainProblem]:
    """Whether ``issuer`` issued ``certificate``: algorithm, name, signature."""
    label, code = chain.label(place), place.value
    anatomy = _anatomy(certificate)
    problem = algorithm_problem(anatomy.inner_algorithm, anatomy.outer_algorithm)
    if problem is not None:
        yield ChainProblem(ChainFault(f"{code}-signature-algorithm"), f"the {label} {problem}")
    if issuer is None:
        return
    by = chain.label(Place.ROOT if place is not Place.LEAF else Place.INTERMEDIATE)
    if certificate.issuer != issuer.subject:
        yield ChainProblem(
            ChainFault(f"{code}-issuer"),
            f"the {label}'s issuer is {common_name(certificate.issuer)!r}, "
            f"the {by}'s subject is {common_name(issuer.subject)!r}",
        )
    key = authority_key(issuer)
    if key is not None and not _signed_by(anatomy, key):
        yield ChainProblem(
            ChainFault(f"{code}-signature"), f"the {label} is not signed by the {by}'s key"
        )


def _signed_by(anatomy: _Anatomy, key: rsa.RSAPublicKey) -> bool:
    """Whether the signature is the key's, by AMD's algorithm whatever the certificate names."""
    # A count of unused bits other than 0: two certificates of different bytes could
    # bear the same signature.
    if not anatomy.signature.startswith(b"\0"):
        return False
    return is_signed(anatomy.signed, anatomy.signature[1:], key)


@dataclass(frozen=True, slots=True)
class _Anatomy:
    """Parts of a certificate's DER.

    What is signed, two AlgorithmIdentifiers, content of the BIT STRING.
    """

    signed: bytes
    inner_algorithm: bytes
    outer_algorithm: bytes
    signature: bytes


def _anatomy(certificate: x509.Certificate) -> _Anatomy:
    """Take a version 3 certificate apart.

    RFC 5280 section 4.1: Certificate is {tbsCertificate, signatureAlgorithm,
    signature}; tbsCertificate of version 3 starts with [0] version,
    serialNumber and signature.
    """
    what = "certificate"
    whole = read_element(certificate.public_bytes(Encoding.DER), 0, what).content
    signed = read_element(whole, 0, what)
    outer = read_element(whole, signed.end, what)
    signature = read_element(whole, outer.end, what)
    version = read_element(signed.content, 0, what)
    serial = read_element(signed.content, version.end, what)
    inner = read_element(signed.content, serial.end, what)
    return _Anatomy(
        whole[signed.start : signed.end],
        signed.content[inner.start : inner.end],
        whole[outer.start : outer.end],
        signature.content,
    )


def check_products(chain: Chain) -> Iterator[ChainProblem]:
    """All certificates must be of one product."""
    said: list[tuple[str, Product]] = []
    if chain.leaf_product is not None:
        said.append((chain.label(Place.LEAF), chain.leaf_product))
    for place, certificate in (
        (Place.INTERMEDIATE, chain.intermediate),
        (Place.ROOT, chain.root),
    ):
        name = None if certificate is None else _ca_name(certificate)
        if name is not None:
            said.append((chain.label(place), name.product))
    if len({product for _, product in said}) > 1:
        listed = ", ".join(f"{label} {product.value}" for label, product in said)
        yield ChainProblem(ChainFault.CHAIN_PRODUCT, f"products differ: {listed}")
