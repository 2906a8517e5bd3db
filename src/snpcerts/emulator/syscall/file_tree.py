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
    """A file of the tree, open until its last descriptor is closed."""

    def read(self, offset: int, size: int) -> Operation[bytes]:
        """Return at most ``size`` bytes from ``offset`` on; no bytes at the end of the file."""

    def write(self, offset: int, data: bytes) -> Operation[int]:
        """Write ``data`` at ``offset``; return how many bytes were written."""

    def close(self) -> Operation[None]:
        """Called when the last descriptor of this open file is closed."""


class TreeNode(Protocol):
    """A file or directory. ``number`` is its inode number; ``mode`` is its ``st_mode``."""

    @property
    def number(self) -> int:
        """The inode number, unique in the tree."""

    @property
    def mode(self) -> int:
        """The file type and permissions, as in ``st_mode``."""

    @property
    def size(self) -> int:
        """The size in bytes that stat(2) shows."""


class TreeFile(TreeNode, Protocol):
    """A regular file of the tree."""

    def open(self, flags: int) -> OpenTreeFile:
        """Open the file; ``flags`` are those of open(2)."""


class TreeDirectory(TreeNode, Protocol):
    """A directory of the tree."""

    @property
    def entries(self) -> Mapping[str, TreeFile | TreeDirectory]:
        """The entries of the directory, by name."""

    def make(self, name: str) -> Operation[TreeDirectory]:
        """Create the directory ``name`` in this one, as mkdir(2) does."""

    def remove(self, name: str) -> Operation[None]:
        """Remove the directory ``name`` from this one, as rmdir(2) does."""
