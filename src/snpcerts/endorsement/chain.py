# SPDX-License-Identifier: Apache-2.0
"""Checks the chain of an endorsement key: VCEK or VLEK, ASK or ASVK, ARK.

This module lists every problem that it can find, so that a user with three problems sees all three
at once. Checks that do not depend on the time (:func:`check_chain`) are separate from those that do
(:func:`windows_of`), so that the results of the former can be cached. Only AMD's signature
algorithm is accepted (:mod:`snpcerts.endorsement.signature`). :mod:`snpcerts.endorsement.crl`
judges revocation.

Sources: KDS (57230) chapter 3; RFC 5280 sections 4.2.1 and 6.1.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtensionOID

from snpcerts.abi.product import Product
from snpcerts.endorsement.anchors import EMULATED, Anchor, spki_sha384
from snpcerts.endorsement.ca_name import CaName, CaRole, parse_ca_name
from snpcerts.endorsement.certificate import Certificate, common_name
from snpcerts.endorsement.reason import Reason, ReasonCode
from snpcerts.endorsement.signature import (
    MAX_RSA_BITS,
    MIN_RSA_BITS,
    SALT_SIZE,
    algorithm_problem,
    authority_key,
    bears_signature_of,
)
from snpcerts.endorsement.vek import VekKind, is_amd_extension

__all__ = [
    "SALT_SIZE",
    "Chain",
    "Position",
    "Window",
    "anchor_of",
    "check_chain",
    "windows_of",
]


class Position(enum.Enum):
    """A certificate's place in a chain."""

    LEAF = "leaf"
    INTERMEDIATE = "ask"
    ROOT = "ark"


# The code for each place and kind of problem.
_NAME = {Position.INTERMEDIATE: ReasonCode.ASK_NAME, Position.ROOT: ReasonCode.ARK_NAME}
_KEY = {Position.INTERMEDIATE: ReasonCode.ASK_KEY, Position.ROOT: ReasonCode.ARK_KEY}
_CA = {Position.INTERMEDIATE: ReasonCode.ASK_CA, Position.ROOT: ReasonCode.ARK_CA}
_EXTENSIONS = {
    Position.LEAF: ReasonCode.LEAF_EXTENSIONS,
    Position.INTERMEDIATE: ReasonCode.ASK_EXTENSIONS,
    Position.ROOT: ReasonCode.ARK_EXTENSIONS,
}
_SIGNATURE_ALGORITHM = {
    Position.LEAF: ReasonCode.LEAF_SIGNATURE_ALGORITHM,
    Position.INTERMEDIATE: ReasonCode.ASK_SIGNATURE_ALGORITHM,
    Position.ROOT: ReasonCode.ARK_SIGNATURE_ALGORITHM,
}
_ISSUER = {
    Position.LEAF: ReasonCode.LEAF_ISSUER,
    Position.INTERMEDIATE: ReasonCode.ASK_ISSUER,
    Position.ROOT: ReasonCode.ARK_ISSUER,
}
_SIGNATURE = {
    Position.LEAF: ReasonCode.LEAF_SIGNATURE,
    Position.INTERMEDIATE: ReasonCode.ASK_SIGNATURE,
    Position.ROOT: ReasonCode.ARK_SIGNATURE,
}
_NOT_YET_VALID = {
    Position.LEAF: ReasonCode.LEAF_NOT_YET_VALID,
    Position.INTERMEDIATE: ReasonCode.ASK_NOT_YET_VALID,
    Position.ROOT: ReasonCode.ARK_NOT_YET_VALID,
}
_EXPIRED = {
    Position.LEAF: ReasonCode.LEAF_EXPIRED,
    Position.INTERMEDIATE: ReasonCode.ASK_EXPIRED,
    Position.ROOT: ReasonCode.ARK_EXPIRED,
}


@dataclass(frozen=True, slots=True)
class Chain:
    """The three certificates of a chain, which have not been checked. One that is missing is None.

    ``kind`` is the expected kind of leaf. ``leaf_product`` is the product in the leaf's extensions;
    None if these could not be read.
    """

    kind: VekKind
    leaf: Certificate | None
    intermediate: Certificate | None
    root: Certificate | None
    leaf_product: Product | None = None

    def label(self, place: Position) -> str:
        """Return the name of the certificate in a position of the chain, such as VCEK or ASK."""
        if place is Position.LEAF:
            return self.kind.name
        return self.role(place).name

    def role(self, place: Position) -> CaRole:
        """Return the role of the authority in a position of the chain, such as ARK."""
        if place is Position.ROOT:
            return CaRole.ARK
        return CaRole.ASK if self.kind is VekKind.VCEK else CaRole.ASVK


