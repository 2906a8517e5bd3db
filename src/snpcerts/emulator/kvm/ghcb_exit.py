# SPDX-License-Identifier: Apache-2.0
"""Handles a guest's VMGEXIT as KVM does, from the bytes of the GHCB page.

Source: Linux ``arch/x86/kvm/svm/sev.c`` with certificate fetching (kvm-x86/linux fa9893fadbc2). The
steps are in KVM's order. The order decides which error a request with several faults gets, and what
the guest can change between two steps.

A handler returns :data:`RESUME`, :data:`EXIT` or :data:`HALT`, or raises the ``OSError`` with which
KVM_RUN fails.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Protocol

from snpcerts.abi.cert_table import EMPTY
from snpcerts.abi.ghcb import (
    HV_FEATURES_SUPPORTED,
    MSR_CODE_MASK,
    PAGE_SIZE,
    PSC_HEADER_SIZE,
    ExitCode,
    Field,
    InputErrorCode,
    Instruction,
    MsrCode,
    PageStateError,
    ProcessorRequest,
    VmmError,
    guest_err,
)
from snpcerts.abi.guest_message import MSG_TYPE_OFFSET, MessageType
from snpcerts.abi.kvm import ExitReason, RunView
from snpcerts.emulator.guest.memory_slots import SlotMemory
from snpcerts.emulator.kvm import exits as kvm_exit
from snpcerts.emulator.kvm import page_state
from snpcerts.emulator.kvm.ghcb_page import GhcbSnapshot, MappedGhcb
from snpcerts.emulator.kvm.guest_instruction import Completion, Instructions, InstructionVm, Msrs
from snpcerts.emulator.kvm.page_state import PageStateList
from snpcerts.emulator.kvm.release import KernelRelease
from snpcerts.emulator.syscall.device import Caller

log = logging.getLogger(__name__)

EXIT = 0
RESUME = 1
HALT = 2  # the vCPU stays in the kernel until it is woken

C_BIT = 51
VERSION_MIN = 1
_MSR_DATA_MASK = (1 << 52) - 1
_PSC_ERROR = 1 << 63 | MsrCode.PSC_RSP
_CPUID_KEPT = 0xFFFF_F000  # KVM leaves these bits of the request in its response
_CPUID_XSTATE = 0xD
_IO_IN, _IO_STRING = 1, 4
_2M = 1 << 21
GPA_BITS = 48
_JUMP_TABLE_SET, _JUMP_TABLE_GET = 0, 1

_REQUIRED = (Field.SW_EXITCODE, Field.SW_EXITINFO1, Field.SW_EXITINFO2)
_SNP_ONLY = frozenset(
    (
        ExitCode.AP_CREATION,
        ExitCode.SNP_GUEST_REQUEST,
        ExitCode.SNP_EXT_GUEST_REQUEST,
        ExitCode.PSC,
    )
)
_INSTRUCTIONS = frozenset(Instruction)
# Fields that an exit needs in addition to _REQUIRED. _has_input() handles the exits whose fields
# depend on the value of another field.
_INPUT: dict[int, tuple[Field, ...]] = {
    Instruction.WRITE_DR7: (Field.RAX,),
    Instruction.RDPMC: (Field.RCX,),
    Instruction.MONITOR: (Field.RAX, Field.RCX, Field.RDX),
    Instruction.MWAIT: (Field.RAX, Field.RCX),
    ExitCode.MMIO_READ: (Field.SW_SCRATCH,),
    ExitCode.MMIO_WRITE: (Field.SW_SCRATCH,),
    ExitCode.PSC: (Field.SW_SCRATCH,),
}


class RequestingVm(InstructionVm, Protocol):
    """What :class:`GhcbRequests` needs from the vCPU's VM."""

    @property
    def snp(self) -> bool:
        """Whether the VM is an initialised SNP guest."""

    @property
    def certs_enabled(self) -> bool:
        """Whether the VMM has issued SNP_ENABLE_REQ_CERTS."""

    @property
    def kernel(self) -> KernelRelease:
        """The emulated Linux release."""

    @property
    def ghcb_version(self) -> int:
        """The highest GHCB version that KVM offers to the guest."""

    @property
    def irqchip(self) -> bool:
        """Whether KVM emulates the local APICs."""

    @property
    def sev_features(self) -> int:
        """The SEV_FEATURES field of the guest's VMSAs."""

    jump_table: int
    request_page: bytes  # like response_page a bounce page, allocated once and never cleared
    response_page: bytes

    def has_processor(self, apic_id: int) -> bool:
        """Whether the VM has a vCPU with this APIC ID."""

    def processor_requested(self, apic_id: int, request: ProcessorRequest) -> None:
        """Handle the guest's request to start a vCPU from the guest's own VMSA, or to stop a
        vCPU.
        """

    def issue_guest_request(self, caller: Caller) -> int:
        """Pass ``request_page`` to the firmware and store its response in ``response_page``.

        Returns the firmware's status. Raises ``OSError`` if the command did not reach the firmware.
        """


