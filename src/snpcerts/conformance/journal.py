# SPDX-License-Identifier: Apache-2.0
"""Records what the VMM under test did on ``/dev/kvm`` and with the certificate file.

Written by :mod:`snpcerts.conformance.observed_kvm` and
:mod:`snpcerts.conformance.file_observer`, read by the scenarios.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from snpcerts.conformance.served_file import Identity, LockSeen


@dataclass(slots=True)
class FileRead:
    """The VMM was about to read the file. ``lock`` is the lock on it at that time."""

    file: Identity
    lock: LockSeen | None


@dataclass(slots=True)
class CertsRequest:
    """One exit for certificates, from KVM_RUN's return to the end of the next one.

    Times are those of ``time.monotonic``. ``ret``, ``needed`` (npages) and
    ``immediate_exit`` are the values in kvm_run when the VMM re-entered.
    ``lock_descriptors`` are process and number of each descriptor that a lock
    was asked for by. ``lock_at_answer`` was on the file read last (or else on the one at the path)
    then, ``lock_when_signed`` after the firmware had the request and before the
    VMM learnt of it. ``errno`` is the re-entry's: 0 for one that came to another
    exit, None until it is over.
    """

    vcpu: int
    gpa: int
    npages: int
    asked_at: float
    reads: list[FileRead] = field(default_factory=list)
    lock_descriptors: list[tuple[int, int]] = field(default_factory=list)
    answered_at: float | None = None
    ret: int = 0
    needed: int = 0
    immediate_exit: int = 0
    lock_at_answer: LockSeen | None = None
    lock_when_signed: LockSeen | None = None
    signed: bool = False
    errno: int | None = None
    file_used_after_end: bool = False  # locked or read after the end, with no new exit

    @property
    def waited(self) -> float | None:
        """Seconds the VMM took to answer."""
        return None if self.answered_at is None else self.answered_at - self.asked_at

    @property
    def file(self) -> Identity | None:
        """The last file that was read."""
        return self.reads[-1].file if self.reads else None


@dataclass(slots=True)
class Attribute:
    """Whether and how the VMM read the device attribute."""

    has: bool = False  # by KVM_HAS_DEVICE_ATTR
    got: bool = False  # by KVM_GET_DEVICE_ATTR


@dataclass(slots=True)
class Enabling:
    """One KVM_SEV_SNP_ENABLE_REQ_CERTS call. ``errno`` is its result, 0 for success."""

    errno: int
    attribute_got: bool
    attribute_asked: bool
    vcpus: int


@dataclass(slots=True)
class Journal:
    """One run of the VMM.

    ``spins`` counts how many times in a row a vCPU's KVM_RUN returned because
    ``immediate_exit`` was set although no exit was waiting for completion.
    """

    attribute: Attribute = field(default_factory=Attribute)
    enablings: list[Enabling] = field(default_factory=list)
    requests: list[CertsRequest] = field(default_factory=list)
    spins: dict[int, int] = field(default_factory=dict)
    threads: dict[int, int] = field(default_factory=dict)  # tid -> vCPU
    entered: dict[int, int] = field(default_factory=dict)  # vCPU -> how often KVM_RUN was called

    def open_requests(self) -> list[CertsRequest]:
        """Requests that have not ended."""
        return [request for request in self.requests if request.errno is None]

    def last_of(self, vcpu: int) -> CertsRequest | None:
        """A vCPU's latest request."""
        return next((each for each in reversed(self.requests) if each.vcpu == vcpu), None)
