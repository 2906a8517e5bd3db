# SPDX-License-Identifier: Apache-2.0
"""Calls ioctl(2) in the same way on every Python version.

Since Python 3.14, :func:`fcntl.ioctl` repeats a call that fails with EINTR, so a KVM_RUN with
``immediate_exit`` set never returns. It also drops what the kernel wrote into the argument, such as
the firmware's status, if the call fails.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


def ioctl(fd: int, request: int, argument: int | bytearray = 0) -> int:
    """Call ioctl(2) once and return its result. Other threads can run meanwhile.

    ``argument`` is a number, or a buffer that the kernel reads and writes in place, even if the
    call fails. Raises ``OSError`` with the errno of the call; for EINTR this is
    ``InterruptedError``.
    """
    if isinstance(argument, int):
        result = _LIBC.ioctl(fd, request, argument)
    else:
        result = _LIBC.ioctl(fd, request, (ctypes.c_char * len(argument)).from_buffer(argument))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)