class GhcbRequests:
    """Handles the GHCB requests of one vCPU.

    ``run`` is the memory that a VMM maps from the vCPU's descriptor: ``struct kvm_run`` and the
    page for port I/O.
    """

    def __init__(self, vm: RequestingVm, msrs: Msrs, run: memoryview) -> None:
        self._vm = vm
        self._run_page = run
        self._run = RunView(run)
        self.msr = self._sev_info()
        self.registered = 0
        self._ghcb = MappedGhcb()
        self._page_states = PageStateList(self._ghcb, run)
        self._instructions = Instructions(vm, msrs, self._ghcb, run)
        self._completion: Callable[[SlotMemory, Caller], int] | None = None

    def vmgexit(self, memory: SlotMemory, caller: Caller) -> int:
        """Handle a VMGEXIT with the current value of the GHCB MSR."""
        if self.msr & MSR_CODE_MASK:
            return self._msr_protocol()
        if self.msr == 0:
            return RESUME
        snapshot = self._ghcb.take(memory, self.msr)
        if snapshot is None:
            return RESUME
        refused = self._validate(snapshot)
        if refused is not None:
            return self._bad(memory, refused)
        self._ghcb.ok(memory, 0)
        return self._dispatch(snapshot, memory, caller)

    def complete(self, memory: SlotMemory, caller: Caller) -> int:
        """Complete the last exit to userspace. If that is already complete, do nothing."""
        completion, self._completion = self._completion, None
        return RESUME if completion is None else completion(memory, caller)

    def enter_guest(self, memory: SlotMemory) -> None:
        """Write RAX, RBX, RCX and RDX to the GHCB page and unmap the page, as KVM does before it
        enters the guest.
        """
        self._ghcb.let_go(memory)

    # GHCB pages.

    def _ok(self, memory: SlotMemory, value: int) -> int:
        self._ghcb.ok(memory, value)
        return RESUME

    def _bad(self, memory: SlotMemory, why: InputErrorCode) -> int:
        self._ghcb.bad(memory, why)
        return RESUME

    def _validate(self, snapshot: GhcbSnapshot) -> InputErrorCode | None:
        if self._vm.snp and snapshot.gpa != self.registered:
            return InputErrorCode.NOT_REGISTERED
        if snapshot.usage:
            return InputErrorCode.INVALID_USAGE
        if snapshot.code in _SNP_ONLY and not self._vm.snp:
            return InputErrorCode.INVALID_EVENT
        if not snapshot.valid.issuperset(_REQUIRED) or not _has_input(snapshot):
            return InputErrorCode.MISSING_INPUT
        return None

    def _dispatch(self, snapshot: GhcbSnapshot, memory: SlotMemory, caller: Caller) -> int:
        match snapshot.code:
            case code if code in _INSTRUCTIONS:
                return self._unless_exited(self._instructions.carry_out(snapshot, memory))
            case ExitCode.MMIO_READ | ExitCode.MMIO_WRITE as code:
                writing = code == ExitCode.MMIO_WRITE
                return self._unless_exited(
                    self._instructions.mmio(snapshot, memory, writing=writing)
                )
            case ExitCode.SNP_GUEST_REQUEST | ExitCode.SNP_EXT_GUEST_REQUEST as code:
                if (
                    snapshot.info1 % PAGE_SIZE
                    or snapshot.info2 % PAGE_SIZE
                    or snapshot.info1 == snapshot.info2
                ):
                    return self._bad(memory, InputErrorCode.INVALID_INPUT)
                if code == ExitCode.SNP_GUEST_REQUEST:
                    return self._guest_request(snapshot, memory, caller)
                return self._extended_request(snapshot, memory, caller)
            case ExitCode.PSC:
                return self._page_state_list(snapshot, memory)
            case ExitCode.AP_CREATION:
                return self._create_processor(snapshot, memory)
            case ExitCode.HV_FEATURES:
                return self._ok(memory, HV_FEATURES_SUPPORTED)
            case ExitCode.TERM_REQUEST:
                kvm_exit.guest_terminated(self._run_page, self.msr)
                return EXIT
            case ExitCode.AP_HLT_LOOP:
                return self._hold()
            case ExitCode.AP_JUMP_TABLE:
                return self._jump_table(snapshot, memory)
            case ExitCode.NMI_COMPLETE:
                return RESUME
            case ExitCode.UNSUPPORTED_EVENT:
                raise _failed(errno.EINVAL, "the guest reports an event that it cannot handle")
            case _:
                log.info("KVM does not know VMGEXIT exit code %#x", snapshot.code)
                return self._bad(memory, InputErrorCode.INVALID_EVENT)

    def _unless_exited(self, left: Completion | None) -> int:
        """Return RESUME if ``left`` is None. Otherwise return EXIT; the next KVM_RUN calls
        ``left``.
        """
        if left is None:
            return RESUME

        def complete(memory: SlotMemory, caller: Caller) -> int:  # noqa: ARG001 - one signature for completions
            left(memory)
            return RESUME

        self._completion = complete
        return EXIT

    def _hold(self) -> int:
        if self._vm.irqchip:
            return HALT
        kvm_exit.plain(self._run_page, ExitReason.AP_RESET_HOLD)
        return EXIT

    def _jump_table(self, snapshot: GhcbSnapshot, memory: SlotMemory) -> int:
        if snapshot.info1 == _JUMP_TABLE_SET:
            self._vm.jump_table = snapshot.info2
            return RESUME
        if snapshot.info1 == _JUMP_TABLE_GET:
            return self._ok(memory, self._vm.jump_table)
        return self._bad(memory, InputErrorCode.INVALID_INPUT)

    def _create_processor(self, snapshot: GhcbSnapshot, memory: SlotMemory) -> int:
        request, apic_id = snapshot.info1 & 0xFFFF_FFFF, snapshot.info1 >> 32
        vmsa = snapshot.info2
        creating = request in (ProcessorRequest.CREATE, ProcessorRequest.CREATE_ON_INIT)
        if (
            not self._vm.has_processor(apic_id)
            or (not creating and request != ProcessorRequest.DESTROY)
            or (creating and snapshot.registers[Field.RAX] != self._vm.sev_features)
            # A VMSA at the start of a 2 MiB page triggers an erratum of the processor.
            or (creating and (vmsa % PAGE_SIZE or vmsa >> GPA_BITS or not vmsa % _2M))
        ):
            return self._bad(memory, InputErrorCode.INVALID_INPUT)
        self._vm.processor_requested(apic_id, ProcessorRequest(request))
        return RESUME

    def _page_state_list(self, snapshot: GhcbSnapshot, memory: SlotMemory) -> int:
        at = self._ghcb.scratch(snapshot, PSC_HEADER_SIZE)
        if at is None:
            return self._bad(memory, InputErrorCode.INVALID_SCRATCH_AREA)
        if not self._vm.exits_for_page_state:
            self._page_states.end(memory, PageStateError.GENERIC)
            return RESUME
        return self._page_states_or_resume(self._page_states.begin(memory, at))

    def _page_states_or_resume(self, asks: bool) -> int:
        if not asks:
            return RESUME

        def answered(memory: SlotMemory, caller: Caller) -> int:  # noqa: ARG001 - one signature for completions
            return self._page_states_or_resume(self._page_states.answered(memory))

        self._completion = answered
        return EXIT

    # Guest requests.

    def _extended_request(self, snapshot: GhcbSnapshot, memory: SlotMemory, caller: Caller) -> int:
        try:
            msg_type = memory.read(snapshot.info1 + MSG_TYPE_OFFSET, 1)[0]
        except OSError:
            raise _failed(
                errno.EIO, f"the guest's request page at GPA {snapshot.info1:#x} cannot be read"
            ) from None
        if msg_type != MessageType.REPORT_REQ:
            return self._guest_request(snapshot, memory, caller)
        gpa, npages = snapshot.registers[Field.RAX], snapshot.registers[Field.RBX]
        if not snapshot.valid.issuperset((Field.RAX, Field.RBX)) or gpa % PAGE_SIZE:
            return self._bad(memory, InputErrorCode.INVALID_INPUT)
        if self._vm.certs_enabled:
            self._run.snp_req_certs = (gpa, npages, 0)
            self._run.exit_reason = self._vm.kernel.req_certs_exit
            self._completion = lambda memory, caller: self._certs_answered(snapshot, memory, caller)
            return EXIT
        if npages:
            try:
                memory.write(gpa, EMPTY)
            except OSError:
                raise _failed(
                    errno.EIO, f"the guest's certificate buffer at GPA {gpa:#x} cannot be written"
                ) from None
        return self._guest_request(snapshot, memory, caller)

    def _certs_answered(self, snapshot: GhcbSnapshot, memory: SlotMemory, caller: Caller) -> int:
        _, npages, answer = self._run.snp_req_certs
        match answer:
            case 0:
                return self._guest_request(snapshot, memory, caller)
            case errno.ENOSPC:
                self._ghcb.registers[Field.RBX] = npages
                error = VmmError.INVALID_LEN
            case errno.EAGAIN:
                error = VmmError.BUSY
            case errno.EIO:
                error = VmmError.GENERIC
            case _:
                raise _failed(
                    errno.EINVAL,
                    f"snp_req_certs.ret: expected 0, ENOSPC, EAGAIN or EIO, found {answer}",
                )
        # SW_EXITINFO1 has been 0 since the request was accepted.
        self._ghcb.put(memory, Field.SW_EXITINFO2, guest_err(error, 0))
        return RESUME

    def _guest_request(self, snapshot: GhcbSnapshot, memory: SlotMemory, caller: Caller) -> int:
        vm = self._vm
        if not vm.snp:
            raise _failed(errno.EINVAL, "only SNP guests can make guest requests")
        # KVM serialises the vCPUs of a VM here. So do the callers of this method.
        try:
            vm.request_page = memory.read(snapshot.info1, PAGE_SIZE)
        except OSError:
            raise _failed(
                errno.EIO, f"the guest's request page at GPA {snapshot.info1:#x} cannot be read"
            ) from None
        status = vm.issue_guest_request(caller)
        try:
            memory.write(snapshot.info2, vm.response_page)
        except OSError:
            raise _failed(
                errno.EIO,
                f"the guest's response page at GPA {snapshot.info2:#x} cannot be written",
            ) from None
        return self._ok(memory, guest_err(VmmError.NONE, status))

    # The MSR protocol.

    def _sev_info(self) -> int:
        return self._vm.ghcb_version << 48 | VERSION_MIN << 32 | C_BIT << 24 | MsrCode.SEV_INFO_RSP

    def _msr_protocol(self) -> int:
        msr = self.msr
        code, data = msr & MSR_CODE_MASK, msr >> 12 & _MSR_DATA_MASK
        snp_only = (MsrCode.PREFERRED_GPA_REQ, MsrCode.REGISTER_GPA_REQ, MsrCode.PSC_REQ)
        if code == MsrCode.TERMINATE or (code in snp_only and not self._vm.snp):
            kvm_exit.guest_terminated(self._run_page, msr)
            return EXIT
        match code:
            case MsrCode.SEV_INFO_REQ:
                self.msr = self._sev_info()
            case MsrCode.CPUID_REQ:
                value = self._vm.cpuid(msr >> 32)[msr >> 30 & 3]
                self.msr = value << 32 | msr & _CPUID_KEPT | MsrCode.CPUID_RSP
            case MsrCode.AP_RESET_HOLD_REQ:
                self.msr = MsrCode.AP_RESET_HOLD_RSP
                return self._hold()
            case MsrCode.PREFERRED_GPA_REQ:
                self.msr = _MSR_DATA_MASK << 12 | MsrCode.PREFERRED_GPA_RSP
            case MsrCode.REGISTER_GPA_REQ:
                self.registered = data << 12
                self.msr = data << 12 | MsrCode.REGISTER_GPA_RSP
            case MsrCode.PSC_REQ:
                return self._page_state(msr)
            case MsrCode.HV_FEATURES_REQ:
                self.msr = HV_FEATURES_SUPPORTED << 12 | MsrCode.HV_FEATURES_RSP
            case _:
                log.debug("unknown GHCB MSR request %#x: the MSR keeps this value", msr)
        return RESUME

    def _page_state(self, msr: int) -> int:
        operation, gpa = page_state.operation_and_gpa(msr)
        if not page_state.known_operation(operation) or not self._vm.exits_for_page_state:
            self.msr = _PSC_ERROR
            return RESUME
        page_state.ask_userspace(self._run_page, gpa, 1, operation, huge=False)
        self._completion = self._page_state_answered
        return EXIT

    def _page_state_answered(self, memory: SlotMemory, caller: Caller) -> int:  # noqa: ARG002 - one signature for completions
        done = page_state.userspace_agrees(self._run_page)
        self.msr = int(MsrCode.PSC_RSP) if done else _PSC_ERROR
        return RESUME


