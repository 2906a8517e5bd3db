# SPDX-License-Identifier: Apache-2.0
"""Recognises the emulated devices in mount namespaces, and detects when programs close them.

Each device of a namespace is the ``ptmx`` of a devpts instance
(:mod:`snpcerts.emulator.frontdoor.namespace`). The instance's device number shows which emulated
device a descriptor is for. The descriptor's terminal number (``tty-index`` in
``/proc/PID/fdinfo``) identifies the open: it survives dup, fork, exec and passing over a socket.
When the last descriptor is closed, the kernel removes the terminal's file and inotify reports that.

The supervisor does not see the program's open. It opens the emulated device at the first ioctl, and
if the open fails, that ioctl returns the error.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from snpcerts.emulator.frontdoor.door import Door, Key, OpenInfo
from snpcerts.emulator.frontdoor.seccomp import FrontDoorUnavailableError
from snpcerts.emulator.syscall.device import Device
from snpcerts.errors import InputError

PTMX_RDEV: Final = os.makedev(5, 2)  # the kernel's admin-guide/devices.rst
_IN_DELETE: Final = 0x200  # linux/inotify.h
_IN_Q_OVERFLOW: Final = 0x4000
_EVENT = struct.Struct("<iIII")  # struct inotify_event without its name
_EVENTS_MAX: Final = 1 << 16  # bytes
_FDINFO_MAX: Final = 1024

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class InUse:
    """A device that a program has opened and used with an ioctl. ``since`` is the creation time
    of the pseudo-terminal behind the program's descriptor (``st_ctime_ns``).
    """

    device: Device
    writable: bool
    since: int


@dataclass(slots=True)
class NamespaceDevice:
    """A device in one mount namespace: the ``ptmx`` of a devpts instance, whose root directory is
    the descriptor ``root``. ``opens`` maps the pseudo-terminal number of each open to its device.
    """

    door: Door
    path: bytes
    root: int
    key: Key
    watch: int
    opens: dict[int, InUse] = field(default_factory=dict)
    ended: bool = False

    def created_at(self, number: int) -> int | None:
        """Return the creation time of pseudo-terminal ``number``, or None if it is closed."""
        with contextlib.suppress(OSError):
            return os.stat(str(number), dir_fd=self.root).st_ctime_ns
        return None


@dataclass(frozen=True, slots=True)
class Place:
    """A program's descriptor for a device: its pseudo-terminal number and its open(2) flags."""

    device: NamespaceDevice
    number: int
    flags: int


