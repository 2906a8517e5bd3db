# SPDX-License-Identifier: Apache-2.0
"""KVM_RUN, for VMMs written in Python."""

from __future__ import annotations

from snpcerts.abi.kvm import Ioctl
from snpcerts.device_ioctl import ioctl


def run_vcpu(vcpu: int) -> None:
    """Issue KVM_RUN once on a vCPU's descriptor; other threads run meanwhile.

    Raises ``OSError`` with the errno of the call: ``InterruptedError`` for EINTR, which is how
    KVM_RUN returns when ``immediate_exit`` is set or a signal has come.

    Do not use :func:`fcntl.ioctl` for this. Since Python 3.14 it repeats a call that fails with
    EINTR: with ``immediate_exit`` set it never returns.
    """
    ioctl(vcpu, Ioctl.RUN)
