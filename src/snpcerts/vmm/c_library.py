# SPDX-License-Identifier: Apache-2.0
"""Calls, from Python, the C library that serves certificate requests.

``native/include/snpcerts.h`` describes its functions and structures. The structures declared here
have the same layout as in that header. The library is compiled when snpcerts is installed. If that
was not possible, :func:`load` returns None, and the exit service uses Python.
"""

from __future__ import annotations

import ctypes
import enum
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

_FILE: Final = Path(__file__).with_name("libsnpcerts.so")

UNREADABLE_IS_EIO: Final = 1
# The values of enum snpcerts_outcome, in order.
OUTCOMES: Final = ("served", "empty", "too-small", "busy", "failed")


class RequestProblem(enum.IntEnum):
    """Values of enum snpcerts_problem. All smaller numbers are errnos."""

    NOT_REGULAR = 1 << 16
    TOO_LARGE = (1 << 16) + 1
    SHRANK = (1 << 16) + 2
    NOT_ALIGNED = (1 << 16) + 3
    NOT_MEMORY = (1 << 16) + 4


class _CSlot(ctypes.Structure):
    """One range of guest memory: struct snpcerts_slot."""

    _fields_ = (("gpa", ctypes.c_uint64), ("size", ctypes.c_uint64), ("host", ctypes.c_uint64))


class _CVm(ctypes.Structure):
    """What the library must know about a VM: struct snpcerts_vm."""

    _fields_ = (
        ("path", ctypes.c_char_p),
        ("lock_wait", ctypes.c_uint64),
        ("size_limit", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("slot_count", ctypes.c_uint32),
        ("slots", ctypes.POINTER(_CSlot)),
        ("find", ctypes.c_void_p),
        ("done", ctypes.c_void_p),
        ("enter", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    )


class CServed(ctypes.Structure):
    """The outcome of one request: struct snpcerts_served."""

    _fields_ = (
        ("ret", ctypes.c_uint64),
        ("needed_pages", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("file_size", ctypes.c_uint64),
        ("waited", ctypes.c_uint64),
        ("outcome", ctypes.c_int32),
        ("file_problem", ctypes.c_int32),
        ("guest_problem", ctypes.c_int32),
        ("run_errno", ctypes.c_int32),
        ("fd", ctypes.c_int32),
        ("immediate_exit", ctypes.c_int32),
    )
    ret: int
    needed_pages: int
    size: int
    file_size: int
    waited: int
    outcome: int
    file_problem: int
    guest_problem: int


class Library(NamedTuple):
    """The functions that the exit service calls. All release Python's global interpreter lock.

    ``serve`` takes the result of :func:`describe_vm`, the vCPU's descriptor, a pointer to a
    ``kvm_run`` and ``ctypes.byref`` of a :class:`CServed`. It returns the errno of KVM_RUN.
    ``begin`` takes the same without the descriptor; ``end`` takes only the last two. Types are not
    checked at each call, because that would take half a microsecond.
    """

    serve: Callable[[object, int, ctypes.c_void_p, object], int]
    begin: Callable[[object, ctypes.c_void_p, object], None]
    end: Callable[[ctypes.c_void_p, object], None]


@cache
def load() -> Library | None:
    """Return the library's functions; None if the library was not compiled or cannot be loaded
    here.
    """
    try:
        loaded = ctypes.CDLL(str(_FILE))
    except OSError:
        return None
    begin, end = loaded.snpcerts_begin, loaded.snpcerts_end
    begin.restype = end.restype = None
    return Library(loaded.snpcerts_serve, begin, end)


def describe_vm(
    path: str,
    lock_wait: float,
    size_limit: int,
    flags: int,
    slots: Sequence[tuple[int, int, int]],
) -> object:
    """Return a pointer to a new struct snpcerts_vm. Each slot is a tuple: GPA, size, and
    address in this process.

    ``lock_wait`` is in seconds. Raises ``ValueError`` for a path with a null byte.
    """
    name = os.fsencode(path)
    if b"\0" in name:
        raise ValueError("the path of the certificate file contains a null byte")
    vm = _CVm(
        path=name,
        lock_wait=int(lock_wait * 1e9),
        size_limit=size_limit,
        flags=flags,
        slot_count=len(slots),
        slots=(_CSlot * len(slots))(*(_CSlot(*slot) for slot in slots)),
    )
    return ctypes.byref(vm)  # the pointer keeps vm alive
