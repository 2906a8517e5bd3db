# SPDX-License-Identifier: Apache-2.0
"""Open-file-description locks: ``struct flock`` and the fcntl commands.

Source: Linux ``include/uapi/asm-generic/fcntl.h``; fcntl_locking(2). A lock on a whole file has
start 0 and length 0. ``l_pid`` must be 0 on input, otherwise the kernel returns EINVAL. Python's
``fcntl.lockf`` and ``fcntl.flock`` take other kinds of lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from snpcerts.abi.cstruct import CStruct, s16, s32, s64

F_SETLK = 6
F_SETLKW = 7
F_OFD_GETLK = 36
F_OFD_SETLK = 37
F_OFD_SETLKW = 38
F_RDLCK = 0
F_WRLCK = 1
F_UNLCK = 2
PID_OF_OFD_OWNER = -1  # F_OFD_GETLK reports this as the owner of an OFD lock


@dataclass(frozen=True, slots=True)
class Flock(CStruct):
    """``struct flock`` on x86-64."""

    SIZE: ClassVar[int] = 32
    C_NAME: ClassVar[str] = "struct flock"
    l_type: int = s16(0)
    l_whence: int = s16(2)
    l_start: int = s64(8)
    l_len: int = s64(16)
    l_pid: int = s32(24)


SHARED = Flock(l_type=F_RDLCK).pack()
EXCLUSIVE = Flock(l_type=F_WRLCK).pack()
UNLOCK = Flock(l_type=F_UNLCK).pack()
