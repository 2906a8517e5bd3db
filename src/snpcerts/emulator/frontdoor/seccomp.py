# SPDX-License-Identifier: Apache-2.0
"""The parts of the kernel's seccomp user notification that the front door uses.

Numbers and layouts: Linux ``include/uapi/linux/seccomp.h`` and ``include/uapi/linux/prctl.h``,
x86-64. The front door uses these kernel features, and requires all but the last:

==============================  =======  ==========================================
feature                         since    why it is used
==============================  =======  ==========================================
NOTIF_ADDFD with the SEND flag  5.14     a descriptor and the answer in one step
WAIT_KILLABLE_RECV              5.19     without it a signal repeats a call that has
                                         already had its effect
FD_SYNC_WAKE_UP                 6.6      about eight times faster
==============================  =======  ==========================================
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import sys
from dataclasses import dataclass
from typing import Final

from snpcerts.abi.ioctl import iow, iowr
from snpcerts.errors import RefusedError

SYS_SECCOMP: Final = 317
PR_SET_NO_NEW_PRIVS: Final = 38

SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_GET_ACTION_AVAIL: Final = 2
SECCOMP_GET_NOTIF_SIZES: Final = 3

SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 1 << 3
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: Final = 1 << 5
_FILTER_FLAGS: Final = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV

SECCOMP_RET_ERRNO: Final = 0x00050000
SECCOMP_RET_USER_NOTIF: Final = 0x7FC00000
SECCOMP_RET_ALLOW: Final = 0x7FFF0000

SECCOMP_USER_NOTIF_FLAG_CONTINUE: Final = 1
SECCOMP_ADDFD_FLAG_SEND: Final = 2
SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP: Final = 1

# struct seccomp_notif: id, pid (a thread's), flags, then struct seccomp_data:
# nr, arch, instruction_pointer, args[6].
_NOTIF = struct.Struct("<QIIiIQ6Q")
_RESPONSE = struct.Struct("<QqiI")  # struct seccomp_notif_resp: id, val, error, flags
_ADDFD = struct.Struct("<QIIII")  # struct seccomp_notif_addfd: id, flags, srcfd, newfd, newfd_flags
_ID = struct.Struct("<Q")
_NOTIF_SIZES = struct.Struct("<HHH")

_MAGIC = ord("!")
_NOTIF_RECV: Final = iowr(_MAGIC, 0, _NOTIF.size)
_NOTIF_SEND: Final = iowr(_MAGIC, 1, _RESPONSE.size)
_NOTIF_ID_VALID: Final = iow(_MAGIC, 2, _ID.size)
_NOTIF_ADDFD: Final = iow(_MAGIC, 3, _ADDFD.size)
_NOTIF_SET_FLAGS: Final = iow(_MAGIC, 4, 8)

_BLANK = bytes(_NOTIF.size)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class FrontDoorUnavailableError(RefusedError):
    """This kernel, or the sandbox that this process runs in, does not allow a front door."""

    code = "front-door-unavailable"


class _SockFprog(ctypes.Structure):
    """``struct sock_fprog``, which passes a BPF program to the kernel."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


@dataclass(slots=True)
class Notification:
    """A trapped system call that waits for its answer.

    ``tid`` is the calling thread, in this process's PID namespace. ``number`` is the system call;
    ``arguments`` are its six words, unchanged.
    """

    id: int
    tid: int
    number: int
    arguments: tuple[int, int, int, int, int, int]


_U32: Final = (1 << 32) - 1


def c_int(word: int) -> int:
    """Return the low 32 bits of a system call's argument as a signed C int."""
    word &= _U32
    return word - (1 << 32) if word >> 31 else word


