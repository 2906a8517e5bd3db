# SPDX-License-Identifier: Apache-2.0
"""Judge the certificates behind a report, and remember what does not change.

A host serves the same three certificates with every report, and reading and
checking them costs more than checking one report does. So what was found is
remembered by content: the bytes of each certificate and the anchors. What was
found of ASK, ARK and revocation list is remembered by itself too: they are the
same for all chips of a product, and make up most of the work for a new VCEK.
Only findings that no clock can change are kept; validity is judged each time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Generic, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from snpcerts.endorsement.anchors import Anchor
from snpcerts.endorsement.certificate import common_name, load_certificate
from snpcerts.endorsement.chain import (
    Chain,
    ChainProblem,
    Window,
    check_authorities,
    check_leaf,
    check_products,
    windows_of,
)
from snpcerts.endorsement.crl import (
    CrlProblem,
    RevocationList,
    check_crl,
    crl_problem_at,
    load_crl,
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

_Found = TypeVar("_Found")
_Parts = tuple[bytes | None, bytes | None, bytes | None, bytes | None]
_ALWAYS = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


@dataclass(frozen=True, slots=True)
class EndorsementFindings:
    """What holds of a set of certificates at all times.

    ``key`` is the leaf's, there whenever a P-384 key could be read: a report
    signed with it is worth telling from one that is not, whatever else is
    wrong. It says nothing about trust; ``reasons`` does. ``crl`` is the
    revocation list, None where there is none or it cannot be read. All of it is
    in force from the first time of ``in_force`` to the second, both inclusive.
    """

    leaf: EndorsementCert | None
    key: ec.EllipticCurvePublicKey | None
    reasons: tuple[Reason, ...]
    windows: tuple[Window, ...]
    facts: ChainFacts
    crl: RevocationList | None = None
    in_force: tuple[datetime, datetime] = _ALWAYS

    def reasons_at(self, at: datetime) -> tuple[Reason, ...]:
        """Everything wrong at that time, which has a time zone."""
        first, last = self.in_force
        if first <= at <= last:
            return self.reasons
        reasons = list(self.reasons)
        for window in self.windows:
            problem = window.problem_at(at)
            if problem is not None:
                reasons.append(Reason(ReasonCode(problem.fault.value), problem.message))
        stale = None if self.crl is None else crl_problem_at(self.crl, at)
        if stale is not None:
            reasons.append(Reason(ReasonCode(stale.fault.value), stale.message))
        return tuple(reasons)


NOTHING: Final = EndorsementFindings(None, None, (), (), ChainFacts())


class EndorsementMemory:
    """Findings about the chains seen last. Bounded, and safe to share among threads."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._chains: _Memory[EndorsementFindings] = _Memory(limit)
        self._authorities: _Memory[_Authorities] = _Memory(limit)
        self._trusted: tuple[tuple[Anchor, ...], tuple[object, ...]] = ((), ())

    def __len__(self) -> int:
        return len(self._chains)

    def findings(
        self, kind: VekKind, collateral: Collateral, anchors: Sequence[Anchor]
    ) -> EndorsementFindings:
        """As :func:`find`, from memory where the same was asked before."""
        parts = _parts(kind, collateral)
        anchors = tuple(anchors)
        key = (kind is VekKind.VCEK, parts, self._content(anchors))
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
    """Intermediate, root and revocation list, and what is wrong with each of them."""

    ask: x509.Certificate | None
    ark: x509.Certificate | None
    crl: RevocationList | None
    unloaded: tuple[Reason, ...]
    reasons: tuple[Reason, ...]
    crl_reasons: tuple[Reason, ...]


def find(
    kind: VekKind,
    collateral: Collateral,
    anchors: Sequence[Anchor],
    memory: EndorsementMemory | None = None,
) -> EndorsementFindings:
    """Read and judge the certificates that should endorse a key of that kind.

    Reasons are listed leaf first. ``memory`` may know the authorities.
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
    reasons += authorities.crl_reasons
    windows = windows_of(chain)
    facts = ChainFacts(
        of_no_chip=kind is VekKind.VLEK,
        leaf=loaded is not None,
        intermediate=authorities.ask is not None,
        root=authorities.ark is not None,
        leaf_read=leaf is not None,
        key_read=key is not None,
        crl_read=authorities.crl is not None,
    )
    crl = authorities.crl
    return EndorsementFindings(
        leaf, key, tuple(reasons), windows, facts, crl, _in_force(windows, crl)
    )


def _find_authorities(kind: VekKind, parts: _Parts, anchors: tuple[Anchor, ...]) -> _Authorities:
    _, ask_bytes, ark_bytes, crl_bytes = parts
    ask_name = "ASK" if kind is VekKind.VCEK else "ASVK"
    unloaded: list[Reason] = []
    ask = _load(ask_bytes, "ask", ask_name, unloaded)
    ark = _load(ark_bytes, "ark", "ARK", unloaded)
    reasons = _reasons(check_authorities(Chain(kind, None, ask, ark), anchors))
    of_crl: list[Reason] = []
    crl = _load_crl(crl_bytes, of_crl)
    if crl is not None and ark is not None:
        of_crl += _reasons(check_crl(crl, ark, ask, ask_name))
    return _Authorities(ask, ark, crl, tuple(unloaded), tuple(reasons), tuple(of_crl))


def _reasons(problems: Iterable[ChainProblem | CrlProblem]) -> Iterator[Reason]:
    return (Reason(ReasonCode(each.fault.value), each.message) for each in problems)


def _in_force(windows: Sequence[Window], crl: RevocationList | None) -> tuple[datetime, datetime]:
    """When none of them is out of date; nothing at all is in force always."""
    spans = [(window.not_before, window.not_after) for window in windows]
    if crl is not None:
        spans.append((crl.this_update, crl.next_update))
    firsts, lasts = zip(*spans, _ALWAYS, strict=True)
    return max(firsts), min(lasts)


def _parts(kind: VekKind, collateral: Collateral) -> _Parts:
    return (
        _as_bytes(leaf_of(kind, collateral)),
        _as_bytes(collateral.ask),
        _as_bytes(collateral.ark),
        _as_bytes(collateral.crl),
    )


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


def _load_crl(data: bytes | None, reasons: list[Reason]) -> RevocationList | None:
    if data is None:
        return None
    try:
        return load_crl(data)
    except FormatError as error:
        reasons.append(Reason(ReasonCode.CRL_UNREADABLE, str(error)))
        return None


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
