# SPDX-License-Identifier: Apache-2.0
"""Observes each call that the VMM makes on the certificate file, such as open, read and lock,
before the call happens.

A scenario may interfere at that moment (``meddle``). For example, it replaces the file between open
and lock, sends a signal between lock and read, or shortens a read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from typing import Final

from snpcerts.abi.lock import F_OFD_SETLK, F_OFD_SETLKW, F_SETLK, F_SETLKW, F_UNLCK, Flock
from snpcerts.conformance.description import Marks, borrowed
from snpcerts.conformance.journal import CertsRequest, FileRead, Journal, vcpu_track
from snpcerts.conformance.served_file import Identity, LockSeen, ServedFile
from snpcerts.conformance.written_files import WrittenFiles
from snpcerts.emulator.frontdoor import paths
from snpcerts.emulator.frontdoor.bpf import Syscall
from snpcerts.emulator.frontdoor.file_watch import (
    PROCEED,
    FileCall,
    OpenCall,
    iovecs,
    submitted_reads,
)
from snpcerts.emulator.syscall.caller_memory import ProcessMemory
from snpcerts.emulator.syscall.device import EVERY_SIGNAL, Pending

Meddle = Callable[[FileCall], int | Pending | None]

# The calls that copy bytes to another descriptor, or map them, with the index of the argument that
# says how many bytes.
_SIZE_AT: Final = {
    Syscall.MMAP: 1,
    Syscall.SENDFILE: 3,
    Syscall.SPLICE: 4,
    Syscall.COPY_FILE_RANGE: 4,
}
READS: Final = frozenset(
    (
        Syscall.READ,
        Syscall.PREAD64,
        Syscall.READV,
        Syscall.PREADV,
        Syscall.PREADV2,
        Syscall.IO_SUBMIT,
        *_SIZE_AT,
    )
)
DATA_READS: Final = READS - {Syscall.MMAP}
_LOCK_COMMANDS: Final = frozenset((F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW))
_SHORT_READ_MAX: Final = 1 << 20  # the most bytes that a short read returns


def takes_lock(call: FileCall) -> bool:
    """Whether the call requests a lock of any kind."""
    if call.call is Syscall.FLOCK:
        return not call.arguments[1] & fcntl.LOCK_UN
    wanted = _flock_of(call)
    return wanted is not None and wanted.l_type != F_UNLCK


def _flock_of(call: FileCall) -> Flock | None:
    """Return the ``struct flock`` if the call is an fcntl(2) that locks or unlocks, else None."""
    if call.call is not Syscall.FCNTL or call.arguments[1] not in _LOCK_COMMANDS:
        return None
    with contextlib.suppress(OSError):
        return Flock.unpack(ProcessMemory(call.tid).read(call.arguments[2], Flock.SIZE))
    return None


def refusal_of(call: FileCall) -> str:
    """Return why the kernel refuses the lock that the call requests; "" if the kernel may grant
    the lock.
    """
    wanted = _flock_of(call)
    if wanted is None:
        return ""
    if wanted.l_pid and call.arguments[1] in (F_OFD_SETLK, F_OFD_SETLKW):
        return f"the kernel answers EINVAL, because l_pid is {wanted.l_pid}, not 0"
    with contextlib.suppress(OSError), _borrowed(call) as descriptor:
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if (wanted.l_type, mode) == (fcntl.F_RDLCK, os.O_WRONLY):
            return "the kernel answers EBADF, because the descriptor is not open for reading"
        if (wanted.l_type, mode) == (fcntl.F_WRLCK, os.O_RDONLY):
            return "the kernel answers EBADF, because the descriptor is not open for writing"
    return ""


def waits_for_lock(call: FileCall) -> bool:
    """Whether the call requests a lock and blocks until it gets the lock, so that a signal may
    interrupt it.
    """
    if call.call is Syscall.FLOCK:
        return takes_lock(call) and not call.arguments[1] & fcntl.LOCK_NB
    return takes_lock(call) and call.arguments[1] in (F_SETLKW, F_OFD_SETLKW)


def drops_lock(call: FileCall) -> bool:
    """Whether the call unlocks the file. A close, which may do so too, does not count."""
    if call.call is Syscall.FLOCK:
        return bool(call.arguments[1] & fcntl.LOCK_UN)
    wanted = _flock_of(call)
    return wanted is not None and wanted.l_type == F_UNLCK


def refuse_open(code: int, _: OpenCall) -> int:
    """Make an open fail with the errno ``code``. Bind ``code`` to get a ``meddle_open``."""
    return -code


class FileObserver:
    """Observes the VMM's calls on the certificate file in one run.

    Scenarios interfere with calls on the open file (``meddle``), with opens of its path
    (``meddle_open``), and before its path is examined, as by stat(2) (``meddle_examine``).
    """

    def __init__(self, served: ServedFile, journal: Journal) -> None:
        self._served = served
        self._journal = journal
        self._marks = Marks()
        self.calls = 0  # number of observed calls; each delayed a thread of the VMM
        # The file to which the path led when the VMM last opened or examined the path; None if the
        # path led to no file.
        self.led_to: Identity | None = None
        self.written = WrittenFiles()
        self.meddle: Meddle = lambda _: None
        self.meddle_open: Callable[[OpenCall], int | None] = lambda _: None
        self.meddle_examine: Callable[[], None] = lambda: None

    def wants(self, found: os.stat_result) -> bool:
        """Whether ``found`` is the stat result of a file that is or was the certificate file."""
        return self._served.knows(found)

    def opening(self, call: OpenCall) -> int | None:
        """Record an open of the file's path, then let the scenario interfere."""
        if not self._is_meant(call.tid, call.dirfd, call.path):
            self.written.opened(call.tid, call.path, call.flags)
            return None
        self.calls += 1
        self._tell(call.tid, f"open, flags {call.flags:#o}")
        return self.meddle_open(call)

    def examining(self, tid: int, dirfd: int, path: bytes) -> None:
        """Record that the file's path is examined, then let the scenario interfere."""
        if self._is_meant(tid, dirfd, path):
            self.calls += 1
            self._tell(tid, "examine the path")
            self.meddle_examine()

    def _is_meant(self, tid: int, dirfd: int, path: bytes) -> bool:
        """Whether a thread's ``path`` has the name of the certificate file, or leads there by
        another name: the VMM may have its own symbolic link.
        """
        named = os.path.basename(path) == os.fsencode(self._served.path.name)
        if paths.RELATIVE_TO_PROCESS.search(path):
            return named
        found: os.stat_result | None = None
        with contextlib.suppress(OSError):
            found = os.stat(paths.start(tid, dirfd, path))
        known = found is not None and self._served.knows(found)
        if named or known:
            self.led_to = (found.st_dev, found.st_ino) if found is not None else None
        return named or known

    def before(self, call: FileCall) -> int | Pending | None:
        """Record the call, then let the scenario interfere."""
        locks, reads = takes_lock(call), call.call in READS
        self.calls += 1
        self._tell(call.tid, _what(call, locks))
        if locks or reads:
            self._note(call, locks=locks)
        return self.meddle(call)

    def _tell(self, tid: int, what: str) -> None:
        self._journal.note(vcpu_track(self._journal.threads.get(tid)), what)

    def _note(self, call: FileCall, *, locks: bool) -> None:
        identity = (call.found.st_dev, call.found.st_ino)
        vcpu = self._journal.threads.get(call.tid)
        asking = [each for each in self._journal.open_requests() if each.answered_at is None]
        last = None if vcpu is None else self._journal.last_of(vcpu)
        lock, now = self._served.locked(identity), time.monotonic()
        # After a request, a VMM may still read the file until it drops the lock.
        if last is not None and last.errno is not None and not asking and (locks or lock is None):
            last.file_used_after_end = True
        # A VMM may use a thread other than the vCPU's. The call then counts for all vCPUs.
        for request in [each for each in asking if each.vcpu == vcpu] or asking:
            if locks:
                self._note_lock(request, call, identity, lock, now)
            else:
                request.relocked = False
                maps = call.call is Syscall.MMAP
                request.reads.append(FileRead(identity, lock, maps, _asked_bytes(call)))

    def _note_lock(
        self,
        request: CertsRequest,
        call: FileCall,
        identity: Identity,
        lock: LockSeen | None,
        now: float,
    ) -> None:
        request.lock_tries.append(now)
        request.lock_refused = refusal_of(call)
        mark = self._marks.of(call.process, call.descriptor, call.tid)
        if mark is not None:
            request.marks.add(mark)
        if lock is None and request.file == identity and request.reads[-1].lock is not None:
            request.relocked = True


