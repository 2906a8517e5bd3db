# SPDX-License-Identifier: Apache-2.0
"""KVM_RUN, for VMMs written in Python."""

from __future__ import annotations

import ctypes
import os
from typing import Final

from snpcerts.abi.kvm import Ioctl

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)


def run_vcpu(vcpu: int) -> None:
    """Issue KVM_RUN once on a vCPU's descriptor; other threads run meanwhile.

    Raises ``OSError`` with the errno of the call: ``InterruptedError`` for EINTR, which is how
    KVM_RUN returns when ``immediate_exit`` is set or a signal has come.

    Do not use :func:`fcntl.ioctl` for this. Since Python 3.14 it repeats a call that fails with
    EINTR: with ``immediate_exit`` set it never returns.
    """
    if _LIBC.ioctl(vcpu, Ioctl.RUN, 0) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