def _has_input(snapshot: GhcbSnapshot) -> bool:
    """Whether the fields that this exit needs are valid. The caller checks the three fields that
    every exit needs.
    """
    valid, registers, info1 = snapshot.valid, snapshot.registers, snapshot.info1
    match snapshot.code:
        case Instruction.CPUID:
            needed = {Field.RAX, Field.RCX}
            if registers[Field.RAX] == _CPUID_XSTATE:
                needed.add(Field.XCR0)
        case Instruction.IOIO:
            needed = {Field.SW_SCRATCH} if info1 & _IO_STRING else set()
            if not info1 & (_IO_STRING | _IO_IN):
                needed = {Field.RAX}
        case Instruction.MSR:
            needed = {Field.RCX} | ({Field.RAX, Field.RDX} if info1 else set())
        case Instruction.VMMCALL:
            return Field.RAX in valid and snapshot.cpl_valid
        case ExitCode.AP_CREATION:
            destroying = info1 & 0xFFFF_FFFF == ProcessorRequest.DESTROY
            needed = set() if destroying else {Field.RAX}
        case code:
            needed = set(_INPUT.get(code, ()))
    return valid.issuperset(needed)


def _failed(code: int, why: str) -> OSError:
    log.warning("KVM_RUN fails: %s", why)
    return OSError(code, why)
