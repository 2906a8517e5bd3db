# SPDX-License-Identifier: Apache-2.0
"""Steps that only other programs and wrong variants of the protocol take."""

from __future__ import annotations

from typing import NamedTuple


class Unlock(NamedTuple):
    """Drop the lock, but keep the descriptor."""

    fd: int


class OpenOnce(NamedTuple):
    """Open the file, or reuse the description that this VMM already has. The result is a
    descriptor.
    """

    path: str


class HoldForEver(NamedTuple):
    """Keep all locks and do nothing more, until killed."""


class UnlockNeighbour(NamedTuple):
    """Drop the locks of all other descriptions of this VMM."""

    fd: int


class CloseClassic(NamedTuple):
    """Close a descriptor as with classic POSIX locks, which drops all the VMM's locks on the
    file.
    """

    fd: int


class Foretell(NamedTuple):
    """Foretell the next firmware change. The result is the table that ``path`` will then need."""

    path: str


class Outdated(NamedTuple):
    """Choose the table too early. The result is the table for the firmware's current key."""


class Mount(NamedTuple):
    """Make the path refer to a file on another device, with the same inode number."""

    path: str
