# SPDX-License-Identifier: Apache-2.0
"""Duplicates a program's descriptor (pidfd_getfd(2))."""

from __future__ import annotations

import ctypes
import os
from typing import Final

_SYS_PIDFD_GETFD: Final = 438
_libc = ctypes.CDLL(None, use_errno=True)


def take_descriptor(process: int, descriptor: int) -> int:
    """Return a new descriptor in this process for a file that another process has open.

    The caller must close it.

    Raises ``OSError`` with EBADF if the descriptor is closed.
    """
    handle = os.pidfd_open(process)
    try:
        taken = int(_libc.syscall(_SYS_PIDFD_GETFD, handle, ctypes.c_int(descriptor), 0))
        if taken < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return taken
    finally:
        os.close(handle)
