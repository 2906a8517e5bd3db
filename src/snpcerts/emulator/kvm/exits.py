# SPDX-License-Identifier: Apache-2.0
"""Writes each exit, except the one for certificates, into ``struct kvm_run``.

Source: Linux ``include/uapi/linux/kvm.h``. Each exit is written into the vCPU's shared memory:
its member of the exit union, then the exit reason.
"""

from __future__ import annotations

import struct

from snpcerts.abi.ghcb import PAGE_SIZE
from snpcerts.abi.kvm import (
    HC_MAP_GPA_RANGE,
    INTERNAL_ERROR_EMULATION,
    INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
    MEMORY_EXIT_FLAG_PRIVATE,
    RUN_EXIT,
    RUN_EXIT_REASON,
    RUN_HYPERCALL_RET,
    SYSTEM_EVENT_SEV_TERM,
    ExitReason,
)

_HYPERCALL_FLAGS = RUN_EXIT + 64
_HYPERCALL_LONG_MODE = 1
_MMIO_DATA = RUN_EXIT + 8
PIO_PAGE = PAGE_SIZE  # offset of the port I/O data in the mapping of a vCPU
_IO_IN, _IO_OUT = 0, 1
_SVM_EXIT_ERR = 0xFFFF_FFFF_FFFF_FFFF


def plain(run: memoryview, reason: int) -> None:
    """Write an exit that has a reason and no data."""
    struct.pack_into("<I", run, RUN_EXIT_REASON, reason)


def map_gpa_range(run: memoryview, gpa: int, pages: int, attributes: int) -> None:
    """Write the KVM_HC_MAP_GPA_RANGE exit: the guest asks to make pages private or shared.

    Arguments 3 to 5 and the flags of the exit are not written.
    """
    struct.pack_into("<4Q", run, RUN_EXIT, HC_MAP_GPA_RANGE, gpa, pages, attributes)
    set_hypercall_result(run, 0)
    plain(run, ExitReason.HYPERCALL)


def long_mode(run: memoryview) -> None:
    """Mark the hypercall as a VMMCALL from a 64-bit guest."""
    struct.pack_into("<Q", run, _HYPERCALL_FLAGS, _HYPERCALL_LONG_MODE)


def hypercall_result(run: memoryview) -> int:
    """Return userspace's answer to a hypercall; 0 is success."""
    return int(struct.unpack_from("<Q", run, RUN_HYPERCALL_RET)[0])


def set_hypercall_result(run: memoryview, value: int) -> None:
    """Set the result of a hypercall. Userspace may replace it."""
    struct.pack_into("<Q", run, RUN_HYPERCALL_RET, value)


def port_io(run: memoryview, *, inward: bool, size: int, port: int, count: int) -> None:
    """Write the port I/O exit for ``count`` accesses of ``size`` bytes each.

    The data is in the second page of the mapping.
    """
    direction = _IO_IN if inward else _IO_OUT
    struct.pack_into("<BBHIQ", run, RUN_EXIT, direction, size, port, count, PIO_PAGE)
    plain(run, ExitReason.IO)


def mmio_read(run: memoryview, gpa: int, size: int) -> None:
    """Write the MMIO exit for a guest's read. Userspace must fill in the data."""
    struct.pack_into("<Q", run, RUN_EXIT, gpa)
    struct.pack_into("<IB", run, _MMIO_DATA + 8, size, 0)
    plain(run, ExitReason.MMIO)


def mmio_write(run: memoryview, gpa: int, data: bytes) -> None:
    """Write the MMIO exit for a guest's write of at most eight bytes."""
    struct.pack_into("<Q", run, RUN_EXIT, gpa)
    run[_MMIO_DATA : _MMIO_DATA + len(data)] = data
    struct.pack_into("<IB", run, _MMIO_DATA + 8, len(data), 1)
    plain(run, ExitReason.MMIO)


def mmio_data(run: memoryview, size: int) -> bytes:
    """Return the data that userspace filled in for an MMIO read."""
    return bytes(run[_MMIO_DATA : _MMIO_DATA + size])


def unexpected(run: memoryview, code: int) -> None:
    """Write the internal-error exit for a processor exit that KVM does not handle."""
    struct.pack_into("<II2Q", run, RUN_EXIT, INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, 2, code, 0)
    plain(run, ExitReason.INTERNAL_ERROR)


def guest_terminated(run: memoryview, ghcb_msr: int) -> None:
    """Write the exit for a guest that has requested its own termination, or something that only
    SNP guests may request. ``ghcb_msr`` is the value of the GHCB MSR.
    """
    struct.pack_into("<IIQ", run, RUN_EXIT, SYSTEM_EVENT_SEV_TERM, 1, ghcb_msr)
    plain(run, ExitReason.SYSTEM_EVENT)


def entry_failed(run: memoryview) -> None:
    """Write the exit for a failed entry: the processor refuses the vCPU's state, as it does before
    SNP_LAUNCH_FINISH.
    """
    struct.pack_into("<QI", run, RUN_EXIT, _SVM_EXIT_ERR, 0)
    plain(run, ExitReason.FAIL_ENTRY)


def not_emulated(run: memoryview) -> None:
    """Write the internal-error exit for a vCPU that would have to execute an instruction. The
    emulator executes none.
    """
    struct.pack_into("<II", run, RUN_EXIT, INTERNAL_ERROR_EMULATION, 0)
    plain(run, ExitReason.INTERNAL_ERROR)


def memory_fault(run: memoryview, gpa: int, *, private: bool) -> None:
    """Write the memory-fault exit for an access to a page that is missing or in the wrong state."""
    flags = MEMORY_EXIT_FLAG_PRIVATE if private else 0
    struct.pack_into("<QQQ", run, RUN_EXIT, flags, gpa, PAGE_SIZE)
    plain(run, ExitReason.MEMORY_FAULT)
