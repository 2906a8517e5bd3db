# SPDX-License-Identifier: Apache-2.0
"""Gets reports and their certificates from ``/dev/sev-guest``.

Source: Linux ``Documentation/virt/coco/sev-guest.rst`` and
``drivers/virt/coco/sev-guest/sev-guest.c``. The driver writes ``exitinfo2`` only if the value is
not zero, so each call starts with a zero there. If a request that was sent to the host fails for
any reason other than a buffer that is too small, the driver destroys the guest's VMPCK; the errors
say so.
"""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass
from typing import Final

from snpcerts.abi import sev_guest
from snpcerts.abi.cert_table import CertTable
from snpcerts.abi.ghcb import VmmError
from snpcerts.abi.guest_message import (
    REPORT_AT,
    VMPL_MAX,
    KeySelect,
    ReportRequest,
    ReportResponse,
    ResponseStatus,
)
from snpcerts.abi.report import REPORT_SIZE
from snpcerts.abi.sev_guest import (
    CERTS_MAX_SIZE,
    REPORT_RESPONSE_SIZE,
    SNP_GET_EXT_REPORT,
    SNP_GET_REPORT,
    ExtReportReq,
    GuestRequestIoctl,
)
from snpcerts.device_file import DeviceFile
from snpcerts.device_ioctl import ioctl
from snpcerts.errors import FormatError, RefusedError, SnpCertsError, UsageError

DEVICE: Final = "/dev/sev-guest"
REPORT_DATA_SIZE: Final = 64
_MSG_VERSION: Final = 1


