# SPDX-License-Identifier: Apache-2.0
"""An emulated host and the certificates its operator has fetched for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from snpcerts.abi.cert_table import CertTable
from snpcerts.abi.product import Product
from snpcerts.abi.psp import SnpConfig
from snpcerts.abi.report import Report
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.authority import EmulatedAuthority
from snpcerts.emulator.chip import Chip
from snpcerts.emulator.firmware import Firmware
from snpcerts.emulator.issued import vcek_of
from snpcerts.endorsement.anchors import Anchor, anchor_from_certificate


@dataclass(frozen=True, slots=True)
class EmulatedHost:
    """Firmware, its maker, and a certificate table for each TCB it may report.

    ``tcbs`` are the values an update moves between. Their certificates are
    there beforehand, as an operator's would be: nothing is fetched under a lock.
    """

    firmware: Firmware
    authority: EmulatedAuthority
    tcbs: tuple[TcbVersion, ...]
    tables: dict[TcbVersion, CertTable]

    @classmethod
    def create(cls, product: Product, tcbs: int = 4) -> Self:
        """A new host whose reported TCB may be one of ``tcbs`` values."""
        authority = EmulatedAuthority.create(product)
        firmware = Firmware(Chip.create(product))
        status = firmware.snp_platform_status()
        newest = TcbVersion.unpack(status.current_tcb, product.tcb_layout)
        levels = tuple(replace(newest, microcode=newest.microcode - i) for i in range(tcbs))
        tables = {tcb: vcek_of(authority, firmware.chip, tcb).table() for tcb in levels}
        return cls(firmware, authority, levels, tables)

    @property
    def anchor(self) -> Anchor:
        """The emulated root, for those who are told to trust it."""
        return anchor_from_certificate(self.authority.ark)

    def reported_tcb(self) -> TcbVersion:
        """What the firmware says that it reports now."""
        status = self.firmware.snp_platform_status()
        return TcbVersion.unpack(status.reported_tcb, self.firmware.product.tcb_layout)

    def tcb_of(self, report: Report) -> TcbVersion:
        """The TCB that a report of this host's says it was signed for."""
        return TcbVersion.unpack(report.fields.reported_tcb, self.firmware.product.tcb_layout)

    def key_name(self, tcb: TcbVersion) -> str:
        """Which VCEK that is, for people: only the microcode differs on this host."""
        return f"VCEK of microcode {tcb.microcode}"

    def table(self) -> CertTable:
        """The table that matches the key the firmware signs with now."""
        return self.tables[self.reported_tcb()]

    def report_as(self, tcb: TcbVersion) -> CertTable:
        """Make the firmware report ``tcb``; return the table for what it reports then."""
        self.firmware.snp_set_config(SnpConfig(reported_tcb=tcb.pack()))
        return self.table()
