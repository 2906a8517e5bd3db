# SPDX-License-Identifier: Apache-2.0
"""The certificates and revocation lists for a report, as bytes that are not yet verified."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self

from snpcerts.abi.cert_table import ARK_GUID, ASK_GUID, CRL_GUID, VCEK_GUID, VLEK_GUID, CertTable
from snpcerts.endorsement.judge import ChainBytes, leaf_of_slots
from snpcerts.endorsement.vek import VekKind


class Supplier(enum.StrEnum):
    """Who supplied a revocation list. What the list may do depends on this.

    A list from the host, or from anyone else who supplies evidence, can only add revocations,
    because a party that gains by hiding a revocation must not choose the list.
    """

    EVIDENCE = "evidence"  # it came with the report
    CALLER = "caller"  # from the relying party itself
    CACHE = "cache"  # from the key server, through the relying party's cache
    KEY_SERVER = "key-server"  # the same, but the server may be asked for a newer one


@dataclass(frozen=True, slots=True)
class SuppliedCrl:
    """A revocation list (DER or PEM), and what is known about its origin.

    ``origin`` is the file or URL, for messages. ``kind`` says whether the list is for VCEKs or
    VLEKs, None if that is unknown. Only the origin shows the kind, because AMD's lists for both
    have the same issuer and the same form. ``obtained`` is the time when the key server returned
    the list, None if unknown. ``outage`` says why fetching a newer list failed, if that was tried.
    """

    data: bytes
    kind: VekKind | None
    supplier: Supplier
    origin: str
    obtained: datetime | None = None
    outage: str | None = None


@dataclass(frozen=True, slots=True)
class Collateral:
    """Certificates by slot, in DER or PEM. None means that a certificate was not supplied.

    ``ask`` holds the ASK of a VCEK or the ASVK of a VLEK, as the ASK's slot in certificate tables
    does. Some hosts put a VLEK into the VCEK's slot, so a VLEK in that slot is used if the VLEK's
    slot is empty. ``crl`` is a revocation list of unknown kind that came with the certificates;
    it may add revocations, but cannot meet a demand for a list. ``lists`` holds the revocation
    lists whose kind or origin is known. ``others`` holds certificates of unknown kind. If the
    certificates in the slots are wrong, all certificates are sorted by kind
    (:mod:`snpcerts.verify.choosing`).
    """

    vcek: bytes | None = None
    vlek: bytes | None = None
    ask: bytes | None = None
    ark: bytes | None = None
    crl: bytes | None = None
    lists: tuple[SuppliedCrl, ...] = ()
    others: tuple[bytes, ...] = ()

    @classmethod
    def from_table(cls, table: CertTable) -> Self:
        """Return the entries of a certificate table that have known GUIDs."""
        return cls(
            vcek=table.get(VCEK_GUID),
            vlek=table.get(VLEK_GUID),
            ask=table.get(ASK_GUID),
            ark=table.get(ARK_GUID),
            crl=table.get(CRL_GUID),
        )

    @property
    def empty(self) -> bool:
        """Whether this contains no certificate and no revocation list."""
        return self == _EMPTY

    @property
    def all_lists(self) -> tuple[SuppliedCrl, ...]:
        """All revocation lists, the one in the slot ``crl`` first."""
        if self.crl is None:
            return self.lists
        own = SuppliedCrl(
            self.crl, None, Supplier.EVIDENCE, "the certificates that came with the report"
        )
        return (own, *self.lists)

    def leaf(self, kind: VekKind) -> bytes | None:
        """Return the leaf for a report signed by a key of this kind; see :func:`leaf_of_slots`."""
        return leaf_of_slots(kind, self.vcek, self.vlek)

    def chain(self, kind: VekKind) -> ChainBytes:
        """Return the chain for a report signed by a key of this kind."""
        return ChainBytes(self.leaf(kind), self.ask, self.ark)

    @property
    def parts(self) -> tuple[bytes, ...]:
        """The bytes of everything that may hold certificates, the slots first."""
        slots = (self.vcek, self.vlek, self.ask, self.ark)
        return (*(each for each in slots if each is not None), *self.others)

    @property
    def without_certificates(self) -> bool:
        """Whether this contains no certificate."""
        return not self.parts

    def without_crl(self) -> Collateral:
        """Return a copy without the revocation lists."""
        return Collateral(self.vcek, self.vlek, self.ask, self.ark, others=self.others)

    def completed_by(self, other: Collateral) -> Collateral:
        """Return a copy in which the certificates of ``other`` fill the empty slots.

        If a slot is occupied, the certificate of ``other`` is added to ``others`` instead. The
        revocation lists of both are kept.
        """
        slots = ("vcek", "vlek", "ask", "ark")
        kept = {
            slot: getattr(other, slot) if getattr(self, slot) is None else getattr(self, slot)
            for slot in slots
        }
        lists = self.all_lists
        lists += tuple(each for each in other.all_lists if each not in lists)
        held = {*kept.values(), *self.others}
        others = (*self.others, *(each for each in other.parts if each not in held))
        return replace(self, **kept, crl=None, lists=lists, others=others)


_EMPTY = Collateral()
