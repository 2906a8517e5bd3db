# SPDX-License-Identifier: Apache-2.0
"""``/dev/sev-guest`` of an emulated guest.

Source: Linux ``drivers/virt/coco/sev-guest/sev-guest.c`` of 2025 and later. There, a call that
finds the VMPCK disabled does not change ``exitinfo2`` (earlier drivers wrote 0xff). A vCPU of the
guest sends the message, so a call waits until the VMM runs this vCPU.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Protocol

from snpcerts.abi.ghcb import PAGE_SIZE, VmmError
from snpcerts.abi.guest_message import MessageType
from snpcerts.abi.sev_guest import (
    CERTS_MAX_SIZE,
    EXITINFO2_PRESET,
    KEY_RESPONSE_SIZE,
    REPORT_RESPONSE_SIZE,
    SNP_GET_DERIVED_KEY,
    SNP_GET_EXT_REPORT,
    SNP_GET_REPORT,
    DerivedKeyReq,
    ExtReportReq,
    GuestRequestIoctl,
    ReportReq,
)
from snpcerts.emulator.guest.linux import (
    DriverCall,
    DriverRequest,
    DriverResponse,
    LinuxGuest,
)
from snpcerts.emulator.guest.program import Guest
from snpcerts.emulator.syscall.device import EVERY_SIGNAL, Caller

USER_LIMIT = (1 << 47) - PAGE_SIZE  # TASK_SIZE_MAX, the limit of access_ok()


class GuestHolder(Protocol):
    """The VM in which the guest runs."""

    @property
    def guest(self) -> Guest | None:
        """The VM's guest; None before it has started."""

    @property
    def alive(self) -> bool:
        """Whether the VM still exists."""


class SevGuestDevice:
    """An open ``/dev/sev-guest`` in the guest of ``vm``.

    A call waits until the guest has started. It fails with ENODEV if the VM or its guest has ended,
    or if the guest is not a :class:`LinuxGuest` that serves programs.
    """

    def __init__(self, vm: GuestHolder) -> None:
        self._vm = vm

    def close(self) -> None:
        """Do nothing: the driver keeps no state for a descriptor."""

    def ioctl(self, caller: Caller, request: int, argument: int) -> SevGuestCall:
        """Handle one of the driver's three ioctls, with the checks in the driver's order."""
        stored = caller.memory.read(argument, GuestRequestIoctl.SIZE)
        outer = GuestRequestIoctl.unpack(stored)
        if not outer.msg_version:
            raise OSError(errno.EINVAL, "msg_version must not be 0")
        try:
            driver_request, extended = _prepared(caller, request, outer)
        except OSError as refused:
            caller.memory.write(argument, replace(outer, exitinfo2=EXITINFO2_PRESET).pack(stored))
            raise refused from None
        return SevGuestCall(self._vm, caller, argument, stored, driver_request, extended)


