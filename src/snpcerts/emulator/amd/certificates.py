# SPDX-License-Identifier: Apache-2.0
"""Issues certificates for a platform's keys in the name of the emulated AMD."""

from __future__ import annotations

from dataclasses import dataclass

from snpcerts.abi.cert_table import (
    ARK_GUID,
    ASK_GUID,
    VCEK_GUID,
    VLEK_GUID,
    CertTable,
    TableEntry,
)
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.psp.chip import Chip, CloudProvider


@dataclass(frozen=True, slots=True)
class Issued:
    """A leaf, its issuer and its ARK, all in DER."""

    leaf: bytes
    intermediate: bytes
    root: bytes

    def table(self, *, vlek: bool = False) -> CertTable:
        """Return the three certificates as a certificate table."""
        return CertTable(
            (
                TableEntry(VLEK_GUID if vlek else VCEK_GUID, self.leaf),
                TableEntry(ASK_GUID, self.intermediate),
                TableEntry(ARK_GUID, self.root),
            )
        )


def vcek_of(authority: EmulatedAuthority, chip: Chip, tcb: TcbVersion) -> Issued:
    """Return the VCEK certificate of ``chip`` at ``tcb``, with its ASK and ARK."""
    vcek = authority.issue_vcek(chip.hwid, tcb, chip.vcek_key(tcb).public_key())
    return Issued(
        vcek.der,
        authority.ask.der,
        authority.ark.der,
    )


def vlek_of(authority: EmulatedAuthority, provider: CloudProvider, tcb: TcbVersion) -> Issued:
    """Return the VLEK certificate of ``provider`` at ``tcb``, with its ASVK and ARK."""
    key = provider.vlek_key(tcb).public_key()
    vlek = authority.issue_vlek(provider.csp_id, tcb, key)
    return Issued(
        vlek.der,
        authority.asvk.der,
        authority.ark.der,
    )
