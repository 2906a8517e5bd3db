# SPDX-License-Identifier: Apache-2.0
"""Tracks each descriptor that the supervisor gave to a program, until its last copy is closed.

Each open has its own memfd. A stat of ``/proc/TID/fd/N`` shows the memfd's identity (device,
inode), which survives dup, fork, exec and passing over a socket.
:mod:`snpcerts.emulator.frontdoor.namespace_devices` tracks what a program opens in its mount
namespace.

The last close is detected exactly, without scanning descriptor tables. The program gets a second
open file description of the memfd, which holds a lock (flock(2)); this process keeps the first.
When close, exec or exit ends the last descriptor and the last mapping of the second description,
the kernel sends an inotify event and releases the lock. Only the lock is conclusive: another
process that opens and closes the file through ``/proc`` causes an event too.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from snpcerts.emulator.frontdoor.door import Content, Key
from snpcerts.emulator.frontdoor.seccomp import FrontDoorUnavailableError
from snpcerts.emulator.syscall.device import Device

_IN_CLOSE: Final = 0x8 | 0x10  # linux/inotify.h: IN_CLOSE_WRITE, IN_CLOSE_NOWRITE
_IN_Q_OVERFLOW: Final = 0x4000
_EVENT = struct.Struct("<iIII")  # struct inotify_event without a name
_EVENTS_MAX: Final = 256 * _EVENT.size

# fcntl.h: seals of a memfd
_F_ADD_SEALS: Final = 1033
_ALL_SEALS: Final = 0xF

# The event arrives shortly before the lock is released.
RECHECK: Final = 0.001  # seconds
_SUSPECT_FOR: Final = 0.1  # seconds

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class OpenDevice:
    """One open emulated device.

    ``path`` is the opened path, None if an ioctl created the device. ``keeper`` is this process's
    own descriptor of the device's memfd.
    """

    device: Device
    path: bytes | None
    writable: bool
    key: Key
    keeper: int
    watch: int


class Descriptors:
    """All open emulated devices. ``open`` maps the identity (device, inode) of each device's memfd
    to the device.
    """

    def __init__(self) -> None:
        self.open: dict[Key, OpenDevice] = {}
        self._watches: dict[int, OpenDevice] = {}
        self._suspects: dict[Key, float] = {}
        self._inotify = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._inotify < 0:
            raise FrontDoorUnavailableError(
                f"cannot create an inotify instance ({os.strerror(ctypes.get_errno())})",
                hint="raise the sysctl fs.inotify.max_user_instances",
            )

    def fileno(self) -> int:
        """Return a file descriptor that becomes readable when a program may have closed a
        device.
        """
        return int(self._inotify)

    def admit(
        self, device: Device, *, path: bytes | None, flags: int, shared: int | None
    ) -> tuple[OpenDevice, int]:
        """Register a device; return its entry and the descriptor for the program.

        The caller passes that descriptor on and then closes it. ``shared`` is the memfd that the
        program can map, or None.
        """
        name = os.fsdecode(path) if path is not None else type(device).__name__
        keeper = os.dup(shared) if shared is not None else os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            link = f"/proc/self/fd/{keeper}"
            watch = _libc.inotify_add_watch(self._inotify, link.encode(), _IN_CLOSE)
            if watch < 0:
                raise OSError(
                    errno.ENFILE, "cannot watch the device's memfd: no inotify watch is left"
                )
            status = os.fstat(keeper)
            given = os.open(link, flags & (os.O_ACCMODE | os.O_NONBLOCK) | os.O_CLOEXEC)
        except OSError:
            os.close(keeper)
            raise
        try:
            fcntl.flock(given, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(given)
            os.close(keeper)
            raise
        entry = OpenDevice(
            device=device,
            path=path,
            writable=flags & os.O_ACCMODE != os.O_RDONLY,
            key=(status.st_dev, status.st_ino),
            keeper=keeper,
            watch=watch,
        )
        self.open[entry.key] = entry
        self._watches[watch] = entry
        return entry, given

    def reap(self) -> list[OpenDevice]:
        """Return the devices that programs have closed, and forget them."""
        now = time.monotonic()
        try:
            events = os.read(self._inotify, _EVENTS_MAX)
        except BlockingIOError:
            events = b""
        for watch, mask, _, _ in _EVENT.iter_unpack(events):
            if mask & _IN_Q_OVERFLOW:
                self._suspects = dict.fromkeys(self.open, now)
            elif mask & _IN_CLOSE and (entry := self._watches.get(watch)) is not None:
                self._suspects[entry.key] = now
        ended = [self.open[key] for key in self._suspects if _is_gone(self.open[key])]
        for entry in ended:
            self.forget(entry)
        self._suspects = {
            key: since for key, since in self._suspects.items() if now - since < _SUSPECT_FOR
        }
        return ended

    @property
    def has_suspects(self) -> bool:
        """Whether to call :meth:`reap` again after :data:`RECHECK` seconds, even if no event
        arrives.
        """
        return bool(self._suspects)

    def forget(self, entry: OpenDevice) -> None:
        """Forget an open device, which the caller must then close."""
        _libc.inotify_rm_watch(self._inotify, entry.watch)
        self._watches.pop(entry.watch, None)
        self._suspects.pop(entry.key, None)
        del self.open[entry.key]
        os.close(entry.keeper)

    def close(self) -> None:
        """Close the inotify instance. All emulated devices must already be closed."""
        os.close(self._inotify)


def _is_gone(entry: OpenDevice) -> bool:
    try:
        fcntl.flock(entry.keeper, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def file_with(path: bytes, content: Content, mode: int = os.O_RDONLY) -> int:
    """Return a sealed memfd that contains ``content``, opened in ``mode``, with the file offset at
    0. Writing to it fails.
    """
    pieces: Mapping[int, bytes] = {0: content} if isinstance(content, bytes) else content
    writer = os.memfd_create(os.fsdecode(path), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for offset, piece in pieces.items():
            os.pwrite(writer, piece, offset)
        fcntl.fcntl(writer, _F_ADD_SEALS, _ALL_SEALS)
        return os.open(f"/proc/self/fd/{writer}", mode | os.O_CLOEXEC)
    finally:
        os.close(writer)