class SevGuestCall:
    """One request in progress in the guest. As in the driver, signals cannot interrupt it."""

    def __init__(
        self,
        vm: GuestHolder,
        caller: Caller,
        argument: int,
        stored: bytes,
        request: DriverRequest,
        extended: bytes | None,
    ) -> None:
        self._vm = vm
        self._caller = caller
        self._argument = argument
        # Both structures are copied back with their original padding.
        self._stored = stored
        self._outer = GuestRequestIoctl.unpack(stored)
        self._request = request
        self._extended = extended
        self._guest: LinuxGuest | None = None
        self._call: DriverCall | None = None

    @property
    def deadline(self) -> float | None:
        """None: only the guest's progress ends the call."""
        return None

    @property
    def blocked(self) -> int | None:
        """Every signal: a message that was sent must be answered, or its sequence number is
        lost.
        """
        return EVERY_SIGNAL

    def poll(self) -> int | None:
        """Return the ioctl's result once the guest has sent its message and checked the answer."""
        if self._call is None:
            self._submit()
        if self._call is None:
            return None
        if self._call.response is not None:
            return self._finish(self._call.response)
        if not self._vm.alive or (self._guest is not None and self._guest.gone):
            raise OSError(errno.ENODEV, "the guest ended before it answered the request")
        return None

    def cancel(self) -> None:
        """Withdraw the request, because the program has ended."""
        if self._guest is not None and self._call is not None:
            self._guest.withdraw(self._call)

    def _submit(self) -> None:
        guest = self._vm.guest
        if not self._vm.alive:
            raise OSError(errno.ENODEV, "the request was not sent, because the VM has ended")
        if guest is None:
            return
        if not isinstance(guest, LinuxGuest):
            raise OSError(errno.ENODEV, "this guest has no /dev/sev-guest")
        self._guest = guest
        self._call = guest.submit(self._request)

    def _finish(self, response: DriverResponse) -> int:
        caller, outer = self._caller, self._outer
        result = response.result
        fault: OSError | None = None
        try:
            self._copy_out(response)
        except OSError as failed:
            fault, result = failed, 0
        if response.exitinfo2:
            answered = replace(outer, exitinfo2=response.exitinfo2)
            caller.memory.write(self._argument, answered.pack(self._stored))
        if fault is not None:
            raise fault
        if result < 0:
            raise OSError(-result, "the guest request failed")
        return result

    def _copy_out(self, response: DriverResponse) -> None:
        memory, stored = self._caller.memory, self._extended
        extended = None if stored is None else ExtReportReq.unpack(stored)
        too_small = (response.exitinfo2 or 0) >> 32 == VmmError.INVALID_LEN
        if extended is not None and stored is not None and too_small:
            # As in C, certs_len is a u32, whatever value the host put into RBX.
            needed = replace(extended, certs_len=response.pages * PAGE_SIZE & 0xFFFF_FFFF)
            memory.write(self._outer.req_data, needed.pack(stored))
        if response.result:
            return
        if extended is not None and response.data:
            memory.write(extended.certs_address, response.data)
        size = self._request.response_size
        memory.write(self._outer.resp_data, response.payload.ljust(size, b"\0"))


def _prepared(
    caller: Caller, request: int, outer: GuestRequestIoctl
) -> tuple[DriverRequest, bytes | None]:
    """Return the message that the ioctl asks for, and the bytes of its ``snp_ext_report_req``. For
    a request that is not extended, these bytes are None.
    """
    if request not in (SNP_GET_REPORT, SNP_GET_DERIVED_KEY, SNP_GET_EXT_REPORT):
        raise OSError(errno.ENOTTY, f"unknown ioctl {request:#x}")
    if not outer.req_data or not outer.resp_data:
        raise OSError(errno.EINVAL, "req_data or resp_data is NULL")
    read = caller.memory.read
    if request == SNP_GET_DERIVED_KEY:
        payload = read(outer.req_data, DerivedKeyReq.SIZE)
        return DriverRequest(
            MessageType.KEY_REQ, outer.msg_version, payload, KEY_RESPONSE_SIZE
        ), None
    if request == SNP_GET_REPORT:
        payload = read(outer.req_data, ReportReq.SIZE)
        return DriverRequest(
            MessageType.REPORT_REQ, outer.msg_version, payload, REPORT_RESPONSE_SIZE
        ), None
    stored = read(outer.req_data, ExtReportReq.SIZE)
    extended = ExtReportReq.unpack(stored)
    return DriverRequest(
        MessageType.REPORT_REQ,
        outer.msg_version,
        extended.data,
        REPORT_RESPONSE_SIZE,
        _buffer_pages(extended),
    ), stored


def _buffer_pages(extended: ExtReportReq) -> int:
    length, address = extended.certs_len, extended.certs_address
    if not length or not address:
        return 0
    if length % PAGE_SIZE or length > CERTS_MAX_SIZE:
        raise OSError(errno.EINVAL, f"certs_len: expected 1 to 4 whole pages, found {length} bytes")
    if address + length > USER_LIMIT:
        raise OSError(errno.EFAULT, "certs_address is not a user address")
    return length // PAGE_SIZE
