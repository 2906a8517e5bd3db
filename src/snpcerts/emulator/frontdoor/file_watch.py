# SPDX-License-Identifier: Apache-2.0
"""Observes a program's calls on certain files before they happen.

The calls are those of :data:`~snpcerts.emulator.frontdoor.bpf.FILE_CALLS`. The watch
lets the kernel perform a call, delays it, or answers it as the kernel might have,
for example with a short read. Other threads of the program continue meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

from snpcerts.abi.cstruct import CStruct, u16, u32, u64
from snpcerts.emulator.frontdoor.bpf import Syscall
from snpcerts.emulator.frontdoor.paths import AT_FDCWD
from snpcerts.emulator.syscall.caller_memory import Iovec, ProcessMemory
from snpcerts.emulator.syscall.device import Pending

# If a Pending has this result, the kernel performs the delayed call.
PROCEED: Final = 1 << 62


# linux/aio_abi.h
IOCB_CMD_PREAD: Final = 0
IOCB_CMD_PREADV: Final = 7
UIO_MAXIOV: Final = 1024  # linux/uio.h
_IOCBS_MAX: Final = 64  # in one call; a VMM that submits more at once is observed in part


@dataclass(frozen=True, slots=True)
class Iocb(CStruct):
    """One request in a call of io_submit(2): the fields that a read uses."""

    SIZE: ClassVar[int] = 64
    C_NAME: ClassVar[str] = "struct iocb"
    aio_lio_opcode: int = u16(16)
    aio_fildes: int = u32(20)
    aio_buf: int = u64(24)
    aio_nbytes: int = u64(32)


@dataclass(frozen=True, slots=True)
class FileCall:
    """A call that a thread is about to make on an open file.

    ``descriptor`` is the descriptor number in the program, ``found`` is the file's stat result, and
    ``arguments`` are the six words of the system call.
    """

    call: Syscall
    tid: int
    process: int
    descriptor: int
    found: os.stat_result
    arguments: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OpenCall:
    """A call with which a thread is about to open a path that is not emulated. ``flags`` are those
    of open(2), and ``dirfd`` is that of openat(2).
    """

    tid: int
    path: bytes
    flags: int
    dirfd: int = AT_FDCWD


class Watch(Protocol):
    """An observer of file calls. It is called in the supervisor's loop and must not block."""

    def opening(self, call: OpenCall) -> int | None:
        """Return None to let the kernel open the path, or a negative errno as the call's result."""

    def examining(self, tid: int, dirfd: int, path: bytes) -> None:
        """Called before a thread examines, but does not open, a path that is not emulated: stat,
        access, readlink.
        """

    def wants(self, found: os.stat_result) -> bool:
        """Whether to observe calls on the file with the stat result ``found``."""

    def before(self, call: FileCall) -> int | Pending | None:
        """Return None to let the kernel perform the call, or a number as the call's result.

        A :class:`Pending` delays the call. Its result becomes the call's result, unless it is
        :data:`PROCEED`.
        """


def submitted_reads(tid: int, arguments: Sequence[int]) -> dict[int, int]:
    """Return the descriptors from which io_submit(2) reads, with the number of bytes for each.

    ``arguments`` are those of the call. Returns nothing for arguments that the kernel refuses.
    """
    found: dict[int, int] = {}
    memory = ProcessMemory(tid)
    count = min(arguments[1], _IOCBS_MAX)
    with contextlib.suppress(OSError):
        for (address,) in struct.iter_unpack("<Q", memory.read(arguments[2], 8 * count)):
            iocb = Iocb.unpack(memory.read(address, Iocb.SIZE))
            size = iocb.aio_nbytes
            if iocb.aio_lio_opcode == IOCB_CMD_PREADV:
                size = sum(length for _, length in iovecs(memory, iocb.aio_buf, size))
            if iocb.aio_lio_opcode in (IOCB_CMD_PREAD, IOCB_CMD_PREADV):
                found[iocb.aio_fildes] = found.get(iocb.aio_fildes, 0) + size
    return found


def iovecs(memory: ProcessMemory, address: int, count: int) -> list[tuple[int, int]]:
    """Return the address and size in each of the ``count`` entries of the iovec array at
    ``address``, at most :data:`UIO_MAXIOV` of them. Raises ``OSError`` if the array cannot be read.
    """
    vector = (Iovec * min(count, UIO_MAXIOV))()
    data = memory.read(address, ctypes.sizeof(vector))
    ctypes.memmove(vector, data, len(data))
    return [(each.base or 0, each.length) for each in vector]
