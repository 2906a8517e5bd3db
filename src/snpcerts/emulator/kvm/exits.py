# SPDX-License-Identifier: Apache-2.0
"""How each exit other than the one for certificates looks in ``struct kvm_run``.

Source: Linux ``include/uapi/linux/kvm.h``. Every function writes its member of
the exit union and then the exit reason, into the shared memory of the vCPU.
"""

from __future__ import annotations

import struct

from snpcerts.abi.kvm import (
    HC_MAP_GPA_RANGE,
    INTERNAL_ERROR_EMULATION,
    MAP_GPA_RANGE_ENCRYPTED,
    RUN_EXIT,
    RUN_EXIT_REASON,
    SYSTEM_EVENT_SEV_TERM,
    ExitReason,
)

_HYPERCALL_RET = RUN_EXIT + 56
_SVM_EXIT_ERR = 0xFFFF_FFFF_FFFF_FFFF


def plain(run: memoryview, reason: int) -> None:
    """An exit that says nothing more."""
    struct.pack_into("<I", run, RUN_EXIT_REASON, reason)


def map_gpa_range(run: memoryview, gpa: int, pages: int, *, private: bool) -> None:
    """The guest asks for pages to become private or shared (KVM_HC_MAP_GPA_RANGE)."""
    attributes = MAP_GPA_RANGE_ENCRYPTED if private else 0
    struct.pack_into("<8QQ", run, RUN_EXIT, HC_MAP_GPA_RANGE, gpa, pages, attributes, 0, 0, 0, 0, 0)
    plain(run, ExitReason.HYPERCALL)


def hypercall_result(run: memoryview) -> int:
    """What userspace answered to a hypercall; 0 is success."""
    return int(struct.unpack_from("<Q", run, _HYPERCALL_RET)[0])


def guest_terminated(run: memoryview, ghcb_msr: int) -> None:
    """The guest asked for its own end; ``ghcb_msr`` has its reason."""
    struct.pack_into("<IIQ", run, RUN_EXIT, SYSTEM_EVENT_SEV_TERM, 1, ghcb_msr)
    plain(run, ExitReason.SYSTEM_EVENT)


def entry_failed(run: memoryview) -> None:
    """The processor refuses the vCPU's state, as it does before SNP_LAUNCH_FINISH."""
    struct.pack_into("<QI", run, RUN_EXIT, _SVM_EXIT_ERR, 0)
    plain(run, ExitReason.FAIL_ENTRY)


def not_emulated(run: memoryview) -> None:
    """The vCPU would have to execute instructions, which nothing here does."""
    struct.pack_into("<II", run, RUN_EXIT, INTERNAL_ERROR_EMULATION, 0)
    plain(run, ExitReason.INTERNAL_ERROR)


def memory_fault(run: memoryview, gpa: int, size: int) -> None:
    """The guest touched shared memory that is not there."""
    struct.pack_into("<QQQ", run, RUN_EXIT, 0, gpa, size)
    plain(run, ExitReason.MEMORY_FAULT)
