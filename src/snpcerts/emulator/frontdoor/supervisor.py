# SPDX-License-Identifier: Apache-2.0
"""Serves trapped system calls in one loop in one thread, and answers them in any order.

A call that has to wait (KVM_RUN of an idle vCPU) stays unanswered while others are served, so one
thread serves any number of vCPUs. With WAIT_KILLABLE_RECV a signal does not wake the caller of a
received call. So while calls wait, the loop checks every :data:`SIGNAL_INTERVAL` whether a caller
has a pending signal or has ended. A signal therefore interrupts a KVM_RUN within that time.

Invariants, whatever a program does:

- A KVM ioctl, or one of the four ioctls of the SEV drivers, never reaches the kernel
  on any descriptor. Unless the descriptor is an emulated device, the ioctl fails: with
  ENODEV on a real device, ENOTTY on any other file. It does not matter which process
  opened the descriptor, or when.
- Once this process has ended, every trapped call fails with ENOSYS.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from snpcerts.abi.ioctl import KVMIO, type_of
from snpcerts.abi.psp import SEV_ISSUE_CMD
from snpcerts.abi.sev_guest import SNP_GET_DERIVED_KEY, SNP_GET_EXT_REPORT, SNP_GET_REPORT
from snpcerts.emulator.frontdoor import seccomp
from snpcerts.emulator.frontdoor.bpf import FILE_CALLS, Syscall
from snpcerts.emulator.frontdoor.descriptors import RECHECK, Descriptors, OpenDevice
from snpcerts.emulator.frontdoor.door import Door
from snpcerts.emulator.frontdoor.file_watch import PROCEED, FileCall, submitted_reads
from snpcerts.emulator.frontdoor.install_fd import give_device
from snpcerts.emulator.frontdoor.layout import Places
from snpcerts.emulator.frontdoor.namespace_devices import (
    InUse,
    NamespaceDevice,
    NamespaceDevices,
)
from snpcerts.emulator.frontdoor.namespace_files import NamespaceFiles
from snpcerts.emulator.frontdoor.path_calls import OPENS, PathCalls
from snpcerts.emulator.frontdoor.seccomp import Notification, c_int
from snpcerts.emulator.frontdoor.take_fd import take_descriptor
from snpcerts.emulator.frontdoor.tasks import task
from snpcerts.emulator.frontdoor.tree_server import TreeServer
from snpcerts.emulator.syscall.caller_memory import ProcessMemory
from snpcerts.emulator.syscall.device import EVERY_SIGNAL, Caller, Device, NewDescriptor, Pending
from snpcerts.emulator.syscall.file_tree import Operation
from snpcerts.errors import InputError

SIGNAL_INTERVAL: Final = 0.005  # seconds
_TASKS_MAX: Final = 4096  # threads whose process is cached

_SEV_REQUESTS: Final = frozenset(
    (SEV_ISSUE_CMD, SNP_GET_REPORT, SNP_GET_DERIVED_KEY, SNP_GET_EXT_REPORT)
)

_U32: Final = (1 << 32) - 1

_SYS_KCMP: Final = 312
_KCMP_FILE: Final = 0  # linux/kcmp.h
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class _ServedNamespace:
    """The emulated part of one program's mount namespace."""

    devices: list[NamespaceDevice]
    files: NamespaceFiles
    trees: list[TreeServer]


@dataclass(slots=True)
class _Listener:
    descriptor: int
    door: Door
    on_end: Callable[[], None]
    namespace: _ServedNamespace | None


@dataclass(slots=True)
class _Waiting:
    """A trapped call that waits for its result. ``seen`` says whether the last check found a signal
    pending for the process.
    """

    listener: _Listener
    notification: Notification
    pending: Pending
    seen: bool = False


class _SignalPending:
    """A function that returns whether a signal is pending for a thread. It caches the answer
    briefly.
    """

    __slots__ = ("_answer", "_tid", "_until")

    def __init__(self, tid: int) -> None:
        self._tid = tid
        self._until = 0.0
        self._answer = False

    def __call__(self, blocked: int | None) -> bool:
        now = time.monotonic()
        if now >= self._until:
            found = task(self._tid)
            self._until = now + SIGNAL_INTERVAL
            own, shared = (0, 0) if found is None else found.deliverable(blocked)
            # If there are several threads, another one may be about to take the process's signal.
            self._answer = bool(own or (shared and found is not None and found.threads == 1))
        return self._answer


