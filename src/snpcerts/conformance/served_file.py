# SPDX-License-Identifier: Apache-2.0
"""The certificate file that the VMM under test serves, and the operator's changes to it.

Every file that was ever at the path stays open here, so that its inode number is not reused and its
locks can be queried.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import random
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snpcerts.abi.cert_table import (
    ARK_GUID,
    ASK_GUID,
    ENTRY_SIZE,
    VCEK_GUID,
    CertTable,
    TableEntry,
)
from snpcerts.abi.lock import (
    EXCLUSIVE,
    F_OFD_GETLK,
    F_OFD_SETLK,
    F_UNLCK,
    F_WRLCK,
    PID_OF_OFD_OWNER,
    UNLOCK,
    Flock,
)
from snpcerts.certfile.holders import holders_of
from snpcerts.emulator.frontdoor.exchange import exchange
from snpcerts.errors import RefusedError

Identity = tuple[int, int]  # device, inode

_NAME: Final = "certs.bin"
FALLOC_FL_KEEP_SIZE: Final = 1  # linux/falloc.h
_libc = ctypes.CDLL(None, use_errno=True)
_FILLER: Final = uuid.UUID(
    "5e1f0f2a-8d1c-4f0e-9f43-6a3a5c0b7d10"
)  # our own GUID, which guests do not know


@dataclass(frozen=True, slots=True)
class LockSeen:
    """A lock on the file. ``pid`` is the owner of a POSIX lock, and None for an OFD lock."""

    exclusive: bool
    pid: int | None
    start: int = 0
    size: int = 0  # 0: to the end of the file, however far it grows

    @property
    def is_ofd(self) -> bool:
        """Whether the lock belongs to an open file description."""
        return self.pid is None

    @property
    def whole(self) -> bool:
        """Whether the lock covers the whole file, even if the file grows."""
        return (self.start, self.size) == (0, 0)

    @property
    def range(self) -> str:
        """The bytes that the lock covers, in words."""
        end = f"to byte {self.start + self.size - 1}" if self.size else "on"
        return f"the file from byte {self.start} {end}"


def table_of(size: int, seed: int) -> bytes:
    """Return a well-formed certificate table of exactly ``size`` bytes.

    Different seeds give different tables.
    """
    guids = (VCEK_GUID, ASK_GUID, ARK_GUID, _FILLER)
    room = size - ENTRY_SIZE * (len(guids) + 1)
    chance = random.Random(seed)  # noqa: S311 (the bytes only have to differ)
    lengths = [room // 4] * 3 + [room - 3 * (room // 4)]
    entries = tuple(
        # The last byte is never zero, because a zero could be mistaken for padding.
        TableEntry(guid, chance.randbytes(length - 1) + b"\x01")
        for guid, length in zip(guids, lengths, strict=True)
    )
    return CertTable(entries).encode()


class ServedFile:
    """The certificate file at ``path``, in an existing ``directory``.

    ``on_change`` is called with a description of each change to the file, its path or its lock.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path = directory / _NAME
        self.contents: list[bytes] = []  # all contents so far; the last one is the current one
        self.on_change: Callable[[str], None] = lambda _: None
        self._made: dict[Identity, int] = {}
        self._current: int | None = None
        self._seeds = 0
        self.updating = False  # from lock() to unlock()
        self._locked: int | None = None  # the file whose exclusive lock this process has
        self._pages: mmap.mmap | None = None  # a mapping of the file at the path

    @property
    def content(self) -> bytes | None:
        """The file's current content; None if there is no file."""
        return self.contents[-1] if self._current is not None and self.contents else None

    @property
    def identity(self) -> Identity:
        """The device and inode numbers of the file at the path."""
        return self._identity(self._present())

    @property
    def current(self) -> int:
        """This process's descriptor for the file that is at the path now."""
        return self._present()

    def close(self) -> None:
        """Close every file that is or was at the path, which also releases this process's locks."""
        self._unmap()
        for descriptor in self._made.values():
            os.close(descriptor)
        self._made.clear()
        self._current = self._locked = None

    def knows(self, found: os.stat_result) -> bool:
        """Whether ``found`` is the stat result of a file that is or was at the path."""
        return (found.st_dev, found.st_ino) in self._made

    def table(self, size: int) -> bytes:
        """Return a table of ``size`` bytes that has not been served before."""
        self._seeds += 1
        return table_of(size, self._seeds)

    # Actions of an operator.

    def replace(self, content: bytes) -> None:
        """Put a new file in place of whatever is at the path."""
        path, descriptor = self.prepare(self._directory, content)
        self.take_place(path, descriptor)

    def prepare(self, directory: Path, content: bytes) -> tuple[Path, int]:
        """Create a file with a temporary name in ``directory``. Return its path and descriptor."""
        path = directory / f".{_NAME}.next"
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._made[self._identity(descriptor)] = descriptor
        os.fchmod(descriptor, 0o644)  # regardless of the umask: the VMM may run as another user
        os.pwrite(descriptor, content, 0)
        return path, descriptor

    def take_place(self, path: Path, descriptor: int) -> None:
        """Rename a prepared file to the path."""
        if self.path.is_dir() and not self.path.is_symlink():
            self.path.rmdir()
        path.rename(path.with_name(_NAME))
        self.serves(descriptor)

    def serves(self, descriptor: int) -> None:
        """Record that the prepared file behind ``descriptor`` is now at the path."""
        self._current = descriptor
        self.contents.append(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
        self.on_change(f"puts inode {os.fstat(descriptor).st_ino} in place")

    def replace_unnoticed(self, content: bytes) -> None:
        """Replace the file with one that has the same times. The old file remains under another
        name.

        If the file system supports it, the two files exchange their names. Their link counts then
        stay the same, and both get the same time of the last status change.
        """
        old = os.fstat(self._present())
        path, descriptor = self.prepare(self._directory, content)
        os.utime(descriptor, ns=(old.st_atime_ns, old.st_mtime_ns))
        kept = self._directory / f".{_NAME}.{len(self._made)}"
        path.rename(kept)
        folder = os.open(self._directory, os.O_PATH | os.O_CLOEXEC)
        try:
            exchange(kept.name, self.path.name, folder=folder)
        except OSError:
            kept.rename(path)
            os.link(self.path, kept)
            self.take_place(path, descriptor)
        else:
            self.serves(descriptor)
        finally:
            os.close(folder)

    def replace_directory(self, content: bytes) -> None:
        """Put a new directory, with a new file, in place of the file's directory.

        The old directory remains under another name.
        """
        fresh = self._directory.with_name(f"{self._directory.name}.next")
        fresh.mkdir()
        fresh.chmod(self._directory.stat().st_mode)
        path, descriptor = self.prepare(fresh, content)
        path.rename(fresh / _NAME)
        self._directory.rename(fresh.with_name(f"{self._directory.name}.{len(self._made)}"))
        fresh.rename(self._directory)
        self.serves(descriptor)

    def rewrite(self, content: bytes, *, same_time: bool = False) -> None:
        """Overwrite the file at the path with ``content``, in place.

        This happens between two requests, when a correct VMM does not use the file, so no lock is
        needed. A VMM that never releases its lock then fails only the checks about that, not all.
        ``same_time`` keeps the time of the last change.
        """
        descriptor = self._present()
        before = os.fstat(descriptor)
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
        if same_time:
            os.utime(descriptor, ns=(before.st_atime_ns, before.st_mtime_ns))
        self.contents.append(content)
        self.on_change(f"rewrites inode {before.st_ino} in place, {len(content)} bytes")

    def make_pages_dirty(self) -> None:
        """Map the file and write to every page, so that :meth:`store` does not change the file's
        times. This call does change them.
        """
        self._unmap()
        self._pages = mmap.mmap(self._present(), 0)
        for at in range(0, len(self._pages), mmap.PAGESIZE):
            self._pages[at] = self._pages[at]

    def store(self, content: bytes) -> None:
        """Overwrite the file at the path with ``content`` of the same size, through a mapping.

        Only the first write to a page changes the file's times, and :meth:`make_pages_dirty`, which
        must be called first, has made that write. So this write changes no times, and inotify(7)
        does not report it.
        """
        if self._pages is None:
            raise RefusedError(
                f"cannot write to the certificate file {self.path}: it is not mapped"
            )
        self._pages[:] = content
        self.contents.append(content)
        self.on_change(f"overwrites inode {self.identity[1]} through a mapping")

    def _unmap(self) -> None:
        if self._pages is not None:
            self._pages.close()
            self._pages = None

    def preallocate(self, size: int) -> None:
        """Give the file more blocks than its content needs, if the file system supports that."""
        sizes = (ctypes.c_long(0), ctypes.c_long(size))
        _libc.fallocate(self._present(), FALLOC_FL_KEEP_SIZE, *sizes)

    def remove(self) -> None:
        """Remove the file at the path."""
        self.path.unlink()
        self._current = None
        self.on_change("removes the file")

    def put_directory(self) -> None:
        """Put a directory in place of the file."""
        self.remove()
        self.path.mkdir()

    def make_link(self) -> None:
        """Move the file away and put a symbolic link to it at the path."""
        target = self._directory / f"{_NAME}.{len(self._made)}"
        self.path.rename(target)
        self.path.symlink_to(target.name)
        self.on_change("puts a symbolic link in place of the file")

    def point_elsewhere(self, content: bytes, *, absolute: bool = False) -> None:
        """Atomically make the path a symbolic link to a new file with ``content``.

        With ``absolute``, the new file is in another directory, and the link has its absolute path.
        """
        path, descriptor = self.prepare(self._directory, content)
        target = self._directory / f"{_NAME}.{len(self._made)}"
        if absolute:
            target.mkdir(mode=0o755)
            target /= _NAME
        path.rename(target)
        path.symlink_to(target if absolute else target.name)
        path.rename(self.path)
        self.serves(descriptor)

    def lock(self) -> bool:
        """Take the exclusive lock, as an update does. Return False if another lock prevents it."""
        try:
            fcntl.fcntl(self._present(), F_OFD_SETLK, EXCLUSIVE)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            return False
        self.on_change("takes the exclusive lock")
        self.updating = True
        self._locked = self._present()
        return True

    def unlock(self) -> None:
        """Release the exclusive lock, even if another file is at the path by now."""
        self.updating = False
        if self._locked is not None:
            self.on_change("releases the exclusive lock")
            fcntl.fcntl(self._locked, F_OFD_SETLK, UNLOCK)
            self._locked = None

    # Observations.

    def locked(self, identity: Identity | None = None) -> LockSeen | None:
        """Return the lock of another process on a file, by default on the file at the path.

        flock(2) locks are ignored, because updates ignore them too.
        """
        descriptor = self._current if identity is None else self._made.get(identity)
        if descriptor is None:
            return None
        asked = fcntl.fcntl(descriptor, F_OFD_GETLK, EXCLUSIVE)
        found = Flock.unpack(asked)
        if found.l_type == F_UNLCK:
            return None
        owner = None if found.l_pid == PID_OF_OFD_OWNER else found.l_pid
        return LockSeen(found.l_type == F_WRLCK, owner, found.l_start, found.l_len)

    def kinds(self) -> str:
        """Return a description of the locks on the file at the path."""
        found = ", ".join(str(each) for each in holders_of(str(self.path)))
        if found or self.locked() is None:
            return found or "none"
        return (
            "a lock on a file that no process has open any more: a mapping of the file keeps "
            "the lock "
            "after close(2); unlock before you close"
        )

    def descriptors_of(self, pids: list[int]) -> int:
        """Return how many descriptors the processes have open for files that are or were at the
        path.
        """
        return sum(self._open_in(pid) for pid in pids)

    def _open_in(self, pid: int) -> int:
        total = 0
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    total += self.knows(os.stat(f"/proc/{pid}/fd/{number}"))
        return total

    def inherited_from(self, process: int) -> bool:
        """Whether programs that the process starts inherit a descriptor of a file that is or was at
        the path.
        """
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{process}/fd"):
                with contextlib.suppress(OSError):
                    if self.knows(os.stat(f"/proc/{process}/fd/{number}")):
                        text = Path(f"/proc/{process}/fdinfo/{number}").read_text("ascii")
                        found = re.search(r"^flags:\s*([0-7]+)", text, re.MULTILINE)
                        if found is not None and not int(found[1], 8) & os.O_CLOEXEC:
                            return True
        return False

    def mapped_in(self, pids: list[int]) -> bool:
        """Whether one of the processes has mapped a file that is or was at the path."""
        return self.mappings_in(pids) > 0

    def mappings_in(self, pids: list[int]) -> int:
        """Return how many mappings the processes have of files that are or were at the path."""
        total = 0
        inodes = {str(inode) for _, inode in self._made}
        for pid in pids:
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/maps").read_text("utf-8", errors="replace")
                for line in text.splitlines():
                    total += line.split(maxsplit=5)[4] in inodes and _NAME in line
        return total

    def _present(self) -> int:
        if self._current is None:
            raise RefusedError(f"the certificate file {self.path} does not exist")
        return self._current

    @staticmethod
    def _identity(descriptor: int) -> Identity:
        status = os.fstat(descriptor)
        return status.st_dev, status.st_ino
