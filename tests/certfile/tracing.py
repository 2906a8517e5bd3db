# SPDX-License-Identifier: Apache-2.0
"""Stop a child process at each of its system calls, with ptrace(2)."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Callable
from typing import NoReturn

_TRACEME, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 24, 0x4200, 0x420E
_O_TRACESYSGOOD, _O_EXITKILL = 1, 1 << 20
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_OP_ENTRY = 1
# Names of the calls an update makes, for people who read a failure.
_NAMES = {
    0: "read", 1: "write", 3: "close", 5: "fstat", 8: "lseek", 16: "ioctl", 17: "pread64",
    18: "pwrite64", 35: "nanosleep", 72: "fcntl", 74: "fsync", 77: "ftruncate", 82: "rename",
    86: "link", 87: "unlink", 89: "readlink", 91: "fchmod", 93: "fchown", 190: "fsetxattr",
    193: "fgetxattr", 196: "flistxattr", 230: "clock_nanosleep", 257: "openat", 262: "newfstatat",
    264: "renameat", 265: "linkat", 332: "statx",
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


def can_trace() -> bool:
    """Whether this machine lets a process trace its child."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if _libc.ptrace(_TRACEME, 0, None, None) == 0 else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def killed_at(stop: int, work: Callable[[], None]) -> str | None:
    """Run ``work`` in a child and kill it at its ``stop``-th stop, counted from 0.

    There is a stop before and one after each system call. Returns the name of
    the place, such as ``before fsync``; None when ``work`` was over by then.
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
            assert os.waitstatus_to_exitcode(status) == 0, "the work failed by itself"
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
