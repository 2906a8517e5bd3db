# SPDX-License-Identifier: Apache-2.0
"""Judges whether certificates certify a key, and remembers its findings.

The verifier asks about the key that signed a report, the key server's client about the VCEK that it
requested, and the host's agent about the signing key. All three get the same reasons.

A host serves the same three certificates with every report, and parsing and checking them costs
more than checking a report. Therefore findings are cached, keyed by the bytes of the certificates
and by the anchors. Findings about ASK and ARK, and about each revocation list, are also cached
separately, because they are the same for all chips of a product and are most of the work for a new
VCEK. Only findings that do not depend on the time are cached. Validity is checked each time.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Generic, NamedTuple, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec

from snpcerts.abi.cert_table import ARK_GUID, ASK_GUID, VCEK_GUID, VLEK_GUID, CertTable
from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.anchors import Anchor
from snpcerts.endorsement.ca_name import parse_ca_name
from snpcerts.endorsement.certificate import Certificate, common_name, load_certificate
from snpcerts.endorsement.chain import (
    Chain,
    Window,
    anchor_of,
    check_authorities,
    check_chain,
    check_leaf,
    check_products,
    windows_of,
)
from snpcerts.endorsement.crl import (
    RevocationList,
    bears_signature,
    check_crl,
    load_crl,
    untimely,
)
from snpcerts.endorsement.reason import EXPIRED, NOT_YET_VALID, REVOKED, Reason, ReasonCode
from snpcerts.endorsement.vek import EndorsementCert, VekKind, p384_key
from snpcerts.errors import FormatError

# A fleet has one chain per chip and TCB. The findings about a chain take about 5 KB, or more if a
# hostile host sends large certificates.
REMEMBERED = 256
# A larger set of certificates is judged, but not cached.
MAX_REMEMBERED_SIZE = 64 << 10

# A longer list is parsed only after its signature has been checked.
_LONG_LIST: Final = 64 << 10
# A longer list is cached by its digest.
_SHORT_LIST: Final = 4 << 10
# A longer root is not compared with the anchors' certificates, so its signature is always checked.
_SHORT_ROOT: Final = 4 << 10

_Found = TypeVar("_Found")
# The key of a revocation list in the cache.
_ListKey = bytes | tuple[str, bytes]
_ALWAYS = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


class ChainBytes(NamedTuple):
    """The bytes of a chain's certificates, each in DER or PEM. A certificate that was not supplied
    is None.

    ``intermediate`` is the ASK of a VCEK or the ASVK of a VLEK.
    """

    leaf: bytes | None
    intermediate: bytes | None
    root: bytes | None

    @classmethod
    def from_table(cls, table: CertTable, kind: VekKind) -> ChainBytes:
        """Return the chain that a certificate table holds for a key of this ``kind``."""
        leaf = leaf_of_slots(kind, table.get(VCEK_GUID), table.get(VLEK_GUID))
        return cls(leaf, table.get(ASK_GUID), table.get(ARK_GUID))


def leaf_of_slots(kind: VekKind, vcek: bytes | None, vlek: bytes | None) -> bytes | None:
    """Return the leaf of this ``kind`` from the VCEK and VLEK slots of a certificate table.

    A VLEK in the VCEK's slot is found too, because some hosts put it there.
    """
    if kind is VekKind.VCEK:
        return vcek
    if vlek is None and vcek is not None and _is_of_kind(kind, vcek):
        return vcek
    return vlek


def _is_of_kind(kind: VekKind, data: bytes) -> bool:
    try:
        certificate = load_certificate(data, kind.name)
    except FormatError:
        return False
    return common_name(certificate.subject) == kind.common_name


class ChainFacts(NamedTuple):
    """Which certificates of a chain were supplied and parsed.

    ``of_no_chip`` is True for a VLEK's chain. ``leaf_read`` and ``key_read`` say whether the leaf's
    extensions and its key could be parsed.
    """

    of_no_chip: bool = False
    leaf: bool = False
    intermediate: bool = False
    root: bool = False
    leaf_read: bool = False
    key_read: bool = False


@dataclass(frozen=True, slots=True)
class CrlFindings:
    """Findings about a revocation list that do not depend on the time.

    ``believed`` says that the root signed the list and that no other check of the list failed.
    ``doubts`` has a reason for each check that failed. Without a root, ``believed`` is False, and
    ``doubts`` may be empty. ``revoked`` has a reason for each of the chain's certificates that the
    list revokes. ``product`` is the product of the list's issuer. ``this_update`` and
    ``next_update`` are None if the list was not parsed.
    """

    believed: bool
    doubts: tuple[Reason, ...]
    revoked: tuple[Reason, ...] = ()
    product: Product | None = None
    this_update: datetime | None = None
    next_update: datetime | None = None

    def problems_at(self, at: datetime) -> tuple[Reason, ...]:
        """Return every problem of the list at ``at``, a time with a time zone: for example, the
        root did not sign the list, or the list is out of date.
        """
        if self.this_update is None or self.next_update is None:
            return self.doubts
        late = untimely(self.this_update, self.next_update, at)
        return self.doubts if late is None else (*self.doubts, late)


@dataclass(frozen=True, slots=True)
class Findings:
    """Findings about a set of certificates that do not depend on the time.

    ``key`` is the leaf's key, if it is a P-384 key that could be parsed. It says nothing about
    trust, and only serves to check whether the key signed the report, whatever else is wrong.
    ``reasons`` lists the chain's problems and the revocations in believed lists, however old.
    ``anchor`` is the anchor with the ARK's key, if any. ``lists`` has the findings about the
    revocation lists, in their order. ``in_force`` is the period in which all certificates are
    valid, both ends inclusive.
    """

    leaf: EndorsementCert | None
    key: ec.EllipticCurvePublicKey | None
    reasons: tuple[Reason, ...]
    windows: tuple[Window, ...]
    facts: ChainFacts
    anchor: Anchor | None = None
    lists: tuple[CrlFindings, ...] = ()
    in_force: tuple[datetime, datetime] = _ALWAYS

    def reasons_at(self, at: datetime) -> tuple[Reason, ...]:
        """Return every problem of the chain at ``at``, a time with a time zone."""
        first, last = self.in_force
        if first <= at <= last:
            return self.reasons
        late = (window.problem_at(at) for window in self.windows)
        return (*self.reasons, *(reason for reason in late if reason is not None))


NOTHING: Final = Findings(None, None, (), (), ChainFacts())


class JudgeMemory:
    """A cache of findings about recent chains. Its size is bounded, and threads may share it."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._chains: _FoundCache[Findings] = _FoundCache(limit)
        self._authorities: _FoundCache[_Authorities] = _FoundCache(limit)
        self._lists: _FoundCache[CrlFindings] = _FoundCache(limit)
        self._trusted: tuple[tuple[Anchor, ...], tuple[object, ...]] = ((), ())

    def __len__(self) -> int:
        return len(self._chains)

    def findings(
        self,
        kind: VekKind,
        chain: ChainBytes,
        anchors: Sequence[Anchor],
        lists: Sequence[bytes] = (),
    ) -> Findings:
        """Return what :func:`find` returns, from the cache if possible."""
        leaf, intermediate, root = chain
        # Callers may pass a bytearray. For bytes this makes no copy.
        chain = ChainBytes(
            None if leaf is None else bytes(leaf),
            None if intermediate is None else bytes(intermediate),
            None if root is None else bytes(root),
        )
        keys = tuple(map(_list_key, lists)) if lists else ()
        anchors = tuple(anchors)
        key = (kind is VekKind.VCEK, chain, keys, self._content(anchors))
        known = self._chains.get(key)
        if known is None:
            # Two threads may compute the same findings at once. Both results are right.
            known = find(kind, chain, anchors, lists, self)
            self._chains.put(key, known, chain)
        return known

    def authorities(
        self, kind: VekKind, chain: ChainBytes, anchors: tuple[Anchor, ...]
    ) -> _Authorities:
        """Return what :func:`_find_authorities` returns, from the cache if possible."""
        above = ChainBytes(None, chain.intermediate, chain.root)
        key = (kind is VekKind.VCEK, above, self._content(anchors))
        known = self._authorities.get(key)
        if known is None:
            known = _find_authorities(kind, chain, anchors)
            self._authorities.put(key, known, above)
        return known

    def revocation(
        self, kind: VekKind, chain: ChainBytes, data: bytes, authorities: _Authorities
    ) -> CrlFindings:
        """Return what :func:`_judge_list` returns, from the cache if possible."""
        above = ChainBytes(None, chain.intermediate, chain.root)
        key = (kind is VekKind.VCEK, above, _list_key(data))
        known = self._lists.get(key)
        if known is None:
            known = _judge_list(kind, data, authorities)
            self._lists.put(key, known, above)
        return known

    def _content(self, anchors: tuple[Anchor, ...]) -> tuple[object, ...]:
        """Return the anchors in a form that hashes quickly. The form of the anchors that were used
        last is cached.
        """
        last, content = self._trusted
        if last is not anchors:
            content = tuple(
                part
                for anchor in anchors
                for part in (anchor.product.value, anchor.spki_sha384, anchor.name)
            )
            self._trusted = (anchors, content)
        return content


