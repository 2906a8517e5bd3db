# SPDX-License-Identifier: Apache-2.0
"""The demo's emulated host: its firmware, and a certificate table for each of its keys."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Self

from snpcerts.abi.cert_table import CertTable
from snpcerts.abi.report import Report
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.amd.certificates import vcek_of
from snpcerts.emulator.psp.firmware import Firmware
from snpcerts.endorsement.anchors import Anchor, anchor_from_certificate


@dataclass(frozen=True, slots=True)
class IssueTime:
    """When the emulated AMD began and finished issuing one certificate, in ``time.monotonic``
    seconds.
    """

    what: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class EmulatedHost:
    """The firmware, the authority that certifies it, and a table for each TCB that the firmware may
    report.

    Updates switch between the values in ``tcbs``. The certificates for all of them are issued
    before the runs, because an operator would fetch them before an update, not under the lock.
    """

    firmware: Firmware
    authority: EmulatedAuthority
    tcbs: tuple[TcbVersion, ...]
    tables: dict[TcbVersion, CertTable]
    issued: tuple[IssueTime, ...] = ()

    @classmethod
    def of(cls, firmware: Firmware, authority: EmulatedAuthority, tcbs: int = 4) -> Self:
        """Return a host with this firmware and tables for ``tcbs`` different TCBs: the firmware's
        current TCB and older ones.
        """
        status = firmware.snp_platform_status()
        newest = TcbVersion.unpack(status.current_tcb, firmware.product.tcb_layout)
        levels = tuple(
            replace(newest, microcode=newest.components()["microcode"] - i) for i in range(tcbs)
        )
        tables, issued = {}, []
        for tcb in levels:
            start = time.monotonic()
            tables[tcb] = vcek_of(authority, firmware.chip, tcb).table()
            issued.append(IssueTime(key_name(tcb), start, time.monotonic()))
        return cls(firmware, authority, levels, tables, tuple(issued))

    @property
    def anchor(self) -> Anchor:
        """The root of the emulated AMD, as an anchor."""
        return anchor_from_certificate(self.authority.ark)

    def tcb_of(self, report: Report) -> TcbVersion:
        """Return the reported TCB from one of this host's reports."""
        return TcbVersion.unpack(report.fields.reported_tcb, self.firmware.product.tcb_layout)

    def tcb_of_table(self, table: CertTable) -> TcbVersion | None:
        """Return the TCB of the certificates in ``table``; None if the table is not one of this
        host's.
        """
        return next((tcb for tcb, its in self.tables.items() if its == table), None)

    @property
    def key_names(self) -> dict[bytes, str]:
        """The name of each key, by the key's TCB (8 bytes). The first one is the signing key at the
        start.
        """
        return {tcb.pack(): key_name(tcb) for tcb in self.tcbs}

    def reported_tcb(self) -> TcbVersion:
        """Return the firmware's reported TCB."""
        status = self.firmware.snp_platform_status()
        return TcbVersion.unpack(status.reported_tcb, self.firmware.product.tcb_layout)

    def table(self) -> CertTable:
        """Return the table that matches the signing key."""
        return self.tables[self.reported_tcb()]


def key_name(tcb: TcbVersion) -> str:
    """Return a name for the VCEK at ``tcb``, for people. The demo's TCBs differ only in the
    microcode.
    """
    return f"VCEK {tcb.microcode}"