def _same_file(one: int, other: int) -> bool:
    """Whether two descriptors of this process refer to one open file: kcmp(2), KCMP_FILE."""
    me = os.getpid()
    words = (ctypes.c_long(each) for each in (_SYS_KCMP, me, me, _KCMP_FILE, one, other))
    return int(_libc.syscall(*words)) == 0


def _waits(operation: Operation[None]) -> bool:
    """Continue an operation; return whether it still waits."""
    try:
        next(operation)
    except (StopIteration, OSError):
        return False
    return True


class Supervisor:
    """Serves any number of seccomp listeners, each with its own front door.

    Everything, including the devices, runs in the thread that calls :meth:`step` or :meth:`run`.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._descriptors = Descriptors()
        self._namespaces = NamespaceDevices()
        self._paths = PathCalls(self._descriptors, self._process)
        self._listeners: dict[int, _Listener] = {}
        self._readers: dict[int, Callable[[], None]] = {}
        self._trees: dict[int, TreeServer] = {}
        self._closing_files: list[Operation[None]] = []
        self._waiting: dict[tuple[int, int], _Waiting] = {}
        self._processes: dict[int, int] = {}
        self._next_look = 0.0
        self._changed = False
        self._closing: list[Callable[[], None]] = []
        self.add_reader(self._descriptors.fileno(), self._reap)
        self.add_reader(self._namespaces.fileno(), self._reap_namespaces)

    def add_listener(
        self,
        descriptor: int,
        door: Door,
        on_end: Callable[[], None] = lambda: None,
        *,
        places: Places | None = None,
        namespace: Sequence[int] = (),
    ) -> None:
        """Serve the seccomp listener ``descriptor``. Takes ownership of it and of the descriptors
        in ``namespace``.

        ``on_end`` is called when the last process whose calls this listener traps has ended. If
        the program has a mount namespace, ``places`` says what each descriptor in ``namespace`` is
        for, and the emulated files of that mount namespace are written before this method returns.
        Raises ``InputError`` if ``places`` does not match the door.
        """
        try:
            made = None if places is None else self._enter(door, places, namespace)
        except BaseException:
            os.close(descriptor)
            raise
        seccomp.wake_synchronously(descriptor)
        self._listeners[descriptor] = _Listener(descriptor, door, on_end, made)
        self._epoll.register(descriptor, select.EPOLLIN)

    def _enter(self, door: Door, places: Places, namespace: Sequence[int]) -> _ServedNamespace:
        count = len(places.devices)
        roots, trees = namespace[count : count + places.roots], namespace[count + places.roots :]
        if len(namespace) != places.descriptors or not door.trees.keys() >= {*places.trees}:
            for each in namespace:
                os.close(each)
            raise InputError(
                f"mount namespace: expected {places.descriptors} descriptors and only trees of "
                f"this front door, found {len(namespace)} descriptors and {len(places.trees)} trees"
            )
        try:
            devices = self._namespaces.add(door, places.devices, namespace[:count])
        except BaseException:
            for each in (*roots, *trees):
                os.close(each)
            raise
        try:
            files = NamespaceFiles(door, places, roots)
        except BaseException:
            self._namespaces.end(devices)
            for each in trees:
                os.close(each)
            raise
        served = [
            TreeServer(each, door.trees[path])
            for path, each in zip(places.trees, trees, strict=True)
        ]
        for tree in served:
            self._trees[tree.fileno()] = tree
            self._epoll.register(tree.fileno(), select.EPOLLIN)
        return _ServedNamespace(devices, files, served)

    def reap(self) -> None:
        """Close emulated devices whose descriptors the programs have closed.

        :meth:`step` does so too, but may serve other events first.
        """
        self._reap()
        self._reap_namespaces()

    def refresh(self) -> None:
        """Update the emulated files in all mount namespaces."""
        for listener in self._listeners.values():
            if listener.namespace is not None:
                with contextlib.suppress(OSError):  # a full tmpfs must not make a device fail
                    listener.namespace.files.refresh()

    def serves(self, descriptor: int) -> bool:
        """Whether this supervisor already serves the listener of ``descriptor`` through another
        descriptor.
        """
        # Two descriptors of one listener become ready together, so the second receive would block.
        return any(_same_file(descriptor, other) for other in self._listeners)

    def add_reader(self, descriptor: int, ready: Callable[[], None]) -> None:
        """Call ``ready`` whenever the descriptor is readable. The caller still owns the
        descriptor.
        """
        self._readers[descriptor] = ready
        self._epoll.register(descriptor, select.EPOLLIN)

    def remove_reader(self, descriptor: int) -> None:
        """Undo :meth:`add_reader`. Call this before closing the descriptor."""
        del self._readers[descriptor]
        self._epoll.unregister(descriptor)

    def on_close(self, close: Callable[[], None]) -> None:
        """Call ``close`` when this supervisor is closed, after its last answer."""
        self._closing.append(close)

    @property
    def devices(self) -> list[Device]:
        """The emulated devices that are open."""
        opened = (entry.device for entry in self._descriptors.open.values())
        return [*opened, *self._namespaces.open]

    def run(self, until: Callable[[], bool]) -> None:
        """Serve until ``until`` returns true. ``until`` is called before each round."""
        while not until():
            self.step(None)

    def step(self, timeout: float | None = None) -> None:
        """Run one round: wait at most ``timeout`` seconds for events, and serve them."""
        for descriptor, events in self._epoll.poll(self._patience(timeout)):
            if (listener := self._listeners.get(descriptor)) is not None:
                if events & select.EPOLLIN:
                    self._serve(listener)
                elif events & (select.EPOLLHUP | select.EPOLLERR):
                    self._end(listener)
            elif (tree := self._trees.get(descriptor)) is not None:
                self._changed = True
                if not tree.serve():
                    self._close_tree(tree)
            elif (ready := self._readers.get(descriptor)) is not None:
                ready()
        if self._descriptors.has_suspects:
            self._reap()
        if self._changed or (self._looks() and time.monotonic() >= self._due()):
            self._look_after_waiting()
        self._changed = False

    def close(self) -> None:
        """Stop serving: drop the waiting calls and close the devices. Callers get ENOSYS.

        Programs started for this supervisor are killed with all their processes.
        """
        for waiting in list(self._waiting.values()):
            waiting.pending.cancel()
        self._waiting.clear()
        for descriptor in self._listeners:
            os.close(descriptor)
        self._listeners.clear()
        for tree in list(self._trees.values()):
            self._close_tree(tree)
        for close in self._closing:
            close()
        for entry in list(self._descriptors.open.values()):
            self._descriptors.forget(entry)
            entry.device.close()
        self._descriptors.close()
        for device in self._namespaces.close():
            device.close()
        self._epoll.close()

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _patience(self, timeout: float | None) -> float | None:
        limit = timeout
        if self._descriptors.has_suspects:
            limit = RECHECK if limit is None else min(limit, RECHECK)
        if self._looks():
            left = max(0.0, self._due() - time.monotonic())
            limit = left if limit is None else min(limit, left)
        return limit

    def _looks(self) -> bool:
        """Whether to check the waiting calls, even without an event."""
        return bool(self._waiting) or any(tree.interrupted for tree in self._trees.values())

    def _due(self) -> float:
        """The time at which to check the waiting calls, if no event comes earlier."""
        deadlines = (waiting.pending.deadline for waiting in self._waiting.values())
        return min((self._next_look, *(at for at in deadlines if at is not None)))

    def _end(self, listener: _Listener) -> None:
        self._epoll.unregister(listener.descriptor)
        del self._listeners[listener.descriptor]
        os.close(listener.descriptor)
        if listener.namespace is not None:
            listener.namespace.files.close()
            for tree in listener.namespace.trees:
                self._close_tree(tree)
            self._reap_namespaces()
            self._namespaces.end(listener.namespace.devices)
        for key, waiting in list(self._waiting.items()):
            if waiting.listener is listener:
                del self._waiting[key]
                waiting.pending.cancel()
        listener.on_end()

    def _close_tree(self, tree: TreeServer) -> None:
        if self._trees.pop(tree.fileno(), None) is tree:
            self._epoll.unregister(tree.fileno())
            self._closing_files += tree.close()
            self._changed = True

    def _reap(self) -> None:
        for entry in self._descriptors.reap():
            entry.device.close()
            self._changed = True

    def _reap_namespaces(self) -> None:
        for device in self._namespaces.reap():
            device.close()
            self._changed = True

    # Waiting calls

    def _look_after_waiting(self) -> None:
        now = time.monotonic()
        if now >= self._next_look:
            for tree in self._trees.values():
                tree.end_killed()
        # A call that ends may complete another one.
        while sum(self._poll(waiting) for waiting in list(self._waiting.values())) + sum(
            tree.go_on() for tree in list(self._trees.values())
        ):
            pass
        self._closing_files = [each for each in self._closing_files if _waits(each)]
        if now < self._next_look:
            return
        self._next_look = now + SIGNAL_INTERVAL
        for waiting in list(self._waiting.values()):
            descriptor, number = waiting.listener.descriptor, waiting.notification.id
            if not seccomp.is_waiting(descriptor, number):
                waiting.pending.cancel()
                del self._waiting[descriptor, number]
            elif self._is_signalled(waiting):
                waiting.pending.cancel()
                self._finish(waiting, -errno.EINTR)

    def _poll(self, waiting: _Waiting) -> bool:
        """Poll a waiting call; return whether its result is now known."""
        try:
            result = waiting.pending.poll()
        except OSError as error:
            result = -(error.errno or errno.EIO)
        if result is not None:
            self._finish(waiting, result)
        return result is not None

    def _finish(self, waiting: _Waiting, result: int) -> None:
        descriptor, number = waiting.listener.descriptor, waiting.notification.id
        del self._waiting[descriptor, number]
        if result == PROCEED:
            seccomp.proceed(descriptor, number)
        else:
            seccomp.answer(descriptor, number, result)

    @staticmethod
    def _is_signalled(waiting: _Waiting) -> bool:
        blocked = waiting.pending.blocked
        found = None if blocked == EVERY_SIGNAL else task(waiting.notification.tid)
        if found is None:
            return False
        own, shared = found.deliverable(blocked)
        if own:
            return True
        # Another thread may be about to take the process's signal, so act only on the second check.
        believed = waiting.seen or found.threads == 1
        waiting.seen = bool(shared)
        return waiting.seen and believed

    # Calls

    def _serve(self, listener: _Listener) -> None:
        notification = seccomp.receive(listener.descriptor)
        if notification is None:
            return
        number = notification.number
        if number == Syscall.IOCTL:
            self._ioctl(listener, notification)
        elif number in OPENS:
            self._paths.open(listener.descriptor, listener.door, notification)
        elif number in FILE_CALLS:
            self._watched(listener, notification)
        else:
            self._paths.look(listener.descriptor, listener.door, notification)

    def _ioctl(self, listener: _Listener, notification: Notification) -> None:
        number, request = c_int(notification.arguments[0]), notification.arguments[1] & _U32
        process, found = self._descriptor(notification.tid, number)
        try:
            entry = self._entry(listener, notification, process, number, found)
        except OSError as error:
            seccomp.answer(listener.descriptor, notification.id, -(error.errno or errno.EIO))
            return
        if entry is None:
            if type_of(request) == KVMIO or request in _SEV_REQUESTS:
                code = self._refusal(listener, notification.tid, number, found)
                seccomp.answer(listener.descriptor, notification.id, -code)
            else:
                seccomp.proceed(listener.descriptor, notification.id)
            return
        # Everything so far was found by thread ID. Check that the ID still belongs to the caller.
        if not seccomp.is_waiting(listener.descriptor, notification.id):
            return
        tid = notification.tid
        caller = Caller(
            memory=ProcessMemory(tid),
            find=lambda other: self._device(listener, notification, other),
            writable=entry.writable,
            pid=process,
            interrupted=_SignalPending(tid),
            take=partial(take_descriptor, process),
        )
        self._changed = True
        try:
            result = entry.device.ioctl(caller, request, notification.arguments[2])
        except OSError as error:
            result = -(error.errno or errno.EIO)
        self.refresh()
        if isinstance(result, int):
            seccomp.answer(listener.descriptor, notification.id, result)
        elif isinstance(result, NewDescriptor):
            give_device(
                self._descriptors,
                listener.descriptor,
                notification,
                result.device,
                path=None,
                flags=os.O_RDWR | os.O_CLOEXEC,
                shared=result.shared,
            )
        else:
            self._wait(listener, notification, result)

    def _wait(self, listener: _Listener, notification: Notification, pending: Pending) -> None:
        if not self._waiting:
            self._next_look = time.monotonic() + SIGNAL_INTERVAL
        waiting = _Waiting(listener, notification, pending)
        self._waiting[listener.descriptor, notification.id] = waiting

    def _watched(self, listener: _Listener, notification: Notification) -> None:
        """Serve a call on an open file: the door's file watch answers or delays the call, or the
        kernel performs it.
        """
        call, watch = Syscall(notification.number), listener.door.watch
        tid, arguments = notification.tid, notification.arguments
        numbers: Iterable[int] = (c_int(arguments[FILE_CALLS[call]]),)
        if call is Syscall.IO_SUBMIT:
            numbers = submitted_reads(tid, arguments)
        result: int | Pending | None = None
        for number in numbers:
            process, found = self._descriptor(tid, number)
            if watch is not None and found is not None and watch.wants(found):
                self._changed = True
                result = watch.before(FileCall(call, tid, process, number, found, arguments))
                break
        if result is None:
            seccomp.proceed(listener.descriptor, notification.id)
        elif isinstance(result, int):
            seccomp.answer(listener.descriptor, notification.id, result)
        else:
            self._wait(listener, notification, result)

    @staticmethod
    def _refusal(listener: _Listener, tid: int, number: int, found: os.stat_result | None) -> int:
        """Return the errno with which a device ioctl fails on a descriptor that is not emulated."""
        if found is None:
            return errno.EBADF
        if listener.door.is_guarded(found):
            return errno.ENODEV
        if not stat.S_IFMT(found.st_mode):  # an anonymous inode has no type
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{tid}/fd/{number}").startswith("anon_inode:kvm"):
                    return errno.ENODEV
        return errno.ENOTTY

    def _descriptor(self, tid: int, number: int) -> tuple[int, os.stat_result | None]:
        """Return the thread's process ID and the stat result of its descriptor ``number``.

        The stat result is None if the descriptor is closed.
        """
        process = self._processes.get(tid, 0)
        for _ in range(2):
            with contextlib.suppress(OSError):
                # The path names the process too. It does not exist if another process has a thread
                # with this ID now.
                return process, os.stat(f"/proc/{process}/task/{tid}/fd/{number}")
            process = self._process(tid)
        return process, None

    def _process(self, tid: int) -> int:
        found = task(tid)
        if found is None:
            return 0
        if len(self._processes) >= _TASKS_MAX:
            self._processes.clear()
        self._processes[tid] = found.process
        return found.process

    def _entry(
        self,
        listener: _Listener,
        notification: Notification,
        process: int,
        number: int,
        found: os.stat_result | None,
    ) -> OpenDevice | InUse | None:
        """Return the emulated device behind a descriptor, or None if there is none.

        In a mount namespace, the first use opens the device; raises ``OSError`` if that fails.
        """
        if found is None:
            return None
        entry = self._descriptors.open.get((found.st_dev, found.st_ino))
        if entry is not None:
            return entry
        place = self._namespaces.place(process, notification.tid, number, found)
        if place is None:
            return None
        # The program may have closed the descriptor and reused its number, which must not lead to
        # the former device.
        self._reap_namespaces()
        # The thread ID may have been reused in the meantime.
        if not seccomp.is_waiting(listener.descriptor, notification.id):
            return None
        return self._namespaces.use(place, listener.door, process)

    def _device(
        self, listener: _Listener, notification: Notification, number: int
    ) -> Device | None:
        """Return the emulated device behind the caller's descriptor ``number``, or None."""
        process, found = self._descriptor(notification.tid, number)
        with contextlib.suppress(OSError):
            entry = self._entry(listener, notification, process, number, found)
            return None if entry is None else entry.device
        return None
