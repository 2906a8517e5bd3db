# SPDX-License-Identifier: Apache-2.0
"""The memory of a process that makes a system call, as the kernel accesses it."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Protocol


class UserMemory(Protocol):
    """The address space of one process. Every access may fail with ``OSError(EFAULT)``."""

    def read(self, address: int, size: int) -> bytes:
        """Read exactly ``size`` bytes; raise ``OSError(EFAULT)`` if that is impossible."""

    def write(self, address: int, data: bytes) -> None:
        """Write all of ``data``; raise ``OSError(EFAULT)`` if that is impossible."""


class Iovec(ctypes.Structure):
    """``struct iovec`` of readv(2)."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
_ADDRESS_LIMIT = 1 << 64


class ProcessMemory:
    """A live process's memory, accessed with process_vm_readv(2) and process_vm_writev(2).

    The process may be this one. A bad address raises EFAULT and never crashes this process. A
    process that has ended raises ESRCH.
    """

    __slots__ = ("pid",)

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def read(self, address: int, size: int) -> bytes:
        """Read exactly ``size`` bytes at ``address``."""
        buffer = ctypes.create_string_buffer(size)
        self._move(_libc.process_vm_readv, buffer, address, size)
        return buffer.raw

    def write(self, address: int, data: bytes) -> None:
        """Write all of ``data`` at ``address``. If that fails with EFAULT, part of it may have been
        written.
        """
        buffer = ctypes.create_string_buffer(data, len(data))
        self._move(_libc.process_vm_writev, buffer, address, len(data))

    def _move(
        self,
        call: ctypes._NamedFuncPointer,
        buffer: ctypes.Array[ctypes.c_char],
        address: int,
        size: int,
    ) -> None:
        if size == 0:
            return
        if address + size > _ADDRESS_LIMIT:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        local = Iovec(ctypes.addressof(buffer), size)
        remote = Iovec(address, size)
        moved = call(self.pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
        if moved == size:
            return
        code = ctypes.get_errno() if moved < 0 else errno.EFAULT
        raise OSError(code, os.strerror(code))
