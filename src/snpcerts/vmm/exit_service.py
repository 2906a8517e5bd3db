# SPDX-License-Identifier: Apache-2.0
"""Serves KVM_EXIT_SNP_REQ_CERTS for any VMM written in Python.

Source: Linux ``Documentation/virt/kvm/api.rst``, KVM_EXIT_SNP_REQ_CERTS, and
``x86/amd-memory-encryption.rst``, KVM_SEV_SNP_ENABLE_REQ_CERTS.

In a vCPU's loop::

    service = ExitService(CertFile("/var/lib/snpcerts/certs.bin"))
    ...
    if run.asks_for_certs:
        served = service.serve(run, memory, vcpu)

where ``vcpu`` is the vCPU's file descriptor. It can also be a function that issues KVM_RUN and
raises ``OSError`` if the ioctl fails, as :func:`snpcerts.vmm.run_vcpu` does. The service re-enters
the guest once, with ``immediate_exit`` set, so that the firmware signs the report before the lock
is dropped.

**Failures.** A Linux guest that gets EIO destroys its VMPCK: it cannot attest again until it
reboots. Therefore a missing or unreadable file yields an empty table, and the guest can fetch
certificates itself. Only a buffer outside the guest's memory yields EIO. With ``on_error="eio"`` an
unreadable file yields EIO too. Use that only if a guest must not run without certificates.

**In C, if possible.** If the library of :mod:`snpcerts.vmm.c_library` is built and guest memory is
mapped (:class:`MappedMemory`), the library serves the request with the same system calls. If
``vcpu`` is a descriptor, one C call serves the request, including KVM_RUN. If it is a function, one
C call comes before that function and one after it. Otherwise Python serves the request.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from snpcerts.abi.cert_table import EMPTY, MAX_SIZE, PAGE_SIZE, pages_of
from snpcerts.abi.kvm import RunView
from snpcerts.certfile import reader, system
from snpcerts.certfile.file import CertFile
from snpcerts.errors import UsageError
from snpcerts.vmm import c_library
from snpcerts.vmm.c_library import CServed, Library, RequestProblem
from snpcerts.vmm.guest_memory import GuestMemory, GuestMemoryError, MappedMemory
from snpcerts.vmm.vcpu_run import run_vcpu

log = logging.getLogger(__name__)

OnError = Literal["empty", "eio"]


class Outcome(enum.Enum):
    """The outcome of one request."""

    SERVED = "served"
    EMPTY = "empty"
    TOO_SMALL = "too-small"
    BUSY = "busy"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Served:
    """One request's outcome with details, for logs and metrics.

    ``ret`` is the positive errno passed to KVM (0 for success). ``size`` is the number of bytes
    written to the guest. ``needed_pages`` is set for TOO_SMALL. ``detail`` says why a request
    failed, or why a table is unexpectedly empty. ``run_errno`` is the errno of the re-entry. EINTR
    is normal. 0 means that KVM_RUN returned with another exit, which the VMM must handle. Any other
    value means that the request is lost; most VMMs then end the VM.
    """

    outcome: Outcome
    ret: int
    size: int = 0
    needed_pages: int | None = None
    detail: str | None = None
    run_errno: int = 0

    def __str__(self) -> str:
        text = self.outcome.value
        if self.needed_pages is not None:
            text += f", {self.needed_pages} pages needed"
        if self.size:
            text += f", {self.size} bytes"
        return text if self.detail is None else f"{text}: {self.detail}"

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON values."""
        return {
            "outcome": self.outcome.value,
            "ret": self.ret,
            "size": self.size,
            "needed_pages": self.needed_pages,
            "detail": self.detail,
            "run_errno": self.run_errno,
        }


