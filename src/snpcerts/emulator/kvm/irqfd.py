# SPDX-License-Identifier: Apache-2.0
"""The eventfds that VMMs connect to their guests' interrupts (KVM_IRQFD).

Emulated VMs take no interrupts. But as in Linux, an eventfd can be connected to only one interrupt
on the whole host, and a second connection fails with EBUSY. Source: ``kvm_irqfd`` and the functions
that it calls in Linux 7.3 ``virt/kvm/eventfd.c``, ``kvm_arch_irqfd_allowed`` in
``arch/x86/kvm/irq.c``.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snpcerts.abi.kvm import IRQFD_FLAG_DEASSIGN, IRQFD_FLAG_RESAMPLE, Irqfd
from snpcerts.emulator.syscall.device import Caller

_DESCRIPTOR_MAX: Final = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class _Tie:
    """One eventfd and its interrupt. ``eventfd`` is a duplicate of the VMM's descriptor, and stays
    open so that the kernel does not reuse the eventfd's ID.
    """

    vm: object
    gsi: int
    eventfd: int


class Irqfds:
    """All eventfds that are connected to interrupts on one host."""

    def __init__(self) -> None:
        self._ties: dict[int, _Tie] = {}  # by the eventfd's ID

    def __len__(self) -> int:
        return len(self._ties)

    def call(
        self, vm: object, caller: Caller, wanted: Irqfd, *, in_kernel: bool, full: bool
    ) -> None:
        """Serve KVM_IRQFD. ``in_kernel`` says whether KVM emulates the VM's local APICs, and
        ``full`` whether it also emulates the PIC and the I/O APIC.
        """
        if wanted.flags & ~(IRQFD_FLAG_DEASSIGN | IRQFD_FLAG_RESAMPLE):
            raise OSError(errno.EINVAL, f"unknown KVM_IRQFD flags: {wanted.flags:#x}")
        assigns = not wanted.flags & IRQFD_FLAG_DEASSIGN
        if assigns and not (full if wanted.flags & IRQFD_FLAG_RESAMPLE else in_kernel):
            raise OSError(
                errno.EINVAL,
                f"KVM_IRQFD with flags {wanted.flags:#x} needs an interrupt controller that KVM "
                "does not emulate for this VM",
            )
        taken = _take(caller, wanted.fd)
        kept = False
        try:
            number = _number(taken)
            if assigns:
                if wanted.flags & IRQFD_FLAG_RESAMPLE:
                    _judge(caller, wanted.resamplefd)
                if number in self._ties:
                    raise OSError(errno.EBUSY, "the eventfd is already connected to an interrupt")
                self._ties[number] = _Tie(vm, wanted.gsi, taken)
                kept = True
            elif (tie := self._ties.get(number)) and (tie.vm, tie.gsi) == (vm, wanted.gsi):
                os.close(self._ties.pop(number).eventfd)
        finally:
            if not kept:
                os.close(taken)

    def release(self, vm: object) -> None:
        """Remove the eventfds of a VM that has ended."""
        for number in [number for number, tie in self._ties.items() if tie.vm is vm]:
            os.close(self._ties.pop(number).eventfd)


def _judge(caller: Caller, descriptor: int) -> None:
    taken = _take(caller, descriptor)
    try:
        _number(taken)
    finally:
        os.close(taken)


def _take(caller: Caller, descriptor: int) -> int:
    if descriptor > _DESCRIPTOR_MAX:  # negative in the kernel's type
        raise OSError(errno.EBADF, f"{descriptor:#x} is not a valid descriptor")
    return caller.take(descriptor)


def _number(descriptor: int) -> int:
    """Return the ID (``eventfd-id``) of the eventfd that ``descriptor`` refers to in this process.

    Raises EINVAL if ``descriptor`` is not an eventfd.
    """
    about = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii", errors="replace")
    found = re.search(r"^eventfd-id:\s*(\d+)$", about, re.M)
    if found is None:
        raise OSError(errno.EINVAL, "the descriptor is not an eventfd")
    return int(found[1])