class NamespaceDevices:
    """The devices of all namespaces that a supervisor serves."""

    def __init__(self) -> None:
        self._devices: dict[Key, NamespaceDevice] = {}
        self._watches: dict[int, NamespaceDevice] = {}
        self._inotify = int(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
        if self._inotify < 0:
            raise FrontDoorUnavailableError(
                f"cannot create an inotify instance ({os.strerror(ctypes.get_errno())})",
                hint="raise the sysctl fs.inotify.max_user_instances",
            )

    def fileno(self) -> int:
        """Return a file descriptor that becomes readable when a program has closed a device."""
        return self._inotify

    @property
    def open(self) -> list[Device]:
        """The emulated devices that programs currently have open."""
        return [each.device for one in self._devices.values() for each in one.opens.values()]

    def add(self, door: Door, paths: Sequence[str], roots: Sequence[int]) -> list[NamespaceDevice]:
        """Serve a namespace's devices at ``paths``. Takes ownership of ``roots``, a descriptor of
        each device's devpts instance.
        """
        added: list[NamespaceDevice] = []
        for path, root in zip(paths, roots, strict=True):
            try:
                added.append(self._add(door, os.fsencode(path), root))
            except OSError as error:
                self.end(added)
                raise InputError(
                    f"{path}: the device's devpts instance is not usable ({error})"
                ) from error
            except InputError:
                self.end(added)
                raise
        return added

    def _add(self, door: Door, path: bytes, root: int) -> NamespaceDevice:
        found = os.stat("ptmx", dir_fd=root, follow_symlinks=False)
        key = found.st_dev, found.st_ino
        if path not in door.devices or found.st_rdev != PTMX_RDEV or key in self._devices:
            raise InputError(
                f"{os.fsdecode(path)}: expected one of this front door's devices, with a devpts "
                "instance that no other device uses"
            )
        watch = _libc.inotify_add_watch(self._inotify, b"/proc/self/fd/%d" % root, _IN_DELETE)
        if watch < 0:
            raise InputError(
                f"{os.fsdecode(path)}: cannot add an inotify watch for this device "
                f"({os.strerror(ctypes.get_errno())})",
                hint="if no watch is left, raise the sysctl fs.inotify.max_user_watches",
            )
        device = NamespaceDevice(door, path, root, key, watch)
        self._devices[key] = self._watches[watch] = device
        return device

    def place(self, process: int, tid: int, number: int, found: os.stat_result) -> Place | None:
        """Return the device, terminal and flags of a thread's descriptor ``number``; None if the
        descriptor is not for an emulated device.

        ``found`` is the descriptor's stat result.
        """
        device = self._devices.get((found.st_dev, found.st_ino))
        if device is None or not stat.S_ISCHR(found.st_mode):
            return None
        try:
            with open(f"/proc/{process}/task/{tid}/fdinfo/{number}", "rb", buffering=0) as file:
                words = file.read(_FDINFO_MAX).split()
            index = int(words[words.index(b"tty-index:") + 1])
            return Place(device, index, int(words[words.index(b"flags:") + 1], 8))
        except (OSError, ValueError):  # closed in the meantime, or opened with O_PATH
            return None

    def use(self, place: Place, door: Door, process: int) -> InUse:
        """Return the emulated device behind a descriptor. The first use opens it.

        ``door`` is the caller's door, ``process`` its process ID. Raises ``OSError`` as open(2)
        does.
        """
        in_use = place.device.opens.get(place.number)
        if in_use is not None:
            return in_use
        device = place.device
        since = device.created_at(place.number)
        if since is None or device.door is not door:
            raise OSError(
                errno.ENXIO,
                "cannot open the emulated device: the program's descriptor was opened behind "
                "another front door, or has been closed",
            )
        info = OpenInfo(os.fsdecode(device.path), place.flags, process)
        in_use = InUse(door.devices[device.path](info), info.writable, since)
        device.opens[place.number] = in_use
        return in_use

    def reap(self) -> list[Device]:
        """Forget the devices that programs have closed, and return them for the caller to close."""
        ended: list[Device] = []
        while True:
            try:
                events = os.read(self._inotify, _EVENTS_MAX)
            except BlockingIOError:
                return ended
            at = 0
            while at < len(events):
                watch, mask, _, size = _EVENT.unpack_from(events, at)
                name = events[at + _EVENT.size : at + _EVENT.size + size].rstrip(b"\0")
                at += _EVENT.size + size
                if mask & _IN_Q_OVERFLOW:
                    ended += self._look_at_all()
                elif mask & _IN_DELETE and (device := self._watches.get(watch)) is not None:
                    gone = device.opens.pop(int(name), None) if name.isdigit() else None
                    ended += [] if gone is None else [gone.device]
                    self._close_unused(device)

    def _look_at_all(self) -> list[Device]:
        ended: list[Device] = []
        for device in list(self._devices.values()):
            for number, in_use in list(device.opens.items()):
                if device.created_at(number) != in_use.since:
                    ended.append(device.opens.pop(number).device)
            self._close_unused(device)
        return ended

    def end(self, devices: Sequence[NamespaceDevice]) -> None:
        """Stop serving ``devices``, because their namespace has ended.

        A descriptor may have been passed on, so each device remains until its last descriptor is
        closed.
        """
        for device in devices:
            device.ended = True
            self._close_unused(device)

    def _close_unused(self, device: NamespaceDevice) -> None:
        if device.ended and not device.opens and self._devices.pop(device.key, None) is not None:
            _libc.inotify_rm_watch(self._inotify, device.watch)
            del self._watches[device.watch]
            os.close(device.root)

    def close(self) -> list[Device]:
        """Forget all namespaces, and return their open devices for the caller to close."""
        found = self.open
        for device in list(self._devices.values()):
            device.opens.clear()
            device.ended = True
            self._close_unused(device)
        os.close(self._inotify)
        return found
