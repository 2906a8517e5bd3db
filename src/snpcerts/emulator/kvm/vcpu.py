# SPDX-License-Identifier: Apache-2.0
"""A vCPU's descriptor: KVM_RUN, and the ioctls for the state of the vCPU.

The steps of KVM_RUN are in the order of ``kvm_arch_vcpu_ioctl_run`` in Linux
``arch/x86/kvm/x86.c``. Nothing here blocks: a KVM_RUN that must wait returns a
:class:`~snpcerts.emulator.syscall.device.Pending`.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import signal
import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol

from snpcerts.abi.ioctl import KVMIO, type_of
from snpcerts.abi.kvm import (
    RUN_CR8,
    RUN_DIRTY_REGS,
    RUN_FLAGS,
    RUN_IF_FLAG,
    RUN_READY_FOR_INJECTION,
    RUN_SIZE,
    RUN_VALID_REGS,
    SYNC_X86_VALID_FIELDS,
    VCPU_MMAP_SIZE,
    ExitReason,
    Ioctl,
    RunView,
)
from snpcerts.emulator.guest.memory_slots import SlotMemory
from snpcerts.emulator.guest.program import (
    GuestCpu,
    GuestTerminatedError,
    MemoryFault,
    Program,
    Sleep,
    StartProcessors,
    Vmgexit,
    WaitUntil,
)
from snpcerts.emulator.kvm import exits as kvm_exit
from snpcerts.emulator.kvm.ghcb_exit import EXIT, HALT, RESUME, GhcbRequests, RequestingVm
from snpcerts.emulator.kvm.processor_state import ProcessorState
from snpcerts.emulator.syscall.caller_memory import UserMemory
from snpcerts.emulator.syscall.device import Caller, Result
from snpcerts.emulator.syscall.same_memory import require_shared_memory

log = logging.getLogger(__name__)

CR8_MAX = 15
_SIGSET_SIZE = 8
STEPS_PER_POLL = 64  # so that a guest that never waits does not starve the others

MP_RUNNABLE, MP_UNINITIALIZED = 0, 1


class RunningVm(RequestingVm, Protocol):
    """What a vCPU needs from its VM."""

    @property
    def name(self) -> str:
        """The VM's name, for log lines."""

    @property
    def creator(self) -> int:
        """The process that created the VM. A process that does not share memory with it cannot use
        the VM.
        """

    @property
    def protected(self) -> bool:
        """Whether the VM type protects the vCPU state (SEV-ES and SNP)."""

    @property
    def tsc_khz(self) -> int:
        """The TSC frequency of new vCPUs, in kHz."""

    @property
    def secure_tsc(self) -> bool:
        """Whether the firmware controls the guest's TSC."""

    @property
    def awaits_init(self) -> bool:
        """Whether the VMM must still call KVM_SEV_INIT2."""

    @property
    def clock(self) -> Callable[[], float]:
        """The platform's clock, which returns seconds."""

    def memory(self, caller: Caller) -> SlotMemory:
        """Return guest memory, accessed through the caller's address space."""

    def is_private(self, gpa: int) -> bool:
        """Return whether the VMM has made the page at ``gpa`` private."""

    def program(self, cpu: GuestCpu) -> Program:
        """Return the guest's program for a vCPU."""

    def start_processors(self) -> None:
        """Make every vCPU runnable."""

    def set_cpuid(self, entries: dict[tuple[int, int | None], tuple[int, int, int, int]]) -> None:
        """Store the CPUID values that the VMM sets, by function and subleaf."""

    def release(self, vcpu: Vcpu) -> None:
        """Record that the vCPU's last descriptor has been closed."""