class ExitService:
    """Serves certificate requests of any number of vCPUs from one certificate file.

    Thread-safe: each request opens the file again, so no vCPU can drop another vCPU's lock.
    """

    def __init__(
        self,
        certs: CertFile,
        *,
        lock_wait: float = reader.DEFAULT_LOCK_WAIT,
        on_error: OnError = "empty",
        size_limit: int = MAX_SIZE,
    ) -> None:
        """Create the service. If the lock is not granted within ``lock_wait`` seconds, the guest
        gets BUSY, and retries 2 s later.
        """
        if on_error not in ("empty", "eio"):
            raise UsageError(f"on_error: expected 'empty' or 'eio', found {on_error!r}")
        if not 0 <= lock_wait < 60:
            # A Linux guest destroys its VMPCK after 60 s of BUSY.
            raise UsageError(
                f"lock_wait: expected at least 0 s and less than 60 s, found {lock_wait} s"
            )
        self._certs = certs
        self._known: tuple[Outcome, str] | None = None  # the last problem that was logged
        self._lock_wait = lock_wait
        self._on_error = on_error
        self._size_limit = size_limit
        # The C library runs the protocol's steps itself, so it cannot be used if the caller has
        # given its own ``perform``.
        self._library = c_library.load() if certs.perform is system.perform else None
        self._last = Served(Outcome.SERVED, 0)  # cached, because most requests have the same result
        self._described: tuple[MappedMemory, object] | None = None  # the last VM
        self._spare: list[tuple[CServed, object]] = []  # structures that no request is using

    def serve(
        self, run: RunView, memory: GuestMemory, kvm_run: int | Callable[[], object]
    ) -> Served:
        """Answer the certificate request in ``run``, and re-enter the guest once.

        ``kvm_run`` is the vCPU's descriptor, or a function that issues its KVM_RUN and raises
        ``OSError`` if that fails. With a descriptor, all signals are blocked during KVM_RUN.

        ``immediate_exit`` is restored to its previous value, unless another thread set it to 1 in
        the meantime to kick this vCPU: then it stays 1. Check your own kick flag after every
        request, as after any EINTR.

        Neither the guest nor the file can cause an exception. If the function ``kvm_run`` raises
        anything but ``OSError``, that exception propagates after the lock is dropped.
        """
        if self._library is not None and type(memory) is MappedMemory:
            vm = self._describe(memory)
            if vm is not None:
                return self._serve_in_c(self._library, vm, run, memory, kvm_run)
        gpa, npages, _ = run.snp_req_certs
        answer: list[Served] = []

        def deliver(found: reader.Found) -> None:
            answer.append(self._answer(found, gpa, npages, run, memory))

        run_errno = self._certs.serve(
            deliver=deliver,
            handshake=lambda: _enter(run, kvm_run),
            lock_wait=self._lock_wait,
            size_limit=self._size_limit,
        )
        first = answer[0]
        served = Served(
            first.outcome, first.ret, first.size, first.needed_pages, first.detail, run_errno
        )
        self._report(served)
        return served

    def _describe(self, memory: MappedMemory) -> object | None:
        """Return the description of the VM for the C library; None if the library cannot serve the
        VM.
        """
        last = self._described
        if last is not None and last[0] is memory:
            return last[1]
        flags = c_library.UNREADABLE_IS_EIO if self._on_error == "eio" else 0
        try:
            vm = c_library.describe_vm(
                self._certs.path, self._lock_wait, self._size_limit, flags, memory.addresses()
            )
        except (TypeError, ValueError):  # C cannot use the memory or the path
            return None
        self._described = memory, vm
        return vm

    def _serve_in_c(
        self,
        library: Library,
        vm: object,
        run: RunView,
        memory: MappedMemory,
        kvm_run: int | Callable[[], object],
    ) -> Served:
        try:
            spare = self._spare.pop()
        except IndexError:
            fresh = CServed(fd=-1)
            spare = fresh, ctypes.byref(fresh)
        answer, there = spare
        if isinstance(kvm_run, int):
            run_errno = library.serve(vm, kvm_run, run.pointer, there)
        else:
            run_errno = _around(library, vm, run.pointer, there, kvm_run)
        size, outcome = answer.size, _OUTCOMES[answer.outcome]
        if outcome is Outcome.SERVED:
            served = self._last
            if served.size != size or served.run_errno != run_errno:
                served = Served(outcome, 0, size, None, None, run_errno)
                self._last = served
        else:
            detail = self._detail(outcome, answer, run.snp_req_certs[0], memory)
            needed = answer.needed_pages or None
            served = Served(outcome, answer.ret, size, needed, detail, run_errno)
        self._spare.append(spare)
        self._report(served)
        return served

    def _detail(
        self, outcome: Outcome, answer: CServed, gpa: int, memory: MappedMemory
    ) -> str | None:
        if outcome is Outcome.BUSY:
            return _busy(answer.waited / 1e9)
        if outcome is Outcome.FAILED and answer.guest_problem:
            if answer.guest_problem == RequestProblem.NOT_ALIGNED:
                return _not_aligned(gpa)
            try:
                memory.require(gpa, len(EMPTY) if answer.file_problem else answer.file_size)
            except GuestMemoryError as error:
                return error.message
            return f"guest address {gpa:#x} is not mapped"
        problem = answer.file_problem
        if problem == 0:
            return None
        if problem == RequestProblem.NOT_REGULAR:
            return self._place(reader.NOT_REGULAR)
        if problem == RequestProblem.TOO_LARGE:
            return self._place(reader.too_large(answer.file_size, self._size_limit))
        if problem == RequestProblem.SHRANK:
            return self._place(reader.SHRANK)
        return self._place(os.strerror(problem))

    def _answer(
        self, found: reader.Found, gpa: int, npages: int, run: RunView, memory: GuestMemory
    ) -> Served:
        """Fill the guest's buffer and set ``ret`` in ``run``, without calling KVM_RUN."""
        match found:
            case reader.Table(data):
                served = _deliver(data, Outcome.SERVED, gpa, npages, memory)
            case reader.Empty():
                served = _deliver_empty(gpa, npages, memory, None)
            case reader.Busy(waited):
                served = Served(Outcome.BUSY, errno.EAGAIN, detail=_busy(waited))
            case reader.Unreadable(problem) if self._on_error == "eio":
                served = Served(Outcome.FAILED, errno.EIO, detail=self._place(problem))
            case reader.Unreadable(problem):
                served = _deliver_empty(gpa, npages, memory, self._place(problem))
        run.answer_req_certs(served.ret, served.needed_pages)
        return served

    def _place(self, problem: str) -> str:
        return f"{self._certs.path}: {problem}"

    def _report(self, served: Served) -> None:
        """Log one line for each request. A new problem is logged at a higher level.

        The guest decides how often it makes requests, so a lasting problem causes only one warning.
        """
        if served.run_errno not in (0, errno.EINTR):
            log.error("certificate request lost: KVM_RUN failed with errno %d", served.run_errno)
        level = logging.DEBUG
        if served.detail is not None and (served.outcome, served.detail) != self._known:
            level = logging.INFO if served.outcome is Outcome.BUSY else logging.WARNING
        self._known = None if served.detail is None else (served.outcome, served.detail)
        if log.isEnabledFor(level):
            log.log(level, "certificate request %s", served)


