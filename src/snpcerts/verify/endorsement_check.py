# SPDX-License-Identifier: Apache-2.0
"""Judge the certificates behind a report, and remember what does not change.

A host serves the same three certificates with every report, and reading and
checking them costs several times what checking one report does. So what was
found is remembered by content: the bytes of each certificate and the anchors.
Only findings that no clock can change are kept; validity is judged each time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from snpcerts.endorsement.anchors import Anchor
from snpcerts.endorsement.certificate import common_name, load_certificate
from snpcerts.endorsement.chain import Chain, Place, Window, check_chain, windows_of
from snpcerts.endorsement.crl import RevocationList, check_crl, crl_problem_at, load_crl
from snpcerts.endorsement.vek import EndorsementCert, VekKind, p384_key
from snpcerts.errors import FormatError
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.reason import Reason, ReasonCode

# A fleet has one chain per chip and TCB. Some 5 KB each, unless a hostile host sends large ones.
REMEMBERED = 256
# What is larger in all is judged and not remembered.
MAX_REMEMBERED_SIZE = 64 << 10

_Key = tuple[bool, tuple[bytes | None, ...], tuple[Anchor, ...]]


@dataclass(frozen=True, slots=True)
class EndorsementFindings:
    """What holds of a set of certificates at all times.

    ``key`` is the leaf's, there whenever a P-384 key could be read: a report
    signed with it is worth telling from one that is not, whatever else is
    wrong. It says nothing about trust; ``reasons`` does. ``crl`` is the
    revocation list, None where there is none or it cannot be read.
    """

    leaf: EndorsementCert | None
    key: ec.EllipticCurvePublicKey | None
    reasons: tuple[Reason, ...]
    windows: tuple[Window, ...]
    places: frozenset[Place]
    crl: RevocationList | None = None

    def reasons_at(self, at: datetime) -> tuple[Reason, ...]:
        """Everything wrong at that time, which has a time zone."""
        reasons = list(self.reasons)
        for window in self.windows:
            problem = window.problem_at(at)
            if problem is not None:
                reasons.append(Reason(ReasonCode(problem.fault.value), problem.message))
        stale = None if self.crl is None else crl_problem_at(self.crl, at)
        if stale is not None:
            reasons.append(Reason(ReasonCode(stale.fault.value), stale.message))
        return tuple(reasons)


class EndorsementMemory:
    """Findings about the chains seen last. Bounded, and safe to share among threads."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._known: OrderedDict[_Key, EndorsementFindings] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def findings(
        self, kind: VekKind, collateral: Collateral, anchors: Sequence[Anchor]
    ) -> EndorsementFindings:
        """As :func:`find`, from memory where the same was asked before."""
        key = (kind is VekKind.VCEK, _parts(kind, collateral), tuple(anchors))
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
                return known
        # Two threads may find out the same thing at once: both get it right.
        found = find(kind, collateral, anchors)
        if sum(len(part) for part in key[1] if part is not None) > MAX_REMEMBERED_SIZE:
            return found
        with self._lock:
            self._known[key] = found
            self._known.move_to_end(key)
            while len(self._known) > self._limit:
                self._known.popitem(last=False)
        return found


def find(kind: VekKind, collateral: Collateral, anchors: Sequence[Anchor]) -> EndorsementFindings:
    """Read and judge the certificates that should endorse a key of that kind."""
    reasons: list[Reason] = []
    leaf_bytes, ask_bytes, ark_bytes, _ = _parts(kind, collateral)
    loaded = _load(leaf_bytes, kind.value, kind.name, reasons)
    ask_name = "ASK" if kind is VekKind.VCEK else "ASVK"
    ask = _load(ask_bytes, "ask", ask_name, reasons)
    ark = _load(ark_bytes, "ark", "ARK", reasons)
    leaf, key = (None, None) if loaded is None else _read_leaf(loaded, kind, reasons)
    chain = Chain(kind, loaded, ask, ark, None if leaf is None else leaf.product)
    reasons += (
        Reason(ReasonCode(problem.fault.value), problem.message)
        for problem in check_chain(chain, anchors)
    )
    crl = _load_crl(collateral.crl, reasons)
    if crl is not None and ark is not None:
        reasons += (
            Reason(ReasonCode(problem.fault.value), problem.message)
            for problem in check_crl(crl, ark, ask, ask_name)
        )
    windows = windows_of(chain)
    places = frozenset(window.place for window in windows)
    return EndorsementFindings(leaf, key, tuple(reasons), windows, places, crl)


def _parts(
    kind: VekKind, collateral: Collateral
) -> tuple[bytes | None, bytes | None, bytes | None, bytes | None]:
    parts = (leaf_of(kind, collateral), collateral.ask, collateral.ark, collateral.crl)
    # Callers may hand over a bytearray; of bytes this makes no copy.
    leaf, ask, ark, crl = (None if part is None else bytes(part) for part in parts)
    return leaf, ask, ark, crl


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
        return EndorsementCert.from_certificate(certificate), key
    except FormatError as error:
        reasons.append(Reason(ReasonCode.LEAF_PROFILE, str(error)))
        return None, key
