# SPDX-License-Identifier: Apache-2.0
"""Issues KVM_RUN, for VMMs written in Python."""

from __future__ import annotations

from snpcerts.abi.kvm import Ioctl
from snpcerts.device_ioctl import ioctl


def run_vcpu(vcpu: int) -> None:
    """Issue KVM_RUN once on a vCPU's file descriptor. Other threads can run during the call.

    Raises ``OSError`` with the errno of the call. For EINTR this is ``InterruptedError``: KVM_RUN
    returns it if ``immediate_exit`` is set or a signal has arrived.

    Do not use :func:`fcntl.ioctl` for this. Since Python 3.14 it repeats a call that fails with
    EINTR, so with ``immediate_exit`` set it never returns.
    """
    ioctl(vcpu, Ioctl.RUN)