def _seccomp(operation: int, flags: int, argument: object) -> int:
    result = _libc.syscall(
        ctypes.c_long(SYS_SECCOMP), ctypes.c_uint(operation), ctypes.c_uint(flags), argument
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def _refuse(missing: str, hint: str) -> FrontDoorUnavailableError:
    return FrontDoorUnavailableError(f"the front door cannot be used: {missing}", hint=hint)


def check() -> None:
    """Raise :class:`FrontDoorUnavailableError` if the front door cannot be used.

    The error names what is missing.
    """
    machine = os.uname()
    if sys.platform != "linux" or machine.machine != "x86_64" or sys.maxsize < 1 << 32:
        raise _refuse(
            f"it needs 64-bit Linux on x86-64; this is {machine.sysname} on {machine.machine}",
            "run snpcerts in a virtual machine with 64-bit Linux on x86-64",
        )
    action = ctypes.c_uint32(SECCOMP_RET_USER_NOTIF)
    sizes = ctypes.create_string_buffer(_NOTIF_SIZES.size)
    try:
        _seccomp(SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(action))
        _seccomp(SECCOMP_GET_NOTIF_SIZES, 0, sizes)
    except OSError as error:
        raise _refuse(
            f"seccomp user notification is not available ({error.strerror})",
            "use a kernel with CONFIG_SECCOMP_FILTER, and a container that allows seccomp(2)",
        ) from error
    expected = (_NOTIF.size, _RESPONSE.size, 64)
    if (found := _NOTIF_SIZES.unpack(sizes.raw)) != expected:
        raise _refuse(
            f"seccomp's structures have sizes {found}, expected {expected}",
            "use a newer release of snpcerts",
        )
    # With a null filter, EFAULT means that the kernel knows the flags, and EINVAL that it does not.
    try:
        _seccomp(SECCOMP_SET_MODE_FILTER, _FILTER_FLAGS, None)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise _refuse(
                f"seccomp lacks SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV ({error.strerror})",
                "use Linux 5.19 or later, and a container that allows seccomp(2)",
            ) from error


def install(program: bytes) -> int:
    """Put this thread and its descendants behind the filter ``program``; return the filter's
    listener.

    The filter cannot be removed, and setuid files no longer give privileges. The listener is
    close-on-exec. Every trapped call waits until it is answered through the listener. Once all
    descriptors of the listener are closed, trapped calls fail with ENOSYS.
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    filters = _SockFprog(len(program) // 8, ctypes.addressof(buffer))
    try:
        if _libc.prctl(PR_SET_NO_NEW_PRIVS, *(ctypes.c_ulong(word) for word in (1, 0, 0, 0))):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return _seccomp(SECCOMP_SET_MODE_FILTER, _FILTER_FLAGS, ctypes.byref(filters))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _refuse(
                "this process already has a seccomp listener",
                (
                    "start this program outside the other front door or container: a process can "
                    "have only one listener"
                ),
            ) from error
        raise _refuse(
            f"seccomp refused the filter ({error.strerror})",
            "run this program outside the container or sandbox, which may forbid seccomp(2)",
        ) from error


def is_listener(descriptor: int) -> bool:
    """Whether ``descriptor`` is a seccomp listener."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}") == "anon_inode:seccomp notify"
    except OSError:
        return False


def wake_synchronously(listener: int) -> bool:
    """Ask the kernel to run caller and supervisor alternately on one CPU.

    Returns False if the kernel cannot.
    """
    try:
        fcntl.ioctl(listener, _NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
    except OSError:
        return False
    return True


def receive(listener: int) -> Notification | None:
    """Return the next trapped call that waits at ``listener``; None if its caller has ended, or if
    a signal interrupted the wait.
    """
    try:
        answer = fcntl.ioctl(listener, _NOTIF_RECV, _BLANK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINTR):
            return None
        raise
    words = _NOTIF.unpack(answer)
    return Notification(words[0], words[1], words[3], words[6:])


def _send(listener: int, response: bytes) -> bool:
    while True:
        try:
            fcntl.ioctl(listener, _NOTIF_SEND, response)
        except InterruptedError:
            continue
        except FileNotFoundError:
            return False
        return True


def answer(listener: int, notification: int, value: int) -> bool:
    """Let the trapped call return ``value``. If that is negative, the call fails with errno
    ``-value``.

    Returns False if its caller has ended.
    """
    if value < 0:
        return _send(listener, _RESPONSE.pack(notification, 0, value, 0))
    return _send(listener, _RESPONSE.pack(notification, value, 0, 0))


def proceed(listener: int, notification: int) -> bool:
    """Let the kernel perform the trapped call; return False if its caller has ended.

    The kernel reads the arguments again, and another thread may have changed what
    they point to. Use this only for calls that are harmless with any arguments.
    """
    return _send(listener, _RESPONSE.pack(notification, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE))


def answer_with_descriptor(
    listener: int, notification: int, descriptor: int, *, cloexec: bool
) -> None:
    """Let the trapped call return a copy of ``descriptor``, a descriptor of this process.

    The copy gets the lowest free number in the caller. Raises ``FileNotFoundError`` if the caller
    has ended. Any other ``OSError`` (such as EMFILE) must be passed to the caller, whose call still
    waits for its answer.
    """
    request = _ADDFD.pack(
        notification, SECCOMP_ADDFD_FLAG_SEND, descriptor, 0, os.O_CLOEXEC if cloexec else 0
    )
    while True:
        try:
            fcntl.ioctl(listener, _NOTIF_ADDFD, request)
        except InterruptedError:
            continue
        return


def is_waiting(listener: int, notification: int) -> bool:
    """Whether the calling thread still waits for the answer to ``notification``."""
    try:
        fcntl.ioctl(listener, _NOTIF_ID_VALID, _ID.pack(notification))
    except FileNotFoundError:
        return False
    return True
