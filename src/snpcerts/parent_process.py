# SPDX-License-Identifier: Apache-2.0
"""Makes this process end when its parent ends, even if the parent is killed.

Source: prctl(2), PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER; their numbers are from
``linux/prctl.h``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), *(ctypes.c_ulong(0),) * 3):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def end_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process the signal ``number`` when the process ``parent`` ends.

    The setting survives execve(2). Call this in the child. If the parent has already ended, this
    process ends immediately.
    """
    _prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        sys.stderr.flush()
        os._exit(128 + number)


def adopt_descendants() -> None:
    """Become the parent of every descendant whose own parent ends."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
