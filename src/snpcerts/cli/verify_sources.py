# SPDX-License-Identifier: Apache-2.0
"""The certificate sources of ``snpcerts verify``, and their order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from snpcerts.cli.evidence_files import certificates
from snpcerts.cli.files import read_dated_input
from snpcerts.errors import UsageError

if TYPE_CHECKING:
    from snpcerts.abi.product import Product
    from snpcerts.endorsement.anchors import Anchor
    from snpcerts.kds.source import CertificateSource
    from snpcerts.verify.collateral import Collateral, SuppliedCrl
    from snpcerts.verify.sources import CollateralRequest, CollateralSource

ORDER = "table,certs,kds"


def _given_list(text: str) -> SuppliedCrl:
    """Read the revocation list that ``--crl`` names: ``vcek=FILE``, ``vlek=FILE`` or ``FILE``. The
    last form does not say whether the list is for VCEKs or VLEKs, so its ``kind`` is None.
    """
    from snpcerts.endorsement.vek import VekKind
    from snpcerts.verify.collateral import SuppliedCrl, Supplier

    word, mark, path = text.partition("=")
    kind = next((each for each in VekKind if mark and each.value == word), None)
    if kind is None:
        path = text
    data, written = read_dated_input(path)
    # Assume that the file was written when the key server returned the list.
    return SuppliedCrl(data, kind, Supplier.CALLER, path, written)


@dataclass(frozen=True, slots=True)
class _Roots:
    """The trusted roots, as a source of ARKs: each root serves the reports of one product."""

    by_product: dict[Product, bytes]

    def collateral(self, request: CollateralRequest) -> Collateral:
        from snpcerts.verify.collateral import Collateral

        found = (self.by_product.get(product) for product in request.products)
        return Collateral(ark=next((root for root in found if root is not None), None))


def sources_in_order(
    order: str,
    certs: str | None,
    crls: Iterable[str],
    roots: Sequence[tuple[Anchor, bytes]],
    server: CertificateSource | None,
    at: datetime,
) -> list[CollateralSource]:
    """Return the certificate sources in the order of ``--order``, with ``roots`` just before the
    key server, or last if the key server is not used.
    """
    from snpcerts.verify.sources import OWN, GivenCrls

    names = order.split(",")
    if sorted(set(names)) != sorted(names) or not set(names) <= set(ORDER.split(",")):
        raise UsageError(f"--order {order}: expected sources from {ORDER}, each at most once")
    by_name: dict[str, list[CollateralSource]] = {"table": [OWN]}
    if certs is not None:
        by_name["certs"] = [certificates(certs)]
    if server is not None:
        from snpcerts.kds.verifier_sources import KdsCertificates, KdsRevocationLists

        by_name["kds"] = [KdsCertificates(server, at=at), KdsRevocationLists(server, at=at)]
    sources: list[CollateralSource] = []
    lists = list(crls)
    if lists:
        sources.append(GivenCrls(map(_given_list, lists)))
    for name in names:
        sources += by_name.get(name, [])
    # If no other source has the ARK, take it from the trusted roots.
    if roots:
        after = [source for source in by_name.get("kds", []) if source in sources]
        place = sources.index(after[0]) if after else len(sources)
        sources.insert(place, _Roots({anchor.product: data for anchor, data in roots}))
    return sources
