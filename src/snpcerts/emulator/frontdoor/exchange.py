# SPDX-License-Identifier: Apache-2.0
"""Exchanges the names of two files or directories, which Python's ``os`` does not offer."""

from __future__ import annotations

import ctypes
import os
from typing import Final

RENAME_EXCHANGE: Final = 2  # linux/fs.h

_libc = ctypes.CDLL(None, use_errno=True)


def exchange(first: str, second: str, *, folder: int) -> None:
    """Exchange two names in the directory whose descriptor is ``folder``, atomically.

    Raises ``OSError``, with EINVAL if the file system does not support this. Source: renameat2(2).
    """
    names = folder, os.fsencode(first), folder, os.fsencode(second)
    if _libc.renameat2(*names, ctypes.c_uint(RENAME_EXCHANGE)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), first, None, second)
