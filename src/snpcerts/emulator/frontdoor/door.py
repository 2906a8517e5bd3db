# SPDX-License-Identifier: Apache-2.0
"""Recognises emulated paths, and finds the device or file that each one names.

In a mount namespace (:mod:`snpcerts.emulator.frontdoor.namespace`) the kernel does this. Otherwise
every open of the program comes here, so the common case must be cheap: read the path, stat it once
through ``/proc/TID``, compare numbers. Only a path that may be another name of an emulated one is
resolved in full. Such a path has an emulated name as its last component, leads through
``/proc/self`` or ``/dev/fd``, or ends in a dangling link.

Some paths escape this: a path that another thread changes between check and use, or a link to a
link in ``/proc/self/fd``. At worst they reach a real device. Even then no device ioctl reaches the
kernel, because the supervisor answers all of them itself.

The cost without a namespace, measured with ``python -m bench frontdoor`` on a virtual machine with
two cores: an open takes 22 to 34 us instead of 2, a trapped stat 22 to 33 instead of 1, an ioctl on
a device 18 to 25. Starting Python twenty times takes 1.10 times as long with opens trapped, and
1.31 times with stat calls trapped as well; a gcc run or arithmetic shows no difference beyond the
noise of about 10 %. Stat calls are trapped by default, because tools that check for a device before
they open it must find it.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Final

from snpcerts.emulator.frontdoor import paths
from snpcerts.emulator.frontdoor.file_watch import Watch
from snpcerts.emulator.frontdoor.layout import Layout
from snpcerts.emulator.syscall.device import Device
from snpcerts.emulator.syscall.file_tree import TreeDirectory
from snpcerts.errors import InputError

# The door hides these devices of the real host, even if no emulated device takes their place.
GUARDED: Final = (b"/dev/kvm", b"/dev/sev", b"/dev/sev-guest")
KVM_RDEV: Final = os.makedev(10, 232)  # linux/miscdevice.h: KVM_MINOR

Content = bytes | Mapping[int, bytes]
Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class OpenInfo:
    """How a device was opened: its path, the flags of open(2) and the process that opened it."""

    path: str
    flags: int
    pid: int

    @property
    def writable(self) -> bool:
        """Whether the device was opened for writing."""
        return self.flags & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR)


class PathKind(enum.Enum):
    """What kind of file an emulated path names."""

    DEVICE = "an emulated device"
    FILE = "a virtual file"
    DIRECTORY = "a directory that this machine does not have, above an emulated path"
    BARRED = "a real device that this door does not emulate"
    OPEN = "a link in /proc to a descriptor of an open emulated device"


@dataclass(frozen=True, slots=True)
class Match:
    """A path that the door emulates. ``real`` says whether the machine itself has a file there.

    ``inode`` is the inode number if the door sets it.
    """

    kind: PathKind
    path: bytes
    real: bool = False
    key: Key | None = None
    inode: int | None = None

    @property
    def is_barred(self) -> bool:
        """Whether the program must not see this path, even if the machine has a file there."""
        return self.kind is PathKind.BARRED


class Door:
    """The emulated devices and files that a program sees.

    ``devices`` maps absolute paths to functions that open them. The function gets the
    :class:`OpenInfo` and may raise ``OSError``. ``files`` maps the absolute path of each read-only
    file to a function that returns the file's content at an open: bytes, or for a sparse file a
    mapping of offsets to bytes (in ``/dev/cpu/0/msr`` the offset is the register's number).

    ``look`` says whether calls that only examine a path (stat, access, readlink) find the same as
    an open. These calls are not trapped if that makes no difference: the machine has all emulated
    paths, this user may open them, and there is neither a device to hide nor an entry in
    ``inodes``.

    ``inodes`` maps directories above emulated paths to functions that return their inode numbers. A
    function is called each time its directory is examined, because a module's directory in sysfs
    gets another number when the module is loaded again.

    ``trees`` are file systems to mount, by mount point. They exist only in a mount namespace.

    ``watch`` selects calls on open files, and is called for each of them. It is also called before
    a path is opened or examined.

    ``version`` returns a different object whenever the content of a file or an inode number may
    have changed. Then the files in mount namespaces are updated.
    """

    def __init__(
        self,
        devices: Mapping[str, Callable[[OpenInfo], Device]],
        files: Mapping[str, Callable[[], Content]] | None = None,
        *,
        look: bool = True,
        watch: Watch | None = None,
        inodes: Mapping[str, Callable[[], int]] | None = None,
        version: Callable[[], object] = lambda: None,
        trees: Mapping[str, TreeDirectory] | None = None,
    ) -> None:
        self.watch = watch
        self.trees = dict(trees or {})
        self.version = version
        self.devices = {os.fsencode(path): opener for path, opener in devices.items()}
        self.files = {os.fsencode(path): content for path, content in (files or {}).items()}
        self._inodes = {os.fsencode(path): number for path, number in (inodes or {}).items()}
        ours = {*self.devices, *self.files}
        for path in ours:
            if not path.startswith(b"/") or os.path.normpath(path) != path:
                raise ValueError(
                    f"{os.fsdecode(path)!r}: the path of a device or file must be absolute and "
                    "normalised"
                )
        self.look = watch is not None or (
            look
            and not (
                not self._inodes
                and all(os.access(path, os.R_OK | os.W_OK) for path in self.devices)
                and all(os.access(path, os.R_OK) for path in self.files)
                and not any(os.path.exists(path) for path in GUARDED if path not in ours)
            )
        )
        self._guarded = {*GUARDED, *self.devices}
        self._directories = {above for path in ours for above in _above(path)}
        self._names = {os.path.basename(path) for path in self._guarded | ours}
        self._directory_names = {os.path.basename(path) for path in self._directories}
        self._rdevs = {KVM_RDEV: b"/dev/kvm"}
        self._real_files: dict[Key, bytes] = {}
        for path in self._guarded | ours | self._inodes.keys():
            try:
                status = os.stat(path)
            except OSError:
                continue
            if path in self.files or path in self._inodes:
                self._real_files[status.st_dev, status.st_ino] = path
            elif stat.S_ISCHR(status.st_mode):
                self._rdevs[status.st_rdev] = path

    def is_guarded(self, status: os.stat_result) -> bool:
        """Return whether ``status`` is the stat result of a real device that the door hides from
        programs.
        """
        return status.st_rdev in self._rdevs and stat.S_ISCHR(status.st_mode)

    def layout(self) -> Layout:
        """Return what the mount namespace of a program behind this door contains."""
        return Layout(
            devices=tuple(map(os.fsdecode, self.devices)),
            hidden=tuple(os.fsdecode(path) for path in GUARDED if path not in self.devices),
            files={
                os.fsdecode(path): 0o600 if self.opens_for_writing(path) else 0o444
                for path in self.files
            },
            directories=tuple(map(os.fsdecode, self._inodes)),
            trees=tuple(self.trees),
        )

    def inode_of(self, directory: str) -> int:
        """Return the inode number that programs now see for ``directory``.

        Raises ``InputError`` if the door does not set that number.
        """
        number = self._inodes.get(os.fsencode(directory))
        if number is None:
            raise InputError(
                f"{directory}: the front door does not set this directory's inode number"
            )
        return number()

    def opens_for_writing(self, path: bytes) -> bool:
        """Return whether the emulated device or file at ``path`` can be opened for writing.

        A file of registers can be, as in msr(4), because tools open it for reading and writing even
        if they only read. Writing to it fails with EPERM.
        """
        return path in self.devices or (
            path in self.files and not isinstance(self.files[path](), bytes)
        )

    def recognise(
        self,
        tid: int,
        dirfd: int,
        path: bytes,
        opened: Container[Key],
        *,
        follow: bool,
        confined: bool = False,
    ) -> Match | None:
        """Return what ``path`` names for the thread ``tid``, or None if the path is not emulated.

        ``opened`` are the identities (device, inode) of emulated descriptors.
        """
        name = path.rpartition(b"/")[2]
        if confined or paths.RELATIVE_TO_PROCESS.search(path) or name in self._names:
            return self._resolve(tid, dirfd, path, opened, follow, confined)
        start = paths.start(tid, dirfd, path)
        try:
            status = os.stat(start) if follow else os.lstat(start)
        except FileNotFoundError:
            if name in self._directory_names or (follow and _is_link(start)):
                return self._resolve(tid, dirfd, path, opened, follow, confined)
            return None
        except OSError:
            return None
        return self._by_identity(status, opened)

    def _resolve(
        self,
        tid: int,
        dirfd: int,
        path: bytes,
        opened: Container[Key],
        follow: bool,
        confined: bool,
    ) -> Match | None:
        place = paths.resolve(tid, dirfd, path, follow=follow, confined=confined)
        if place is None:
            return None
        status, found = place.status, place.path
        if status is not None and (match := self._by_identity(status, opened)) is not None:
            return match
        real = status is not None
        if found in self._directories:
            return None if real else self._directory(found, real=False)
        if path.endswith(b"/") or (status is not None and stat.S_ISLNK(status.st_mode)):
            return None
        return self._by_name(found, real)

    def _directory(self, path: bytes, *, real: bool) -> Match:
        number = self._inodes.get(path)
        return Match(PathKind.DIRECTORY, path, real, inode=None if number is None else number())

    def _by_name(self, path: bytes, real: bool) -> Match | None:
        if path in self._inodes:
            return self._directory(path, real=real)
        if path in self.devices:
            return Match(PathKind.DEVICE, path, real)
        if path in self.files:
            return Match(PathKind.FILE, path, real)
        return Match(PathKind.BARRED, path, real) if path in self._guarded else None

    def _by_identity(self, status: os.stat_result, opened: Container[Key]) -> Match | None:
        if status.st_rdev:
            if not self.is_guarded(status):
                return None
            return self._by_name(self._rdevs[status.st_rdev], real=True)
        key = (status.st_dev, status.st_ino)
        if key in opened:
            return Match(PathKind.OPEN, b"", key=key)
        path = self._real_files.get(key)
        return None if path is None else self._by_name(path, real=True)


def _above(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[:count]) for count in range(2, len(parts))]


def _is_link(path: bytes) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode)
    except OSError:
        return False
