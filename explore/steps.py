# SPDX-License-Identifier: Apache-2.0
"""Steps that no shipped protocol takes: those of other programs, and of wrong ones."""

from __future__ import annotations

from typing import NamedTuple


class Unlock(NamedTuple):
    """Drop the lock and keep the descriptor -> None."""

    fd: int


class OpenOnce(NamedTuple):
    """Open, or get the description that this VMM has already -> descriptor."""

    path: str


class HoldForEver(NamedTuple):
    """Keep what one has and do nothing more; only an end by force follows."""


class UnlockNeighbour(NamedTuple):
    """Drop the locks of all other descriptions of this VMM -> None."""

    fd: int


class CloseClassic(NamedTuple):
    """Close as it is with classic POSIX locks: all the VMM's locks on the file go -> None."""

    fd: int


class Foretell(NamedTuple):
    """The table that the next firmware change will need -> bytes."""


class Outdated(NamedTuple):
    """The table for the firmware's key of now -> bytes."""


class Mount(NamedTuple):
    """Let the path lead to a file on another device, with the same number -> None."""

    path: str
