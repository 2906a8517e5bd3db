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

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from snpcerts.abi.cert_table import ARK_GUID, ASK_GUID, VCEK_GUID, CertTable, TableEntry
from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.anchors import AMD_ANCHORS, Anchor
from snpcerts.endorsement.crl import RevocationList, load_crl
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import FormatError, UsageError
from snpcerts.kds.client import KdsClient
from snpcerts.kds.errors import (
    CacheError,
    KdsNotFoundError,
    KdsUnavailableError,
    KdsUntrustedError,
)
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
from snpcerts.kds.turn import turn_at
from snpcerts.kds.url import AMD_URL, ChainResource, CrlResource, Resource, VcekResource

log = logging.getLogger(__name__)

T = TypeVar("T")

# A VCEK lives seven years. This leaves time to find a key server that answers.
RENEW_BEFORE: Final = timedelta(days=30)
# A renewal that failed is left alone for so long, in seconds.
RENEWAL_PAUSE: Final = 3600.0
# What could not be written is kept in memory, a few KB each.
_MAX_UNKEPT: Final = 64
# How much longer than the one who asks others wait for it, in seconds.
_PATIENCE: Final = 5.0


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
class _Verified(Generic[T]):
    """Something that verified, its form in the cache, and from when to when it is good."""

    value: T
    kept_as: bytes
    not_before: datetime
    not_after: datetime
    renew_at: datetime


