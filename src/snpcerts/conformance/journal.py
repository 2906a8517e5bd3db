# SPDX-License-Identifier: Apache-2.0
"""Records what the VMM under test did with ``/dev/kvm`` and with the certificate file.

:mod:`snpcerts.conformance.observed_kvm` and :mod:`snpcerts.conformance.file_observer` write it. The
scenarios read it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from snpcerts.conformance.served_file import Identity, LockSeen

_EVENTS_MAX: Final = 20_000

VMM: Final = "VMM"
UPDATE: Final = "update"
VERDICT: Final = "verdict"


@dataclass(frozen=True, slots=True)
class SeenEvent:
    """One observed event. ``until`` is the end of an event that has a duration."""

    at: float
    track: str
    what: str
    until: float | None = None


@dataclass(frozen=True, slots=True)
class FileRead:
    """A read that the VMM was about to make. ``lock`` is the lock on the file at that time.

    If ``maps`` is set, the call maps the file, so the time of reading is unknown. ``size`` is the
    number of bytes requested.
    """

    file: Identity
    lock: LockSeen | None
    maps: bool = False
    size: int = 0


@dataclass(slots=True)
class CertsRequest:
    """One request for certificates: from the KVM_RUN call that returns the exit to the end of the
    next KVM_RUN call.

    Times are those of ``time.monotonic``. ``ret``, ``needed`` (npages) and ``immediate_exit`` are
    the values in kvm_run when the VMM re-entered. ``marks`` identify the open file descriptions
    through which the VMM tried to lock the file, and ``lock_tries`` are the times of these tries.
    ``lock_at_answer`` is the lock that the file had when the VMM answered; the file is the one read
    last or, if none was read, the one at the path. ``lock_when_signed`` is the lock after the
    firmware had the request and before KVM_RUN returned to the VMM. ``relocked``: the lock was
    dropped after the last read and taken again. ``mapped``: the file was mapped when the VMM
    answered. ``errno`` is that of the re-entry: 0 if it led to another exit, None until it ends.
    """

    vcpu: int
    gpa: int
    npages: int
    asked_at: float
    reads: list[FileRead] = field(default_factory=list)
    marks: set[int] = field(default_factory=set)
    lock_tries: list[float] = field(default_factory=list)
    answered_at: float | None = None
    ret: int = 0
    needed: int = 0
    immediate_exit: int = 0
    lock_at_answer: LockSeen | None = None
    lock_when_signed: LockSeen | None = None
    signed: bool = False
    relocked: bool = False
    mapped: bool = False
    errno: int | None = None
    lock_refused: str = ""  # why the kernel refuses the lock that was requested last
    file_used_after_end: bool = False  # locked or read after the end, without a new exit

    @property
    def waited(self) -> float | None:
        """The number of seconds that the VMM took to answer."""
        return None if self.answered_at is None else self.answered_at - self.asked_at

    @property
    def file(self) -> Identity | None:
        """The file that the VMM read last in this request."""
        return self.reads[-1].file if self.reads else None


@dataclass(slots=True)
class Attribute:
    """How the VMM asked KVM about the device attribute KVM_X86_SEV_SNP_REQ_CERTS, if it did."""

    has: bool = False  # by KVM_HAS_DEVICE_ATTR
    got: bool = False  # by KVM_GET_DEVICE_ATTR


@dataclass(slots=True)
class Enabling:
    """One call of KVM_SEV_SNP_ENABLE_REQ_CERTS. ``errno`` is its result, 0 for success."""

    errno: int
    attribute_got: bool
    attribute_asked: bool
    vcpus: int


@dataclass(slots=True)
class Journal:
    """What was observed in one run of the VMM.

    ``spins`` counts consecutive KVM_RUN calls of a vCPU that returned because ``immediate_exit``
    was set although no exit was waiting for completion. ``runner`` is the process that created the
    VM whose KVM_RUN was called last; a wrapper may have started it. ``threads`` has None for a
    thread that runs several vCPUs.
    """

    attribute: Attribute = field(default_factory=Attribute)
    enablings: list[Enabling] = field(default_factory=list)
    requests: list[CertsRequest] = field(default_factory=list)
    spins: dict[int, int] = field(default_factory=dict)
    threads: dict[int, int | None] = field(default_factory=dict)  # tid -> vCPU
    entered: dict[int, int] = field(default_factory=dict)  # vCPU -> number of KVM_RUN calls
    runner: int | None = None
    seen: list[SeenEvent] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # calls that the emulator does not serve
    _beside: dict[int, list[CertsRequest]] = field(default_factory=dict)  # by id()

    def open_requests(self) -> list[CertsRequest]:
        """Return the requests that have not ended."""
        return [request for request in self.requests if request.errno is None]

    def begin(self, request: CertsRequest, *, locked: bool) -> None:
        """Record a new request, and which other requests overlap with it.

        If the file is ``locked``, each vCPU's latest request overlaps even if it has ended, because
        the VMM might not have finished with it.
        """
        vcpus = {each.vcpu for each in self.requests}
        last = [each for each in map(self.last_of, vcpus) if each is not None]
        beside = [each for each in last if locked or each.errno is None]
        self._beside[id(request)] = beside
        for other in beside:
            self._beside.setdefault(id(other), []).append(request)
        self.requests.append(request)

    def beside(self, request: CertsRequest) -> list[CertsRequest]:
        """Return the requests that overlap this one. Two requests overlap if the earlier one was
        still open, or the file was still locked, when the later one came.
        """
        return self._beside.get(id(request), [])

    def reads_for_others(self, request: CertsRequest) -> Iterator[FileRead]:
        """Yield what the VMM read for other requests: those that overlap ``request``, those that
        overlap one of these, and so on.

        As long as a lock is held, a VMM may use what it has read before.
        """
        seen, left = {id(request)}, list(self.beside(request))
        while left:
            other = left.pop()
            if id(other) not in seen:
                seen.add(id(other))
                left += self.beside(other)
                yield from other.reads

    def last_of(self, vcpu: int) -> CertsRequest | None:
        """Return the latest request of a vCPU."""
        return next((each for each in reversed(self.requests) if each.vcpu == vcpu), None)

    def note(self, track: str, what: str, since: float | None = None) -> None:
        """Record an event that happens now, or that lasted from ``since`` until now."""
        if len(self.seen) < _EVENTS_MAX:
            now = time.monotonic()
            self.seen.append(
                SeenEvent(
                    now if since is None else since, track, what, None if since is None else now
                )
            )


def firmware_track(vcpu: int) -> str:
    """Return the name of the timeline track that shows the firmware commands of one vCPU.

    A command is observed from the VMM's answer until KVM_RUN returns, so the commands of two vCPUs
    may overlap.
    """
    return f"firmware, for vCPU {vcpu}"


def vcpu_track(number: int | None) -> str:
    """Return the name of the timeline track for vCPU ``number``, or for the VMM itself (None)."""
    return VMM if number is None else f"vCPU {number}"
