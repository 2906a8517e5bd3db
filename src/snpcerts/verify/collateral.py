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
    """The supplier of a revocation list, which decides what the list can do.

    A list from the host, or from another supplier of evidence, can only add revocations: a party
    that gains by hiding a revocation must not choose the list.
    """

    EVIDENCE = "evidence"  # it came with the report
    CALLER = "caller"  # from the relying party itself
    CACHE = "cache"  # from the key server, through the relying party's cache
    KEY_SERVER = "key-server"  # the same, but the server may be asked for a newer one


@dataclass(frozen=True, slots=True)
class SuppliedCrl:
    """A revocation list (DER or PEM), and what is known about its origin.

    ``origin`` is the file or URL, for messages. AMD's lists for VCEKs and VLEKs have the same
    issuer and look the same inside. Only the origin shows their ``kind``, which is None if unknown.
    ``obtained`` is the time when the key server returned the list, None if unknown. ``outage`` says
    why fetching a newer list failed, if that was tried.
    """

    data: bytes
    kind: VekKind | None
    supplier: Supplier
    origin: str
    obtained: datetime | None = None
    outage: str | None = None


@dataclass(frozen=True, slots=True)
class Collateral:
    """Certificates by slot, each DER or PEM; None for one that is not supplied.

    ``ask`` holds the ASK of a VCEK or the ASVK of a VLEK, as the ASK's slot in certificate tables
    does. Some hosts put a VLEK into the slot of the VCEK; if the VLEK's own slot is empty, it is
    taken from there. ``crl`` is a revocation list of unknown kind that came with the certificates:
    it may add revocations, but satisfies no demand. ``lists`` holds lists whose kind or origin is
    known. ``others`` holds certificates of unknown kind. If the certificates in the slots are
    wrong, all certificates are sorted by kind (:mod:`snpcerts.verify.choosing`).
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
        """Return the known entries of a certificate table and ignore others."""
        return cls(
            vcek=table.get(VCEK_GUID),
            vlek=table.get(VLEK_GUID),
            ask=table.get(ASK_GUID),
            ark=table.get(ARK_GUID),
            crl=table.get(CRL_GUID),
        )

    @property
    def empty(self) -> bool:
        """Whether it contains no certificate and no list."""
        return self == _EMPTY

    @property
    def all_lists(self) -> tuple[SuppliedCrl, ...]:
        """Every revocation list, starting with the one in the slot."""
        if self.crl is None:
            return self.lists
        own = SuppliedCrl(
            self.crl, None, Supplier.EVIDENCE, "the certificates that came with the report"
        )
        return (own, *self.lists)

    def leaf(self, kind: VekKind) -> bytes | None:
        """Return the leaf for a report signed by a key of that kind; see :func:`leaf_of_slots`."""
        return leaf_of_slots(kind, self.vcek, self.vlek)

    def chain(self, kind: VekKind) -> ChainBytes:
        """Return the chain for a report signed by a key of that kind."""
        return ChainBytes(self.leaf(kind), self.ask, self.ark)

    @property
    def parts(self) -> tuple[bytes, ...]:
        """All parts that may hold certificates, starting with the slots."""
        slots = (self.vcek, self.vlek, self.ask, self.ark)
        return (*(each for each in slots if each is not None), *self.others)

    @property
    def without_certificates(self) -> bool:
        """Whether there are no certificates to sort."""
        return not self.parts

    def without_crl(self) -> Collateral:
        """Return the certificates without the revocation lists."""
        return Collateral(self.vcek, self.vlek, self.ask, self.ark, others=self.others)

    def completed_by(self, other: Collateral) -> Collateral:
        """Return a copy in which ``other`` fills the missing parts.

        Nothing is lost: if a slot is occupied, the second certificate is added to ``others``. No
        revocation list replaces another.
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
