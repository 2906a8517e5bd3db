# SPDX-License-Identifier: Apache-2.0
"""Judge the certificates behind a report, and remember what does not change.

A host serves the same three certificates with every report, and reading and
checking them costs more than checking one report does. So what was found is
remembered by content: the bytes of each certificate and the anchors. What was
found of ASK and ARK is remembered by itself too, and so is what was found of each
revocation list: they are the same for all chips of a product, and make up most of
the work for a new VCEK. Only findings that no clock can change are kept; validity
is judged each time.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Generic, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from snpcerts.abi.product import Product
from snpcerts.endorsement.anchors import Anchor
from snpcerts.endorsement.ca_name import parse_ca_name
from snpcerts.endorsement.certificate import common_name, load_certificate
from snpcerts.endorsement.chain import (
    Chain,
    ChainProblem,
    Window,
    anchor_of,
    check_authorities,
    check_leaf,
    check_products,
    windows_of,
)
from snpcerts.endorsement.crl import (
    CrlFault,
    CrlProblem,
    bears_signature,
    check_crl,
    load_crl,
    untimely,
)
from snpcerts.endorsement.vek import EndorsementCert, VekKind, p384_key
from snpcerts.errors import FormatError
from snpcerts.verify.check import ChainFacts
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.reason import Reason, ReasonCode

# A fleet has one chain per chip and TCB. Some 5 KB each, unless a hostile host sends large ones.
REMEMBERED = 256
# What is larger in all is judged and not remembered.
MAX_REMEMBERED_SIZE = 64 << 10

# A list that is longer is not read before its signature has been checked.
_LONG_LIST: Final = 64 << 10
# One that is longer than this is remembered by its digest.
_SHORT_LIST: Final = 4 << 10

_Found = TypeVar("_Found")
# Leaf, intermediate, root; then what stands for each revocation list.
_Parts = tuple[bytes | None, bytes | None, bytes | None]
_ListKey = bytes | tuple[str, bytes]
_ALWAYS = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


@dataclass(frozen=True, slots=True)
class CrlFindings:
    """What holds of a revocation list at all times.

    ``believed`` says that the root signed it and that it was understood; where not,
    ``doubts`` say why, unless there was no root. ``revoked`` is what it withdraws of
    the chain. ``product`` is its issuer's. Times are None where it cannot be read.
    """

    believed: bool
    doubts: tuple[Reason, ...]
    revoked: tuple[Reason, ...] = ()
    product: Product | None = None
    this_update: datetime | None = None
    next_update: datetime | None = None

    def problems_at(self, at: datetime) -> tuple[Reason, ...]:
        """Why it is no current list of the root at that time, which has a time zone."""
        if self.this_update is None or self.next_update is None:
            return self.doubts
        late = untimely(self.this_update, self.next_update, at)
        return self.doubts if late is None else (*self.doubts, *_reasons((late,)))


@dataclass(frozen=True, slots=True)
class EndorsementFindings:
    """What holds of a set of certificates at all times.

    ``key`` is the leaf's, there whenever a P-384 key could be read: a report
    signed with it is worth telling from one that is not, whatever else is
    wrong. It says nothing about trust; ``reasons`` does: what is wrong with the
    chain, and what any believed list withdraws of it, however old that list is.
    ``anchor`` is the trusted root that the ARK is, if it is one. ``lists`` are the
    revocation lists in the order they were given. The certificates are in force
    from the first time of ``in_force`` to the second, both inclusive.
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
        """Everything wrong with the chain at that time, which has a time zone."""
        first, last = self.in_force
        if first <= at <= last:
            return self.reasons
        reasons = list(self.reasons)
        for window in self.windows:
            problem = window.problem_at(at)
            if problem is not None:
                reasons.append(Reason(ReasonCode(problem.fault.value), problem.message))
        return tuple(reasons)


NOTHING: Final = EndorsementFindings(None, None, (), (), ChainFacts())