class _FoundCache(Generic[_Found]):
    """A cache of findings by key, which drops the least recently used findings."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._known: OrderedDict[object, _Found] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: object) -> _Found | None:
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
            return known

    def put(self, key: object, found: _Found, chain: ChainBytes) -> None:
        if sum(len(part) for part in chain if part is not None) > MAX_REMEMBERED_SIZE:
            return
        with self._lock:
            self._known[key] = found
            self._known.move_to_end(key)
            while len(self._known) > self._limit:
                self._known.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _Authorities:
    """The issuer and the root of a chain, and their problems."""

    ask: Certificate | None
    ark: Certificate | None
    anchor: Anchor | None
    unloaded: tuple[Reason, ...]
    reasons: tuple[Reason, ...]


def find(
    kind: VekKind,
    certificates: ChainBytes,
    anchors: Sequence[Anchor],
    revocation_lists: Sequence[bytes] = (),
    memory: JudgeMemory | None = None,
) -> Findings:
    """Parse and judge certificates that should endorse a key of this ``kind``.

    The result's first reasons are for certificates that are missing or cannot be parsed, the next
    ones for the leaf. If ``memory`` already has findings about the authorities or the revocation
    lists, those are used.
    """
    reasons: list[Reason] = []
    loaded = _load(certificates.leaf, kind.name, *_LEAF_CODES[kind], reasons)
    authorities = (
        _find_authorities(kind, certificates, tuple(anchors))
        if memory is None
        else memory.authorities(kind, certificates, tuple(anchors))
    )
    reasons += authorities.unloaded
    leaf, key = (None, None) if loaded is None else _read_leaf(loaded, kind, reasons)
    product = None if leaf is None else leaf.product
    chain = Chain(kind, loaded, authorities.ask, authorities.ark, product)
    reasons += check_leaf(chain)
    reasons += authorities.reasons
    reasons += check_products(chain)
    lists = tuple(
        _judge_list(kind, data, authorities)
        if memory is None
        else memory.revocation(kind, certificates, data, authorities)
        for data in revocation_lists
    )
    # A revocation that is in several lists gives only one reason.
    reasons += dict.fromkeys(reason for each in lists for reason in each.revoked)
    windows = windows_of(chain)
    facts = ChainFacts(
        of_no_chip=kind is VekKind.VLEK,
        leaf=loaded is not None,
        intermediate=authorities.ask is not None,
        root=authorities.ark is not None,
        leaf_read=leaf is not None,
        key_read=key is not None,
    )
    return Findings(
        leaf, key, tuple(reasons), windows, facts, authorities.anchor, lists, _in_force(windows)
    )


_LEAF_CODES: Final = {
    VekKind.VCEK: (ReasonCode.VCEK_MISSING, ReasonCode.VCEK_UNREADABLE),
    VekKind.VLEK: (ReasonCode.VLEK_MISSING, ReasonCode.VLEK_UNREADABLE),
}
_ASK_CODES: Final = (ReasonCode.ASK_MISSING, ReasonCode.ASK_UNREADABLE)
_ARK_CODES: Final = (ReasonCode.ARK_MISSING, ReasonCode.ARK_UNREADABLE)


def _find_authorities(
    kind: VekKind, certificates: ChainBytes, anchors: tuple[Anchor, ...]
) -> _Authorities:
    unloaded: list[Reason] = []
    ask = _load(certificates.intermediate, _ask_name(kind), *_ASK_CODES, unloaded)
    root = certificates.root
    pinned = root is not None and _is_pinned(root, anchors)
    ark = _load(root, "ARK", *_ARK_CODES, unloaded, pinned=pinned)
    reasons = check_authorities(Chain(kind, None, ask, ark), anchors, self_signed=pinned)
    anchor = None if ark is None else anchor_of(ark, anchors)
    return _Authorities(ask, ark, anchor, tuple(unloaded), reasons)


def _is_pinned(root: bytes, anchors: tuple[Anchor, ...]) -> bool:
    """Return whether ``root`` is an anchor's own certificate. Its self-signature was checked when
    the anchor was made. This alone does not make the root trusted: its key is compared with the
    anchors' keys, like any other root's.
    """
    if len(root) > _SHORT_ROOT:
        return False
    digest = hashlib.sha384(root).digest()
    return any(anchor.certificate_sha384 == digest for anchor in anchors)


# A program has few anchors, so a small cache is enough. A cached certificate also saves time later,
# because its public-key object retains what the library computed at the key's first use.
_read_pinned = functools.lru_cache(maxsize=8)(load_certificate)


def _ask_name(kind: VekKind) -> str:
    return "ASK" if kind is VekKind.VCEK else "ASVK"


def _judge_list(kind: VekKind, data: bytes, authorities: _Authorities) -> CrlFindings:
    ark = authorities.ark
    data = bytes(data)
    try:
        if len(data) > _LONG_LIST and (ark is None or not bears_signature(data, ark)):
            doubt = Reason(ReasonCode.CRL_SIGNATURE, "the CRL is not signed by the ARK's key")
            return CrlFindings(False, () if ark is None else (doubt,))
        crl = load_crl(data)
    except FormatError as error:
        return CrlFindings(False, (Reason(ReasonCode.CRL_UNREADABLE, str(error)),))
    return judge_list(kind, crl, authorities.ask, ark)


def judge_list(
    kind: VekKind,
    crl: RevocationList,
    intermediate: Certificate | None,
    root: Certificate | None,
) -> CrlFindings:
    """Judge everything about a revocation list that does not depend on the time.

    ``root`` is the ARK that should have signed the list; None if it is not available.
    """
    issuer = parse_ca_name(crl.issuer_common_name)
    product = None if issuer is None else issuer.product
    times = (product, crl.this_update, crl.next_update)
    if root is None:
        return CrlFindings(False, (), (), *times)
    problems = check_crl(crl, root, intermediate, _ask_name(kind))
    revoked = tuple(each for each in problems if each.code in REVOKED)
    doubts = tuple(each for each in problems if each.code not in REVOKED)
    return CrlFindings(not doubts, doubts, revoked, *times)


def revocations(
    kind: VekKind, crl: bytes | None, intermediate: Certificate, root: Certificate
) -> tuple[Reason, ...]:
    """Return one reason for each certificate, intermediate or root, that the revocation list
    revokes.

    ``crl`` is the list in DER or PEM, or None. A list that the root did not sign is ignored. An old
    list still counts, because a revocation is permanent.
    """
    if crl is None:
        return ()
    try:
        return judge_list(kind, load_crl(crl), intermediate, root).revoked
    except FormatError:
        return ()


def judge_authorities(
    kind: VekKind,
    product: Product,
    intermediate: Certificate,
    root: Certificate,
    anchors: Sequence[Anchor],
    at: datetime,
) -> tuple[Reason, ...]:
    """Return every problem, at ``at``, of two certificates that should be the product's ASK (or
    ASVK) and its trusted ARK.
    """
    chain = Chain(kind, None, intermediate, root, product)
    late = (window.problem_at(at) for window in windows_of(chain))
    return (*check_chain(chain, anchors), *(reason for reason in late if reason is not None))


def _in_force(windows: Sequence[Window]) -> tuple[datetime, datetime]:
    """Return the period in which all certificates are valid. Without certificates, the period is
    unlimited.
    """
    spans = [(window.not_before, window.not_after) for window in windows]
    firsts, lasts = zip(*spans, _ALWAYS, strict=True)
    return max(firsts), min(lasts)


def _list_key(data: bytes) -> _ListKey:
    """Return the key under which findings about a revocation list are cached.

    A long list's key is a digest, so that the list itself is not kept.
    """
    if len(data) <= _SHORT_LIST:
        return bytes(data)
    return "sha384", hashlib.sha384(data).digest()


def _load(
    data: bytes | None,
    name: str,
    missing: ReasonCode,
    unreadable: ReasonCode,
    reasons: list[Reason],
    *,
    pinned: bool = False,
) -> Certificate | None:
    if data is None:
        reasons.append(Reason(missing, f"the {name} is missing"))
        return None
    try:
        return _read_pinned(data, name) if pinned else load_certificate(data, name)
    except FormatError as error:
        reasons.append(Reason(unreadable, str(error)))
        return None


def _read_leaf(
    certificate: Certificate, kind: VekKind, reasons: list[Reason]
) -> tuple[EndorsementCert | None, ec.EllipticCurvePublicKey | None]:
    try:
        key = p384_key(certificate, kind.name)
    except FormatError as error:
        reasons.append(Reason(ReasonCode.LEAF_KEY, str(error)))
        return None, None
    try:
        return EndorsementCert.from_certificate(certificate, key), key
    except FormatError as error:
        reasons.append(Reason(ReasonCode.LEAF_PROFILE, str(error)))
        return None, key


def mismatches(
    leaf: EndorsementCert,
    *,
    product: Product | None,
    hwid: bytes | None,
    tcb: TcbVersion | None,
    expected_by: str,
) -> Iterator[Reason]:
    """Yield the reasons why a leaf is not for the expected key: its product, chip or TCB differs.

    A value of None is unknown and not compared. ``hwid`` is the significant bytes of the chip ID; a
    VLEK is not compared with them. Every component of the TCB must be equal, because each TCB has
    its own key. ``expected_by`` says in messages what the leaf is compared with, such as "the
    report".
    """
    if product is not None and product is not leaf.product:
        yield Reason(
            ReasonCode.PRODUCT_MISMATCH,
            (
                f"{expected_by} is for {product.value}, but the {leaf.kind.name} is for "
                f"{leaf.product.value}"
            ),
        )
    if hwid is not None and leaf.hwid is not None and hwid != leaf.hwid:
        yield Reason(
            ReasonCode.CHIP_ID_MISMATCH,
            (
                f"the chip ID of {expected_by} starts with {hwid[:8].hex()}, but the "
                f"{leaf.kind.name}'s hwID starts with {leaf.hwid[:8].hex()}"
            ),
        )
    if tcb is None or tcb == leaf.tcb:
        return
    certified = leaf.tcb.components()
    expected = tcb.components()
    for name in dict.fromkeys((*expected, *certified)):
        if expected.get(name) != certified.get(name):
            yield Reason(
                ReasonCode.TCB_MISMATCH,
                (
                    f"{name}: {expected_by} has {_level(expected, name)}, but the "
                    f"{leaf.kind.name} is for {_level(certified, name)}"
                ),
            )


def _level(components: dict[str, int], name: str) -> str:
    return str(components[name]) if name in components else "none"


@dataclass(frozen=True, slots=True)
class Judgement:
    """Every problem of the certificates for a key, at one time.

    ``leaf`` is None if the leaf cannot be parsed. ``not_after`` is the time at which the first of
    the certificates expires.
    """

    leaf: EndorsementCert | None
    not_after: datetime | None
    reasons: tuple[Reason, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether the certificates certify the key, without any problem."""
        return not self.reasons

    @property
    def wrong(self) -> tuple[Reason, ...]:
        """The problems that have nothing to do with expiry or revocation, such as another key or an
        untrusted root.
        """
        timely = (*EXPIRED, *REVOKED, *NOT_YET_VALID)
        return tuple(each for each in self.reasons if each.code not in timely)

    @property
    def lapsed(self) -> tuple[Reason, ...]:
        """The problems of certificates that are no longer valid: expired or revoked."""
        return tuple(each for each in self.reasons if each.code in (*EXPIRED, *REVOKED))

    @property
    def early(self) -> tuple[Reason, ...]:
        """The problems of certificates that are not valid yet.

        Such certificates have been issued already, so the clock must be behind.
        """
        return tuple(each for each in self.reasons if each.code in NOT_YET_VALID)


