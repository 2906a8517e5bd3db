# SPDX-License-Identifier: Apache-2.0
"""The keeper: a process that ends all processes of a program when the program's supervisor ends.

A killed supervisor cannot end anything, and a program's processes may have left its process group
and parent. Therefore the keeper is the program's parent and adopts its orphans. It has its own
session, so signals to the supervisor's group do not reach it. When the supervisor closes the
connection or ends, the keeper kills every descendant, waits for them, and ends. If the keeper is
killed, the kernel kills the program.

The keeper sends the supervisor one JSON object per packet: first ``{"pid": ...}`` with the
program's process ID, later ``{"ended": ...}`` with the exit code as a shell reports it. When no
descendant is left, the keeper ends in the same way as the program did.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable
from typing import Final, NoReturn

from snpcerts.emulator.frontdoor import control
from snpcerts.parent_process import adopt_descendants, end_with_parent

_KILL_AGAIN: Final = 0.05  # seconds between attempts; a descendant may have forked meanwhile
_STAT_MAX: Final = 4096  # bytes; a stat file has at most about 400


def keep(line: socket.socket, become: Callable[[], int], *, own_group: bool) -> NoReturn:
    """Fork: the child calls ``become`` and exits with its result, and this process becomes the
    child's keeper.

    ``line`` is the connection to the supervisor. This process must have only one thread.
    """
    adopt_descendants()
    me = os.getpid()
    program = os.fork()
    if program == 0:
        code = 1
        try:
            line.close()
            if own_group:
                os.setpgid(0, 0)
            end_with_parent(me)
            code = become()
        finally:
            os._exit(code)
    _Keeper(line, program).run()


class _Keeper:
    def __init__(self, line: socket.socket, program: int) -> None:
        self._line = line
        self._program = program
        self._status: int | None = None
        self._hung_up = False

    def run(self) -> NoReturn:
        """Run until no descendant remains. Kill all descendants when the supervisor closes the
        connection or a signal asks the keeper to end.
        """
        # Only the program may keep the terminal, pipes and other inherited descriptors.
        with contextlib.suppress(PermissionError):  # it may already lead a group
            os.setsid()
        with open(os.devnull, "r+b", buffering=0) as nothing:
            for number in (0, 1, 2):
                os.dup2(nothing.fileno(), number)
        ended, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) not in (ended, wake, self._line.fileno()):
                with contextlib.suppress(OSError):
                    os.close(int(name))
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, self._asked_to_end)
        self._say({"pid": self._program})
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(self._line, select.POLLIN)
        while self._reap() and not self._hung_up:
            for descriptor, _ in poll.poll():
                if descriptor == ended:
                    with contextlib.suppress(BlockingIOError):
                        os.read(ended, 4096)
                else:
                    self._hung_up = True  # the supervisor never sends data, so it has hung up
        while self._reap():
            _kill_descendants()
            select.select([ended], [], [], _KILL_AGAIN)
            with contextlib.suppress(BlockingIOError):
                os.read(ended, 4096)
        self._end()

    def _asked_to_end(self, _number: int, _frame: object) -> None:
        self._hung_up = True

    def _say(self, message: dict[str, int]) -> None:
        try:
            control.send(self._line, message)
        except OSError:  # the supervisor has ended
            self._hung_up = True

    def _reap(self) -> bool:
        """Reap ended children; return whether a child remains."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._program:
                self._status = status
                code = os.waitstatus_to_exitcode(status)
                self._say({"ended": code if code >= 0 else 128 - code})

    def _end(self) -> NoReturn:
        status = self._status or 0
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
            _without_core()
            os.kill(os.getpid(), number)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _without_core() -> None:
    import resource

    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _kill_descendants() -> None:
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _parent(pid: str) -> int:
    # A file object would take a third longer, and descendants() reads this for every process.
    stat = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        line = os.read(stat, _STAT_MAX)
    finally:
        os.close(stat)
    # The name, in brackets, can contain any character, so search for its last bracket.
    return int(line[line.rindex(b")") :].split(maxsplit=3)[2])


def descendants(of: int) -> list[int]:
    """Return the process IDs of all descendants of the process ``of``, parents first, as /proc
    shows them.
    """
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = _parent(name)
        except (OSError, ValueError, IndexError):  # the process has ended
            continue
        children.setdefault(parent, []).append(int(name))
    found = list(children.get(of, ()))
    for pid in found:  # the list grows during the loop
        found += children.get(pid, ())
    return found
