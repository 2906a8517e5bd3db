# SPDX-License-Identifier: Apache-2.0
"""Searches a collection of certificates for those that form a chain, by their content.

A certificate's subject shows whether it is a leaf, an ASK or ASVK, or an ARK. The issuer names the
certificate above, and a leaf's extensions name the chip and the TCB. The result is a bounded number
of chains, the most likely first. The judge then decides which chain is right, by the signatures and
the pinned root.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from snpcerts.endorsement.bundle import read_bundle
from snpcerts.endorsement.ca_name import CaName, CaRole, parse_ca_name
from snpcerts.endorsement.certificate import common_name, load_certificate
from snpcerts.endorsement.judge import ChainBytes
from snpcerts.endorsement.vek import EndorsementCert, VekKind
from snpcerts.errors import FormatError

# How many leaves, issuers and roots of each kind are tried. AMD publishes one issuer and one root
# of each kind, or two if a certificate was issued again.
_TRIED: Final = 4
_SHORT: Final = 4 << 10  # bytes; certificates up to this size are cached


@dataclass(frozen=True, slots=True)
class Sorted:
    """A certificate and what its subject says: VCEK, VLEK, ASK, ASVK, ARK, or none of these.

    ``leaf`` is the content of a leaf's extensions; None if these cannot be read.
    """

    der: bytes
    title: str
    subject: bytes
    issuer: bytes
    kind: VekKind | None
    authority: CaName | None
    leaf: EndorsementCert | None


def sort(data: bytes) -> Sorted | None:
    """Parse one certificate (DER or PEM) and determine what it is; None if it cannot be read."""
    return _known(bytes(data)) if len(data) <= _SHORT else _sort(data)


def _sort(data: bytes) -> Sorted | None:
    try:
        certificate = load_certificate(data, "certificate")
    except FormatError:
        return None
    name = common_name(certificate.subject)
    kind = next((each for each in VekKind if name == each.common_name), None)
    leaf = None
    if kind is not None:
        try:
            leaf = EndorsementCert.from_certificate(certificate)
        except FormatError:
            leaf = None
    return Sorted(
        data,
        name or "no common name",
        certificate.subject.public_bytes(),
        certificate.issuer.public_bytes(),
        kind,
        parse_ca_name(name),
        leaf,
    )


_known = functools.lru_cache(maxsize=256)(_sort)


def sort_all(parts: Iterable[bytes]) -> tuple[Sorted, ...]:
    """Return the certificates in ``parts``, each once. A part is one certificate or a bundle."""
    found: dict[tuple[bytes, bytes, bytes], Sorted] = {}
    for part in parts:
        one = sort(part)
        inside = (one,) if one is not None else map(sort, read_bundle(part).certificates)
        for each in inside:
            if each is not None:
                found.setdefault((each.subject, each.issuer, each.der), each)
    return tuple(found.values())


def chains(
    kind: VekKind, certificates: Iterable[Sorted], fits: Callable[[EndorsementCert], bool]
) -> Iterator[ChainBytes]:
    """Yield possible chains with a leaf of this ``kind``, the most likely first.

    ``fits`` says whether a leaf is for the right chip and TCB. Other leaves are used only if no
    leaf fits.
    """
    heap = tuple(certificates)
    leaves = [each for each in heap if each.kind is kind]
    fitting = [each for each in leaves if each.leaf is not None and fits(each.leaf)]
    role = CaRole.ASK if kind is VekKind.VCEK else CaRole.ASVK
    for leaf in _some(fitting or leaves):
        for middle in _some(_above(leaf, _of(role, heap) or _other_middle(heap))):
            for root in _some(_above(middle, _of(CaRole.ARK, heap))):
                yield ChainBytes(
                    *(None if each is None else each.der for each in (leaf, middle, root))
                )


def _some(found: list[Sorted]) -> list[Sorted | None]:
    """Return the first few certificates; a list with a single None if there are none."""
    return list(found[:_TRIED]) or [None]


def _of(role: CaRole, heap: tuple[Sorted, ...]) -> list[Sorted]:
    return [each for each in heap if each.authority is not None and each.authority.role is role]


def _other_middle(heap: tuple[Sorted, ...]) -> list[Sorted]:
    """Return all ASKs and ASVKs, so that a reason can say that the issuer is of the wrong kind."""
    return [*_of(CaRole.ASK, heap), *_of(CaRole.ASVK, heap)]


def _above(below: Sorted | None, authorities: list[Sorted]) -> list[Sorted]:
    """Return the authorities. Those that ``below`` names as its issuer come first."""
    if below is None:
        return authorities
    return sorted(authorities, key=lambda each: each.subject != below.issuer)
