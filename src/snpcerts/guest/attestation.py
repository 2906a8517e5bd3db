# SPDX-License-Identifier: Apache-2.0
"""Gets a report through one of the kernel's two interfaces for reports.

``/dev/sev-guest`` is preferred, because its errors say whether the host or the firmware refused,
and it can request a report without certificates. If a kernel lacks the device, or a container has
only configfs, configfs-tsm is used.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snpcerts.abi.cert_table import CertTable
from snpcerts.abi.guest_message import KeySelect
from snpcerts.errors import RefusedError, UsageError
from snpcerts.guest.configfs_tsm import ROOT, ConfigfsTsm
from snpcerts.guest.dev_sev_guest import DEVICE, NoDeviceError, SevGuest

# The VMPL at which the kernel runs. Kernels before 6.11 do not have this file.
VMPL_FILE: Final = "/sys/devices/system/cpu/sev/vmpl"


class Interface(enum.StrEnum):
    """The two kernel interfaces for requesting reports."""

    SEV_GUEST = "sev-guest"
    CONFIGFS_TSM = "configfs-tsm"


@dataclass(frozen=True, slots=True)
class Attested:
    """A report of 1184 bytes, its certificates, and the interface that was used.

    ``certificates`` is None if they were not requested, and empty if the host has
    none.
    """

    report: bytes
    certificates: CertTable | None
    via: Interface


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the kernel's interfaces are expected."""

    device: str = DEVICE
    tsm: str = ROOT
    vmpl: str = VMPL_FILE


def attest(
    report_data: bytes,
    *,
    certificates: bool,
    vmpl: int | None = None,
    key: KeySelect = KeySelect.DEFAULT,
    via: Interface | None = None,
    paths: Paths | None = None,
) -> Attested:
    """Request a report with 64 bytes of report data.

    If ``via`` is None, use an interface that exists. If ``vmpl`` is None, use the guest's own. Only
    ``/dev/sev-guest`` can select a ``key``. Raises the errors of the interface, and
    :class:`RefusedError` if neither exists.
    """
    paths = paths or Paths()
    if key is not KeySelect.DEFAULT:
        if via is Interface.CONFIGFS_TSM:
            raise UsageError(
                "configfs-tsm cannot select the signing key", hint="use the sev-guest interface"
            )
        via = Interface.SEV_GUEST
    if via is Interface.CONFIGFS_TSM:
        return _by_configfs(report_data, certificates, vmpl, paths)
    try:
        return _by_device(report_data, certificates, vmpl, key, paths)
    except NoDeviceError:
        if via is Interface.SEV_GUEST:
            raise
    if not os.path.isdir(paths.tsm):
        raise RefusedError(
            f"neither {paths.device} nor {paths.tsm} exists",
            hint="run this inside an SEV-SNP guest with its sev-guest driver loaded (modprobe "
            "sev-guest) or with configfs mounted (mount -t configfs none /sys/kernel/config)",
        )
    return _by_configfs(report_data, certificates, vmpl, paths)


def _by_device(
    data: bytes, certificates: bool, vmpl: int | None, key: KeySelect, paths: Paths
) -> Attested:
    if vmpl is None:
        vmpl = own_vmpl(paths.vmpl)
    with SevGuest(paths.device) as guest:
        if not certificates:
            report = guest.report(data, vmpl=vmpl, key=key)
            return Attested(report, None, Interface.SEV_GUEST)
        extended = guest.extended_report(data, vmpl=vmpl, key=key)
    return Attested(extended.report, extended.certificates(), Interface.SEV_GUEST)


def _by_configfs(data: bytes, certificates: bool, vmpl: int | None, paths: Paths) -> Attested:
    got = ConfigfsTsm(paths.tsm).report(data, vmpl=vmpl)
    table = got.certificates() if certificates else None
    return Attested(got.outblob, table, Interface.CONFIGFS_TSM)


def own_vmpl(path: str = VMPL_FILE) -> int:
    """Return the VMPL that the guest's kernel runs at; 0 if the kernel does not show it."""
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return 0
    return int(text) if text in ("0", "1", "2", "3") else 0
