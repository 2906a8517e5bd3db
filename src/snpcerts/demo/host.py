# SPDX-License-Identifier: Apache-2.0
"""What the operator of an emulated host has fetched for it, and the names of its keys."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from snpcerts.abi.cert_table import CertTable
from snpcerts.abi.product import Product
from snpcerts.abi.report import Report
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.amd.certificates import vcek_of
from snpcerts.emulator.psp.chip import Chip
from snpcerts.emulator.psp.firmware import Firmware
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
        return cls.of(Firmware(Chip.create(product)), EmulatedAuthority.create(product), tcbs)

    @classmethod
    def of(cls, firmware: Firmware, authority: EmulatedAuthority, tcbs: int = 4) -> Self:
        """The host of that firmware; the newest TCB is its current one."""
        status = firmware.snp_platform_status()
        newest = TcbVersion.unpack(status.current_tcb, firmware.product.tcb_layout)
        levels = tuple(replace(newest, microcode=newest.microcode - i) for i in range(tcbs))
        tables = {tcb: vcek_of(authority, firmware.chip, tcb).table() for tcb in levels}
        return cls(firmware, authority, levels, tables)

    @property
    def anchor(self) -> Anchor:
        """The emulated root, for those who are told to trust it."""
        return anchor_from_certificate(self.authority.ark)

    def tcb_of(self, report: Report) -> TcbVersion:
        """The TCB that a report of this host's says it was signed for."""
        return TcbVersion.unpack(report.fields.reported_tcb, self.firmware.product.tcb_layout)

    def reported_tcb(self) -> TcbVersion:
        """What the firmware says that it reports now."""
        status = self.firmware.snp_platform_status()
        return TcbVersion.unpack(status.reported_tcb, self.firmware.product.tcb_layout)

    def table(self) -> CertTable:
        """The table that matches the key the firmware signs with now."""
        return self.tables[self.reported_tcb()]


def key_name(tcb: TcbVersion) -> str:
    """Which VCEK a TCB has, for people: only the microcode differs in the demo."""
    return f"VCEK of microcode {tcb.microcode}"