class EndorsementMemory:
    """Findings about the chains seen last. Bounded, and safe to share among threads."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._chains: _Memory[EndorsementFindings] = _Memory(limit)
        self._authorities: _Memory[_Authorities] = _Memory(limit)
        self._lists: _Memory[CrlFindings] = _Memory(limit)
        self._trusted: tuple[tuple[Anchor, ...], tuple[object, ...]] = ((), ())

    def __len__(self) -> int:
        return len(self._chains)

    def findings(
        self, kind: VekKind, collateral: Collateral, anchors: Sequence[Anchor]
    ) -> EndorsementFindings:
        """As :func:`find`, from memory where the same was asked before."""
        parts = _parts(kind, collateral)
        given = collateral.all_lists
        lists = tuple(_list_key(each.data) for each in given) if given else ()
        anchors = tuple(anchors)
        key = (kind is VekKind.VCEK, parts, lists, self._content(anchors))
        known = self._chains.get(key)
        if known is None:
            # Two threads may find out the same thing at once: both get it right.
            known = find(kind, collateral, anchors, self)
            self._chains.put(key, known, parts)
        return known

    def authorities(
        self, kind: VekKind, parts: _Parts, anchors: tuple[Anchor, ...]
    ) -> _Authorities:
        """As :func:`_find_authorities`, from memory where the same was asked before."""
        parts = (None, *parts[1:])
        key = (kind is VekKind.VCEK, parts, self._content(anchors))
        known = self._authorities.get(key)
        if known is None:
            known = _find_authorities(kind, parts, anchors)
            self._authorities.put(key, known, parts)
        return known

    def revocation(
        self, kind: VekKind, parts: _Parts, data: bytes, authorities: _Authorities
    ) -> CrlFindings:
        """As :func:`_judge_list`, from memory where the same was asked before."""
        parts = (None, *parts[1:])
        key = (kind is VekKind.VCEK, parts, _list_key(data))
        known = self._lists.get(key)
        if known is None:
            known = _judge_list(kind, data, authorities)
            self._lists.put(key, known, parts)
        return known

    def _content(self, anchors: tuple[Anchor, ...]) -> tuple[object, ...]:
        """What anchors say, in values whose hashes take no time; mostly those asked about last."""
        last, content = self._trusted
        if last is not anchors:
            content = tuple(
                part
                for anchor in anchors
                for part in (anchor.product.value, anchor.spki_sha384, anchor.name)
            )
            self._trusted = (anchors, content)
        return content


class _Memory(Generic[_Found]):
    """What was found, by key; forgets what was not asked for longest."""

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

    def put(self, key: object, found: _Found, parts: _Parts) -> None:
        if sum(len(part) for part in parts if part is not None) > MAX_REMEMBERED_SIZE:
            return
        with self._lock:
            self._known[key] = found
            self._known.move_to_end(key)
            while len(self._known) > self._limit:
                self._known.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _Authorities:
    """Intermediate and root, and what is wrong with each of them."""

    ask: x509.Certificate | None
    ark: x509.Certificate | None
    anchor: Anchor | None
    unloaded: tuple[Reason, ...]
    reasons: tuple[Reason, ...]


def find(
    kind: VekKind,
    collateral: Collateral,
    anchors: Sequence[Anchor],
    memory: EndorsementMemory | None = None,
) -> EndorsementFindings:
    """Read and judge the certificates that should endorse a key of that kind.

    Reasons are listed leaf first. ``memory`` may know the authorities and lists.
    """
    reasons: list[Reason] = []
    parts = _parts(kind, collateral)
    loaded = _load(parts[0], kind.value, kind.name, reasons)
    authorities = (
        _find_authorities(kind, parts, tuple(anchors))
        if memory is None
        else memory.authorities(kind, parts, tuple(anchors))
    )
    reasons += authorities.unloaded
    leaf, key = (None, None) if loaded is None else _read_leaf(loaded, kind, reasons)
    product = None if leaf is None else leaf.product
    chain = Chain(kind, loaded, authorities.ask, authorities.ark, product)
    reasons += _reasons(check_leaf(chain))
    reasons += authorities.reasons
    reasons += _reasons(check_products(chain))
    lists = tuple(
        _judge_list(kind, each.data, authorities)
        if memory is None
        else memory.revocation(kind, parts, each.data, authorities)
        for each in collateral.all_lists
    )
    # Two lists that withdraw the same certificate are one reason.
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
    return EndorsementFindings(
        leaf, key, tuple(reasons), windows, facts, authorities.anchor, lists, _in_force(windows)
    )


def _find_authorities(kind: VekKind, parts: _Parts, anchors: tuple[Anchor, ...]) -> _Authorities:
    _, ask_bytes, ark_bytes = parts
    unloaded: list[Reason] = []
    ask = _load(ask_bytes, "ask", _ask_name(kind), unloaded)
    ark = _load(ark_bytes, "ark", "ARK", unloaded)
    reasons = _reasons(check_authorities(Chain(kind, None, ask, ark), anchors))
    anchor = None if ark is None else anchor_of(ark, anchors)
    return _Authorities(ask, ark, anchor, tuple(unloaded), tuple(reasons))


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
    issuer = parse_ca_name(crl.issuer_common_name)
    product = None if issuer is None else issuer.product
    times = (product, crl.this_update, crl.next_update)
    if ark is None:
        return CrlFindings(False, (), (), *times)
    problems = check_crl(crl, ark, authorities.ask, _ask_name(kind))
    revoked = [each for each in problems if each.fault in _REVOKED]
    doubts = [each for each in problems if each.fault not in _REVOKED]
    return CrlFindings(not doubts, tuple(_reasons(doubts)), tuple(_reasons(revoked)), *times)


_REVOKED: Final = frozenset({CrlFault.ASK_REVOKED, CrlFault.ARK_REVOKED})


def _reasons(problems: Iterable[ChainProblem | CrlProblem]) -> Iterator[Reason]:
    return (Reason(ReasonCode(each.fault.value), each.message) for each in problems)


def _in_force(windows: Sequence[Window]) -> tuple[datetime, datetime]:
    """When none of them is out of date; nothing at all is in force always."""
    spans = [(window.not_before, window.not_after) for window in windows]
    firsts, lasts = zip(*spans, _ALWAYS, strict=True)
    return max(firsts), min(lasts)


def _parts(kind: VekKind, collateral: Collateral) -> _Parts:
    return (
        _as_bytes(leaf_of(kind, collateral)),
        _as_bytes(collateral.ask),
        _as_bytes(collateral.ark),
    )


def _list_key(data: bytes) -> _ListKey:
    """What stands for a list in memory: a long one is not kept for it."""
    if len(data) <= _SHORT_LIST:
        return bytes(data)
    return "sha384", hashlib.sha384(data).digest()


def _as_bytes(part: bytes | None) -> bytes | None:
    # Callers may hand over a bytearray; of bytes this makes no copy.
    return None if part is None else bytes(part)


def leaf_of(kind: VekKind, collateral: Collateral) -> bytes | None:
    """The leaf for a report signed by a key of that kind.

    Some hosts put a VLEK into the VCEK's slot of their table.
    """
    if kind is VekKind.VCEK:
        return collateral.vcek
    misplaced = collateral.vcek
    if collateral.vlek is None and misplaced is not None and _is_of_kind(kind, misplaced):
        return misplaced
    return collateral.vlek


def _is_of_kind(kind: VekKind, data: bytes) -> bool:
    try:
        certificate = load_certificate(data, kind.name)
    except FormatError:
        return False
    return common_name(certificate.subject) == kind.common_name


def _load(
    data: bytes | None, slot: str, name: str, reasons: list[Reason]
) -> x509.Certificate | None:
    if data is None:
        reasons.append(Reason(ReasonCode(f"{slot}-missing"), f"the {name} is not supplied"))
        return None
    try:
        return load_certificate(data, name)
    except FormatError as error:
        reasons.append(Reason(ReasonCode(f"{slot}-unreadable"), str(error)))
        return None


def _read_leaf(
    certificate: x509.Certificate, kind: VekKind, reasons: list[Reason]
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