# For immediate_exit. Any value but 0 makes KVM_RUN return; a VMM's kick writes 1.
_OURS = 2
# In the same order as c_library.OUTCOMES.
_OUTCOMES = tuple(Outcome(name) for name in c_library.OUTCOMES)


def _around(
    library: Library,
    vm: object,
    run: ctypes.c_void_p,
    answer: object,
    kvm_run: Callable[[], object],
) -> int:
    """Let the library answer, enter the guest, then let the library end the request."""
    try:  # a signal handler may raise between any two lines
        library.begin(vm, run, answer)
        kvm_run()
    except OSError as error:
        return error.errno or errno.EIO
    finally:
        library.end(run, answer)
    return 0


def _enter(run: RunView, kvm_run: int | Callable[[], object]) -> int:
    """Enter the guest once with ``immediate_exit`` set. Return the errno of KVM_RUN, or 0."""
    before = run.immediate_exit
    run.immediate_exit = _OURS
    try:
        if isinstance(kvm_run, int):
            _run_vcpu(kvm_run)
        else:
            kvm_run()
    except OSError as error:
        return error.errno or errno.EIO
    finally:
        if run.immediate_exit == _OURS:  # unless a kick changed it
            run.immediate_exit = before
    return 0


def _run_vcpu(vcpu: int) -> None:
    """Issue KVM_RUN with all signals blocked. Then only ``immediate_exit`` can cause EINTR, which
    means that KVM has taken the answer.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:  # even with signals blocked, the call may raise the exception of a signal handler
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        run_vcpu(vcpu)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _busy(waited: float) -> str:
    return f"an update held the lock for {waited * 1000:.0f} ms"


def _not_aligned(gpa: int) -> str:
    return f"guest address {gpa:#x} is not aligned"


def _deliver(data: bytes, outcome: Outcome, gpa: int, npages: int, memory: GuestMemory) -> Served:
    if len(data) > npages * PAGE_SIZE:
        return Served(Outcome.TOO_SMALL, errno.ENOSPC, needed_pages=pages_of(len(data)))
    if gpa % PAGE_SIZE:  # KVM checks this, but a VMM under test may not run on KVM
        return Served(Outcome.FAILED, errno.EIO, detail=_not_aligned(gpa))
    try:
        memory.write(gpa, data)
    except GuestMemoryError as error:
        return Served(Outcome.FAILED, errno.EIO, detail=error.message)
    return Served(outcome, 0, size=len(data))


def _deliver_empty(gpa: int, npages: int, memory: GuestMemory, detail: str | None) -> Served:
    """Deliver the empty table as KVM itself does: write nothing if the buffer has no pages."""
    if npages == 0:
        return Served(Outcome.EMPTY, 0, detail=detail)
    served = _deliver(EMPTY, Outcome.EMPTY, gpa, npages, memory)
    if detail is None or served.outcome is not Outcome.EMPTY:
        return served
    return Served(Outcome.EMPTY, 0, size=served.size, detail=detail)