class GuestRequestError(RefusedError):
    """The guest's kernel, its host or the firmware refused a request.

    ``errno`` comes from the ioctl. ``vmm_error`` and ``fw_error`` are the upper and lower halves of
    ``exitinfo2``; 0 means no error.
    """

    code = "guest-request"

    def __init__(self, message: str, number: int, exitinfo2: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = number
        self.vmm_error = exitinfo2 >> 32
        self.fw_error = exitinfo2 & 0xFFFF_FFFF


class NoDeviceError(RefusedError):
    """The device ``/dev/sev-guest`` does not exist."""


@dataclass(frozen=True, slots=True)
class ExtendedReport:
    """A report of 1184 bytes, and the host's certificate table as received.

    ``table`` is the whole buffer, unverified: the table, and the zeros that fill the rest.
    """

    report: bytes
    table: bytes

    def certificates(self) -> CertTable:
        """Return the parsed table. Raises :class:`FormatError` if it is malformed."""
        return CertTable.decode(self.table) if self.table else CertTable()


class SevGuest(DeviceFile):
    """An open ``/dev/sev-guest``. As a context manager, it closes the device."""

    def __init__(self, path: str = DEVICE) -> None:
        """Open the device. Raises :class:`NoDeviceError` if it does not exist, and
        :class:`RefusedError` if it cannot be opened.
        """
        super().__init__(
            path,
            hint="run this inside an SEV-SNP guest, with its sev-guest driver loaded",
            forbidden_hint="run this as root, or give this user access to the device",
            missing=NoDeviceError,
        )

    def report(
        self, report_data: bytes, *, vmpl: int = 0, key: KeySelect = KeySelect.DEFAULT
    ) -> bytes:
        """Request a report with 64 bytes of ``report_data``, without certificates.

        ``vmpl`` must be at least the VMPL that this guest's kernel runs at. Raises
        :class:`GuestRequestError` if the ioctl fails, and :class:`RefusedError` if the firmware
        answers with an error status.
        """
        request = _report_request(report_data, vmpl, key)
        response, exitinfo2, failed = self._issue(SNP_GET_REPORT, request)
        if failed is not None:
            raise _refusal(self.path, failed, exitinfo2)
        return _report_of(response)

    def extended_report(
        self, report_data: bytes, *, vmpl: int = 0, key: KeySelect = KeySelect.DEFAULT
    ) -> ExtendedReport:
        """Request a report together with the host's certificates.

        The buffer has the driver's maximum size (16 KiB), so one call suffices. Raises the same
        errors as :meth:`report`.
        """
        certs = (ctypes.c_char * CERTS_MAX_SIZE)()
        request = bytearray(
            ExtReportReq(
                data=bytes(_report_request(report_data, vmpl, key)),
                certs_address=ctypes.addressof(certs),
                certs_len=CERTS_MAX_SIZE,
            ).pack()
        )
        response, exitinfo2, failed = self._issue(SNP_GET_EXT_REPORT, request)
        if failed is None:
            return ExtendedReport(_report_of(response), certs.raw)
        if exitinfo2 >> 32 == VmmError.INVALID_LEN:
            needed = ExtReportReq.unpack(request).certs_len
            raise GuestRequestError(
                f"{self.path}: the host's certificate table needs {needed} bytes; "
                f"a Linux guest accepts at most {CERTS_MAX_SIZE}",
                failed,
                exitinfo2,
                "ask the operator for a smaller table; reports without certificates still work",
            )
        raise _refusal(self.path, failed, exitinfo2)

    def _issue(self, number: int, request: bytearray) -> tuple[bytes, int, int | None]:
        """Issue the request; return (response, exitinfo2, errno or None)."""
        response = (ctypes.c_char * REPORT_RESPONSE_SIZE)()
        view = (ctypes.c_char * len(request)).from_buffer(request)
        outer = bytearray(
            GuestRequestIoctl(
                msg_version=_MSG_VERSION,
                req_data=ctypes.addressof(view),
                resp_data=ctypes.addressof(response),
            ).pack()
        )
        failed: int | None = None
        try:
            # If the result is positive, the hypervisor did not handle the VMGEXIT. That is a
            # failure too.
            if ioctl(self.fd, number, outer) > 0:
                failed = errno.EIO
        except OSError as error:
            failed = error.errno or errno.EIO
        del view
        return response.raw, GuestRequestIoctl.unpack(outer).exitinfo2, failed


def _report_request(report_data: bytes, vmpl: int, key: KeySelect) -> bytearray:
    if len(report_data) != REPORT_DATA_SIZE:
        raise UsageError(
            f"report data: expected {REPORT_DATA_SIZE} bytes, found {len(report_data)}"
        )
    if not 0 <= vmpl <= VMPL_MAX:
        raise UsageError(f"VMPL: expected 0 to {VMPL_MAX}, found {vmpl}")
    return bytearray(ReportRequest(report_data=report_data, vmpl=vmpl, key_sel=key).pack())


def _report_of(response: bytes) -> bytes:
    header = ReportResponse.unpack(response)
    if header.status != ResponseStatus.SUCCESS:
        known = {
            ResponseStatus.INVALID_PARAM: "invalid parameters, perhaps a VMPL below the guest's",
            ResponseStatus.INVALID_KEY: "the requested key does not exist",
        }
        reason = known.get(ResponseStatus(header.status)) if header.status in known else None
        raise RefusedError(
            f"the firmware answered with status {header.status:#x}: {reason or 'unknown'}"
        )
    if header.report_size != REPORT_SIZE:
        raise FormatError(
            "MSG_REPORT_RSP",
            f"expected {REPORT_SIZE}, found {header.report_size}",
            field="REPORT_SIZE",
            offset=4,
        )
    return response[REPORT_AT : REPORT_AT + REPORT_SIZE]


# ENOTTY has several causes, and errno does not distinguish them.
NO_KEY: Final = (
    "if an earlier request failed, reboot the guest. If none failed, the "
    "driver never had a VMPCK, as in a guest below an SVSM: load sev-guest "
    "with vmpck_id= set to the guest's own VMPL"
)


def _refusal(path: str, number: int, exitinfo2: int) -> SnpCertsError:
    lost = "reboot this guest: its VMPCK is destroyed, so it cannot attest until then"
    vmm, firmware = exitinfo2 >> 32, exitinfo2 & 0xFFFF_FFFF
    if number == errno.ENOTTY:
        text, hint = "the VMPCK is disabled, or this is not a sev-guest device", NO_KEY
    elif number == errno.ETIMEDOUT:
        text, hint = "the host was busy for a minute", lost
    elif number == errno.EBADMSG:
        text, hint = "the answer does not come from the firmware", lost
    elif exitinfo2 == sev_guest.EXITINFO2_NOT_SENT:
        text, hint = "the host did not accept the request", lost
    elif vmm:
        text, hint = f"the host answered with error {vmm:#x}", lost
    elif firmware and number == errno.EIO:
        text, hint = f"the firmware answered with status {firmware:#x}", lost
    else:
        text, hint = os.strerror(number), "see the guest's kernel log"
    return GuestRequestError(f"{path}: {text}", number, exitinfo2, hint)
