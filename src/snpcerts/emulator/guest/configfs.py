# SPDX-License-Identifier: Apache-2.0
"""configfs, the kernel's file system in which a directory is an object of a driver.

Source: Linux ``fs/configfs/file.c`` and ``fs/configfs/dir.c``. For a text attribute, the first read
of an open file calls ``show``, and each write calls ``store``. A binary attribute is read as a
whole at the first read. It is written when the file is closed, and an error from that write is
lost.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from snpcerts.emulator.syscall.file_tree import Operation

TEXT_MAX: Final = 4096  # SIMPLE_ATTR_SIZE
NAME_MAX: Final = 255  # linux/limits.h
_READABLE: Final = 0o444
_WRITABLE: Final = 0o200


@dataclass(frozen=True, slots=True)
class TextAttribute:
    """A text attribute: the functions that show and store it. A function is None if the attribute
    lacks that operation.
    """

    show: Callable[[], Operation[bytes]] | None = None
    store: Callable[[bytes], Operation[None]] | None = None


@dataclass(frozen=True, slots=True)
class BinaryAttribute:
    """A binary attribute of at most ``max_size`` bytes.

    ``read(True)`` returns the content. ``read(False)`` returns zeros of the same length: configfs
    calls it first, to learn the length. ``write`` gets all data written to the open file.
    """

    max_size: int
    read: Callable[[bool], Operation[bytes]] | None = None
    write: Callable[[bytes], Operation[None]] | None = None


@dataclass(slots=True)
class _Fragment:
    """Records whether a directory still exists, for files that stay open after its removal."""

    dead: bool = False


class ConfigFile:
    """The file of one attribute."""

    def __init__(
        self, number: int, attribute: TextAttribute | BinaryAttribute, fragment: _Fragment
    ) -> None:
        self.number = number
        self._attribute = attribute
        self._fragment = fragment
        if isinstance(attribute, TextAttribute):
            reads, writes = attribute.show is not None, attribute.store is not None
        else:
            reads, writes = attribute.read is not None, attribute.write is not None
        self._permissions = (_READABLE if reads else 0) | (_WRITABLE if writes else 0)

    @property
    def mode(self) -> int:
        """The mode of a regular file, with the permissions of the attribute."""
        return stat.S_IFREG | self._permissions

    @property
    def size(self) -> int:
        """The size that stat(2) shows: one page for a text attribute, 0 for a binary one, whatever
        the content.
        """
        return TEXT_MAX if isinstance(self._attribute, TextAttribute) else 0

    def open(self, flags: int) -> _OpenText | _OpenBinary:
        """Open the file; fail with EACCES, even for root, if the attribute lacks an operation that
        ``flags`` request.
        """
        if self._fragment.dead:
            raise OSError(errno.ENOENT, "cannot open the file: its directory has been removed")
        mode = flags & os.O_ACCMODE
        writes, reads = mode != os.O_RDONLY, mode != os.O_WRONLY
        if (writes and not self._permissions & _WRITABLE) or (
            reads and not self._permissions & _READABLE
        ):
            raise OSError(
                errno.EACCES, "cannot open the file: the attribute lacks the requested operation"
            )
        if isinstance(self._attribute, TextAttribute):
            return _OpenText(self._attribute, self._fragment)
        return _OpenBinary(self._attribute, self._fragment)


class _OpenConfigFile:
    """The base class of open text and binary files, which run one operation at a time."""

    def __init__(self, fragment: _Fragment) -> None:
        self._fragment = fragment
        self._busy = False

    def _alone(self) -> Operation[None]:
        while self._busy:
            yield

    def _check(self) -> None:
        if self._fragment.dead:
            raise OSError(errno.ENOENT, "cannot use the open file: its directory has been removed")


class _OpenText(_OpenConfigFile):
    def __init__(self, attribute: TextAttribute, fragment: _Fragment) -> None:
        super().__init__(fragment)
        self._attribute = attribute
        self._page: bytes | None = None

    def read(self, offset: int, size: int) -> Operation[bytes]:
        yield from self._alone()
        if self._page is None:
            self._check()
            if self._attribute.show is None:
                raise OSError(errno.EBADF, "the file is not open for reading")
            self._busy = True
            try:
                self._page = yield from self._attribute.show()
            finally:
                self._busy = False
        return self._page[offset : offset + size]

    def write(self, _offset: int, data: bytes) -> Operation[int]:
        """Store the data of one write(2), whatever its offset in the file."""
        yield from self._alone()
        text = data[: TEXT_MAX - 1]
        if not text:
            raise OSError(errno.EFAULT, "cannot write an empty text to an attribute")
        self._page = None
        self._check()
        if self._attribute.store is None:
            raise OSError(errno.EBADF, "the file is not open for writing")
        self._busy = True
        try:
            yield from self._attribute.store(text)
        finally:
            self._busy = False
        return len(text)

    def close(self) -> Operation[None]:
        return
        yield


class _OpenBinary(_OpenConfigFile):
    def __init__(self, attribute: BinaryAttribute, fragment: _Fragment) -> None:
        super().__init__(fragment)
        self._attribute = attribute
        self._content: bytes | None = None
        self._written: bytearray | None = None

    def read(self, offset: int, size: int) -> Operation[bytes]:
        yield from self._alone()
        if self._written is not None:
            raise OSError(errno.ETXTBSY, "cannot read: this open file has already been written to")
        if self._content is None:
            self._busy = True
            try:
                yield from self._fill()
            finally:
                self._busy = False
        return b"" if self._content is None else self._content[offset : offset + size]

    def _fill(self) -> Operation[None]:
        read = self._attribute.read
        if read is None:
            raise OSError(errno.EBADF, "the file is not open for reading")
        self._check()
        length = len((yield from read(False)))
        if not length:
            return
        if length > self._attribute.max_size:
            raise OSError(
                errno.EFBIG, "cannot read: the content is larger than the attribute allows"
            )
        self._check()
        found = yield from read(True)
        # The first call returned the size of the buffer.
        self._content = found[:length].ljust(length, b"\0")

    def write(self, offset: int, data: bytes) -> Operation[int]:
        yield from self._alone()
        if self._content is not None:
            raise OSError(errno.ETXTBSY, "cannot write: this open file has already been read")
        if self._written is None:
            self._written = bytearray()
        end = offset + len(data)
        if end > self._attribute.max_size:
            raise OSError(
                errno.EFBIG, "cannot write: the content would be larger than the attribute allows"
            )
        if end > len(self._written):
            self._written.extend(bytes(end - len(self._written)))
        self._written[offset:end] = data
        return len(data)

    def close(self) -> Operation[None]:
        """Pass the written data to the attribute, and ignore an error."""
        write = self._attribute.write
        if self._written is None or write is None or self._fragment.dead:
            return
        try:
            yield from write(bytes(self._written))
        except OSError:
            return


@dataclass(slots=True)
class ConfigDirectory:
    """A directory of configfs. ``make_item`` creates the object for a mkdir(2) in the directory.

    If ``make_item`` is None, mkdir fails with EPERM. ``removable`` says that a program created the
    directory, so a program may remove it.
    """

    numbers: itertools.count[int]
    make_item: Callable[[], Operation[Mapping[str, TextAttribute | BinaryAttribute]]] | None = None
    removable: bool = False
    number: int = 0
    children: dict[str, ConfigFile | ConfigDirectory] = field(default_factory=dict)
    _fragment: _Fragment = field(default_factory=_Fragment)

    def __post_init__(self) -> None:
        self.number = next(self.numbers)

    @property
    def mode(self) -> int:
        """The mode of a directory that only its owner can change."""
        return stat.S_IFDIR | 0o755

    @property
    def size(self) -> int:
        """The size that stat(2) shows: 0, as for every directory of configfs."""
        return 0

    @property
    def entries(self) -> Mapping[str, ConfigFile | ConfigDirectory]:
        """The entries of this directory, by name."""
        return self.children

    def group(
        self,
        name: str,
        make_item: Callable[[], Operation[Mapping[str, TextAttribute | BinaryAttribute]]]
        | None = None,
    ) -> ConfigDirectory:
        """Add a directory that belongs to the kernel, and return it."""
        made = ConfigDirectory(self.numbers, make_item)
        self.children[name] = made
        return made

    def make(self, name: str) -> Operation[ConfigDirectory]:
        """Create an item, as mkdir(2) does; EPERM if programs cannot create items here."""
        if self.make_item is None:
            raise OSError(errno.EPERM, "programs cannot create directories here")
        if len(os.fsencode(name)) > NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, "cannot create the directory: its name is too long")
        if name in self.children:
            raise OSError(errno.EEXIST, "cannot create the directory: this name is in use")
        attributes = yield from self.make_item()
        if name in self.children:  # another thread created it in the meantime
            raise OSError(errno.EEXIST, "cannot create the directory: this name is in use")
        made = ConfigDirectory(self.numbers, removable=True)
        for each, attribute in attributes.items():
            made.children[each] = ConfigFile(next(self.numbers), attribute, made._fragment)
        self.children[name] = made
        return made

    def remove(self, name: str) -> Operation[None]:
        """Remove an item with its attributes; EPERM for the kernel's own directories."""
        found = self.children.get(name)
        if found is None:
            raise OSError(errno.ENOENT, "cannot remove the directory: it does not exist")
        if not isinstance(found, ConfigDirectory):
            raise OSError(errno.ENOTDIR, "cannot remove the directory: this is the name of a file")
        if not found.removable:
            raise OSError(errno.EPERM, "cannot remove the directory: it belongs to the kernel")
        found._fragment.dead = True
        del self.children[name]
        return
        yield