def check_chain(chain: Chain, anchors: Sequence[Anchor]) -> tuple[Reason, ...]:
    """Return every problem of a chain that does not depend on the time, leaf first.

    A missing certificate (None) is not a problem here, and checks that need it are skipped. The
    caller knows why it is missing, and must not trust the chain. The checks are those of
    :func:`check_leaf`, :func:`check_authorities` and :func:`check_products`, which are separate
    because all chips of a product have the same authorities.
    """
    return (*check_leaf(chain), *check_authorities(chain, anchors), *check_products(chain))


def check_authorities(
    chain: Chain, anchors: Sequence[Anchor], *, self_signed: bool = False
) -> tuple[Reason, ...]:
    """Return the problems of the issuer and the root that do not depend on the leaf.

    ``self_signed`` says that the root's signature on itself has been checked, because the root is
    the certificate that an anchor holds (:class:`~snpcerts.endorsement.anchors.Anchor`).
    """
    return (*_intermediate(chain), *_root(chain, anchors, self_signed))


@dataclass(frozen=True, slots=True)
class Window:
    """A certificate's period of validity, in UTC and with both ends inclusive."""

    place: Position
    label: str
    not_before: datetime
    not_after: datetime

    def problem_at(self, at: datetime) -> Reason | None:
        """Return why the certificate is not valid at the time ``at`` (with a time zone); None if it
        is valid.
        """
        if at < self.not_before:
            return Reason(
                _NOT_YET_VALID[self.place],
                f"the {self.label} is not valid before {self.not_before:%Y-%m-%dT%H:%M:%SZ} "
                f"(checked as of {at.isoformat()})",
            )
        if at > self.not_after:
            return Reason(
                _EXPIRED[self.place],
                f"the {self.label} was valid until {self.not_after:%Y-%m-%dT%H:%M:%SZ} "
                f"(checked as of {at.isoformat()})",
            )
        return None


def windows_of(chain: Chain) -> tuple[Window, ...]:
    """Return the period of validity of each certificate that the chain has, leaf first."""
    placed = zip(Position, (chain.leaf, chain.intermediate, chain.root), strict=True)
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


def check_leaf(chain: Chain) -> Iterator[Reason]:
    """Yield the problems of the leaf, among them an issuer other than the chain's ASK or ASVK."""
    if chain.leaf is None:
        return
    cn = chain.leaf.subject_common_name
    if cn != chain.kind.common_name:
        yield Reason(
            ReasonCode.LEAF_KIND,
            f"expected {chain.kind.common_name!r} as the leaf's common name, found {cn!r}",
        )
    yield from _critical(chain, Position.LEAF, chain.leaf)
    yield from _issued(chain, Position.LEAF, chain.leaf, chain.intermediate)


def _intermediate(chain: Chain) -> Iterator[Reason]:
    if chain.intermediate is None:
        return
    yield from _authority(chain, Position.INTERMEDIATE, chain.intermediate, below=0)
    yield from _issued(chain, Position.INTERMEDIATE, chain.intermediate, chain.root)


def _root(chain: Chain, anchors: Sequence[Anchor], self_signed: bool) -> Iterator[Reason]:
    if chain.root is None:
        return
    yield from _authority(chain, Position.ROOT, chain.root, below=1)
    yield from _issued(chain, Position.ROOT, chain.root, chain.root, signed=self_signed)
    pin = spki_sha384(chain.root)
    pinned = [anchor.product for anchor in anchors if anchor.spki_sha384 == pin]
    name = _ca_name(chain.root)
    if not pinned:
        trusted = ", ".join(anchor.name for anchor in anchors) or "none"
        emulated = EMULATED in (chain.root.subject_common_name or "")
        yield Reason(
            ReasonCode.ARK_UNTRUSTED,
            (
                f"the ARK's key (SHA-384 {pin.hex()}) is not that of a trusted root "
                f"(trusted: {trusted})"
                + ("; an emulator made it: only a test may trust it, with --anchor FILE" * emulated)
            ),
        )
    elif name is not None and name.product not in pinned:
        yield Reason(
            ReasonCode.ARK_UNTRUSTED,
            f"the ARK's key is trusted, but not for {name.product.value}",
        )


def anchor_of(root: Certificate, anchors: Sequence[Anchor]) -> Anchor | None:
    """Return the anchor that makes a root trusted; None if the root is not trusted."""
    pin, name = spki_sha384(root), _ca_name(root)
    for anchor in anchors:
        if anchor.spki_sha384 == pin and name is not None and anchor.product is name.product:
            return anchor
    return None


