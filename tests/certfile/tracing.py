# SPDX-License-Identifier: Apache-2.0
"""Uses ptrace(2) to kill a child process at a system call, or to make the call fail."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

_TRACEME, _CONT, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 7, 24, 0x4200, 0x420E
_O_TRACESYSGOOD, _O_TRACEEXEC, _O_EXITKILL = 1, 1 << 4, 1 << 20
_POKEUSER = 6
_EVENT_EXEC = 4
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_OP_ENTRY, _OP_EXIT = 1, 2
_RAX, _ORIG_RAX = 10 * 8, 15 * 8  # of struct user_regs_struct
# Names of system calls of x86-64. Other calls go by their numbers.
_NAMES = {
    0: "read", 1: "write", 3: "close", 5: "fstat", 8: "lseek", 16: "ioctl", 17: "pread64",
    18: "pwrite64", 35: "nanosleep", 72: "fcntl", 74: "fsync", 77: "ftruncate", 82: "rename",
    86: "link", 87: "unlink", 89: "readlink", 91: "fchmod", 93: "fchown", 190: "fsetxattr",
    193: "fgetxattr", 196: "flistxattr", 230: "clock_nanosleep", 257: "openat", 262: "newfstatat",
    264: "renameat", 265: "linkat", 332: "statx", 20: "writev", 44: "sendto", 46: "sendmsg",
    73: "flock", 75: "fdatasync", 76: "truncate", 83: "mkdir", 84: "rmdir", 88: "symlink",
    90: "chmod", 92: "chown", 188: "setxattr", 231: "exit_group", 258: "mkdirat",
    260: "fchownat", 263: "unlinkat", 266: "symlinkat", 268: "fchmodat", 280: "utimensat",
    285: "fallocate", 316: "renameat2", 14: "rt_sigprocmask",
    39: "getpid", 102: "getuid", 104: "getgid", 110: "getppid",
    228: "clock_gettime",
}  # fmt: skip

# The calls that may change something outside the process.
_CHANGING = frozenset(
    (
        "write", "pwrite64", "writev", "sendto", "sendmsg", "ioctl", "fcntl", "flock", "fsync",
        "fdatasync", "ftruncate", "truncate", "fallocate", "rename", "renameat", "renameat2",
        "link", "linkat", "symlink", "symlinkat", "unlink", "unlinkat", "mkdir", "mkdirat",
        "rmdir", "chmod", "fchmod", "fchmodat", "chown", "fchown", "fchownat", "setxattr",
        "fsetxattr", "utimensat", "exit_group",
    )
)  # fmt: skip
# The C library and Python make these calls for files that they open, for example to find out
# whether a file is a terminal.
_HARMLESS_IOCTLS = (0x5401, 0x5421, 0x5451)  # TCGETS, FIONBIO, FIOCLEX
_LOCKING = (5, 6, 7, 37, 38)  # fcntl commands for POSIX locks and OFD locks

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


def can_trace() -> bool:
    """Return whether this machine lets a process trace its child."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if _libc.ptrace(_TRACEME, 0, None, None) == 0 else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def killed_at(stop: int, work: Callable[[], None]) -> str | None:
    """Run ``work`` in a child and kill it at its ``stop``-th stop, counted from 0.

    There is a stop before and one after each system call. Returns the name of
    the place, such as ``before fsync``; None if ``work`` ended before this stop.
    """
    pid = os.fork()
    if pid == 0:
        _child(work)
    os.waitpid(pid, 0)  # the child's SIGSTOP
    if _libc.ptrace(_SETOPTIONS, pid, None, _O_TRACESYSGOOD | _O_EXITKILL) != 0:
        raise OSError(ctypes.get_errno(), "PTRACE_SETOPTIONS")
    number = 0
    deliver = 0
    while True:
        _libc.ptrace(_SYSCALL, pid, None, deliver)
        status = os.waitpid(pid, 0)[1]
        if not os.WIFSTOPPED(status):
            assert os.waitstatus_to_exitcode(status) == 0, "must succeed if it is not killed"
            return None
        if os.WSTOPSIG(status) != _SYSCALL_STOP:
            deliver = os.WSTOPSIG(status)
            continue
        deliver = 0
        if number == stop:
            place = _place(pid)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return place
        number += 1


@dataclass(frozen=True)
class Call:
    """A system call of the traced program, which has not been made yet."""

    pid: int
    number: int
    arguments: tuple[int, ...]

    @property
    def name(self) -> str:
        """The call's name, such as ``pwrite64``, or its number if ``_NAMES`` does not have it."""
        return str(_NAMES.get(self.number, self.number))

    @property
    def path(self) -> str:
        """The path of an ``openat`` or a ``newfstatat``; empty for any other call."""
        if self.name not in ("openat", "newfstatat"):
            return ""
        # Read only to the end of the page: the next page may not be mapped.
        data = self.memory(1, 4096 - self.arguments[1] % 4096)
        return os.fsdecode(data.partition(b"\0")[0])

    def memory(self, argument: int, size: int) -> bytes:
        """Return the bytes that an argument points to, before the call is made."""
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            memory.seek(self.arguments[argument])
            return memory.read(size)

    @property
    def changes_something(self) -> bool:
        """Whether the call may change anything outside the process."""
        if self.name == "openat":
            return bool(self.arguments[2] & (os.O_CREAT | os.O_TRUNC))
        if self.name == "fcntl":
            return self.arguments[1] in _LOCKING
        if self.name == "ioctl":
            return self.arguments[1] not in _HARMLESS_IOCTLS
        return self.name in _CHANGING


