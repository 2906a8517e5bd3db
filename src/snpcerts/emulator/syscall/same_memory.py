# SPDX-License-Identifier: Apache-2.0
"""Whether two processes share their memory: after vfork(2), or clone(2) with CLONE_VM.

Numbers: Linux ``asm/unistd_64.h`` and ``include/uapi/linux/kcmp.h``.
"""

from __future__ import annotations

import ctypes
import errno
from typing import Final

_SYS_KCMP: Final = 312
_KCMP_VM: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)


def share_memory(one: int, other: int) -> bool:
    """Return whether two processes have the same address space. A process that has ended, or that
    this process may not inspect, shares its memory only with itself.
    """
    return one == other or _libc.syscall(_SYS_KCMP, one, other, _KCMP_VM, 0, 0) == 0


def require_shared_memory(process: int, creator: int) -> None:
    """Raise EIO, as KVM does, if a VM's ioctl comes from a process that does not share memory with
    the VM's creator.
    """
    if not share_memory(process, creator):
        raise OSError(errno.EIO, "this process does not share memory with the VM's creator")