def _ca_name(certificate: Certificate) -> CaName | None:
    return parse_ca_name(certificate.subject_common_name)


def _authority(
    chain: Chain, place: Position, certificate: Certificate, *, below: int
) -> Iterator[Reason]:
    """Check that a certificate is an authority's, and permits ``below`` authorities under it."""
    role = chain.role(place)
    name = _ca_name(certificate)
    if name is None or name.role is not role:
        cn = certificate.subject_common_name
        yield Reason(
            _NAME[place],
            f"expected '{role.value}-' and a product as the {role.name}'s common name, found "
            f"{cn!r}",
        )
    if authority_key(certificate) is None:
        key = certificate.public_key()
        bits = f" of {key.key_size} bits" if isinstance(key, rsa.RSAPublicKey) else ""
        yield Reason(
            _KEY[place],
            f"expected an RSA key of {MIN_RSA_BITS} to {MAX_RSA_BITS} bits in the {role.name}, "
            f"found {type(key).__name__}{bits}",
        )
    for message in _authority_flags(certificate, below):
        yield Reason(_CA[place], f"the {role.name} {message}")
    yield from _critical(chain, place, certificate)


def _authority_flags(certificate: Certificate, below: int) -> Iterator[str]:
    constraints = certificate.basic_constraints
    if constraints is None or not constraints.ca:
        yield "is not marked as a CA (basicConstraints)"
    elif constraints.path_length is not None and constraints.path_length < below:
        yield f"has path length {constraints.path_length}, but needs {below} (basicConstraints)"
    usage = certificate.key_usage
    if usage is None or not usage.key_cert_sign:
        yield "may not sign certificates (keyUsage)"


# Extensions whose requirements are checked here.
_EVALUATED = frozenset({ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE})


def _critical(chain: Chain, place: Position, certificate: Certificate) -> Iterator[Reason]:
    """Check for unknown critical extensions, which RFC 5280 forbids ignoring."""
    for extension in certificate.extensions:
        if not extension.critical:
            continue
        if place is Position.LEAF:
            evaluated = is_amd_extension(extension.oid)
        else:
            evaluated = extension.oid in _EVALUATED
        if not evaluated:
            yield Reason(
                _EXTENSIONS[place],
                f"the {chain.label(place)} has an unknown critical extension, "
                f"{extension.oid.dotted_string}",
            )


def _issued(
    chain: Chain,
    place: Position,
    certificate: Certificate,
    issuer: Certificate | None,
    *,
    signed: bool = False,
) -> Iterator[Reason]:
    """Check that ``issuer`` issued ``certificate``: the algorithm, the name and the signature.
    ``signed`` says that the signature has already been checked.
    """
    problem = algorithm_problem(certificate.inner_algorithm, certificate.outer_algorithm)
    if problem is not None:
        yield Reason(_SIGNATURE_ALGORITHM[place], f"the {chain.label(place)} {problem}")
    if issuer is None:
        return
    above = Position.ROOT if place is not Position.LEAF else Position.INTERMEDIATE
    # Equal names are mostly the same object, because names are cached.
    if certificate.issuer is not issuer.subject and certificate.issuer != issuer.subject:
        yield Reason(
            _ISSUER[place],
            f"the {chain.label(place)}'s issuer is {common_name(certificate.issuer)!r}, "
            f"but the {chain.label(above)}'s subject is {issuer.subject_common_name!r}",
        )
    key = None if signed else authority_key(issuer)
    if key is not None and not bears_signature_of(certificate, key):
        yield Reason(
            _SIGNATURE[place],
            f"the {chain.label(place)} is not signed by the {chain.label(above)}'s key",
        )


def check_products(chain: Chain) -> Iterator[Reason]:
    """Check that all certificates are for one product."""
    said: list[tuple[str, Product]] = []
    if chain.leaf_product is not None:
        said.append((chain.label(Position.LEAF), chain.leaf_product))
    for place, certificate in (
        (Position.INTERMEDIATE, chain.intermediate),
        (Position.ROOT, chain.root),
    ):
        name = None if certificate is None else _ca_name(certificate)
        if name is not None:
            said.append((chain.label(place), name.product))
    if len({product for _, product in said}) > 1:
        listed = ", ".join(f"{label} {product.value}" for label, product in said)
        yield Reason(
            ReasonCode.CHAIN_PRODUCT, f"the certificates are for different products: {listed}"
        )
