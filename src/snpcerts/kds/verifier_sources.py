# SPDX-License-Identifier: Apache-2.0
"""Offers the key server and its cache to the verifier as sources of certificates.

Certificates and revocation lists are separate sources, so that if one cannot be fetched, the other
still can.
"""

from __future__ import annotations

from datetime import UTC, datetime

from snpcerts.endorsement.vek import EndorsementCert, VekKind
from snpcerts.errors import FormatError, RetryLaterError
from snpcerts.kds.errors import CacheError, KdsNotFoundError, KdsUnavailableError
from snpcerts.kds.failed_requests import FruitlessRequests
from snpcerts.kds.source import CertificateSource
from snpcerts.kds.url import CrlResource, VcekResource
from snpcerts.verify.choosing import Part
from snpcerts.verify.collateral import Collateral, SuppliedCrl, Supplier
from snpcerts.verify.report_check import check_signature
from snpcerts.verify.sources import CollateralRequest


class KdsCertificates:
    """A source of VCEK certificates, and of the certificates above VCEKs and VLEKs, valid at ``at``
    (default: now).

    VLEK certificates are not included, because AMD gives them only to the cloud provider.

    Anyone can make up a report that names a chip, and the key server has a VCEK for every TCB of
    every existing chip. Therefore a request counts as fruitless unless the VCEK's key signed the
    report. The number of fruitless requests in an hour is limited, and their VCEK certificates are
    not cached.
    """

    name = "the key server"

    def __init__(self, source: CertificateSource, *, at: datetime | None = None) -> None:
        self._source = source
        self._at = at
        self._fruitless = FruitlessRequests(source.store.root)

    def collateral(self, request: CollateralRequest) -> Collateral:
        """Return the missing certificates of the chain. Raises the errors of the certificate
        source.
        """
        if request.kind is VekKind.VCEK and Part.LEAF in request.missing:
            return self._leaf(request)
        if request.missing & {Part.INTERMEDIATE, Part.ROOT} and len(request.products) == 1:
            ask, ark = self._source.chain(request.products[0], request.kind, at=self._at)
            return Collateral(ask=ask, ark=ark)
        return Collateral()

    def _leaf(self, request: CollateralRequest) -> Collateral:
        """Return the leaf, and the certificates above it, for the first possible product that has
        one.

        Only version 2 reports have several possible products.
        """
        absent: KdsNotFoundError | None = None
        counted: list[float] = []
        for product in request.products:
            hwid, tcb = request.hwid(product), request.tcb(product)
            if hwid is None or tcb is None:
                continue
            resource = VcekResource(product, hwid, tcb)
            new = self._source.client is not None and self._unkept(resource)
            if new:
                counted.append(self._counted(resource))
            try:
                found = self._source.vcek(product, hwid, tcb, at=self._at)
            except KdsNotFoundError as error:
                absent = error
                continue
            except RetryLaterError:
                # This error says nothing about the chip, so the request does not count.
                self._fruitless.take_back(counted)
                raise
            if _signed(request, found.leaf):
                self._fruitless.take_back(counted)
            elif new:
                self._source.store.remove(resource)
            return Collateral(vcek=found.leaf, ask=found.intermediate, ark=found.root)
        if absent is not None:
            raise absent
        return Collateral()

    def _unkept(self, resource: VcekResource) -> bool:
        try:
            return self._source.store.read(resource) is None
        except CacheError:
            return True

    def _counted(self, resource: VcekResource) -> float:
        """Count a request as fruitless until its answer proves useful. Return the token with which
        to undo this.
        """
        stamp, wait = self._fruitless.count()
        if wait:
            raise KdsUnavailableError(
                (
                    f"{resource}: the VCEK was not requested, because too many recent requests "
                    "for VCEKs were in vain: the key server did not know the chip, or the VCEK "
                    "had not signed the report"
                ),
                retry_after=wait,
                hint=f"try again in {wait:.0f} s, or supply the certificates with --certs DIR",
            )
        return stamp


def _signed(request: CollateralRequest, leaf: bytes) -> bool:
    """Return whether the VCEK in ``leaf`` signed the report; True if the request has no report."""
    if request.report is None:
        return True
    try:
        key = EndorsementCert.from_bytes(leaf).public_key
    except FormatError:
        return False
    return not any(check_signature(request.report, key))


class KdsRevocationLists:
    """A source of the ARKs' revocation lists, current at ``at`` (default: now).

    If a list is required, the key server is asked unless the cached list is current and was fetched
    as recently as the policy demands. If no list is required, only the cached list is used. It may
    be of any age, because a revocation is permanent.
    """

    def __init__(self, source: CertificateSource, *, at: datetime | None = None) -> None:
        self._source = source
        self._at = at
        # The time at which each list that could not be cached was first fetched.
        self._came: dict[bytes, datetime] = {}

    def collateral(self, request: CollateralRequest) -> Collateral:
        """Return the revocation list for the report's product. If the key server gives no usable
        answer, return the cached list, however old. Raises the errors of the certificate source.
        """
        if len(request.products) != 1:
            return Collateral()
        product, kind = request.products[0], request.kind
        if Part.CRL not in request.missing:
            return self._supplied(request, self._source.known_crl(product, kind))
        age = request.maximum_crl_age
        try:
            found = self._source.crl(product, kind, at=self._at, max_age=age)
        except RetryLaterError as error:
            known = self._source.known_crl(product, kind)
            if known is None:
                raise
            return self._supplied(request, known, str(error))
        obtained = self._obtained(CrlResource(product, request.kind), found)
        client, outage = self._source.client, None
        if client is not None and age is not None and datetime.now(UTC) - obtained > age:
            outage = f"no newer revocation list could be fetched from {client.url}"
        return self._supplied(request, found, outage)

    def _supplied(
        self, request: CollateralRequest, data: bytes | None, outage: str | None = None
    ) -> Collateral:
        if data is None:
            return Collateral()
        resource = CrlResource(request.products[0], request.kind)
        client = self._source.client
        if client is None:
            supplier, origin = Supplier.CACHE, str(self._source.store.path_of(resource))
        else:
            supplier, origin = Supplier.KEY_SERVER, f"{client.url}/{resource.path}"
        obtained = self._obtained(resource, data)
        supplied = SuppliedCrl(data, resource.kind, supplier, origin, obtained, outage)
        return Collateral(lists=(supplied,))

    def _obtained(self, resource: CrlResource, data: bytes) -> datetime:
        kept = self._source.store.kept_since(resource)
        return kept or self._came.setdefault(data, datetime.now(UTC))
