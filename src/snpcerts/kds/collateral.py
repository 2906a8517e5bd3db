# SPDX-License-Identifier: Apache-2.0
"""The key server and its cache, as sources for the verifier.

Certificates and revocation lists are two sources: that one of them cannot be
had should not keep the other back.
"""

from __future__ import annotations

from datetime import datetime

from snpcerts.abi.product import Product
from snpcerts.endorsement.vek import VekKind
from snpcerts.kds.errors import KdsNotFoundError
from snpcerts.kds.source import CertificateSource
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.sources import Part, Wanted


class KdsCertificates:
    """VCEKs, and the chains above VCEKs and VLEKs, valid at ``at`` (default: now).

    A VLEK is the provider's: the key server gives it to nobody else.
    """

    def __init__(self, source: CertificateSource, *, at: datetime | None = None) -> None:
        self._source = source
        self._at = at

    def collateral(self, wanted: Wanted) -> Collateral:
        """What is missing of leaf and chain. Errors as those of the source."""
        if wanted.kind is VekKind.VCEK and Part.LEAF in wanted.missing:
            return self._leaf(wanted)
        if wanted.missing & {Part.INTERMEDIATE, Part.ROOT} and len(wanted.products) == 1:
            vlek = wanted.kind is VekKind.VLEK
            ask, ark = self._source.chain(wanted.products[0], vlek, at=self._at)
            return Collateral(ask=ask, ark=ark)
        return Collateral()

    def _leaf(self, wanted: Wanted) -> Collateral:
        """For the first product that has it: only reports of version 2 leave several."""
        absent: KdsNotFoundError | None = None
        for product in wanted.products:
            hwid, tcb = wanted.hwid(product), wanted.tcb(product)
            if hwid is None or tcb is None:
                continue
            try:
                found = self._source.vcek(product, hwid, tcb, at=self._at)
            except KdsNotFoundError as error:
                absent = error
                continue
            return Collateral(vcek=found.leaf, ask=found.intermediate, ark=found.root)
        if absent is not None:
            raise absent
        return Collateral()


class KdsRevocationLists:
    """The ARKs' revocation lists, current at ``at`` (default: now), where one is required."""

    def __init__(self, source: CertificateSource, *, at: datetime | None = None) -> None:
        self._source = source
        self._at = at

    def collateral(self, wanted: Wanted) -> Collateral:
        """The list. Errors as those of the source."""
        if Part.CRL not in wanted.missing or len(wanted.products) != 1:
            return Collateral()
        product: Product = wanted.products[0]
        crl = self._source.crl(product, wanted.kind is VekKind.VLEK, at=self._at)
        return Collateral(crl=crl)
