# SPDX-License-Identifier: Apache-2.0
"""Gets verified certificates from the cache, or from the key server, whose answers go into the
cache.

This module returns and caches only certificates that chain to a trusted ARK and, for a VCEK, name
the requested chip and TCB. Cached files are judged in the same way, so a file that was changed is
reported and replaced, never returned. A valid cached certificate takes precedence over any answer
from the key server, which has answered 404 for valid chips for a day or longer.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar

from snpcerts.abi.cert_table import ARK_GUID, ASK_GUID, VCEK_GUID, CertTable, TableEntry
from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.anchors import AMD_ANCHORS, Anchor
from snpcerts.endorsement.certificate import Certificate
from snpcerts.endorsement.crl import RevocationList, load_crl
from snpcerts.endorsement.judge import (
    ChainBytes,
    ChipJudge,
    JudgeMemory,
    judge_authorities,
    judge_list,
    revocations,
)
from snpcerts.endorsement.reason import Reason, ReasonCode
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import UsageError
from snpcerts.kds.body import ChainPair, der_of, read_chain, read_vcek, same_key
from snpcerts.kds.cached_fetch import CachedFetch, FetchRequest, Verified
from snpcerts.kds.client import KdsClient
from snpcerts.kds.retry import AMD_GAP, RetryPolicy
from snpcerts.kds.store import Store
from snpcerts.kds.url import AMD_URL, ChainResource, CrlResource, VcekResource

log = logging.getLogger(__name__)

T = TypeVar("T")

# Certificates are renewed this long before they expire, to leave time to find a key server that
# answers.
RENEW_BEFORE: Final = timedelta(days=30)
_REMEMBERED: Final = 64  # chains whose findings are cached

_OF_ANOTHER_ISSUER: Final = frozenset({ReasonCode.LEAF_SIGNATURE, ReasonCode.LEAF_ISSUER})


@dataclass(frozen=True, slots=True)
class Endorsement:
    """A verified VCEK certificate and the two certificates above it, each in DER.

    ``not_after`` is the time until which all three are valid.
    """

    leaf: bytes
    intermediate: bytes
    root: bytes
    not_after: datetime

    def table(self) -> CertTable:
        """Return the three certificates as a certificate table."""
        return CertTable(
            (
                TableEntry(VCEK_GUID, self.leaf),
                TableEntry(ASK_GUID, self.intermediate),
                TableEntry(ARK_GUID, self.root),
            )
        )


@dataclass(frozen=True, slots=True)
class _Leaf:
    certificate: Certificate
    above: ChainPair


def _silent(_doing: str) -> AbstractContextManager[object]:
    return contextlib.nullcontext()


class CertificateSource:
    """Returns verified certificates from the cache ``store`` or, if the cache lacks them, from
    ``client``.

    Without a client, the source works offline. It calls ``warn`` with problems that do not stop the
    work: a cache that cannot be written, a damaged file in the cache, a failed renewal. Objects of
    this class are thread-safe. Concurrent requests for one resource are merged, across threads and
    processes that share the cache.

    With ``heed_revocation``, a chain that the cached revocation list revokes is not trusted, and is
    fetched again together with the leaf below it. Otherwise the code that judges the certificates
    must handle revocation.

    For each fetch, ``progress`` is called with a description, and returns a context manager that
    surrounds the fetch.
    """

    def __init__(
        self,
        store: Store,
        client: KdsClient | None,
        *,
        anchors: Sequence[Anchor] = AMD_ANCHORS,
        heed_revocation: bool = False,
        warn: Callable[[str], None] = log.warning,
        progress: Callable[[str], AbstractContextManager[object]] = _silent,
    ) -> None:
        self.store = store
        self.client = client
        self.anchors = tuple(anchors)
        self._heed_revocation = heed_revocation
        self._progress = progress
        self._memory = JudgeMemory(limit=_REMEMBERED)
        self._fetch = CachedFetch(store, client, warn)

    def close(self) -> None:
        """Close the connections to the key server."""
        if self.client is not None:
            self.client.close()

    def vcek(
        self,
        product: Product,
        hwid: bytes,
        tcb: TcbVersion,
        *,
        at: datetime | None = None,
        refresh: bool = False,
    ) -> Endorsement:
        """Return the verified VCEK certificate for a chip at a TCB, valid at ``at`` (default: now),
        with the certificates above it.

        ``hwid`` is the significant bytes of the chip ID: 64, or 8 on Turin and Venice. With
        ``refresh``, the key server is asked even if the certificate is cached. If that fails, the
        cached certificate is returned.

        Raises :class:`UsageError` for a hwID or TCB that does not fit the product,
        :class:`KdsUnavailableError` (with ``retry_after``) if the certificate is not cached and
        there was no answer, :class:`KdsNotFoundError` for a 404, and :class:`KdsUntrustedError` if
        the answer does not verify.
        """
        resource = VcekResource(product, hwid, tcb)
        _check_pinned(product)
        when = _when(at)
        chip = ChipJudge(
            product, hwid, self.anchors, expected_by="the request", memory=self._memory
        )
        above: list[ChainPair] = []

        def chain() -> ChainPair:
            if not above:
                above.append(self._chain(product, VekKind.VCEK, when).value)
            return above[0]

        def newer_chain(reasons: list[Reason]) -> bool:
            # AMD sometimes replaces an ASK, so the cached one may not be the leaf's issuer.
            if not any(reason.code in _OF_ANOTHER_ISSUER for reason in reasons):
                return False
            old = chain()
            above[:] = [self._chain(product, VekKind.VCEK, when, refresh=True).value]
            return above[0] != old

        def judge(body: bytes) -> Verified[_Leaf] | list[Reason]:
            leaf = read_vcek(body)
            judged = chip.judge(ChainBytes(der_of(leaf), *chain().der()), VekKind.VCEK, tcb, when)
            if not judged.sound:
                return list(judged.reasons)
            before = max(leaf.not_valid_before_utc, chain().not_before)
            after = min(leaf.not_valid_after_utc, chain().not_after)
            return Verified(_Leaf(leaf, chain()), der_of(leaf), before, after, after - RENEW_BEFORE)

        request = FetchRequest(resource, when, refresh, judge, chain, newer_chain, _another_key)
        with self._progress("requesting a VCEK certificate"):
            found = self._fetch.get(request)
        return Endorsement(
            der_of(found.value.certificate), *found.value.above.der(), found.not_after
        )

    def chain(
        self,
        product: Product,
        kind: VekKind = VekKind.VCEK,
        *,
        at: datetime | None = None,
        refresh: bool = False,
    ) -> tuple[bytes, bytes]:
        """Return (ASK, ARK) or (ASVK, ARK) in DER, verified and valid at ``at``.

        Raises the same errors as :meth:`vcek`.
        """
        with self._progress(f"requesting the certificate chain of a {kind.name}"):
            return self._chain(product, kind, _when(at), refresh=refresh).value.der()

    def crl(
        self,
        product: Product,
        kind: VekKind = VekKind.VCEK,
        *,
        at: datetime | None = None,
        refresh: bool = False,
        max_age: timedelta | None = None,
        budget: float | None = None,
    ) -> bytes:
        """Return a trusted ARK's revocation list in DER, signed by that ARK and current at ``at``.

        A cached list is used until its nextUpdate. It is fetched again sooner with ``refresh``, or
        when it was fetched more than ``max_age`` ago: AMD's lists are valid for a year, in which
        much may be revoked. With a ``budget``, the list is requested once, for at most that many
        seconds. Raises the same errors as :meth:`vcek`.
        """
        when = _when(at)
        with self._progress("requesting a revocation list"):
            return self._crl(product, kind, when, refresh, max_age, budget)

    def _crl(
        self,
        product: Product,
        kind: VekKind,
        when: datetime,
        refresh: bool,
        max_age: timedelta | None,
        budget: float | None,
    ) -> bytes:
        _check_pinned(product)
        resource = CrlResource(product, kind)
        root = self._chain(product, kind, when, withdrawn=True, budget=budget).value.root
        kept_since = self.store.kept_since(resource) if max_age is not None else None

        def judge(body: bytes) -> Verified[RevocationList] | list[Reason]:
            found = load_crl(body)
            reasons = judge_list(kind, found, None, root).problems_at(when)
            der = found.der
            renew_at = found.next_update
            if max_age is not None and kept_since is not None:
                renew_at = min(renew_at, kept_since + max_age)
            if reasons:
                return list(reasons)
            return Verified(found, der, found.this_update, found.next_update, renew_at)

        request = FetchRequest(
            resource, when, refresh, judge, reject_replacement=_older, budget=budget
        )
        return self._fetch.get(request).kept_as

    def known_crl(self, product: Product, kind: VekKind = VekKind.VCEK) -> bytes | None:
        """Return the cached revocation list, unverified and of any age, without asking the key
        server; None if none is cached.
        """
        return self._fetch.kept(CrlResource(product, kind))

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
        """Return the verified certificates above a leaf.

        With ``withdrawn``, a revoked chain is accepted too, because its root still verifies
        revocation lists.
        """
        _check_pinned(product)
        resource = ChainResource(product, kind)
        heed = self._heed_revocation and not withdrawn

        def judge(body: bytes) -> Verified[ChainPair] | list[Reason]:
            pair = read_chain(body)
            two = (pair.intermediate, pair.root)
            reasons = judge_authorities(kind, product, *two, self.anchors, at)
            if not reasons and heed:
                reasons = revocations(kind, self.known_crl(product, kind), *two)
            if reasons:
                return list(reasons)
            return Verified(
                pair, pair.pem(), pair.not_before, pair.not_after, pair.not_after - RENEW_BEFORE
            )

        return self._fetch.get(
            FetchRequest(resource, at, refresh, judge, budget=budget, lenient=withdrawn)
        )


def open_certificate_source(
    *,
    cache: Path,
    url: str | None = None,
    offline: bool = False,
    anchors: Sequence[Anchor] = AMD_ANCHORS,
    heed_revocation: bool = False,
    timeout: float | None = None,
    notice: Callable[[str], None] = log.info,
    warn: Callable[[str], None] = log.warning,
    progress: Callable[[str], AbstractContextManager[object]] = _silent,
) -> CertificateSource:
    """Return the certificate source for a cache directory and a key server (default: AMD's).

    ``timeout`` is the time limit for one resource in seconds, including the waits that the key
    server requires (default: 60). ``notice`` is called with a sentence before every wait; ``warn``
    and ``progress`` are as in :class:`CertificateSource`. Raises :class:`UsageError` if the URL is
    invalid, or if a URL and ``offline`` are given together.
    """
    if offline and url is not None:
        raise UsageError(
            "--offline cannot be combined with a key server URL",
            hint="omit the URL, or omit --offline",
        )
    client = None
    if not offline:
        policy = RetryPolicy()
        if timeout is not None:
            tries = max(policy.attempts, int(timeout // AMD_GAP))
            policy = replace(policy, attempts=tries, budget=timeout)
        client = KdsClient(AMD_URL if url is None else url, policy=policy, notice=notice)
    return CertificateSource(
        Store(cache),
        client,
        anchors=anchors,
        heed_revocation=heed_revocation,
        warn=warn,
        progress=progress,
    )


def _check_pinned(product: Product) -> None:
    if not product.is_pinned:
        raise UsageError(product.unpinned_text)


def _when(at: datetime | None) -> datetime:
    if at is None:
        return datetime.now(UTC)
    if at.tzinfo is None:
        raise UsageError(f"at: expected a time with a time zone, found {at.isoformat()}")
    return at


def _another_key(new: Verified[_Leaf], old: Verified[_Leaf]) -> Reason | None:
    """Return a reason to refuse ``new`` if its key is not that of ``old``: a chip has only one
    VCEK at a TCB.
    """
    if same_key(new.kept_as, old.kept_as):
        return None
    return Reason(
        ReasonCode.LEAF_KEY,
        "the certificate's key or extensions differ from those of the cached certificate, which "
        "verifies",
    )


def _older(new: Verified[RevocationList], old: Verified[RevocationList]) -> Reason | None:
    """Return a reason to refuse ``new`` if it is older than ``old``, the cached list: a replayed
    list must not hide what a newer list revokes.
    """
    if new.not_before >= old.not_before:
        return None
    return Reason(ReasonCode.CRL_OLDER, "the revocation list is older than the cached list")
