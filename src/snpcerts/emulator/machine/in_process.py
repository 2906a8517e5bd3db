# SPDX-License-Identifier: Apache-2.0
"""An emulated kernel for callers in this process: open, ioctl, mmap and close.

It has the same devices as the kernel that programs behind the front door see. Those programs make
system calls; callers in this process call methods. As with a system call, a method that has to wait
blocks only its own thread.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from snpcerts.abi.kvm import VCPU_MMAP_SIZE, Ioctl
from snpcerts.emulator.guest.linux import LinuxGuest
from snpcerts.emulator.guest.program import GuestFactory
from snpcerts.emulator.kvm.kvm_device import KvmDevice
from snpcerts.emulator.kvm.platform import Platform
from snpcerts.emulator.psp.sev_device import SevDevice
from snpcerts.emulator.syscall.caller_memory import ProcessMemory
from snpcerts.emulator.syscall.device import Caller, Device, NewDescriptor, Pending

FIRST_DESCRIPTOR = 1 << 20  # far above real descriptors, so that the two are never confused

Waiter = Callable[[threading.Condition, float | None], None]
Argument = int | bytearray | memoryview | mmap.mmap


@dataclass(slots=True, eq=False)
class _PendingIoctl:
    request: int
    interrupted: bool = False


@dataclass(slots=True, eq=False)
class _OpenFile:
    device: Device
    shared: int | None = None
    writable: bool = True
    closed: bool = False
    calls: list[_PendingIoctl] = field(default_factory=list)


def _wait(changed: threading.Condition, timeout: float | None) -> None:
    changed.wait(timeout)


class Machine:
    """One emulated host; this process is the only process on it.

    All methods raise ``OSError`` with the kernel's errno and may be called from any thread.
    ``wait`` takes a condition and a timeout. It must wait until the condition is notified, or until
    the timeout (in seconds; None: never) has passed on the platform's clock. If you replace the
    clock, replace ``wait`` too.
    """

    def __init__(
        self, platform: Platform, *, guest: GuestFactory = LinuxGuest, wait: Waiter = _wait
    ) -> None:
        self.platform = platform
        self._wait = wait
        self._changed = threading.Condition(threading.RLock())
        self._memory = ProcessMemory(os.getpid())
        self._descriptors: dict[int, _OpenFile] = {}
        self._next = FIRST_DESCRIPTOR
        self._paths: dict[str, Callable[[], Device]] = {
            "/dev/kvm": lambda: KvmDevice(platform, guest),
            "/dev/sev": lambda: SevDevice(platform.firmware),
        }

    def attach(self, path: str, opened: Callable[[], Device]) -> None:
        """Put another device at ``path``, such as a guest's ``/dev/sev-guest``."""
        with self._changed:
            self._paths[path] = opened

    def open(self, path: str, flags: int = os.O_RDWR) -> int:
        """Open the device at ``path`` and return a new descriptor; ENOENT if the path is not a
        device.
        """
        with self._changed:
            opened = self._paths.get(path)
            if opened is None:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            return self._add(_OpenFile(opened(), writable=flags & os.O_ACCMODE != os.O_RDONLY))

    def ioctl(self, fd: int, request: int, argument: Argument = 0) -> int:
        """Perform ioctl(2). A buffer is passed by its address and must be writable.

        A call that has to wait blocks this thread until it is done or :meth:`kick` interrupts it.
        """
        if isinstance(argument, int):
            return self._ioctl(fd, request, argument)
        view = (ctypes.c_char * len(argument)).from_buffer(argument)
        return self._ioctl(fd, request, ctypes.addressof(view))

    def close(self, fd: int) -> None:
        """Perform close(2). A call in progress keeps the device open until it ends."""
        with self._changed:
            opened = self._find_open(fd)
            del self._descriptors[fd]
            opened.closed = True
            self._close_unused(opened)
            self._changed.notify_all()

    def mmap_run(self, vcpu_fd: int) -> mmap.mmap:
        """Map a vCPU's kvm_run, 12288 bytes shared with the kernel; ENODEV for any other
        descriptor.
        """
        with self._changed:
            shared = self._find_open(vcpu_fd).shared
            if shared is None:
                raise OSError(errno.ENODEV, "only the descriptor of a vCPU can be mapped")
            return mmap.mmap(shared, VCPU_MMAP_SIZE)

    def kick(self, vcpu_fd: int) -> bool:
        """Interrupt the thread that is in KVM_RUN on this vCPU; return False if there is none."""
        with self._changed:
            running = [c for c in self._find_open(vcpu_fd).calls if c.request == Ioctl.RUN]
            for call in running[:1]:  # the others wait for the vCPU's mutex
                call.interrupted = True
            self._changed.notify_all()
            return bool(running)

    def wake(self) -> None:
        """Make the waiting calls check again whether they can go on. Use this after a change that
        was not made by a call on this machine.
        """
        with self._changed:
            self._changed.notify_all()

    def _ioctl(self, fd: int, request: int, argument: int) -> int:
        call = _PendingIoctl(request)
        with self._changed:
            opened = self._find_open(fd)
            opened.calls.append(call)
            caller = Caller(
                self._memory,
                self._find,
                writable=opened.writable,
                pid=os.getpid(),
                interrupted=lambda _: call.interrupted,
            )
            try:
                result = opened.device.ioctl(caller, request, argument)
                if isinstance(result, NewDescriptor):
                    return self._add(_OpenFile(result.device, result.shared))
                if isinstance(result, int):
                    return result
                return self._finish(result)
            finally:
                opened.calls.remove(call)
                self._close_unused(opened)
                self._changed.notify_all()

    def _finish(self, pending: Pending) -> int:
        """Wait until a call is done. The lock is held except during the wait."""
        try:
            while (result := pending.poll()) is None:
                self._changed.notify_all()
                deadline = pending.deadline
                timeout = None if deadline is None else deadline - self.platform.clock()
                if timeout is None or timeout > 0:
                    self._wait(self._changed, timeout)
                else:
                    self._changed.wait(0)  # let other threads take the lock
        except BaseException:
            pending.cancel()
            raise
        return result

    def _find(self, fd: int) -> Device | None:
        opened = self._descriptors.get(fd)
        return None if opened is None else opened.device

    def _find_open(self, fd: int) -> _OpenFile:
        opened = self._descriptors.get(fd)
        if opened is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return opened

    def _add(self, opened: _OpenFile) -> int:
        fd = self._next
        self._next += 1
        self._descriptors[fd] = opened
        return fd

    def _close_unused(self, opened: _OpenFile) -> None:
        if opened.closed and not opened.calls:
            opened.device.close()
