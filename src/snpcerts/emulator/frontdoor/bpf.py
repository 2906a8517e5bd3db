# SPDX-License-Identifier: Apache-2.0
"""The classic BPF program that tells seccomp which system calls to pass to the supervisor.

======================================  ============================================
call                                    decision
======================================  ============================================
ioctl with type byte 0xAE or 'S'        supervisor
open, openat                            supervisor, except O_DIRECTORY (no device
                                        opens as a directory); in a mount namespace,
                                        the kernel
openat2, creat                          supervisor; in a mount namespace, the kernel
stat, lstat, newfstatat, statx, access, supervisor, if the door's paths differ from
faccessat, faccessat2, readlink(at),    the machine's or the door watches files; with
(l)getxattr, (l)listxattr               AT_EMPTY_PATH (fstat), and in a mount namespace,
                                        the kernel
io_uring_setup, _enter, _register       ENOSYS: it opens files without a system call
open_by_handle_at                       EPERM: opens without a path
userfaultfd                             ENOSYS, and ENOTTY for the ioctl of
                                        /dev/userfaultfd that makes one: with it, a
                                        program could make the supervisor wait forever
32-bit and x32 calls                    ENOSYS: their call numbers are different
read, pread64, readv, preadv(2), mmap,  supervisor, for a door that watches files
sendfile, splice, copy_file_range,
io_submit, close, flock, fcntl of locks
everything else                         the kernel, at no cost
======================================  ============================================

BPF sees the argument words, not the memory they point to: the supervisor finds out which file a
path means (:mod:`snpcerts.emulator.frontdoor.paths`). Sources: ``linux/filter.h``,
``linux/bpf_common.h``, ``linux/audit.h``, ``asm/unistd_64.h``; struct seccomp_data of
``linux/seccomp.h``.
"""

from __future__ import annotations

import enum
import errno
import os
import struct
from typing import Final

from snpcerts.abi.ioctl import KVMIO, SEV_IOC_TYPE, io
from snpcerts.abi.lock import F_OFD_SETLK, F_OFD_SETLKW, F_SETLK, F_SETLKW
from snpcerts.emulator.frontdoor.seccomp import (
    SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO,
    SECCOMP_RET_USER_NOTIF,
)

AUDIT_ARCH_X86_64: Final = 0xC000003E
X32_BIT: Final = 0x40000000
AT_EMPTY_PATH: Final = 0x1000
MAP_ANONYMOUS: Final = 0x20
USERFAULTFD_IOC_NEW: Final = io(0xAA, 0)  # linux/userfaultfd.h


class Syscall(enum.IntEnum):
    """System call numbers of x86-64."""

    READ = 0
    OPEN = 2
    CLOSE = 3
    STAT = 4
    LSTAT = 6
    MMAP = 9
    IOCTL = 16
    PREAD64 = 17
    READV = 19
    ACCESS = 21
    SENDFILE = 40
    FCNTL = 72
    FLOCK = 73
    CREAT = 85
    READLINK = 89
    GETXATTR = 191
    LGETXATTR = 192
    LISTXATTR = 194
    LLISTXATTR = 195
    IO_SUBMIT = 209
    OPENAT = 257
    NEWFSTATAT = 262
    READLINKAT = 267
    FACCESSAT = 269
    SPLICE = 275
    PREADV = 295
    OPEN_BY_HANDLE_AT = 304
    USERFAULTFD = 323
    COPY_FILE_RANGE = 326
    PREADV2 = 327
    STATX = 332
    IO_URING_SETUP = 425
    IO_URING_ENTER = 426
    IO_URING_REGISTER = 427
    OPENAT2 = 437
    FACCESSAT2 = 439


# Calls on an open file, and which argument is the descriptor; for IO_SUBMIT, the argument
# with the array of requests, each of which has a descriptor.
FILE_CALLS: Final = {
    Syscall.READ: 0,
    Syscall.PREAD64: 0,
    Syscall.READV: 0,
    Syscall.PREADV: 0,
    Syscall.PREADV2: 0,
    Syscall.MMAP: 4,
    Syscall.SENDFILE: 1,
    Syscall.SPLICE: 0,
    Syscall.COPY_FILE_RANGE: 0,
    Syscall.IO_SUBMIT: 2,
    Syscall.CLOSE: 0,
    Syscall.FLOCK: 0,
    Syscall.FCNTL: 0,
}


_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_IF_BITS: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

_NR: Final = 0
_ARCH: Final = 4


