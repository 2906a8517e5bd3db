# SPDX-License-Identifier: Apache-2.0
"""What KVM does when a guest executes VMGEXIT, from the bytes of the GHCB page on.

Source: Linux ``arch/x86/kvm/svm/sev.c`` with certificate fetching (kvm-x86/linux
fa9893fadbc2). The steps stand in KVM's order, for the order decides what a
guest that gets several things wrong is told, and what it can change in between.

A handler returns :data:`RESUME`, :data:`EXIT` or :data:`HALT`, or raises
``OSError`` with what KVM_RUN then fails with.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from snpcerts.abi.cert_table import EMPTY
from snpcerts.abi.ghcb import (
    HV_FEATURES_SUPPORTED,
    MSR_CODE_MASK,
    PAGE_SIZE,
    USAGE,
    VALID_BITMAP,
    VALID_BITMAP_SIZE,
    ExitCode,
    Field,
    GhcbPage,
    InputErrorCode,
    MsrCode,
    ResponseCode,
    VmmError,
    guest_err,
)
from snpcerts.abi.guest_message import MSG_TYPE_OFFSET, MessageType
from snpcerts.abi.kvm import ExitReason, RunView
from snpcerts.emulator.guest.memory import GuestMemory
from snpcerts.emulator.kvm import exits as kvm_exit
from snpcerts.emulator.syscall.device import Caller

log = logging.getLogger(__name__)

EXIT = 0
RESUME = 1
HALT = 2  # the vCPU stays in the kernel until something wakes it

C_BIT = 51
VERSION_MIN = 1
_MSR_DATA_MASK = (1 << 52) - 1
_PSC_ERROR = 1 << 63 | MsrCode.PSC_RSP
_PSC_PRIVATE, _PSC_SHARED = 1, 2
_JUMP_TABLE_SET, _JUMP_TABLE_GET = 0, 1

_REGISTERS = (Field.RAX, Field.RCX, Field.RDX, Field.RBX)
_REQUIRED = (Field.SW_EXITCODE, Field.SW_EXITINFO1, Field.SW_EXITINFO2)
_GUEST_REQUESTS = (ExitCode.SNP_GUEST_REQUEST, ExitCode.SNP_EXT_GUEST_REQUEST)


class RequestingVm(Protocol):
    """What the handling of one vCPU's exits needs of its VM."""

    @property
    def snp(self) -> bool:
        """Whether this is an initialised SNP guest."""

    @property
    def certs_enabled(self) -> bool:
        """Whether SNP_ENABLE_REQ_CERTS was issued."""

    @property
    def req_certs_exit(self) -> int:
        """The number that this kernel gives KVM_EXIT_SNP_REQ_CERTS."""

    @property
    def ghcb_version(self) -> int:
        """The highest GHCB version offered."""

    @property
    def irqchip(self) -> bool:
        """Whether KVM itself has the local APICs."""

    @property
    def exits_for_page_state(self) -> bool:
        """Whether the VMM takes KVM_HC_MAP_GPA_RANGE."""

    jump_table: int
    request_page: bytes  # the bounce pages: allocated once, never cleared
    response_page: bytes

    def cpuid(self, function: int) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX as the VMM has set them."""

    def issue_guest_request(self, caller: Caller) -> int:
        """Have the firmware serve ``request_page`` into ``response_page``.

        Returns the firmware's status; raises ``OSError`` when it was not reached.
        """


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The request as it was at VMGEXIT; later edits of the page do not matter."""

    gpa: int
    code: int
    info1: int
    info2: int
    usage: int
    registers: dict[Field, int]
    valid: frozenset[Field]


