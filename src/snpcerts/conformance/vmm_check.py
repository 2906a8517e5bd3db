# SPDX-License-Identifier: Apache-2.0
"""The checks: what each requires of a VMM, and the rule behind it.

Identifiers are stable between releases, because a VMM's own test suite may name them. The rules
come from Linux ``Documentation/virt/kvm/api.rst`` ("api"), section KVM_EXIT_SNP_REQ_CERTS,
``x86/amd-memory-encryption.rst`` ("sev"), section KVM_SEV_SNP_ENABLE_REQ_CERTS, how a Linux guest's
driver treats an answer ("guest"), ``fcntl_locking(2)``, and ``docs/protocol.md``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final


class Level(enum.Enum):
    """What a failed check means for a VMM."""

    MUST = "must"
    """A VMM that fails breaks a kernel rule, or harms its guest or its host."""
    ADVICE = "advice"
    """A VMM that does not pass breaks no kernel rule, but ignores this project's advice."""


@dataclass(frozen=True, slots=True)
class ConformanceCheck:
    """One requirement that a VMM should meet, and the rule behind it."""

    id: str
    asks: str
    rule: str
    level: Level = Level.MUST


CHECKS: Final = (
    # Before the guest runs.
    ConformanceCheck(
        "vm-starts",
        "the VMM launches an SNP VM with a secrets page, and runs it",
        "sev: SNP_LAUNCH_START, SNP_LAUNCH_UPDATE, SNP_LAUNCH_FINISH",
    ),
    ConformanceCheck(
        "attribute-asked",
        "the VMM reads KVM_X86_SEV_SNP_REQ_CERTS on /dev/kvm before it enables the exit",
        (
            "sev: the value that KVM_GET_DEVICE_ATTR returns shows support; "
            "KVM_HAS_DEVICE_ATTR succeeds even if SNP is off"
        ),
        Level.ADVICE,
    ),
    ConformanceCheck(
        "enabled",
        (
            "the VMM issues KVM_SEV_SNP_ENABLE_REQ_CERTS after INIT2 and before it "
            "creates the first vCPU"
        ),
        "sev: at any other time KVM answers EINVAL",
    ),
    ConformanceCheck(
        "enabled-where-supported",
        "the VMM does not enable the exit on a kernel that lacks it",
        "sev: KVM_GET_DEVICE_ATTR shows support",
    ),
    ConformanceCheck(
        "attribute-value",
        "the VMM does not enable the exit where the attribute reads 0",
        "sev: the value of KVM_X86_SEV_SNP_REQ_CERTS says whether the exit can be enabled",
    ),
    ConformanceCheck(
        "exit-number",
        "the VMM recognises the exit by its number, 43",
        "linux/kvm.h of Linux 7.0 and later: KVM_EXIT_SNP_REQ_CERTS is 43; 42, as in the series "
        "on the mailing list, became arm64's KVM_EXIT_ARM_LDST64B",
    ),
    # The answer.
    ConformanceCheck(
        "table-delivered",
        "the VMM writes the whole file to the guest's buffer, and sets ret to 0",
        "api: userspace writes the certificate data to gpa",
    ),
    ConformanceCheck(
        "large-table",
        "the VMM delivers tables of any size: odd sizes, 20 KiB, 70 KiB",
        "api: npages has 64 bits; the operator decides the size of the table",
    ),
    ConformanceCheck(
        "no-stale-bytes",
        "the rest of the buffer after the table holds none of the host's memory",
        "the guest may be hostile, and it can read the whole buffer",
    ),
    ConformanceCheck(
        "ret-supported",
        "ret is 0, ENOSPC, EAGAIN or EIO, as a positive number",
        "api: any other value makes KVM_RUN fail with EINVAL, and the request is lost",
    ),
    ConformanceCheck(
        "nothing-outside",
        "the VMM writes nothing outside the guest's buffer",
        "api: the buffer is npages pages starting at gpa",
    ),
    ConformanceCheck(
        "too-small",
        (
            "a table that does not fit gets ENOSPC and the exact number of pages, "
            "and nothing is written"
        ),
        "api: npages is set to the number of pages needed",
    ),
    ConformanceCheck(
        "exact-pages",
        "a table of exactly n pages fits into n pages; a smaller buffer gets ENOSPC and npages n",
        "api: npages counts pages of 4 KiB; a size that is a multiple of 4 KiB needs no extra page",
    ),
    ConformanceCheck(
        "no-buffer",
        (
            "a request with npages 0 gets ENOSPC and the exact number of pages, "
            "and nothing is written"
        ),
        "api: npages may be 0, because KVM does not check it",
    ),
    ConformanceCheck(
        "huge-npages",
        "absurd values of npages cause no overflow: the guest gets the table, or EIO",
        "api: KVM passes on the guest's 64 bits unchecked",
    ),
    ConformanceCheck(
        "short-read",
        "after a short read, the VMM keeps reading until it has the whole file",
        "read(2): a short read is not an error; a truncated table must not reach the guest",
    ),
    ConformanceCheck(
        "read-fails",
        "if a read or mmap fails, no partial table reaches the guest, and the VM continues",
        "read(2): EIO and EINTR; mmap(2): ENOMEM; a truncated table must not reach the guest",
    ),
    # Where the buffer is.
    ConformanceCheck(
        "buffer-at-slot-end",
        "a buffer at the end of its memory slot gets its table",
        "api: gpa may be any page of the guest's memory",
    ),
    ConformanceCheck(
        "buffer-across-slots",
        "a buffer that extends from one memory slot into the next gets its table",
        "api: gpa is a guest physical address; only the VMM knows its memory slots",
    ),
    ConformanceCheck(
        "buffer-past-memory",
        "a buffer that extends past the end of memory gets EIO, and the VM continues",
        "api: KVM checks only the alignment of gpa",
    ),
    ConformanceCheck(
        "buffer-outside-memory",
        "a buffer at an address without memory gets EIO, and the VM continues",
        "api: KVM checks only the alignment of gpa",
    ),
    ConformanceCheck(
        "buffer-wraps",
        "a buffer at the end of the address space gets EIO, and the VM continues",
        "api: KVM checks only the alignment of gpa; gpa plus size may overflow",
    ),
    ConformanceCheck(
        "page-state",
        (
            "pages become shared or private as the guest requests, and the others keep their "
            "content; its buffer is shared only during a request"
        ),
        "api: KVM_EXIT_HYPERCALL with KVM_HC_MAP_GPA_RANGE, KVM_SET_MEMORY_ATTRIBUTES; guest: "
        "Linux's driver shares its buffer before each request and takes it back afterwards",
    ),
    # The lock.
    ConformanceCheck(
        "lock-kind",
        "the lock on the file is an open-file-description lock",
        "fcntl_locking(2): OFD locks and flock(2) do not see each other; POSIX locks belong "
        "to the process, and any close of the file drops them",
    ),
    ConformanceCheck(
        "lock-before-read",
        "the VMM takes the lock before it reads the first byte, in every request, and reads "
        "the whole file",
        "sev: the file must not change between the read and the attestation",
    ),
    ConformanceCheck(
        "lock-until-signed",
        "the VMM holds the lock until the firmware has signed and KVM_RUN has returned",
        "sev: hold the lock until KVM_RUN with immediate_exit has returned EINTR",
    ),
    ConformanceCheck(
        "slow-firmware",
        "the VMM holds the lock however long the firmware takes",
        "sev: hold the lock until KVM_RUN with immediate_exit has returned EINTR",
    ),
    ConformanceCheck(
        "lock-fails",
        "if the kernel refuses the lock, the guest gets no table, and the VM continues",
        "fcntl_locking(2): ENOLCK and EINTR",
    ),
    ConformanceCheck(
        "handshake-fails",
        (
            "if KVM_RUN ends the hand-shake with an error, the VMM releases the "
            "lock; it may stop the VM"
        ),
        "api: KVM_RUN may fail with EIO or EBADF; an update needs the lock",
    ),
    ConformanceCheck(
        "lock-released",
        "the VMM holds no lock while the guest runs, whatever the answer was",
        "sev: an update needs the lock, and a guest may run for a year",
    ),
    ConformanceCheck(
        "same-inode",
        "the VMM notices if the file is replaced between open and lock",
        "docs/protocol.md: a lock on a replaced file protects nothing",
    ),
    ConformanceCheck(
        "same-device",
        (
            "the VMM notices if a file with the same inode number on another file "
            "system replaces the file"
        ),
        "docs/protocol.md: an inode number alone does not identify a file",
        Level.ADVICE,
    ),
    ConformanceCheck(
        "replaced-after-lock",
        "if the file is replaced between the VMM's opens or after the VMM locks it, the guest "
        "still gets the table of the file that the VMM has locked",
        "sev: the lock must be on the file that is read",
    ),
    ConformanceCheck(
        "busy",
        (
            "as long as an update holds the lock, the guest gets EAGAIN within the busy limit, "
            "and nothing is written"
        ),
        "api: EAGAIN if the certificates are being updated; guest: retries after 2 s",
    ),
    ConformanceCheck(
        "waits-asleep",
        "the VMM sleeps while it waits for the lock",
        "otherwise a hostile guest can keep a processor busy for as long as an update lasts",
    ),
    ConformanceCheck(
        "log-bounded",
        "the VMM does not log each request from the guest, to its output or to a file",
        "the guest may be hostile, and it decides how often it requests certificates",
    ),
    # The file.
    ConformanceCheck(
        "file-replaced",
        "after the file is replaced, the next request gets the new file",
        "sev: the table must match the firmware's key at the time of the request",
    ),
    ConformanceCheck(
        "file-rewritten",
        (
            "after the file is rewritten in place with the same size and time, its "
            "new content is served"
        ),
        "sev: the table must match the firmware's key at the time of the request",
    ),
    ConformanceCheck(
        "file-grown",
        "after the file has grown in place, it is served whole",
        "sev: the table must match the firmware's key at the time of the request",
    ),
    ConformanceCheck(
        "file-shrunk",
        "after the file has shrunk in place, no bytes of its old content are served",
        "sev: the table must match the firmware's key at the time of the request",
    ),
    ConformanceCheck(
        "changed-before-lock",
        "if the file changes in place before the VMM gets the lock, its new content is served",
        "sev: lock first, then read; until the VMM holds the lock, size and content may change",
    ),
    ConformanceCheck(
        "missing-file",
        (
            "without a file the guest gets an empty table, never EIO; when the "
            "file is back, it is served"
        ),
        "guest: EIO destroys the VMPCK, after which the guest cannot attest until it reboots",
    ),
    ConformanceCheck(
        "unreadable-file",
        (
            "with a directory in place of the file the guest gets an empty table, "
            "never EIO; when the file is back, it is served"
        ),
        "guest: EIO destroys the VMPCK, after which the guest cannot attest until it reboots",
    ),
    ConformanceCheck(
        "empty-file",
        "with a file of 0 bytes the guest gets an empty table, never EIO",
        "guest: EIO destroys the VMPCK, after which the guest cannot attest until it reboots",
    ),
    ConformanceCheck(
        "permission-denied",
        (
            "if the VMM may not open the file, the guest gets an empty table, "
            "never EIO; once the VMM may open the file, it is served"
        ),
        "guest: EIO destroys the VMPCK, after which the guest cannot attest until it reboots",
    ),
    ConformanceCheck(
        "open-fails",
        "if open fails with EMFILE, ENOMEM or EIO, the guest gets an empty table or EAGAIN, never "
        "EIO; once open succeeds, the file is served",
        "guest: EIO destroys the VMPCK, after which the guest cannot attest until it reboots",
    ),
    ConformanceCheck(
        "symbolic-link",
        "the VMM follows a symbolic link at the path, and notices when it points to another file",
        "path_resolution(7); operators link to the current file",
    ),
    ConformanceCheck(
        "read-only-file",
        "the VMM serves a file that it may read but not write",
        "sev: a shared lock needs only read permission",
        Level.ADVICE,
    ),
    # vCPUs and the end.
    ConformanceCheck(
        "immediate-exit-cleared",
        "the VMM sets immediate_exit back to 0 before the guest runs",
        "api: KVM never clears immediate_exit",
    ),
    ConformanceCheck(
        "exit-reason-stale",
        "the VMM ignores exit_reason after EINTR",
        "api: exit_reason is still 43, but the request has been served",
    ),
    ConformanceCheck(
        "vcpus-served",
        "the VMM answers requests that two vCPUs make at the same time",
        "api: each vCPU has its own exit",
    ),
    ConformanceCheck(
        "vcpus-keep-locks",
        "no vCPU's request drops the lock of another vCPU that is waiting for the firmware",
        "fcntl_locking(2): a lock belongs to an open file description; each request needs its own "
        "description",
    ),
    ConformanceCheck(
        "kick-not-lost",
        "a request to stop the VMM takes effect, even during a certificate request",
        "api: a kick may set immediate_exit at any time; clearing it afterwards loses the kick",
    ),
    ConformanceCheck(
        "descriptors",
        "requests leave no open descriptor of the file behind",
        "docs/protocol.md: close after each request",
    ),
    ConformanceCheck(
        "nothing-left",
        "requests leave no thread, process, timer, new file or mapping of the table behind",
        "the guest may be hostile, and it decides how often it requests certificates",
    ),
    ConformanceCheck(
        "memory-bounded",
        "the VMM's memory does not grow with each request",
        "the guest may be hostile, and it decides how often it requests certificates",
        Level.ADVICE,
    ),
    ConformanceCheck(
        "lock-ends-with-vmm",
        "a VMM that is stopped or killed in the middle of a request leaves no lock behind",
        "fcntl_locking(2): the lock lives while any process has the description open",
    ),
)

BY_ID: Final = {check.id: check for check in CHECKS}