def killed_before(argv: Sequence[str], here: Callable[[Call], bool], *, execs: int) -> Call | None:
    """Run a program, and kill it before the first call for which ``here`` is true.

    ``here`` is called only after the ``execs``-th execve(2), because wrappers may run first. Only
    the first thread's calls count. Returns the call, or None if the program ended without such a
    call; its exit code must then be 0.
    """
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1):
            os.dup2(null, number)
        _child(lambda: os.execv(argv[0], list(argv)))  # noqa: S606 (running it is the purpose)
    os.waitpid(pid, 0)  # the child's SIGSTOP
    options = _O_TRACESYSGOOD | _O_EXITKILL | _O_TRACEEXEC
    if _libc.ptrace(_SETOPTIONS, pid, None, options) != 0:
        raise OSError(ctypes.get_errno(), "PTRACE_SETOPTIONS")
    seen, deliver = 0, 0
    while True:
        _libc.ptrace(_SYSCALL if seen >= execs else _CONT, pid, None, deliver)
        status = os.waitpid(pid, 0)[1]
        deliver = 0
        if not os.WIFSTOPPED(status):
            assert os.waitstatus_to_exitcode(status) == 0, f"{argv} failed by itself"
            return None
        if status >> 8 == signal.SIGTRAP | _EVENT_EXEC << 8:
            seen += 1
        elif os.WSTOPSIG(status) != _SYSCALL_STOP:
            deliver = os.WSTOPSIG(status)
        else:
            call = _entered(pid)
            if call is not None and here(call):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return call


@dataclass
class Traced:
    """A system call that a program has made, and its result. After an error, this is ``-errno``."""

    call: Call
    result: int


def calls_of(argv: Sequence[str], fails: Callable[[Call], int | None]) -> list[Traced]:
    """Run a single-threaded program to its end; return the system calls that it made.

    ``fails`` is asked before each system call. If it returns an errno, the kernel does not perform
    the call, which fails with that errno. The program's exit code must be 0.
    """
    pid = os.fork()
    if pid == 0:
        _child(lambda: os.execv(argv[0], list(argv)))  # noqa: S606 (running it is the purpose)
    os.waitpid(pid, 0)  # the child's SIGSTOP
    if _libc.ptrace(_SETOPTIONS, pid, None, _O_TRACESYSGOOD | _O_EXITKILL | _O_TRACEEXEC) != 0:
        raise OSError(ctypes.get_errno(), "PTRACE_SETOPTIONS")
    made: list[Traced] = []
    code: int | None = None
    deliver = 0
    while True:
        _libc.ptrace(_SYSCALL, pid, None, deliver)
        status = os.waitpid(pid, 0)[1]
        deliver = 0
        if not os.WIFSTOPPED(status):
            assert os.waitstatus_to_exitcode(status) == 0, f"{argv} failed by itself"
            return made
        if status >> 8 == signal.SIGTRAP | _EVENT_EXEC << 8:
            continue
        if os.WSTOPSIG(status) != _SYSCALL_STOP:
            deliver = os.WSTOPSIG(status)
            continue
        info = ctypes.create_string_buffer(88)  # struct ptrace_syscall_info
        _libc.ptrace(_GET_SYSCALL_INFO, pid, ctypes.c_void_p(len(info)), info)
        if info.raw[0] == _OP_ENTRY:
            number, *arguments = struct.unpack_from("<7Q", info.raw, 24)
            made.append(Traced(Call(pid, number, tuple(arguments)), 0))
            code = fails(made[-1].call)
            if code is not None:
                _libc.ptrace(_POKEUSER, pid, _ORIG_RAX, ctypes.c_void_p(2**64 - 1))
        elif info.raw[0] == _OP_EXIT and made:
            if code is not None:
                _libc.ptrace(_POKEUSER, pid, _RAX, ctypes.c_void_p(2**64 - code))
            (made[-1].result,) = (
                struct.unpack_from("<q", info.raw, 24) if code is None else (-code,)
            )


def _entered(pid: int) -> Call | None:
    info = ctypes.create_string_buffer(88)  # struct ptrace_syscall_info
    _libc.ptrace(_GET_SYSCALL_INFO, pid, ctypes.c_void_p(len(info)), info)
    if info.raw[0] != _OP_ENTRY:
        return None
    number, *arguments = struct.unpack_from("<7Q", info.raw, 24)
    return Call(pid, number, tuple(arguments))


def _child(work: Callable[[], None]) -> NoReturn:
    _libc.ptrace(_TRACEME, 0, None, None)
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)


def _place(pid: int) -> str:
    info = ctypes.create_string_buffer(88)  # struct ptrace_syscall_info
    _libc.ptrace(_GET_SYSCALL_INFO, pid, ctypes.c_void_p(len(info)), info)
    operation = info.raw[0]
    if operation != _OP_ENTRY:
        return "after"
    (number,) = struct.unpack_from("<Q", info.raw, 24)
    return f"before {_NAMES.get(number, number)}"
