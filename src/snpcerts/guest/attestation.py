# SPDX-License-Identifier: Apache-2.0
"""A report by whichever of the kernel's two interfaces this guest has.

``/dev/sev-guest`` is asked first: its errors say whether host or firmware refused,
and a report without certificates costs no request for them. Kernels may be built
without it, or a container be given configfs alone: then configfs-tsm answers.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass

from snpcerts.abi.cert_table import CertTable
from snpcerts.abi.guest_message import KeySelect
from snpcerts.errors import RefusedError, UsageError
from snpcerts.guest.configfs_tsm import ROOT, ConfigfsTsm
from snpcerts.guest.sev_guest import DEVICE, NoDeviceError, SevGuest


class Interface(enum.StrEnum):
    """How a guest asks for a report."""

    SEV_GUEST = "sev-guest"
    CONFIGFS_TSM = "configfs-tsm"


@dataclass(frozen=True, slots=True)
class Attested:
    """A report of 1184 bytes, the certificates that came with it, and who was asked.

    ``certificates`` is None when they were not asked for, and empty when the
    host has none.
    """

    report: bytes
    certificates: CertTable | None
    via: Interface


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the interfaces are."""

    device: str = DEVICE
    tsm: str = ROOT


def attest(
    report_data: bytes,
    *,
    certificates: bool,
    vmpl: int | None = None,
    key: KeySelect = KeySelect.DEFAULT,
    via: Interface | None = None,
    paths: Paths | None = None,
) -> Attested:
    """Ask for a report over 64 bytes; ``via`` None takes the interface that there is.

    ``vmpl`` None is 0. A ``key`` can be named on the device alone. Raises what the
    interface raises, and :class:`RefusedError` when there is none.
    """
    paths = paths or Paths()
    if key is not KeySelect.DEFAULT:
        if via is Interface.CONFIGFS_TSM:
            raise UsageError("configfs-tsm has no way to name the key: use sev-guest")
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
            f"neither {paths.device} nor {paths.tsm} is there",
            hint="run this inside an SEV-SNP guest with its sev-guest driver loaded (modprobe "
            "sev-guest) or with configfs mounted (mount -t configfs none /sys/kernel/config)",
        )
    return _by_configfs(report_data, certificates, vmpl, paths)


def _by_device(
    data: bytes, certificates: bool, vmpl: int | None, key: KeySelect, paths: Paths
) -> Attested:
    with SevGuest(paths.device) as guest:
        if not certificates:
            report = guest.report(data, vmpl=vmpl or 0, key=key)
            return Attested(report, None, Interface.SEV_GUEST)
        extended = guest.extended_report(data, vmpl=vmpl or 0, key=key)
    return Attested(extended.report, extended.certificates(), Interface.SEV_GUEST)


def _by_configfs(data: bytes, certificates: bool, vmpl: int | None, paths: Paths) -> Attested:
    got = ConfigfsTsm(paths.tsm).report(data, vmpl=vmpl)
    table = got.certificates() if certificates else None
    return Attested(got.outblob, table, Interface.CONFIGFS_TSM)
