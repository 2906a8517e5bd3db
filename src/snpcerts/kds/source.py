# SPDX-License-Identifier: Apache-2.0
"""Where certificates come from: the cache, or the key server and then the cache.

Nothing leaves here, and nothing is kept, that does not chain to a pinned ARK
and, if it is a VCEK, name the chip and TCB it was asked for. That holds for
what the cache has too: a file that somebody or something changed is reported
and replaced, never handed out. A cached certificate that is valid wins over
whatever the key server says about it: it has answered 404 for valid chips for
days.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from snpcerts.abi.cert_table import ARK_GUID, ASK_GUID, VCEK_GUID, CertTable, TableEntry
from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.anchors import AMD_ANCHORS, Anchor
from snpcerts.endorsement.crl import RevocationList, load_crl
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import UsageError
from snpcerts.kds.client import KdsClient
from snpcerts.kds.judge import (
    ChainPair,
    Fault,
    der_of,
    faults_of_chain,
    faults_of_crl,
    faults_of_revocation,
    faults_of_vcek,
    read_chain,
    read_vcek,
    same_key,
)
from snpcerts.kds.store import Store
from snpcerts.kds.through_cache import ThroughCache, Verified, Wanted
from snpcerts.kds.url import AMD_URL, ChainResource, CrlResource, VcekResource

log = logging.getLogger(__name__)

T = TypeVar("T")

# A VCEK lives seven years. This leaves time to find a key server that answers.
RENEW_BEFORE: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Endorsement:
    """A VCEK that was verified, with what is above it; each DER.

    ``not_after`` is when the first of the three expires.
    """

    leaf: bytes
    intermediate: bytes
    root: bytes
    not_after: datetime

    def table(self) -> CertTable:
        """The three as a host hands them to its guests."""
        return CertTable(
            (
                TableEntry(VCEK_GUID, self.leaf),
                TableEntry(ASK_GUID, self.intermediate),
                TableEntry(ARK_GUID, self.root),
            )
        )


@dataclass(frozen=True, slots=True)
class _Leaf:
    certificate: x509.Certificate
    above: ChainPair


class CertificateSource:
    """Verified certificates, out of ``store`` or else from ``client``.

    Without a client it works offline. ``warn`` is told of what does not stop
    the work: a cache that cannot be written, a file in it that is damaged, a
    renewal that failed. Safe for use by several threads: those that lack the
    same thing at the same time cause one request between them, and so do
    processes that share the cache.

    With ``heed_revocation`` a chain that the cached revocation list withdraws
    is not to be trusted either: it is asked for anew, and a leaf below it with
    it. Without, revocation is left to whoever judges the certificates.
    """

    def __init__(
        self,
        store: Store,
        client: KdsClient | None,
        *,
        anchors: Sequence[Anchor] = AMD_ANCHORS,
        heed_revocation: bool = False,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        self.store = store
        self.client = client
        self.anchors = tuple(anchors)
        self._heed_revocation = heed_revocation
        self._through = ThroughCache(store, client, warn)

    def vcek(
        self,
        product: Product,
        hwid: bytes,
        tcb: TcbVersion,
        *,
        at: datetime | None = None,
        refresh: bool = False,
    ) -> Endorsement:
        """The VCEK of a chip at a TCB, verified, valid at ``at`` (default: now).

        ``hwid`` is the significant bytes of the chip ID: 64, on Turin 8. With
        ``refresh`` the key server is asked even if the cache has it; when that
        fails the cached one is returned.

        Raises :class:`UsageError` for a hwID or TCB that is not the product's,
        :class:`KdsUnavailableError` (with ``retry_after``) when it is not cached
        and there was no answer, :class:`KdsNotFoundError` for a 404, and
        :class:`KdsUntrustedError` when the answer does not verify.
        """
        resource = VcekResource(product, hwid, tcb)
        when = _when(at)
        above: list[ChainPair] = []

        def chain() -> ChainPair:
            if not above:
                above.append(self._chain(product, VekKind.VCEK, when).value)
            return above[0]

        def newer_chain(faults: list[Fault]) -> bool:
            # An ASK is replaced now and then: the cached one may not be the leaf's.
            if not {"leaf-signature", "leaf-issuer"} & {fault.code for fault in faults}:
                return False
            old = chain()
            above[:] = [self._chain(product, VekKind.VCEK, when, refresh=True).value]
            return above[0] != old

        def judge(body: bytes) -> Verified[_Leaf] | list[Fault]:
            leaf = read_vcek(body)
            faults = faults_of_vcek(resource, leaf, chain(), self.anchors, when)
            if faults:
                return faults
            before = max(leaf.not_valid_before_utc, chain().not_before)
            after = min(leaf.not_valid_after_utc, chain().not_after)
            return Verified(_Leaf(leaf, chain()), der_of(leaf), before, after, after - RENEW_BEFORE)

        wanted = Wanted(resource, when, refresh, judge, chain, newer_chain, _another_key)
        found = self._through.get(wanted)
        return Endorsement(
            der_of(found.value.certificate), *found.value.above.der(), found.not_after
        )

    def chain(
        self,
        product: Product,
        vlek: bool = False,
        *,
        at: datetime | None = None,
        refresh: bool = False,
    ) -> tuple[bytes, bytes]:
        """(ASK, ARK) in DER, or (ASVK, ARK); verified, valid at ``at``. Errors as :meth:`vcek`."""
        return self._chain(product, _kind(vlek), _when(at), refresh=refresh).value.der()

    def vlek_chain(self, product: Product, *, at: datetime | None = None) -> tuple[bytes, bytes]:
        """(ASVK, ARK) in DER: what goes above a VLEK. Errors as :meth:`vcek`."""
        return self.chain(product, vlek=True, at=at)

    def crl(
        self,
        product: Product,
        vlek: bool = False,
        *,
        at: datetime | None = None,
        refresh: bool = False,
        max_age: timedelta | None = None,
        budget: float | None = None,
    ) -> bytes:
        """The ARK's revocation list in DER, signed by a pinned ARK and current at ``at``.

        It is kept until the time it names itself for the next one; ``refresh``
        asks sooner, and so does ``max_age`` for a list that has been kept for
        longer: AMD's are good for a year, in which much may be withdrawn. With
        a ``budget`` the list is asked for once, and waited for so many seconds
        at most. Errors as :meth:`vcek`.
        """
        when = _when(at)
        kind = _kind(vlek)
        resource = CrlResource(product, kind)
        root = self._chain(product, kind, when, withdrawn=True, budget=budget).value.root
        kept_since = self.store.kept_since(resource) if max_age is not None else None

        def judge(body: bytes) -> Verified[RevocationList] | list[Fault]:
            found = load_crl(body)
            faults = faults_of_crl(found, root, when)
            der = found.crl.public_bytes(Encoding.DER)
            renew_at = found.next_update
            if max_age is not None and kept_since is not None:
                renew_at = min(renew_at, kept_since + max_age)
            return faults or Verified(found, der, found.this_update, found.next_update, renew_at)

        wanted = Wanted(resource, when, refresh, judge, rather=_older, budget=budget)
        return self._through.get(wanted).kept_as

    def known_crl(self, product: Product, vlek: bool = False) -> bytes | None:
        """The revocation list that the cache has, however old, unjudged; nobody is asked."""
        return self._through.kept(CrlResource(product, _kind(vlek)))

    def _chain(
        self,
        product: Product,
        kind: VekKind,
        at: datetime,
        *,
        refresh: bool = False,
        withdrawn: bool = False,
        budget: float | None = None,
    ) -> Verified[ChainPair]:
        """With ``withdrawn`` one that is revoked will do: for its root, which judges lists."""
        resource = ChainResource(product, kind)
        heed = self._heed_revocation and not withdrawn

        def judge(body: bytes) -> Verified[ChainPair] | list[Fault]:
            pair = read_chain(body)
            faults = faults_of_chain(resource, pair, self.anchors, at)
            if not faults and heed:
                faults = faults_of_revocation(
                    pair, kind, self.known_crl(product, kind is VekKind.VLEK)
                )
            return faults or Verified(
                pair, pair.pem(), pair.not_before, pair.not_after, pair.not_after - RENEW_BEFORE
            )

        return self._through.get(
            Wanted(resource, at, refresh, judge, budget=budget, lenient=withdrawn)
        )


def open_certificate_source(
    *,
    cache: Path,
    url: str | None = None,
    offline: bool = False,
    anchors: Sequence[Anchor] = AMD_ANCHORS,
    heed_revocation: bool = False,
) -> CertificateSource:
    """The source for a cache directory and a key server (default: AMD's).

    Raises :class:`UsageError` for a URL that cannot be one, or a URL offline.
    """
    if offline and url is not None:
        raise UsageError("offline, no key server is asked", hint="leave the URL out")
    client = None if offline else KdsClient(AMD_URL if url is None else url)
    return CertificateSource(Store(cache), client, anchors=anchors, heed_revocation=heed_revocation)


def _kind(vlek: bool) -> VekKind:
    return VekKind.VLEK if vlek else VekKind.VCEK


def _when(at: datetime | None) -> datetime:
    if at is None:
        return datetime.now(UTC)
    if at.tzinfo is None:
        raise UsageError(f"{at.isoformat()}: needs a time zone")
    return at


def _another_key(new: Verified[_Leaf], old: Verified[_Leaf]) -> Fault | None:
    """A chip has one VCEK at one TCB, however often it is certified."""
    if same_key(new.kept_as, old.kept_as):
        return None
    return Fault(
        "leaf-key", "its key or extensions are not those of the cached one, which verifies"
    )


def _older(new: Verified[RevocationList], old: Verified[RevocationList]) -> Fault | None:
    """An old list, played back, must not hide what a newer one withdraws."""
    if new.not_before >= old.not_before:
        return None
    return Fault("crl-older", "it is older than the cached one")