@dataclass(frozen=True, slots=True)
class _Wanted(Generic[T]):
    """One resource at one time, and how to judge bytes for it.

    ``judge`` returns what is kept of a body, or the faults it has; it raises
    :class:`FormatError` for what cannot be read. ``prepare`` fetches what
    judging needs. A ``budget`` is for what one can do without: one question, that
    takes no longer. ``once_more`` says whether a body with such faults should be
    judged again, after having got what may mend them. ``rather`` says why the
    first, which is new, must not take the place of the second, which is cached.
    A ``budget`` (seconds) is for what one can do without: it is asked for once,
    and no longer. A ``lenient`` judge lets pass what others do not.
    """

    resource: Resource
    at: datetime
    refresh: bool
    judge: Callable[[bytes], _Verified[T] | list[Fault]]
    prepare: Callable[[], object] = lambda: None
    once_more: Callable[[list[Fault]], bool] = lambda _faults: False
    rather: Callable[[_Verified[T], _Verified[T]], Fault | None] = lambda _new, _old: None
    budget: float | None = None
    lenient: bool = False

    @property
    def question(self) -> tuple[object, ...]:
        """Who asks the same thing at the same time gets the same answer."""
        return (self.resource, self.refresh, self.budget, self.lenient)


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
        self._warn = warn
        self._lock = threading.Lock()
        self._asking: dict[tuple[object, ...], Future[Any]] = {}
        self._renewal_failed: dict[Resource, float] = {}
        self._unkept: OrderedDict[Resource, bytes] = OrderedDict()

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

        def judge(body: bytes) -> _Verified[_Leaf] | list[Fault]:
            leaf = read_vcek(body)
            faults = faults_of_vcek(resource, leaf, chain(), self.anchors, when)
            if faults:
                return faults
            before = max(leaf.not_valid_before_utc, chain().not_before)
            after = min(leaf.not_valid_after_utc, chain().not_after)
            return _Verified(
                _Leaf(leaf, chain()), der_of(leaf), before, after, after - RENEW_BEFORE
            )

        wanted = _Wanted(resource, when, refresh, judge, chain, newer_chain, _another_key)
        found = self._get(wanted)
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

        def judge(body: bytes) -> _Verified[RevocationList] | list[Fault]:
            found = load_crl(body)
            faults = faults_of_crl(found, root, when)
            der = found.crl.public_bytes(Encoding.DER)
            renew_at = found.next_update
            if max_age is not None and kept_since is not None:
                renew_at = min(renew_at, kept_since + max_age)
            return faults or _Verified(found, der, found.this_update, found.next_update, renew_at)

        wanted = _Wanted(resource, when, refresh, judge, rather=_older, budget=budget)
        return self._get(wanted).kept_as

    def known_crl(self, product: Product, vlek: bool = False) -> bytes | None:
        """The revocation list that the cache has, however old, unjudged; nobody is asked."""
        resource = CrlResource(product, _kind(vlek))
        with self._lock:
            kept = self._unkept.get(resource)
        with contextlib.suppress(CacheError):
            return self.store.read(resource) if kept is None else kept
        return None

    def _chain(
        self,
        product: Product,
        kind: VekKind,
        at: datetime,
        *,
        refresh: bool = False,
        withdrawn: bool = False,
        budget: float | None = None,
    ) -> _Verified[ChainPair]:
        """With ``withdrawn`` one that is revoked will do: for its root, which judges lists."""
        resource = ChainResource(product, kind)
        heed = self._heed_revocation and not withdrawn

        def judge(body: bytes) -> _Verified[ChainPair] | list[Fault]:
            pair = read_chain(body)
            faults = faults_of_chain(resource, pair, self.anchors, at)
            if not faults and heed:
                faults = faults_of_revocation(
                    pair, kind, self.known_crl(product, kind is VekKind.VLEK)
                )
            return faults or _Verified(
                pair, pair.pem(), pair.not_before, pair.not_after, pair.not_after - RENEW_BEFORE
            )

        return self._get(_Wanted(resource, at, refresh, judge, budget=budget, lenient=withdrawn))

    def _get(self, wanted: _Wanted[T]) -> _Verified[T]:
        """Out of the cache, or together with whoever is asking for it already."""
        cached = None if wanted.refresh else self._cached(wanted)
        if cached is not None and not self._due(wanted, cached):
            return cached
        key = wanted.question
        with self._lock:
            under_way = self._asking.get(key)
            if under_way is None:
                mine: Future[_Verified[T]] = Future()
                self._asking[key] = mine
        if under_way is not None:
            shared = cast("_Verified[T]", under_way.result())
            timely = shared.not_before <= wanted.at <= shared.not_after
            return shared if timely else self._renew(wanted)
        try:
            found = self._renew(wanted)
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(found)
            return found
        finally:
            with self._lock:
                del self._asking[key]

    def _renew(self, wanted: _Wanted[T]) -> _Verified[T]:
        """Ask, in our turn; fall back on a cached one that is valid."""
        client = self.client
        if client is None:
            cached = self._cached(wanted, report=True)
            if cached is None:
                raise KdsUnavailableError(
                    f"{wanted.resource}: the cache {self.store.root} has none that verifies, "
                    "and offline no key server is asked",
                    hint="fetch it where a key server can be reached, and bring the cache here",
                )
            return cached
        wanted.prepare()
        budget = wanted.budget
        patience = client.policy.budget + _PATIENCE if budget is None else budget
        with turn_at(self.store, wanted.resource, patience=patience) as turn:
            cached = self._cached(wanted, report=True)
            if cached is not None and (
                turn.waited if wanted.refresh else not self._due(wanted, cached)
            ):
                return cached
            try:
                if turn.failure is not None:
                    raise turn.failure
                if turn.hold_off and (cached is not None or budget is not None):
                    raise KdsUnavailableError(
                        f"{wanted.resource}: {client.url} asked to be left alone",
                        retry_after=turn.hold_off,
                        hint=f"try again in {turn.hold_off:.0f} s",
                    )
                found = self._ask(client, wanted, cached, turn.hold_off)
            except (KdsUnavailableError, KdsNotFoundError, KdsUntrustedError) as error:
                if error is not turn.failure:
                    turn.note(error)
                if cached is None:
                    raise
                with self._lock:
                    self._renewal_failed[wanted.resource] = time.monotonic()
                self._warn(f"not renewed, the cached one stays in use: {error}")
                return cached
            turn.note_success()
            self._keep(wanted.resource, found.kept_as)
            return found

    def _ask(
        self,
        client: KdsClient,
        wanted: _Wanted[T],
        cached: _Verified[T] | None,
        hold_off: float,
    ) -> _Verified[T]:
        body, judged = client.get(
            wanted.resource,
            lambda body: (body, wanted.judge(body)),
            hold_off=hold_off,
            # What is only renewed can wait; it is not worth many tries now.
            attempts=None if cached is None and wanted.budget is None else 1,
            budget=wanted.budget,
        )
        if isinstance(judged, list) and wanted.once_more(judged):
            judged = wanted.judge(body)
        if not isinstance(judged, list) and cached is not None:
            worse = wanted.rather(judged, cached)
            judged = judged if worse is None else [worse]
        if not isinstance(judged, list):
            return judged
        raise KdsUntrustedError(
            f"{wanted.resource}: the answer of {client.url} is not to be trusted",
            reasons=[str(fault) for fault in judged],
            hint=_hint(judged, wanted.at),
        )

    def _cached(self, wanted: _Wanted[T], *, report: bool = False) -> _Verified[T] | None:
        """What the cache has, if it verifies; otherwise, with ``report``, a warning."""
        with self._lock:
            kept = self._unkept.get(wanted.resource)
        path = self.store.path_of(wanted.resource)
        problem = ""
        try:
            if kept is None:
                kept = self.store.read(wanted.resource)
            if kept is None:
                return None
            judged = wanted.judge(kept)
        except CacheError as error:
            problem = str(error)
        except FormatError as error:
            problem = f"{path}: is damaged: {error}"
        else:
            if not isinstance(judged, list):
                return judged
            problem = f"{path}: {'; '.join(map(str, judged))}"
        if report:
            self._warn(f"cached file not used: {problem}")
        return None

    def _due(self, wanted: _Wanted[T], cached: _Verified[T]) -> bool:
        """Whether to try to renew what is still good."""
        if self.client is None or wanted.at < cached.renew_at:
            return False
        with self._lock:
            failed = self._renewal_failed.get(wanted.resource)
        return failed is None or time.monotonic() - failed > RENEWAL_PAUSE

    def _keep(self, resource: Resource, data: bytes) -> None:
        """Into the cache; where that fails, into memory, so as not to ask again soon."""
        with self._lock:
            self._renewal_failed.pop(resource, None)
            self._unkept.pop(resource, None)
        try:
            self.store.write(resource, data)
        except CacheError as error:
            with self._lock:
                self._unkept[resource] = data
                while len(self._unkept) > _MAX_UNKEPT:
                    self._unkept.popitem(last=False)
            self._warn(f"{resource}: fetched, but not kept: {error}")


def open_source(
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


def _another_key(new: _Verified[_Leaf], old: _Verified[_Leaf]) -> Fault | None:
    """A chip has one VCEK at one TCB, however often it is certified."""
    if same_key(new.kept_as, old.kept_as):
        return None
    return Fault(
        "leaf-key", "its key or extensions are not those of the cached one, which verifies"
    )


def _older(new: _Verified[RevocationList], old: _Verified[RevocationList]) -> Fault | None:
    """An old list, played back, must not hide what a newer one withdraws."""
    if new.not_before >= old.not_before:
        return None
    return Fault("crl-older", "it is older than the cached one")


def _hint(faults: list[Fault], at: datetime) -> str:
    if all(fault.code.endswith(("-not-yet-valid", "-expired")) for fault in faults):
        return f"is the clock right? It was taken to be {at:%Y-%m-%dT%H:%M:%SZ}"
    return "nothing of it is kept or used"