def _what(call: FileCall, locks: bool) -> str:
    name = call.call.name.lower()
    if call.call is Syscall.FCNTL:
        name = "lock" if locks else "unlock"
    return f"{name}, descriptor {call.descriptor}, inode {call.found.st_ino}"


class HeldUntil:
    """Delays a system call until ``ready`` returns true, for at most ``seconds``."""

    blocked: int | None = EVERY_SIGNAL

    def __init__(self, ready: Callable[[], bool], seconds: float) -> None:
        self._ready = ready
        self._until = time.monotonic() + seconds

    @property
    def deadline(self) -> float | None:
        """When to poll again: soon, because the awaited event happens in another process."""
        return min(self._until, time.monotonic() + 0.002)

    def poll(self) -> int | None:
        """Return :data:`PROCEED` (the kernel performs the call) once the call may proceed,
        otherwise None.
        """
        return PROCEED if self._ready() or time.monotonic() >= self._until else None

    def cancel(self) -> None:
        """Do nothing: there is nothing to undo."""


def read_short(call: FileCall) -> int | None:
    """Perform a short read: at most half of the requested bytes, and at most half of the file.

    Returns the number of bytes read. For a call that cannot be shortened (a mapping, or a read of
    one byte), does nothing and returns None.
    """
    memory = ProcessMemory(call.tid)
    try:
        pieces = _pieces(call, memory)
        # Limit the read by the file's size too, because a VMM may request more than the file has.
        limit = min(call.found.st_size // 2, _SHORT_READ_MAX)
        wanted = min(sum(length for _, length in pieces) // 2, limit)
        if not wanted:
            return None
        data = _read(call, wanted)
        done = 0
        for address, length in pieces:
            part = data[done : done + length]
            memory.write(address, part)
            done += len(part)
    except OSError:
        return None
    return done


def _pieces(call: FileCall, memory: ProcessMemory) -> list[tuple[int, int]]:
    arguments = call.arguments
    match call.call:
        case Syscall.READ | Syscall.PREAD64:
            return [(arguments[1], arguments[2])]
        case Syscall.READV | Syscall.PREADV | Syscall.PREADV2:
            return iovecs(memory, arguments[1], arguments[2])
    return []


def _asked_bytes(call: FileCall) -> int:
    """Return how many bytes ``call``, one of :data:`READS`, requests."""
    if call.call is Syscall.IO_SUBMIT:
        return submitted_reads(call.tid, call.arguments).get(call.descriptor, 0)
    if call.call in _SIZE_AT:
        # A copy or mapping may request more bytes than the file has.
        return min(call.arguments[_SIZE_AT[call.call]], call.found.st_size)
    try:
        return sum(length for _, length in _pieces(call, ProcessMemory(call.tid)))
    except OSError:
        return 0


@contextlib.contextmanager
def _borrowed(call: FileCall) -> Iterator[int]:
    """Yield this process's duplicate of the call's descriptor. Raises ``OSError`` if that fails."""
    with borrowed(call.process, call.descriptor, thread=call.tid) as descriptor:
        if not os.path.samestat(os.fstat(descriptor), call.found):
            raise OSError(errno.EBADF, "the thread's descriptors cannot be duplicated")
        yield descriptor


def _read(call: FileCall, size: int) -> bytes:
    # Use the same open file description, so that a plain read moves the VMM's file position.
    with _borrowed(call) as descriptor:
        if call.call in (Syscall.READ, Syscall.READV):
            return os.read(descriptor, size)
        return os.pread(descriptor, size, call.arguments[3])
