# SPDX-License-Identifier: Apache-2.0
"""An emulated host: its firmware, its kernel's capabilities, and its VMs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from snpcerts.emulator.guest.sev_guest_device import GuestHolder
from snpcerts.emulator.kvm.irqfd import Irqfds
from snpcerts.emulator.kvm.release import KernelRelease
from snpcerts.emulator.psp.firmware import Firmware
from snpcerts.emulator.psp.guest_context import GuestContext


class HostedVm(GuestHolder, Protocol):
    """A VM, as the host's list of VMs shows it."""

    @property
    def name(self) -> str:
        """The VM's name, unique on the host."""

    @property
    def creator(self) -> int:
        """The ID of the process that created the VM."""

    @property
    def kernel(self) -> KernelRelease:
        """The Linux release that the VM runs on."""

    @property
    def initialised(self) -> bool:
        """Whether the VM holds an ASID."""

    @property
    def context(self) -> GuestContext | None:
        """The firmware's context of the VM's guest, or None before the launch."""


# SNP_POLICY_MASK_* that KVM accepts: ABI version, SMT, the bit that must be one, debug, single
# socket, CXL, and the newer bits 22 to 25. KVM does not accept a migration agent (bit 18).
POLICY_BITS = 0x3FF_FFFF & ~(1 << 18)
VMSA_FEATURES = 1 << 5 | 1 << 9  # DebugSwap, SecureTSC


@dataclass(slots=True)
class Platform:
    """One emulated host: its firmware, its kernel's capabilities and its VMs.

    ``sev``, ``snp`` and ``certs_supported`` say what the processor and its kernel support. A host
    with an Intel processor has no SEV. A kernel without certificate fetching has neither the device
    attribute KVM_X86_SEV_SNP_REQ_CERTS nor the command SNP_ENABLE_REQ_CERTS. ``psp_errno`` is 0, or
    the errno (ENODEV, EBUSY, ETIMEDOUT) with which every command that KVM sends to the firmware
    fails. ``clock`` returns seconds, as ``time.monotonic`` does; waiting calls use it for their
    deadlines.
    """

    firmware: Firmware
    sev: bool = True
    snp: bool = True
    certs_supported: bool = True
    asids: int = 99
    psp_errno: int = 0
    policy_bits: int = POLICY_BITS
    vmsa_features: int = VMSA_FEATURES
    clock: Callable[[], float] = time.monotonic
    vms: dict[str, HostedVm] = field(default_factory=dict)
    irqfds: Irqfds = field(default_factory=Irqfds)

    @property
    def asids_in_use(self) -> int:
        """The number of VMs that hold an ASID."""
        return sum(vm.initialised for vm in self.vms.values())

    def name_for(self, pid: int) -> str:
        """Return an unused name for a VM of process ``pid``: ``vm-1234``, then ``vm-1234-2``,
        ...
        """
        name, count = f"vm-{pid}", 1
        while name in self.vms:
            count += 1
            name = f"vm-{pid}-{count}"
        return name
