# SPDX-License-Identifier: Apache-2.0
"""The certificates that come with a report, as bytes nobody has judged yet."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

from snpcerts.abi.cert_table import ARK_GUID, ASK_GUID, CRL_GUID, VCEK_GUID, VLEK_GUID, CertTable


@dataclass(frozen=True, slots=True)
class Collateral:
    """Certificates by slot, each DER or PEM; None for what is not supplied.

    ``ask`` holds the ASK of a VCEK or the ASVK of a VLEK, which share a slot in
    certificate tables too. ``crl`` is the ARK's revocation list. Some hosts put
    a VLEK into the slot of the VCEK: it is taken from there where its own is empty.
    """

    vcek: bytes | None = None
    vlek: bytes | None = None
    ask: bytes | None = None
    ark: bytes | None = None
    crl: bytes | None = None

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

    def without_crl(self) -> Collateral:
        """The certificates alone."""
        return Collateral(self.vcek, self.vlek, self.ask, self.ark)

    def completed_by(self, other: Collateral) -> Collateral:
        """These, and from ``other`` what is not supplied here."""
        slots = (field.name for field in fields(self))
        return Collateral(
            **{
                slot: getattr(other, slot) if getattr(self, slot) is None else getattr(self, slot)
                for slot in slots
            }
        )
