# SPDX-License-Identifier: Apache-2.0
"""Steps that only other programs and wrong variants of the protocol take."""

from __future__ import annotations

from typing import NamedTuple


class Unlock(NamedTuple):
    """Drop the lock and keep the descriptor -> None."""

    fd: int


class OpenOnce(NamedTuple):
    """Open, or reuse the description that this VMM already has -> descriptor."""

    path: str


class HoldForEver(NamedTuple):
    """Keep all locks and do nothing more, until killed."""


class UnlockNeighbour(NamedTuple):
    """Drop the locks of all other descriptions of this VMM -> None."""

    fd: int


class CloseClassic(NamedTuple):
    """Close with classic POSIX locks, which drops all the VMM's locks on the file -> None."""

    fd: int


class Foretell(NamedTuple):
    """The table that the next firmware change will need at a path -> bytes."""

    path: str


class Outdated(NamedTuple):
    """The table for the firmware's current key -> bytes."""


class Mount(NamedTuple):
    """Make the path refer to a file on another device, with the same inode number -> None."""

    path: str
