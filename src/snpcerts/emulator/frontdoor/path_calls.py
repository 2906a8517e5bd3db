# SPDX-License-Identifier: Apache-2.0
"""Serves the trapped system calls that open or examine a path.

The kernel performs calls for paths that are not emulated.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections.abc import Callable
from typing import Final

from snpcerts.emulator.frontdoor import seccomp, stat
from snpcerts.emulator.frontdoor.bpf import Syscall
from snpcerts.emulator.frontdoor.descriptors import Descriptors, file_with
from snpcerts.emulator.frontdoor.door import Door, Match, OpenInfo, PathKind
from snpcerts.emulator.frontdoor.file_watch import OpenCall
from snpcerts.emulator.frontdoor.install_fd import give, give_device
from snpcerts.emulator.frontdoor.paths import AT_FDCWD, is_hidden, read_path
from snpcerts.emulator.frontdoor.seccomp import Notification, c_int
from snpcerts.emulator.syscall.caller_memory import ProcessMemory

log = logging.getLogger(__name__)

_OPEN_HOW = struct.Struct("<QQQ")  # struct open_how of linux/openat2.h: flags, mode, resolve
_RESOLVE_IN_ROOT: Final = 0x10
_O_PATH: Final = os.O_PATH
_AT_SYMLINK_NOFOLLOW: Final = 0x100

OPENS: Final = frozenset((Syscall.OPEN, Syscall.OPENAT, Syscall.OPENAT2, Syscall.CREAT))
_LOOKS_AT: Final = frozenset(
    (Syscall.NEWFSTATAT, Syscall.STATX, Syscall.FACCESSAT, Syscall.FACCESSAT2, Syscall.READLINKAT)
)
_ACCESS: Final = frozenset((Syscall.ACCESS, Syscall.FACCESSAT, Syscall.FACCESSAT2))
_LOOKS_AT_LINKS: Final = frozenset(
    (Syscall.LSTAT, Syscall.READLINK, Syscall.READLINKAT, Syscall.LGETXATTR, Syscall.LLISTXATTR)
)


class PathCalls:
    """Serves the trapped calls that take a path. ``process_of`` returns a thread's process ID."""

    def __init__(self, descriptors: Descriptors, process_of: Callable[[int], int]) -> None:
        self._descriptors = descriptors
        self._process_of = process_of
        self._hidden: set[int] = set()

    def open(self, listener: int, door: Door, notification: Notification) -> None:
        """Serve a call that opens a path."""
        arguments, tid, how = notification.arguments, notification.tid, 0
        number = notification.number
        dirfd, address, flags = AT_FDCWD, arguments[0], arguments[1]
        if number == Syscall.CREAT:
            flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
        elif number != Syscall.OPEN:
            dirfd, address, flags = c_int(arguments[0]), arguments[1], arguments[2]
        if number == Syscall.OPENAT2:
            try:
                flags, _, how = _OPEN_HOW.unpack(ProcessMemory(tid).read(flags, _OPEN_HOW.size))
            except OSError:
                seccomp.proceed(listener, notification.id)
                return
        path = read_path(tid, address)
        if path is None:
            self._note_hidden(tid)
        match = None
        if path:
            match = door.recognise(
                tid,
                dirfd,
                path,
                self._descriptors.open,
                follow=not flags & os.O_NOFOLLOW,
                confined=bool(how & _RESOLVE_IN_ROOT),
            )
        if match is None or match.kind is PathKind.DIRECTORY:
            self._open_theirs(
                listener, door, notification, OpenCall(tid, path or b"", flags, dirfd)
            )
        elif seccomp.is_waiting(listener, notification.id):
            self._open_ours(listener, door, notification, match, flags)

    def _note_hidden(self, tid: int) -> None:
        """Write to the log, once for each process, that its calls cannot be served."""
        process = self._process_of(tid)
        if process in self._hidden or not is_hidden(tid):
            return
        self._hidden.add(process)
        log.info(
            "cannot serve a process, because this user may not read its memory: it has called "
            "prctl(PR_SET_DUMPABLE, 0) or belongs to another user; run snpcerts as root"
        )

    @staticmethod
    def _open_theirs(listener: int, door: Door, notification: Notification, call: OpenCall) -> None:
        refused = door.watch.opening(call) if door.watch is not None and call.path else None
        if refused is None:
            seccomp.proceed(listener, notification.id)
        else:
            seccomp.answer(listener, notification.id, refused)

    def _open_ours(
        self, listener: int, door: Door, notification: Notification, match: Match, flags: int
    ) -> None:
        if flags & _O_PATH and match.real and not match.is_barred:
            # With an O_PATH descriptor, the program cannot bypass this supervisor.
            seccomp.proceed(listener, notification.id)
            return
        path = match.path
        if match.kind is PathKind.OPEN and match.key is not None:
            path = self._descriptors.open[match.key].path or b""
        try:
            if flags & _O_PATH or match.is_barred:
                raise OSError(
                    errno.ENOENT, "no such device, or O_PATH for a file that is only emulated"
                )
            if flags & os.O_CREAT and flags & os.O_EXCL:
                raise OSError(errno.EEXIST, "the file already exists")
            if flags & os.O_DIRECTORY:
                raise OSError(errno.ENOTDIR, "the path does not name a directory")
            if match.kind is PathKind.FILE:
                self._give_file(listener, door, notification, path, flags)
                return
            if path not in door.devices:
                raise OSError(errno.ENXIO, "a file that an ioctl created cannot be opened again")
            info = OpenInfo(os.fsdecode(path), flags, self._process_of(notification.tid))
            device = door.devices[path](info)
        except OSError as error:
            seccomp.answer(listener, notification.id, -(error.errno or errno.EIO))
            return
        give_device(
            self._descriptors, listener, notification, device, path=path, flags=flags, shared=None
        )

    @staticmethod
    def _give_file(
        listener: int, door: Door, notification: Notification, path: bytes, flags: int
    ) -> None:
        mode = flags & os.O_ACCMODE
        if mode != os.O_RDONLY and not door.opens_for_writing(path):
            raise OSError(errno.EACCES, "the file is read-only")
        descriptor = file_with(path, door.files[path](), mode)
        try:
            give(listener, notification, descriptor, flags)
        finally:
            os.close(descriptor)

    def look(self, listener: int, door: Door, notification: Notification) -> None:
        """Serve a call that only examines a path."""
        arguments, tid, call = (
            notification.arguments,
            notification.tid,
            Syscall(notification.number),
        )
        at = call in _LOOKS_AT
        dirfd, address = (c_int(arguments[0]), arguments[1]) if at else (AT_FDCWD, arguments[0])
        path = read_path(tid, address)
        match = None
        if path:
            match = door.recognise(
                tid,
                dirfd,
                path,
                self._descriptors.open,
                follow=_follows(call, arguments),
            )
        # If the machine has the path too, the kernel answers. The exceptions are access(2), because
        # every user may open the emulated file, and paths whose inode number the door sets.
        known = match is not None and match.real and not match.is_barred and call not in _ACCESS
        known = known and match is not None and match.inode is None
        if match is None or match.kind is PathKind.OPEN or known:
            if door.watch is not None and path:
                door.watch.examining(tid, dirfd, path)
            seccomp.proceed(listener, notification.id)
            return
        if not seccomp.is_waiting(listener, notification.id):
            return
        try:
            self._show(tid, call, arguments, match, door)
        except OSError as error:
            seccomp.answer(listener, notification.id, -(error.errno or errno.EIO))
        else:
            seccomp.answer(listener, notification.id, 0)

    @staticmethod
    def _show(
        tid: int, call: Syscall, arguments: tuple[int, ...], match: Match, door: Door
    ) -> None:
        memory = ProcessMemory(tid)
        if match.is_barred:
            raise OSError(errno.ENOENT, "this front door has no such device")
        if call in (Syscall.STAT, Syscall.LSTAT):
            memory.write(arguments[1], stat.stat_of(match))
        elif call is Syscall.NEWFSTATAT:
            memory.write(arguments[2], stat.stat_of(match))
        elif call is Syscall.STATX:
            memory.write(arguments[4], stat.statx_of(match))
        elif call in (Syscall.READLINK, Syscall.READLINKAT):
            raise OSError(errno.EINVAL, "the path does not name a link")
        elif call in (Syscall.GETXATTR, Syscall.LGETXATTR):
            raise OSError(errno.ENODATA, "the file has no extended attributes")
        elif call in (Syscall.LISTXATTR, Syscall.LLISTXATTR):
            return  # an empty list
        else:
            mode = arguments[1] if call is Syscall.ACCESS else arguments[2]
            if mode & os.X_OK and match.kind is not PathKind.DIRECTORY:
                raise OSError(errno.EACCES, "the file is not executable")
            if mode & os.W_OK and not door.opens_for_writing(match.path):
                raise OSError(errno.EACCES, "the file is not writable")


def _follows(call: Syscall, arguments: tuple[int, ...]) -> bool:
    """Whether a call that examines a path follows a link in the last component."""
    if call in (Syscall.NEWFSTATAT, Syscall.FACCESSAT2):
        return not arguments[3] & _AT_SYMLINK_NOFOLLOW
    if call is Syscall.STATX:
        return not arguments[2] & _AT_SYMLINK_NOFOLLOW
    return call not in _LOOKS_AT_LINKS
