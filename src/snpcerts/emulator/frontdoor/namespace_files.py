# SPDX-License-Identifier: Apache-2.0
"""Fills and updates the files that a program's mount namespace shows.

The program sees them read-only, through another mount of the same file systems.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Final

from snpcerts.emulator.frontdoor.door import Content, Door
from snpcerts.emulator.frontdoor.exchange import exchange
from snpcerts.emulator.frontdoor.layout import Places
from snpcerts.errors import InputError

_COPY_MAX: Final = 1 << 16  # bytes copied from a real file, at most
_COPIES_MAX: Final = 256
_NEXT: Final = ".next"


class NamespaceFiles:
    """The files and directories of one namespace.

    Takes ownership of the descriptors ``roots``. Raises ``InputError`` if the places do not match
    the door.
    """

    def __init__(self, door: Door, places: Places, roots: Sequence[int]) -> None:
        self._door = door
        self._roots = tuple(roots)
        self._written: dict[str, Content] = {}
        self._numbers: dict[str, int] = {}
        self._places = {path: (roots[root], name) for path, (root, name) in places.files.items()}
        self._directories = {
            path: (roots[root], name) for path, (root, name) in places.directories.items()
        }
        inside = tuple(f"{path}/" for path in self._directories)
        ours = {os.fsdecode(path) for path in door.files}
        if {path for path in ours if not path.startswith(inside)} != self._places.keys():
            self.close()
            raise InputError(
                "places in a namespace: expected exactly the front door's files, found a different "
                "set"
            )
        try:
            self._version = door.version()
            self._fill()
        except OSError as error:
            self.close()
            raise InputError(f"cannot write the namespace's files ({error})") from error

    def refresh(self) -> None:
        """Update the namespace's files if their content has changed."""
        version = self._door.version()
        if version is not self._version:
            self._version = version
            self._fill()

    def close(self) -> None:
        """Stop updating the files, which stay in the namespace."""
        for root in self._roots:
            os.close(root)
        self._roots = ()

    def _fill(self) -> None:
        for path, (root, name) in self._directories.items():
            number = self._door.inode_of(path)
            if self._numbers.get(path) != number:
                self._make_directory(path, root, name, number)
                self._numbers[path] = number
        for encoded, content in self._door.files.items():
            path, new = os.fsdecode(encoded), content()
            if path in self._places and self._written.get(path) != new:
                _write(*self._places[path], new)
                self._written[path] = new

    def _make_directory(self, path: str, root: int, name: str, number: int) -> None:
        """Change a directory's inode number: create a new directory and move the entries there."""
        parent = os.open(os.path.dirname(name) or ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=root)
        name = os.path.basename(name)
        try:
            entries = name
            if path not in self._numbers:
                entries = ".content"
                os.mkdir(entries, 0o755, dir_fd=parent)
                self._fill_directory(path, root, parent, entries)
            _make_numbered(parent, number)
            for each in os.listdir(f"/proc/self/fd/{parent}/{entries}"):
                source, target = f"{entries}/{each}", f"{_NEXT}/{each}"
                os.rename(source, target, src_dir_fd=parent, dst_dir_fd=parent)
            if entries == name:
                exchange(_NEXT, name, folder=parent)
            else:
                os.rename(_NEXT, name, src_dir_fd=parent, dst_dir_fd=parent)
            os.rmdir(_NEXT if entries == name else entries, dir_fd=parent)
        finally:
            os.close(parent)

    def _fill_directory(self, path: str, root: int, parent: int, entries: str) -> None:
        """Fill a directory with the door's files and with copies of the machine's files."""
        _, below = self._directories[path]
        for encoded, content in self._door.files.items():
            file = os.fsdecode(encoded)
            if file.startswith(f"{path}/"):
                inner = file.removeprefix(f"{path}/")
                made = content()
                _create(parent, f"{entries}/{inner}", made)
                self._places[file] = root, f"{below}/{inner}"
                self._written[file] = made
        for inner, data in _real_files(path).items():
            if f"{path}/{inner}" not in self._places:
                _create(parent, f"{entries}/{inner}", data)


def _make_numbered(parent: int, number: int) -> None:
    """Create a directory in ``parent`` with the inode number ``number``. A tmpfs assigns inode
    numbers in order.
    """
    while True:
        os.mkdir(_NEXT, 0o755, dir_fd=parent)
        found = os.stat(_NEXT, dir_fd=parent).st_ino
        if found == number:
            return
        os.rmdir(_NEXT, dir_fd=parent)
        if found > number:
            raise OSError(
                errno.ERANGE,
                f"the tmpfs has already assigned inode number {number}: its next one is {found}",
            )
        for _ in range(number - found - 1):
            os.close(os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, dir_fd=parent))


def _real_files(directory: str) -> dict[str, bytes]:
    """Return the content of the machine's files below ``directory``, by their relative paths. Files
    that this process cannot read are left out.
    """
    found: dict[str, bytes] = {}
    for place, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(place, name)
            with contextlib.suppress(OSError):
                if stat.S_ISREG(os.lstat(path).st_mode) and len(found) < _COPIES_MAX:
                    with open(path, "rb", buffering=0) as file:
                        found[os.path.relpath(path, directory)] = file.read(_COPY_MAX)
    return found


def _create(parent: int, name: str, content: Content) -> None:
    inner = os.path.dirname(name)
    os.makedirs(f"/proc/self/fd/{parent}/{inner}", exist_ok=True)
    mode = 0o444 if isinstance(content, bytes) else 0o600
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(name, flags, mode, dir_fd=parent)
    os.fchmod(descriptor, mode)
    os.close(descriptor)
    _write(parent, name, content)


def _write(root: int, name: str, content: Content) -> None:
    pieces: Mapping[int, bytes] = {0: content} if isinstance(content, bytes) else content
    path = f"/proc/self/fd/{root}/{name}"
    mode = stat.S_IMODE(os.lstat(path).st_mode)
    os.chmod(path, mode | stat.S_IWUSR)
    try:
        descriptor = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    finally:
        os.chmod(path, mode)
    try:
        for offset, piece in pieces.items():
            os.pwrite(descriptor, piece, offset)
        os.ftruncate(descriptor, max((at + len(piece) for at, piece in pieces.items()), default=0))
    finally:
        os.close(descriptor)
