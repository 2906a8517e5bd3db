# SPDX-License-Identifier: Apache-2.0
"""Does this table certify that key of this chip, from a root that is trusted?

The one gate through which everything passes that the agent publishes, whoever
it came from: the key server, a cache, the operator, the file itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from snpcerts.abi.cert_table import ARK_GUID, ASK_GUID, VCEK_GUID, VLEK_GUID, CertTable
from snpcerts.abi.product import Product
from snpcerts.endorsement.anchors import Anchor
from snpcerts.endorsement.vek import EndorsementCert, VekKind
from snpcerts.host.wanted import Key
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.endorsement_check import EndorsementMemory
from snpcerts.verify.reason import ReasonCode

_EXPIRED = "-expired"
_REVOKED = (ReasonCode.ASK_REVOKED, ReasonCode.ARK_REVOKED)
_memory = EndorsementMemory(limit=64)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is wrong with a table for a key.

    ``wrong`` is what makes it lie: another key, an untrusted root. ``lapsed``
    says what was right once: a certificate has expired or was revoked.
    ``early`` says that a certificate is not valid yet: since it was issued
    before it came here, the clock must be behind.
    """

    leaf: EndorsementCert | None
    not_after: datetime | None  # of the certificate that expires first
    wrong: tuple[str, ...] = ()
    lapsed: tuple[str, ...] = ()
    early: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Nothing is wrong: it may be published."""
        return not self.wrong and not self.lapsed and not self.early


class Judge:
    """Judges tables for one chip, by a set of trusted roots.

    ``known_crl`` gives the revocation list at hand for a kind of key, or None.
    One that is not its root's says nothing; an old one still does.
    """

    def __init__(
        self,
        product: Product,
        hwid: bytes,
        anchors: Sequence[Anchor],
        known_crl: Callable[[VekKind], bytes | None] = lambda _: None,
    ) -> None:
        self.product = product
        self.hwid = hwid
        self.anchors = tuple(anchors)
        self._known_crl = known_crl

    def judge(self, table: CertTable, key: Key, at: datetime) -> Judgement:
        """All that is wrong with ``table`` for ``key`` at that time, which has a time zone."""
        # A revocation list is another entry of the table, not part of what certifies a key.
        collateral = Collateral(
            vcek=table.get(VCEK_GUID),
            vlek=table.get(VLEK_GUID),
            ask=table.get(ASK_GUID),
            ark=table.get(ARK_GUID),
        )
        findings = _memory.findings(key.kind, collateral, self.anchors)
        wrong = [str(reason) for reason in findings.reasons]
        lapsed = [] if wrong else self._revoked(key.kind, collateral)
        early: list[str] = []
        for problem in (window.problem_at(at) for window in findings.windows):
            if problem is not None:
                late = problem.fault.value.endswith(_EXPIRED)
                (lapsed if late else early).append(str(problem))
        leaf = findings.leaf
        if leaf is not None:
            wrong += self._mismatches(leaf, key)
        ends = [window.not_after for window in findings.windows]
        return Judgement(leaf, min(ends, default=None), tuple(wrong), tuple(lapsed), tuple(early))

    def _revoked(self, kind: VekKind, collateral: Collateral) -> list[str]:
        crl = self._known_crl(kind)
        if crl is None:
            return []
        found = _memory.findings(kind, replace(collateral, crl=crl), self.anchors)
        return [str(reason) for reason in found.reasons if reason.code in _REVOKED]

    def _mismatches(self, leaf: EndorsementCert, key: Key) -> list[str]:
        found: list[str] = []
        if leaf.product is not self.product:
            found.append(f"it is for {leaf.product.value}, this is {self.product.value}")
        if leaf.tcb != key.tcb:
            found.append(f"it is for TCB {leaf.tcb}, the firmware reports {key.tcb}")
        if key.kind is VekKind.VCEK and leaf.hwid is not None and leaf.hwid != self.hwid:
            found.append(
                f"it is for the chip {leaf.hwid[:8].hex()}..., this is {self.hwid[:8].hex()}..."
            )
        return found
