# SPDX-License-Identifier: Apache-2.0
"""Lets only one of a host's processes at a time send a request to a key server.

A key server throttles by client address, whatever the request. Therefore the cache has one lock
(the turn) for each server, and one file that says when the server may be asked again. A turn lasts
for one request. A process that has to wait does not keep the turn, so that a long wait for a
certificate does not delay a revocation list that is available now.

The kernel releases the lock when its process ends, however that happens. The state file is replaced
atomically before and after each request. A process that is stopped in its turn (by a debugger, or
in a frozen container) and writes nothing for a long time loses the turn to the holder of a second
lock.

Turns are only a courtesy to the key server. A process that cannot take the lock or write to the
cache keeps the state in its own memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from snpcerts.kds.clock import Clock
from snpcerts.kds.server_state import MAX_SIZE, ServerState

# A holder of the turn that has written nothing for this many seconds is stuck.
STUCK: Final = 30.0

_POLL: Final = 0.02  # seconds
_LONGEST_POLL: Final = 0.2


class Turn:
    """The right of this process to send one request to the key server.

    The holder may change ``state`` and then save it. ``cut_off`` says that the previous holder was
    stopped during its request.
    """

    def __init__(self, line: RequestQueue, folder: int | None, state: ServerState) -> None:
        self._line = line
        self._folder = folder
        self.state = state
        self.cut_off = state.asking is not None

    def save(self) -> None:
        """Save ``state`` for the other processes."""
        self._line.write(self._folder, self.state)


class RequestQueue:
    """Lets the processes that share the cache ``root`` take turns at the key server ``url``.

    Without ``root``, nothing is locked: threads that share this object can send requests at the
    same time, and share only what is known about the server.
    """

    def __init__(self, root: Path | None, url: str, clock: Clock) -> None:
        self.clock = clock
        self._root = root
        self._name = hashlib.sha256(url.encode()).hexdigest()[:16]
        self._here = threading.Lock()
        self._known = ServerState()
        self._mine = threading.local()

    @contextmanager
    def turn(self, deadline: float) -> Iterator[Turn]:
        """Wait for the turn, at most until ``deadline``. Then run the block, even without the turn.

        A thread that already has the turn keeps it, because judging one answer may require another
        request.
        """
        outer: Turn | None = getattr(self._mine, "turn", None)
        if outer is not None:
            yield outer
            return
        with contextlib.ExitStack() as stack:
            folder = self._folder()
            if folder is not None:
                stack.callback(os.close, folder)
                self._lock(stack, folder, deadline)
            self._mine.turn = turn = Turn(self, folder, self._read(folder))
            try:
                yield turn
            finally:
                self._mine.turn = None

    def write(self, folder: int | None, state: ServerState) -> None:
        """Keep the server's state in memory, and save it for the other processes if possible."""
        state.saved = self.clock.now()
        state.forget(state.saved)
        with self._here:
            self._known = replace(state, failures=dict(state.failures))
        if folder is not None:
            with contextlib.suppress(OSError):
                _replace(folder, f"{self._name}.json", state.encode(self.clock))

    def _read(self, folder: int | None) -> ServerState:
        """Return the server's state from memory or from the file, whichever is newer."""
        with self._here:
            known = replace(self._known, failures=dict(self._known.failures))
        found = None if folder is None else self._saved(folder)
        return found if found is not None and found.saved >= known.saved else known

    def _saved(self, folder: int) -> ServerState | None:
        with contextlib.suppress(OSError):
            descriptor = _open_own(folder, f"{self._name}.json", os.O_RDONLY)
            if descriptor is not None:
                with open(descriptor, "rb") as file:
                    data = file.read(MAX_SIZE + 1)
                return ServerState.decode(data, self.clock) if len(data) <= MAX_SIZE else None
        return None

    def _folder(self) -> int | None:
        """Return a file descriptor for the directory of locks; None if it cannot be opened or
        created.
        """
        if self._root is None:
            return None
        with contextlib.suppress(OSError):
            path = self._root / "lock"
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        return None

    def _lock(self, stack: contextlib.ExitStack, folder: int, deadline: float) -> None:
        """Take one of the server's two locks, and release it when ``stack`` is closed.

        If other processes hold both locks for too long, return without a lock.
        """
        for name in (f"{self._name}.lock", f"{self._name}.spare"):
            try:
                descriptor = _open_own(folder, name, os.O_RDWR | os.O_CREAT)
            except OSError:
                return
            if descriptor is None:
                return
            stack.callback(os.close, descriptor)
            if self._locked(descriptor, folder, deadline):
                return

    def _locked(self, descriptor: int, folder: int, deadline: float) -> bool:
        """Wait for the lock and take it. Return False if its holder is stuck or the deadline has
        passed.
        """
        clock = self.clock
        silent_since = clock.now()
        # Whatever the deadline, leave time for the second lock and for the request.
        patience = min(STUCK, (deadline - silent_since) / 3)
        heard: float | None = None
        pause = _POLL
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            except OSError:  # the file system has no locks
                return True
            else:
                return True
            now = clock.now()
            state = self._saved(folder)
            if state is not None and state.saved != heard:
                heard, silent_since = state.saved, now
            if now >= deadline or now - silent_since >= patience:
                return False
            clock.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_POLL)


def _open_own(folder: int, name: str, flags: int) -> int | None:
    """Open a file in ``folder`` and return its file descriptor; None if it is not a regular file or
    has another hard link.
    """
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    descriptor = os.open(name, flags, 0o600, dir_fd=folder)
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
        return descriptor
    os.close(descriptor)
    return None


def _replace(folder: int, name: str, data: bytes) -> None:
    """Write a file atomically: even after a crash, it has the whole old or the whole new
    content.
    """
    temporary = f".{name}.new"  # always the same name, so that at most one is left behind
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, 0o600, dir_fd=folder)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