class Vcpu:
    """One vCPU and its descriptor.

    ``run_memfd`` is the shared memory behind the descriptor: 12288 bytes, whose first page is
    ``struct kvm_run``. This object owns it until :meth:`close`.
    """

    def __init__(
        self, vm: RunningVm, number: int, index: int, *, runnable: bool, boot: bool
    ) -> None:
        self.vm = vm
        self.number = number
        self.run_memfd = os.memfd_create(
            f"kvm-vcpu-{number}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        )
        os.ftruncate(self.run_memfd, VCPU_MMAP_SIZE)
        # Seal it: a VMM that could shrink it would kill the emulator with SIGBUS.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.run_memfd, fcntl.F_ADD_SEALS, seals)
        mapped = memoryview(mmap.mmap(self.run_memfd, VCPU_MMAP_SIZE))
        self.page = mapped[:RUN_SIZE]
        self.run = RunView(self.page)
        self.state = ProcessorState(
            lambda: self.protected, tsc_khz=vm.tsc_khz, tsc_fixed=vm.secure_tsc, boot=boot
        )
        self.requests = GhcbRequests(vm, self.state, mapped)
        self.cr8 = 0
        self.signal_mask: int | None = None  # signals blocked in KVM_RUN; None: the thread's mask
        self.runs: deque[KvmRun] = deque()
        self.mp_state = MP_RUNNABLE if runnable else MP_UNINITIALIZED
        self.protected = False  # whether the firmware has taken the registers
        self.launched = False  # whether SNP_LAUNCH_FINISH has run
        self._cpu = GuestCpu(index, vm.clock, vm.is_private)
        self._program: Program | None = None
        self._started = False
        self._ended = False
        self._held = False  # in AP reset hold: KVM does not even enter the guest
        self._ready: Callable[[], bool] | None = None
        self._wake_at: float | None = None

    def ioctl(self, caller: Caller, request: int, argument: int) -> Result:
        """Handle KVM_RUN, KVM_SET_SIGNAL_MASK and the ioctls for the processor's state.

        Any other ioctl fails with EINVAL. Every ioctl fails with EIO in a process that does not
        share the memory of the process that created the VM.
        """
        require_shared_memory(caller.pid, self.vm.creator)
        if type_of(request) != KVMIO:
            raise OSError(errno.EINVAL, f"expected a KVM ioctl, found {request:#x}")
        if request == Ioctl.RUN:
            run = KvmRun(self, caller, argument)
            self.runs.append(run)
            result = run.poll()
            return run if result is None else result
        return self._configure(caller, request, argument)

    def close(self) -> None:
        """End the guest's program on this vCPU and free the shared memory."""
        if self._program is not None:
            self._program.close()
            self._program = None
        self._ended = True
        self.vm.release(self)
        os.close(self.run_memfd)  # the memory lives on until its last mapping is gone

    # Used by KVM_RUN.

    def enter(self, caller: Caller) -> int | None:
        """Run the guest. Return 0 if it exits to userspace, None if KVM_RUN must be polled again.

        Raises the ``OSError`` with which KVM_RUN fails.
        """
        memory = self.vm.memory(caller)
        for _ in range(STEPS_PER_POLL):
            if not self._held:
                self.requests.enter_guest(memory)
            if caller.interrupted(self.signal_mask):
                self.run.exit_reason = ExitReason.INTR
                raise OSError(errno.EINTR, "KVM_RUN was interrupted by a signal")
            if self._ended:
                self.run.exit_reason = ExitReason.SHUTDOWN
                return EXIT
            if self._held or self._halted():
                return None
            if self._advance(memory, caller) == EXIT:
                return EXIT
        self._wake_at = self.vm.clock()
        return None

    @property
    def wake_at(self) -> float | None:
        """The time at which a halted vCPU resumes by itself."""
        return self._wake_at

    def hold(self) -> None:
        """Hold the vCPU: do not run the guest until :meth:`start` is called."""
        self._held = True

    def start(self) -> None:
        """Make the vCPU runnable and end its wait, if any."""
        self._held = False
        self.mp_state = MP_RUNNABLE

    def save_run(self) -> None:
        """Write the vCPU's state to ``kvm_run``, as KVM does when KVM_RUN returns."""
        apic_base = self.state.apic_base
        head = (0, self.cr8, apic_base)  # a protected guest keeps its own interrupt state
        struct.pack_into("<B2xQQ", self.page, RUN_IF_FLAG, *head)
        self.page[RUN_READY_FOR_INJECTION] = self.vm.irqchip

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Halt the vCPU until ``ready`` returns true."""
        self._ready, self._wake_at = ready, None

    def _halted(self) -> bool:
        if self._wake_at is not None and self.vm.clock() >= self._wake_at:
            self._wake_at = None
        if self._ready is not None and self._ready():
            self._ready = None
        return self._wake_at is not None or self._ready is not None

    def _advance(self, memory: SlotMemory, caller: Caller) -> int:
        """Run the guest to its next event and handle it."""
        if self._program is None:
            self._program = self.vm.program(self._cpu)
        self._cpu.memory = memory
        try:
            if self._started:
                event = self._program.send(self.requests.msr)
            else:
                self._started = True
                event = next(self._program)
        except (StopIteration, GuestTerminatedError):
            self._ended = True
            return RESUME
        finally:
            self._cpu.memory = None
        match event:
            case Vmgexit(msr):
                self.requests.msr = msr
                outcome = self.requests.vmgexit(memory, caller)
                if outcome == HALT:
                    self._held = True
                return outcome
            case Sleep(seconds):
                self._wake_at = self.vm.clock() + seconds
            case WaitUntil(ready):
                self.wait_until(ready)
            case StartProcessors():
                self.vm.start_processors()
            case MemoryFault(gpa, private):
                wanted = "private" if private else "shared"
                log.warning("%s vCPU %d: no %s page %#x", self.vm.name, self.number, wanted, gpa)
                kvm_exit.memory_fault(self.page, gpa, private=private)
                raise OSError(
                    errno.EFAULT,
                    f"the guest accessed a {wanted} page at {gpa:#x}, but there is no such page",
                )
        return RESUME

    @property
    def mp_state(self) -> int:
        """The vCPU's multiprocessing state, one of MP_*."""
        return self.state.mp_state

    @mp_state.setter
    def mp_state(self, value: int) -> None:
        self.state.mp_state = value

    def _configure(self, caller: Caller, request: int, argument: int) -> int:
        if request == Ioctl.SET_SIGNAL_MASK:
            self.signal_mask = _signal_mask(caller.memory, argument)
            return 0
        result = self.state.ioctl(caller.memory, request, argument)
        if result is None:
            log.info("%s: vCPU ioctl %#x is not emulated", self.vm.name, request)
            raise OSError(errno.EINVAL, f"unknown vCPU ioctl {request:#x}")
        if request == Ioctl.SET_CPUID2:
            self.vm.set_cpuid(self.state.cpuid)
        return result


def _signal_mask(memory: UserMemory, argument: int) -> int | None:
    """Return the mask in ``struct kvm_signal_mask`` (a size, then a sigset_t), or None for NULL,
    which removes the mask.
    """
    if argument == 0:
        return None
    (size,) = struct.unpack("<I", memory.read(argument, 4))
    if size != _SIGSET_SIZE:
        raise OSError(errno.EINVAL, f"sigset_t: expected {_SIGSET_SIZE} bytes, found {size}")
    mask = int.from_bytes(memory.read(argument + 4, _SIGSET_SIZE), "little")
    return mask & ~(1 << (signal.SIGKILL - 1) | 1 << (signal.SIGSTOP - 1))


class KvmRun:
    """One call of KVM_RUN. As with KVM's mutex, calls for the same vCPU run one after another."""

    def __init__(self, vcpu: Vcpu, caller: Caller, argument: int) -> None:
        self._vcpu = vcpu
        self._caller = caller
        self._argument = argument
        self._begun = False
        self._immediate_exit = False
        self._entered = False  # whether the run loop was reached
        self._awaits_init = False  # whether the call waits because the vCPU was never started

    @property
    def deadline(self) -> float | None:
        """The time at which the guest resumes by itself."""
        return self._vcpu.wake_at if self._entered and self._first() else None

    @property
    def blocked(self) -> int | None:
        """The signal mask of KVM_SET_SIGNAL_MASK. VMMs use signals to interrupt their vCPU
        threads.
        """
        return self._vcpu.signal_mask

    def poll(self) -> int | None:
        """Return 0 on an exit to userspace, None if the call must be polled again.

        Raises the ``OSError`` with which KVM_RUN fails.
        """
        if not self._first():
            return None
        result: int | None = EXIT
        try:
            result = self._go_on()
        finally:
            if result is not None:
                self._vcpu.runs.popleft()
        return result

    def cancel(self) -> None:
        """End the call as a signal would. Its effects so far remain."""
        if self._entered and self._first():
            self._vcpu.run.exit_reason = ExitReason.INTR
            self._vcpu.save_run()
        if self in self._vcpu.runs:
            self._vcpu.runs.remove(self)

    def _first(self) -> bool:
        return bool(self._vcpu.runs) and self._vcpu.runs[0] is self

    def _go_on(self) -> int | None:
        vcpu, run = self._vcpu, self._vcpu.run
        if not self._begun:
            if self._argument:
                raise OSError(
                    errno.EINVAL, f"KVM_RUN: expected argument 0, found {self._argument:#x}"
                )
            self._begun = True
            self._immediate_exit = bool(run.immediate_exit)
            vcpu.page[RUN_FLAGS : RUN_FLAGS + 2] = bytes(2)
        result: int | None = EXIT
        try:
            result = self._run()
        finally:
            if result is not None:
                vcpu.save_run()
        return result

    def _run(self) -> int | None:
        vcpu, vm, run = self._vcpu, self._vcpu.vm, self._vcpu.run
        if self._entered:
            return vcpu.enter(self._caller)
        if self._awaits_init:
            self._await_init()
            return None
        if vcpu.mp_state == MP_UNINITIALIZED:
            if self._immediate_exit:
                raise OSError(errno.EINTR, "KVM_RUN returns at once because immediate_exit is set")
            self._awaits_init = True
            self._await_init()
            return None
        self._check_sync_regs()
        self._take_cr8()
        if vcpu.requests.complete(vm.memory(self._caller), self._caller) == EXIT:
            return EXIT
        if self._immediate_exit:
            raise OSError(errno.EINTR, "KVM_RUN returns at once because immediate_exit is set")
        if vm.awaits_init:
            raise OSError(errno.EINVAL, "KVM_RUN was refused: KVM_SEV_INIT2 must be called first")
        self._entered = True
        run.exit_reason = ExitReason.UNKNOWN
        if not vm.protected:
            log.info("%s: only SNP guests are emulated", vm.name)
            kvm_exit.not_emulated(vcpu.page)
            return EXIT
        if not vcpu.launched:
            kvm_exit.entry_failed(vcpu.page)
            return EXIT
        return vcpu.enter(self._caller)

    def _await_init(self) -> None:
        if self._vcpu.mp_state != MP_UNINITIALIZED:
            raise OSError(errno.EAGAIN, "the vCPU was only started; call KVM_RUN again to run it")
        if self._caller.interrupted(self._vcpu.signal_mask):
            self._vcpu.run.exit_reason = ExitReason.INTR
            raise OSError(errno.EINTR, "KVM_RUN was interrupted by a signal")

    def _take_cr8(self) -> None:
        """Take the task priority (CR8) from ``kvm_run`` if the VMM emulates the local APIC."""
        vcpu = self._vcpu
        if vcpu.vm.irqchip:
            return
        cr8 = int.from_bytes(vcpu.page[RUN_CR8 : RUN_CR8 + 8], "little")
        if cr8 > CR8_MAX:
            raise OSError(errno.EINVAL, f"cr8: expected at most {CR8_MAX:#x}, found {cr8:#x}")
        vcpu.cr8 = cr8

    def _check_sync_regs(self) -> None:
        known = 0 if self._vcpu.vm.protected else SYNC_X86_VALID_FIELDS
        for name, offset in (("valid", RUN_VALID_REGS), ("dirty", RUN_DIRTY_REGS)):
            bits = int.from_bytes(self._vcpu.page[offset : offset + 8], "little")
            if bits & ~known:
                raise OSError(
                    errno.EINVAL,
                    f"kvm_{name}_regs: expected only bits of {known:#x}, found {bits:#x}",
                )
