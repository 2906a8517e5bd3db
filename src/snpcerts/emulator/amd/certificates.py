# SPDX-License-Identifier: Apache-2.0
"""The certificates that an emulated AMD issues for a platform's keys."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.serialization import Encoding

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
    """A leaf, its issuer and its ARK, each in DER."""

    leaf: bytes
    intermediate: bytes
    root: bytes

    def table(self, *, vlek: bool = False) -> CertTable:
        """The three certificates as a certificate table."""
        return CertTable(
            (
                TableEntry(VLEK_GUID if vlek else VCEK_GUID, self.leaf),
                TableEntry(ASK_GUID, self.intermediate),
                TableEntry(ARK_GUID, self.root),
            )
        )


def vcek_of(authority: EmulatedAuthority, chip: Chip, tcb: TcbVersion) -> Issued:
    """The VCEK of a chip at a TCB, with its ASK and ARK."""
    vcek = authority.issue_vcek(chip.hwid, tcb, chip.vcek_key(tcb).public_key())
    return Issued(
        vcek.public_bytes(Encoding.DER),
        authority.ask.public_bytes(Encoding.DER),
        authority.ark.public_bytes(Encoding.DER),
    )


def vlek_of(authority: EmulatedAuthority, provider: CloudProvider, tcb: TcbVersion) -> Issued:
    """A provider's VLEK at a TCB, with its ASVK and ARK."""
    key = provider.vlek_key(tcb).public_key()
    vlek = authority.issue_vlek(provider.csp_id, tcb, key)
    return Issued(
        vlek.public_bytes(Encoding.DER),
        authority.asvk.public_bytes(Encoding.DER),
        authority.ark.public_bytes(Encoding.DER),
    )