class GhcbRequests:
    """The GHCB side of one vCPU."""

    def __init__(self, vm: RequestingVm, run: memoryview) -> None:
        self._vm = vm
        self._run_page = run
        self._run = RunView(run)
        self.msr = self._sev_info()
        self.registered: int | None = None
        self._mapped: int | None = None
        self._registers: dict[Field, int] = {}
        self._completion: Callable[[GuestMemory, Caller], int] | None = None

    def vmgexit(self, memory: GuestMemory, caller: Caller) -> int:
        """The guest left with the MSR as it is now."""
        if self.msr & MSR_CODE_MASK:
            return self._msr_protocol()
        if self.msr == 0:
            return RESUME
        snapshot = self._take(memory)
        if snapshot is None:
            return RESUME
        if self._vm.snp and snapshot.gpa != self.registered:
            raise _failed(errno.EINVAL, f"GHCB {snapshot.gpa:#x} is not registered")
        refused = self._validate(snapshot)
        if refused is not None:
            return self._bad(memory, refused)
        self._ok(memory, 0)
        return self._dispatch(snapshot, memory, caller)

    def complete(self, memory: GuestMemory, caller: Caller) -> int:
        """Finish what the last exit to userspace left open. Disarmed before it is called."""
        completion, self._completion = self._completion, None
        return RESUME if completion is None else completion(memory, caller)

    def enter_guest(self, memory: GuestMemory) -> None:
        """Write the four registers to the page and let go of it, as before each entry."""
        if self._mapped is None:
            return
        for register in _REGISTERS:
            self._put(memory, register, self._registers[register])
        self._mapped = None

    # The page.

    def _take(self, memory: GuestMemory) -> _Snapshot | None:
        gpa = self.msr
        if not memory.writable(gpa):
            return None
        try:
            page = memory.read(gpa, PAGE_SIZE)
            memory.write(gpa + VALID_BITMAP, bytes(VALID_BITMAP_SIZE))
        except OSError:
            return None
        ghcb = GhcbPage(bytearray(page))
        valid = frozenset(field for field in Field if ghcb.is_valid(field))
        registers = {each: ghcb.get(each) if each in valid else 0 for each in _REGISTERS}
        self._mapped = gpa
        self._registers = registers
        return _Snapshot(
            gpa,
            ghcb.get(Field.SW_EXITCODE),
            ghcb.get(Field.SW_EXITINFO1),
            ghcb.get(Field.SW_EXITINFO2),
            int.from_bytes(page[USAGE : USAGE + 4], "little"),
            registers,
            valid,
        )

    def _put(self, memory: GuestMemory, field: Field, value: int) -> None:
        """Store a field and set its valid bit. A page taken away meanwhile is the VMM's loss."""
        if self._mapped is None:
            return
        try:
            memory.write(self._mapped + field, value.to_bytes(8, "little"))
            bitmap = memory.read(self._mapped + field.valid_byte, 1)[0]
            memory.write(self._mapped + field.valid_byte, bytes([bitmap | field.valid_mask]))
        except OSError:
            log.debug("the GHCB at %#x went away while it was in use", self._mapped)

    def _ok(self, memory: GuestMemory, value: int) -> int:
        self._put(memory, Field.SW_EXITINFO1, ResponseCode.NO_ACTION)
        self._put(memory, Field.SW_EXITINFO2, value)
        return RESUME

    def _bad(self, memory: GuestMemory, why: InputErrorCode) -> int:
        self._put(memory, Field.SW_EXITINFO1, ResponseCode.MALFORMED_INPUT)
        self._put(memory, Field.SW_EXITINFO2, why)
        return RESUME

    def _validate(self, snapshot: _Snapshot) -> InputErrorCode | None:
        if snapshot.usage:
            return InputErrorCode.INVALID_USAGE
        if not snapshot.valid.issuperset(_REQUIRED):
            return InputErrorCode.MISSING_INPUT
        if snapshot.code not in _KNOWN_CODES:
            return InputErrorCode.INVALID_EVENT
        if snapshot.code in _GUEST_REQUESTS and (
            not self._vm.snp
            or snapshot.info1 % PAGE_SIZE
            or snapshot.info2 % PAGE_SIZE
            or snapshot.info1 == snapshot.info2
        ):
            return InputErrorCode.MISSING_INPUT
        return None

    def _dispatch(self, snapshot: _Snapshot, memory: GuestMemory, caller: Caller) -> int:
        match snapshot.code:
            case ExitCode.SNP_GUEST_REQUEST:
                return self._guest_request(snapshot, memory, caller)
            case ExitCode.SNP_EXT_GUEST_REQUEST:
                return self._extended_request(snapshot, memory, caller)
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
                raise _failed(errno.EINVAL, "the guest met an event it does not support")
            case _:
                log.info("VMGEXIT %#x is not emulated", snapshot.code)
                return self._bad(memory, InputErrorCode.INVALID_EVENT)

    def _hold(self) -> int:
        if self._vm.irqchip:
            return HALT
        kvm_exit.plain(self._run_page, ExitReason.AP_RESET_HOLD)
        return EXIT

    def _jump_table(self, snapshot: _Snapshot, memory: GuestMemory) -> int:
        if snapshot.info1 == _JUMP_TABLE_SET:
            self._vm.jump_table = snapshot.info2
            return RESUME
        if snapshot.info1 == _JUMP_TABLE_GET:
            return self._ok(memory, self._vm.jump_table)
        return self._bad(memory, InputErrorCode.INVALID_INPUT)

    # Guest requests.

    def _extended_request(self, snapshot: _Snapshot, memory: GuestMemory, caller: Caller) -> int:
        try:
            msg_type = memory.read(snapshot.info1 + MSG_TYPE_OFFSET, 1)[0]
        except OSError:
            raise _failed(errno.EIO, "the request page cannot be read") from None
        if msg_type != MessageType.REPORT_REQ:
            return self._guest_request(snapshot, memory, caller)
        gpa, npages = snapshot.registers[Field.RAX], snapshot.registers[Field.RBX]
        if not snapshot.valid.issuperset((Field.RAX, Field.RBX)) or gpa % PAGE_SIZE:
            return self._bad(memory, InputErrorCode.INVALID_INPUT)
        if self._vm.certs_enabled:
            self._run.snp_req_certs = (gpa, npages, 0)
            self._run.exit_reason = self._vm.req_certs_exit
            self._completion = lambda memory, caller: self._certs_answered(snapshot, memory, caller)
            return EXIT
        if npages:
            try:
                memory.write(gpa, EMPTY)
            except OSError:
                raise _failed(errno.EIO, "the certificate buffer cannot be written") from None
        return self._guest_request(snapshot, memory, caller)

    def _certs_answered(self, snapshot: _Snapshot, memory: GuestMemory, caller: Caller) -> int:
        _, npages, answer = self._run.snp_req_certs
        match answer:
            case 0:
                return self._guest_request(snapshot, memory, caller)
            case errno.ENOSPC:
                self._registers[Field.RBX] = npages
                error = VmmError.INVALID_LEN
            case errno.EAGAIN:
                error = VmmError.BUSY
            case errno.EIO:
                error = VmmError.GENERIC
            case _:
                raise _failed(errno.EINVAL, f"{answer} is no answer to a certificate request")
        # SW_EXITINFO1 holds 0 since the request was accepted.
        self._put(memory, Field.SW_EXITINFO2, guest_err(error, 0))
        return RESUME

    def _guest_request(self, snapshot: _Snapshot, memory: GuestMemory, caller: Caller) -> int:
        vm = self._vm
        if not vm.snp:
            raise _failed(errno.EINVAL, "not an SNP guest")
        # KVM serialises the vCPUs of a VM here. So does whoever calls this.
        try:
            vm.request_page = memory.read(snapshot.info1, PAGE_SIZE)
        except OSError:
            raise _failed(errno.EIO, "the request page cannot be read") from None
        status = vm.issue_guest_request(caller)
        try:
            memory.write(snapshot.info2, vm.response_page)
        except OSError:
            raise _failed(errno.EIO, "the response page cannot be written") from None
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
                self.msr = value << 32 | MsrCode.CPUID_RSP
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
                log.debug("GHCB MSR request %#x left as it is", msr)
        return RESUME

    def _page_state(self, msr: int) -> int:
        operation = msr >> 52 & 0xF
        if operation not in (_PSC_PRIVATE, _PSC_SHARED) or not self._vm.exits_for_page_state:
            self.msr = _PSC_ERROR
            return RESUME
        gpa = (msr >> 12 & (1 << 40) - 1) << 12
        kvm_exit.map_gpa_range(self._run_page, gpa, 1, private=operation == _PSC_PRIVATE)
        self._completion = self._page_state_answered
        return EXIT

    def _page_state_answered(self, memory: GuestMemory, caller: Caller) -> int:  # noqa: ARG002 - one signature for completions
        failed = kvm_exit.hypercall_result(self._run_page)
        self.msr = _PSC_ERROR if failed else int(MsrCode.PSC_RSP)
        return RESUME


_KNOWN_CODES = frozenset(ExitCode)


def _failed(code: int, why: str) -> OSError:
    log.warning("KVM_RUN fails: %s", why)
    return OSError(code, why)