def _argument(index: int) -> int:
    """Return the offset in ``struct seccomp_data`` of an argument's low half, which holds flags and
    ioctl numbers.
    """
    return 16 + 8 * index


_instruction = struct.Struct("<HBBI")


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return _instruction.pack(code, if_true, if_false, value)


def _fails(code: int) -> bytes:
    return _op(_RETURN, SECCOMP_RET_ERRNO | code)


_TRAP = _op(_RETURN, SECCOMP_RET_USER_NOTIF)
_ALLOW = _op(_RETURN, SECCOMP_RET_ALLOW)


def _when(call: Syscall, body: bytes) -> bytes:
    """Return instructions that run ``body`` only for ``call``. ``body`` must end the program."""
    return _op(_IF_EQUAL, call, 0, len(body) // _instruction.size) + body


def _unless_flags(index: int, flags: int) -> bytes:
    """Return instructions that trap the call unless argument ``index`` contains one of
    ``flags``.
    """
    return _op(_LOAD, _argument(index)) + _op(_IF_BITS, flags, 0, 1) + _ALLOW + _TRAP


def _watched(call: Syscall) -> bytes:
    if call is Syscall.MMAP:
        return _unless_flags(3, MAP_ANONYMOUS)
    if call is Syscall.FCNTL:
        commands = (F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW)
        tests = b"".join(
            _op(_IF_EQUAL, command, len(commands) - place, 0)
            for place, command in enumerate(commands)
        )
        return _op(_LOAD, _argument(1)) + tests + _ALLOW + _TRAP
    return _TRAP


def program(*, look: bool, watch: bool = False, opens: bool = True) -> bytes:
    """Return the BPF program of the filter.

    ``opens`` traps the calls that open a path, ``look`` those that only examine one, and ``watch``
    those on open files; see :data:`FILE_CALLS`.
    """
    parts = [
        _op(_LOAD, _ARCH),
        _op(_IF_EQUAL, AUDIT_ARCH_X86_64, 1, 0),
        _fails(errno.ENOSYS),
        _op(_LOAD, _NR),
        _op(_IF_AT_LEAST, X32_BIT, 0, 1),
        _fails(errno.ENOSYS),
        _when(
            Syscall.IOCTL,
            _op(_LOAD, _argument(1))
            + _op(_IF_EQUAL, USERFAULTFD_IOC_NEW, 0, 1)
            + _fails(errno.ENOTTY)
            + _op(_AND, 0xFF00)
            + _op(_IF_EQUAL, KVMIO << 8, 1, 0)
            + _op(_IF_EQUAL, SEV_IOC_TYPE << 8, 0, 1)
            + _TRAP
            + _ALLOW,
        ),
    ]
    if opens:
        parts += [
            _when(Syscall.OPENAT, _unless_flags(2, os.O_DIRECTORY)),
            _when(Syscall.OPEN, _unless_flags(1, os.O_DIRECTORY)),
            _when(Syscall.OPENAT2, _TRAP),
            _when(Syscall.CREAT, _TRAP),
        ]
    if look:
        parts += [
            _when(Syscall.NEWFSTATAT, _unless_flags(3, AT_EMPTY_PATH)),
            _when(Syscall.STATX, _unless_flags(2, AT_EMPTY_PATH)),
            _when(Syscall.FACCESSAT2, _unless_flags(3, AT_EMPTY_PATH)),
        ]
        others = (
            Syscall.STAT,
            Syscall.LSTAT,
            Syscall.ACCESS,
            Syscall.FACCESSAT,
            Syscall.READLINK,
            Syscall.READLINKAT,
            Syscall.GETXATTR,
            Syscall.LGETXATTR,
            Syscall.LISTXATTR,
            Syscall.LLISTXATTR,
        )
        parts += [_when(call, _TRAP) for call in others]
    if watch:
        parts += [_when(call, _watched(call)) for call in FILE_CALLS]
    parts += [
        _when(Syscall.IO_URING_SETUP, _fails(errno.ENOSYS)),
        _when(Syscall.IO_URING_ENTER, _fails(errno.ENOSYS)),
        _when(Syscall.IO_URING_REGISTER, _fails(errno.ENOSYS)),
        _when(Syscall.OPEN_BY_HANDLE_AT, _fails(errno.EPERM)),
        _when(Syscall.USERFAULTFD, _fails(errno.ENOSYS)),
        _ALLOW,
    ]
    return b"".join(parts)
