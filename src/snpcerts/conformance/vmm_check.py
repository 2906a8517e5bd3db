# SPDX-License-Identifier: Apache-2.0
"""The checks: what each requires of a VMM, and the rule behind it.

Identifiers are stable from one release to the next: a VMM's own test suite may
name them. The rules come from Linux ``Documentation/virt/kvm/api.rst``
("api"), section KVM_EXIT_SNP_REQ_CERTS, ``x86/amd-memory-encryption.rst``
("sev"), section KVM_SEV_SNP_ENABLE_REQ_CERTS, how a Linux guest's driver treats
an answer ("guest"), ``fcntl_locking(2)``, and ``docs/protocol.md``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final


class Level(enum.Enum):
    """What a failed check means for a VMM."""

    MUST = "must"
    """It breaks a rule of the kernel's, or the guest loses."""
    ADVICE = "advice"
    """It may work; this project advises against it."""


@dataclass(frozen=True, slots=True)
class ConformanceCheck:
    """One requirement on a VMM."""

    id: str
    asks: str
    rule: str
    level: Level = Level.MUST


CHECKS: Final = (
    # Before the guest runs.
    ConformanceCheck(
        "vm-starts",
        "the VMM launches an SNP VM with a secrets page and runs it",
        "sev: SNP_LAUNCH_START, UPDATE, FINISH",
    ),
    ConformanceCheck(
        "attribute-asked",
        "KVM_X86_SEV_SNP_REQ_CERTS is read on /dev/kvm before the exit is enabled",
        "sev: support is discovered by KVM_GET_DEVICE_ATTR, and the value counts: "
        "KVM_HAS_DEVICE_ATTR succeeds where SNP is off",
        Level.ADVICE,
    ),
    ConformanceCheck(
        "enabled",
        "KVM_SEV_SNP_ENABLE_REQ_CERTS is issued after INIT2 and before the first vCPU",
        "sev: EINVAL at any other time",
    ),
    ConformanceCheck(
        "enabled-where-supported",
        "the exit is not enabled on a kernel that does not have it",
        "sev: support is discovered by KVM_GET_DEVICE_ATTR",
    ),
    ConformanceCheck(
        "attribute-value",
        "the exit is not enabled where the attribute reads 0",
        "sev: the value of KVM_X86_SEV_SNP_REQ_CERTS says whether the exit can be enabled",
    ),
    ConformanceCheck(
        "exit-number",
        "the exit is recognised by its number, 43",
        "linux/kvm.h of Linux 7.0 and later: KVM_EXIT_SNP_REQ_CERTS is 43; 42, as in the series "
        "on the mailing list, became arm64's KVM_EXIT_ARM_LDST64B",
    ),
    # The answer.
    ConformanceCheck(
        "table-delivered",
        "all bytes of the file are in the guest's buffer, and ret is 0",
        "api: userspace writes the certificate data to gpa",
    ),
    ConformanceCheck(
        "large-table",
        "tables of any size are delivered: odd sizes, 20 KiB, 70 KiB",
        "api: npages has 64 bits; the size of the table is the operator's",
    ),
    ConformanceCheck(
        "no-stale-bytes",
        "behind the table, up to the end of the buffer, there is nothing of the host's memory",
        "the guest is hostile: it reads whole pages",
    ),
    ConformanceCheck(
        "ret-supported",
        "ret is 0, ENOSPC, EAGAIN or EIO, as a positive number",
        "api: any other value makes KVM_RUN fail with EINVAL, and the request is lost",
    ),
    ConformanceCheck(
        "nothing-outside",
        "nothing is written outside the guest's buffer",
        "api: the buffer is npages pages starting at gpa",
    ),
    ConformanceCheck(
        "too-small",
        "a table that does not fit: ENOSPC, the exact number of pages, nothing written",
        "api: npages is set to the number of pages needed",
    ),
    ConformanceCheck(
        "exact-pages",
        "a table of exactly n pages fits into n pages; a smaller buffer gets ENOSPC and npages n",
        "api: npages counts pages of 4 KiB; a size that is a multiple of 4 KiB needs no extra page",
    ),
    ConformanceCheck(
        "no-buffer",
        "a request with npages 0: ENOSPC, the exact number of pages, nothing written",
        "api: npages may be 0, KVM does not check it",
    ),
    ConformanceCheck(
        "huge-npages",
        "absurd values of npages do not wrap: the table is delivered, or EIO",
        "api: KVM passes on the guest's 64 bits unchecked",
    ),
    ConformanceCheck(
        "short-read",
        "after a short read, the VMM keeps reading until it has the whole file",
        "read(2): a short read is not an error; a truncated table must not reach the guest",
    ),
    ConformanceCheck(
        "read-fails",
        "a read that fails: no partial table reaches the guest, and the VM continues",
        "read(2): EIO and EINTR; a truncated table must not reach the guest",
    ),
    # Where the buffer is.
    ConformanceCheck(
        "buffer-at-slot-end",
        "a buffer that ends with its memory slot gets its table",
        "api: gpa is any page of the guest's memory",
    ),
    ConformanceCheck(
        "buffer-across-slots",
        "a buffer that extends from one memory slot into the next gets its table",
        "api: gpa is a guest physical address; only the VMM knows its memory slots",
    ),
    ConformanceCheck(
        "buffer-past-memory",
        "a buffer that runs past the end of memory: EIO, and the VM continues",
        "api: KVM checks only the alignment of gpa",
    ),
    ConformanceCheck(
        "buffer-outside-memory",
        "a buffer where there is no memory: EIO, and the VM continues",
        "api: KVM checks only the alignment of gpa",
    ),
    ConformanceCheck(
        "buffer-wraps",
        "a buffer at the end of the address space: EIO, and the VM continues",
        "api: KVM checks only the alignment of gpa; gpa plus size may overflow",
    ),
    ConformanceCheck(
        "page-state",
        "pages that the guest makes shared or private become so; its buffer is shared only "
        "while it asks",
        "api: KVM_EXIT_HYPERCALL with KVM_HC_MAP_GPA_RANGE, KVM_SET_MEMORY_ATTRIBUTES; guest: "
        "Linux's driver shares its buffer before each request and takes it back afterwards",
    ),
    # The lock.
    ConformanceCheck(
        "lock-kind",
        "the lock on the file is an open-file-description lock",
        "fcntl_locking(2): OFD locks and flock(2) do not see each other; classic locks belong "
        "to the process, and any close of the file drops them",
    ),
    ConformanceCheck(
        "lock-before-read",
        "the lock is held before the first byte is read, in every request, and all is read",
        "sev: the file must not change between the read and the attestation",
    ),
    ConformanceCheck(
        "lock-until-signed",
        "the lock is held until the firmware has signed and KVM_RUN has returned",
        "sev: hold the lock until KVM_RUN with immediate_exit has returned EINTR",
    ),
    ConformanceCheck(
        "slow-firmware",
        "the lock is held however long the firmware takes",
        "sev: hold the lock until KVM_RUN with immediate_exit has returned EINTR",
    ),
    ConformanceCheck(
        "lock-fails",
        "a lock that the kernel refuses: no table without the lock, and the VM continues",
        "fcntl_locking(2): ENOLCK",
    ),
    ConformanceCheck(
        "handshake-fails",
        "KVM_RUN ends the hand-shake with an error: the lock is released, and the VM may be "
        "stopped",
        "api: KVM_RUN may fail with EIO or EBADF; an update needs the lock",
    ),
    ConformanceCheck(
        "lock-released",
        "no lock is held while the guest runs, whatever the answer was",
        "sev: an update needs the lock, and a guest may run for a year",
    ),
    ConformanceCheck(
        "same-inode",
        "a file replaced between open and lock is noticed",
        "docs/protocol.md: a lock on a replaced file protects nothing",
    ),
    ConformanceCheck(
        "same-device",
        "a file replaced by one with the same inode number on another file system is noticed",
        "docs/protocol.md: an inode number alone is not an identity",
        Level.ADVICE,
    ),
    ConformanceCheck(
        "replaced-after-lock",
        "the path is replaced after the lock: the table is that of a locked file",
        "sev: the lock must be on the file that is read",
    ),
    ConformanceCheck(
        "busy",
        "EAGAIN within the limit, and nothing written, as long as an update holds the lock",
        "api: EAGAIN if the certificates are being updated; guest: retries after 2 s",
    ),
    ConformanceCheck(
        "waits-asleep",
        "while it waits for the lock, the VMM sleeps",
        "the guest is hostile: it can keep a processor busy for as long as an update lasts",
    ),
    ConformanceCheck(
        "log-bounded",
        "the output does not grow with each request that the guest makes",
        "the guest is hostile: it decides how many requests there are",
    ),
    # The file.
    ConformanceCheck(
        "file-replaced",
        "after the file is replaced, the next request gets the new file",
        "sev: the table must match the firmware's key at the time of the request",
    ),
    ConformanceCheck(
        "file-rewritten",
        "after the file is rewritten in place, same size and same time, its new content is served",
        "sev: the table must match the firmware's key at the time of the request",
    ),
    ConformanceCheck(
        "file-grown",
        "after the file has grown in place, it is served whole",
        "sev: the table must match the firmware's key at the time of the request",
    ),
    ConformanceCheck(
        "file-shrunk",
        "after the file has shrunk in place, it is served without bytes of the old file",
        "sev: the table must match the firmware's key at the time of the request",
    ),
    ConformanceCheck(
        "changed-before-lock",
        "the file changes in place before the VMM has the lock: what is served is what it is then",
        "sev: lock first, then read; size and content may have changed before",
    ),
    ConformanceCheck(
        "missing-file",
        "no file: an empty table, never EIO; once the file is back, it is served",
        "guest: EIO destroys the VMPCK, after which the guest cannot attest until it reboots",
    ),
    ConformanceCheck(
        "unreadable-file",
        "a directory in place of the file: an empty table, never EIO; later the file is served",
        "guest: EIO destroys the VMPCK, after which the guest cannot attest until it reboots",
    ),
    ConformanceCheck(
        "empty-file",
        "a file of 0 bytes: an empty table, never EIO",
        "guest: EIO destroys the VMPCK, after which the guest cannot attest until it reboots",
    ),
    ConformanceCheck(
        "permission-denied",
        "a file that the VMM may not open: an empty table, never EIO; later the file is served",
        "guest: EIO destroys the VMPCK, after which the guest cannot attest until it reboots",
    ),
    ConformanceCheck(
        "open-fails",
        "open fails with EMFILE, ENOMEM or EIO: an empty table or EAGAIN, never EIO; then the file "
        "is served",
        "guest: EIO destroys the VMPCK, after which the guest cannot attest until it reboots",
    ),
    ConformanceCheck(
        "symbolic-link",
        "a path that is a symbolic link leads to the file, and to another once it points there",
        "path_resolution(7); operators link the current file",
    ),
    ConformanceCheck(
        "read-only-file",
        "a file that the VMM may read but not write is served",
        "sev: a shared lock needs only the right to read",
        Level.ADVICE,
    ),
    # vCPUs and the end.
    ConformanceCheck(
        "immediate-exit-cleared",
        "immediate_exit is 0 again before the guest runs",
        "api: KVM never clears immediate_exit",
    ),
    ConformanceCheck(
        "exit-reason-stale",
        "exit_reason is ignored after EINTR",
        "api: exit_reason is still 43, but the request has been served",
    ),
    ConformanceCheck(
        "vcpus-served",
        "requests of two vCPUs at once are both answered",
        "api: each vCPU has its own exit",
    ),
    ConformanceCheck(
        "vcpus-keep-locks",
        "no other vCPU's request drops the lock of one that waits for the firmware",
        "fcntl_locking(2): a lock belongs to the open file description; each request needs its own",
    ),
    ConformanceCheck(
        "kick-not-lost",
        "a stop requested during a certificate request takes effect",
        "api: a kick may set immediate_exit at any time; clearing it afterwards loses the kick",
    ),
    ConformanceCheck(
        "descriptors",
        "requests leave no open descriptors of the file",
        "docs/protocol.md: close after each request",
    ),
    ConformanceCheck(
        "nothing-left",
        "requests leave no thread, no process and no mapping of the file",
        "the guest is hostile: it decides how many requests there are",
    ),
    ConformanceCheck(
        "memory-bounded",
        "the VMM's memory does not grow with each request",
        "the guest is hostile: it decides how many requests there are",
        Level.ADVICE,
    ),
    ConformanceCheck(
        "lock-ends-with-vmm",
        "a VMM that is stopped or killed in the middle of a request leaves no lock",
        "fcntl_locking(2): the lock lives while any process has the description open",
    ),
)

BY_ID: Final = {check.id: check for check in CHECKS}
