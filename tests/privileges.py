# SPDX-License-Identifier: Apache-2.0
"""Makes files inaccessible, even if the tests run as root."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_PR_CAPBSET_DROP = 24
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2
_NOBODY = 65534


def make_unreadable(path: Path) -> None:
    """Take away every permission that this user has by mode and ownership."""
    if os.getuid() == 0:
        os.chown(path, _NOBODY, _NOBODY)
        path.chmod(0o600)
    else:
        path.chmod(0)


def give_up_file_privileges() -> None:
    """Make file modes apply to root. Call it in a child, before exec."""
    if os.getuid() == 0:
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE)
        libc.prctl(_PR_CAPBSET_DROP, _CAP_DAC_READ_SEARCH)
