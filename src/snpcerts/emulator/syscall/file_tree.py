# SPDX-License-Identifier: Apache-2.0
"""An emulated file system: the emulator serves the reads and writes of its files.

An operation is a generator. It yields while it has to wait, and is resumed when something may have
changed. It returns its result, or raises ``OSError`` with the kernel's errno. Closing the generator
drops the operation.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Protocol, TypeVar

_T = TypeVar("_T")

Operation = Generator[None, None, _T]


class OpenTreeFile(Protocol):
    """An open file, until its last descriptor is closed."""

    def read(self, offset: int, size: int) -> Operation[bytes]:
        """Return at most ``size`` bytes at ``offset``; none at the end."""

    def write(self, offset: int, data: bytes) -> Operation[int]:
        """Return how many bytes were written."""

    def close(self) -> Operation[None]:
        """Handle the close of the last descriptor."""


class TreeNode(Protocol):
    """A file or directory. ``number`` is its inode number; ``mode`` is that of stat(2)."""

    @property
    def number(self) -> int:
        """The inode number, unique in the tree."""

    @property
    def mode(self) -> int:
        """File type and permissions."""

    @property
    def size(self) -> int:
        """The size in bytes that stat(2) shows."""


class TreeFile(TreeNode, Protocol):
    """A file."""

    def open(self, flags: int) -> OpenTreeFile:
        """Open it with the flags of open(2)."""


class TreeDirectory(TreeNode, Protocol):
    """A directory."""

    @property
    def entries(self) -> Mapping[str, TreeFile | TreeDirectory]:
        """The entries of the directory, by name."""

    def make(self, name: str) -> Operation[TreeDirectory]:
        """Create a directory in it, as mkdir(2) does."""

    def remove(self, name: str) -> Operation[None]:
        """Remove a directory in it, as rmdir(2) does."""