class ChipJudge:
    """Judges certificates for the keys of one chip, with a set of trusted roots.

    ``hwid`` is the significant bytes of the chip ID. ``expected_by`` says in messages what the leaf
    is compared with. ``known_crl`` returns the known revocation list for a kind of key, or None. A
    list that the root did not sign is ignored. An old list still counts.
    """

    def __init__(
        self,
        product: Product,
        hwid: bytes,
        anchors: Sequence[Anchor],
        known_crl: Callable[[VekKind], bytes | None] = lambda _: None,
        *,
        expected_by: str = "the firmware",
        memory: JudgeMemory | None = None,
    ) -> None:
        self.product = product
        self.hwid = hwid
        self.anchors = tuple(anchors)
        self._known_crl = known_crl
        self._expected_by = expected_by
        self._memory = _shared if memory is None else memory

    def judge(self, chain: ChainBytes, kind: VekKind, tcb: TcbVersion, at: datetime) -> Judgement:
        """Return every problem of the chain for that key at ``at``, a time with a time zone."""
        crl = self._known_crl(kind)
        lists = () if crl is None else (crl,)
        findings = self._memory.findings(kind, chain, self.anchors, lists)
        reasons: tuple[Reason, ...] = ()
        if findings.leaf is not None:
            reasons = tuple(
                mismatches(
                    findings.leaf,
                    product=self.product,
                    hwid=self.hwid,
                    tcb=tcb,
                    expected_by=self._expected_by,
                )
            )
        ends = [window.not_after for window in findings.windows]
        reasons += findings.reasons_at(at)
        return Judgement(findings.leaf, min(ends, default=None), reasons)


_shared = JudgeMemory(limit=64)
