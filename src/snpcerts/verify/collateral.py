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
    """Who supplies a revocation list, which decides what it may do.

    The word of a host, or of anybody else who hands over evidence, may only add
    revocations: whoever gains by hiding one must not choose the list.
    """

    EVIDENCE = "evidence"  # it came with the report
    CALLER = "caller"  # the relying party's own
    CACHE = "cache"  # the key server's, out of the relying party's cache
    KEY_SERVER = "key-server"  # the same, and the server may be asked for a newer one


@dataclass(frozen=True, slots=True)
class SuppliedCrl:
    """A revocation list (DER or PEM), and what is known of it from where it came.

    ``origin`` names the place for people: a file, a URL. AMD's lists for VCEKs and
    VLEKs have one issuer, and nothing inside tells them apart: ``kind`` is known
    from the origin alone, and None where it is not. ``obtained`` is when the key
    server gave it, None where that is not known. ``outage`` says why nothing newer
    could be had, where that was tried.
    """

    data: bytes
    kind: VekKind | None
    supplier: Supplier
    origin: str
    obtained: datetime | None = None
    outage: str | None = None


@dataclass(frozen=True, slots=True)
class Collateral:
    """Certificates by slot, each DER or PEM; None for what is not supplied.

    ``ask`` holds the ASK of a VCEK or the ASVK of a VLEK, which share a slot in
    certificate tables too. Some hosts put a VLEK into the slot of the VCEK: it is
    taken from there where its own is empty. ``crl`` is a revocation list that came
    with the certificates, of unknown kind: it may add revocations and satisfies no
    demand. ``lists`` are those of which more is known.
    """

    vcek: bytes | None = None
    vlek: bytes | None = None
    ask: bytes | None = None
    ark: bytes | None = None
    crl: bytes | None = None
    lists: tuple[SuppliedCrl, ...] = ()

    @classmethod
    def from_table(cls, table: CertTable) -> Self:
        """The known entries of a certificate table; others are left aside."""
        return cls(
            vcek=table.get(VCEK_GUID),
            vlek=table.get(VLEK_GUID),
            ask=table.get(ASK_GUID),
            ark=table.get(ARK_GUID),
            crl=table.get(CRL_GUID),
        )

    @property
    def empty(self) -> bool:
        """Whether nothing is supplied."""
        return self == _EMPTY

    @property
    def all_lists(self) -> tuple[SuppliedCrl, ...]:
        """Every revocation list, that of the slot first."""
        if self.crl is None:
            return self.lists
        own = SuppliedCrl(self.crl, None, Supplier.EVIDENCE, "what came with the report")
        return (own, *self.lists)

    def leaf(self, kind: VekKind) -> bytes | None:
        """The leaf for a report signed by a key of that kind: see :func:`leaf_of_slots`."""
        return leaf_of_slots(kind, self.vcek, self.vlek)

    def chain(self, kind: VekKind) -> ChainBytes:
        """The chain for a report signed by a key of that kind."""
        return ChainBytes(self.leaf(kind), self.ask, self.ark)

    def without_crl(self) -> Collateral:
        """The certificates alone."""
        return Collateral(self.vcek, self.vlek, self.ask, self.ark)

    def completed_by(self, other: Collateral) -> Collateral:
        """These, and from ``other`` what is not supplied here.

        No revocation list takes the place of another: all of both are kept.
        """
        slots = ("vcek", "vlek", "ask", "ark")
        kept = {
            slot: getattr(other, slot) if getattr(self, slot) is None else getattr(self, slot)
            for slot in slots
        }
        lists = self.all_lists
        lists += tuple(each for each in other.all_lists if each not in lists)
        return replace(self, **kept, crl=None, lists=lists)


_EMPTY = Collateral()
