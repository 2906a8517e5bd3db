# SPDX-License-Identifier: Apache-2.0
"""Lists the files of the cache, each with its resource, the end of its validity, and whether
it verifies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath

from snpcerts.abi.product import Product
from snpcerts.endorsement.anchors import Anchor
from snpcerts.endorsement.certificate import Certificate
from snpcerts.endorsement.crl import load_crl
from snpcerts.endorsement.judge import (
    ChainBytes,
    ChipJudge,
    judge_authorities,
    judge_list,
    revocations,
)
from snpcerts.endorsement.reason import Reason
from snpcerts.endorsement.vek import EndorsementCert, VekKind
from snpcerts.errors import FormatError
from snpcerts.kds.body import ChainPair, der_of, read_chain
from snpcerts.kds.errors import CacheError
from snpcerts.kds.store import Store, resource_at
from snpcerts.kds.url import ChainResource, CrlResource, Resource


@dataclass(frozen=True, slots=True)
class Kept:
    """One file in the cache. ``problem`` is None if the file verifies."""

    place: PurePosixPath
    title: str
    not_after: datetime | None
    problem: str | None

    def to_json(self) -> dict[str, object]:
        """Return the entry as JSON values."""
        return {
            "file": str(self.place),
            "title": self.title,
            "not_after": None if self.not_after is None else self.not_after.isoformat(),
            "problem": self.problem,
        }


def inventory(store: Store, anchors: Sequence[Anchor], at: datetime) -> list[Kept]:
    """Return every file of the cache with its state at the time ``at``, chains first.

    Raises :class:`CacheError` if a directory cannot be listed.
    """
    return [_judged(store, place, anchors, at) for place in store.places()]


def _judged(store: Store, place: PurePosixPath, anchors: Sequence[Anchor], at: datetime) -> Kept:
    try:
        data = store.read_place(place) or b""
        resource, certificate = _resource(place, data)
        if resource is None:
            return Kept(place, "not a cache file", None, "not used")
        if isinstance(resource, ChainResource):
            pair = read_chain(data)
            reasons = _of_chain(resource, pair, anchors, at) + _revoked(store, resource, pair)
            return _kept(place, resource, pair.not_after, reasons)
        above_it = ChainResource(resource.product, _kind(resource))
        above = _chain(store, above_it)
        if isinstance(resource, CrlResource):
            crl = load_crl(data)
            reasons = _of_chain(above_it, above, anchors, at)
            reasons += judge_list(resource.kind, crl, None, above.root).problems_at(at)
            return _kept(place, resource, crl.next_update, reasons)
        leaf = certificate or EndorsementCert.from_bytes(data).certificate
        chip = ChipJudge(resource.product, resource.hwid, anchors, expected_by="its place")
        chain = ChainBytes(der_of(leaf), *above.der())
        reasons = chip.judge(chain, VekKind.VCEK, resource.tcb, at).reasons
        reasons += _revoked(store, above_it, above)
        return _kept(place, resource, leaf.not_valid_after_utc, reasons)
    except (FormatError, CacheError) as error:
        return Kept(place, "unreadable", None, str(error))


def _of_chain(
    resource: ChainResource, pair: ChainPair, anchors: Sequence[Anchor], at: datetime
) -> tuple[Reason, ...]:
    return judge_authorities(
        resource.kind, resource.product, pair.intermediate, pair.root, anchors, at
    )


def _revoked(store: Store, resource: ChainResource, pair: ChainPair) -> tuple[Reason, ...]:
    """Return the reasons if the cached revocation list revokes a certificate of the chain. Without
    a cached list, there are none.
    """
    crl = store.read(CrlResource(resource.product, resource.kind))
    return revocations(resource.kind, crl, pair.intermediate, pair.root)


def _resource(place: PurePosixPath, data: bytes) -> tuple[Resource | None, Certificate | None]:
    """Return the resource that the file at ``place`` holds. The place of a Milan or Genoa VCEK does
    not tell its product. Its certificate does, and is then returned too.
    """
    candidates = [each for each in (resource_at(place, product) for product in Product) if each]
    if len(candidates) < 2:
        return (candidates[0] if candidates else None), None
    leaf = EndorsementCert.from_bytes(data)
    return resource_at(place, leaf.product) or candidates[0], leaf.certificate


def _kind(resource: Resource) -> VekKind:
    return resource.kind if isinstance(resource, CrlResource | ChainResource) else VekKind.VCEK


def _chain(store: Store, resource: ChainResource) -> ChainPair:
    data = store.read(resource)
    if data is None:
        raise CacheError(
            f"{store.path_of(resource)}: expected the chain that verifies another cached file, "
            "found no file"
        )
    return read_chain(data)


def _kept(
    place: PurePosixPath, resource: Resource, not_after: datetime, reasons: Sequence[Reason]
) -> Kept:
    problem = "; ".join(map(str, reasons)) if reasons else None
    return Kept(place, str(resource), not_after, problem)
