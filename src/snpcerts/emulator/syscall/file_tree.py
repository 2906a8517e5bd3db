# SPDX-License-Identifier: Apache-2.0
"""An emulated file system: directories and files whose reads and writes are the emulator's.

An operation is a generator. It yields while it has to wait, and is resumed when
something may have changed; what it returns is its result. It raises ``OSError`` with the
errno the kernel would give. Closing it forgets the operation.
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
        """The last descriptor has been closed."""


class TreeNode(Protocol):
    """A file or directory. ``number`` is its inode number, ``mode`` that of stat(2)."""

    @property
    def number(self) -> int:
        """The number that no other file of the tree has."""

    @property
    def mode(self) -> int:
        """File type and permissions."""

    @property
    def size(self) -> int:
        """What stat(2) shows, in bytes."""


class TreeFile(TreeNode, Protocol):
    """A file."""

    def open(self, flags: int) -> OpenTreeFile:
        """Open it with the flags of open(2)."""


class TreeDirectory(TreeNode, Protocol):
    """A directory."""

    @property
    def entries(self) -> Mapping[str, TreeFile | TreeDirectory]:
        """What it has, by name."""

    def make(self, name: str) -> Operation[TreeDirectory]:
        """Make a directory in it, as mkdir(2)."""

    def remove(self, name: str) -> Operation[None]:
        """Remove a directory that it has, as rmdir(2)."""
