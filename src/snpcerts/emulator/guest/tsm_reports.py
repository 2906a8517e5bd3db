# SPDX-License-Identifier: Apache-2.0
"""configfs-tsm of an emulated guest: ``/sys/kernel/config/tsm/report``.

Source: Linux ``drivers/virt/coco/guest/report.c``, ``sev_report_new`` of
``drivers/virt/coco/sev-guest/sev-guest.c``, and ``kstrtouint``. Methods are named after the C
functions that they follow. The guest has no SVSM, so the attributes for an SVSM
(``service_provider``, ``service_guid``, ``service_manifest_version``, ``manifestblob``) do not
exist, as in Linux at VMPL 0.
"""

from __future__ import annotations

import errno
import itertools
import logging
import re
from collections.abc import Generator, Mapping
from typing import Final

from snpcerts.abi.cert_table import ENTRY_SIZE
from snpcerts.abi.guest_message import MessageType, ReportResponse, ResponseStatus
from snpcerts.abi.sev_guest import CERTS_MAX_SIZE, REPORT_RESPONSE_SIZE, ReportReq
from snpcerts.emulator.guest.configfs import BinaryAttribute, ConfigDirectory, TextAttribute
from snpcerts.emulator.guest.linux import DATA_PAGES, DriverRequest, DriverResponse, LinuxGuest
from snpcerts.emulator.guest.sev_guest_device import GuestHolder
from snpcerts.emulator.syscall.file_tree import Operation

log = logging.getLogger(__name__)

MOUNT_POINT: Final = "/sys/kernel/config"
PROVIDER: Final = "sev_guest"  # KBUILD_MODNAME
PRIVLEVEL_FLOOR: Final = 0  # the number of the driver's VMPCK
PRIVLEVEL_MAX: Final = 3  # TSM_REPORT_PRIVLEVEL_MAX
INBLOB_MAX: Final = 64  # TSM_REPORT_INBLOB_MAX
OUTBLOB_MAX: Final = 16 << 20  # TSM_REPORT_OUTBLOB_MAX
_REPORT_DATA: Final = 64  # SNP_REPORT_USER_DATA_SIZE
_REPORT_BUFFER: Final = 4096
_U32, _U64 = 1 << 32, 1 << 64
_NUMBER: Final = re.compile(rb"\+?(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))")


def kstrtouint(text: bytes) -> int:
    """Return the number that a program wrote, parsed as ``kstrtouint(text, 0, ...)`` does."""
    found = _NUMBER.match(text.partition(b"\0")[0])
    if found is None:
        raise OSError(errno.EINVAL, "expected an unsigned integer, found other text")
    hexadecimal, octal, decimal = found.groups()
    digits, base = (hexadecimal, 16) if hexadecimal else (octal, 8) if octal else (decimal, 10)
    value = int(digits, base)
    if value >= _U64:  # as in the kernel, checked before any text after the digits
        raise OSError(errno.ERANGE, "expected an integer of at most 64 bits, found a larger one")
    if found.string[found.end() :] not in (b"", b"\n"):
        raise OSError(errno.EINVAL, "expected only an unsigned integer, found more text after it")
    if value >= _U32:
        raise OSError(errno.ERANGE, "expected an integer of at most 32 bits, found a larger one")
    return value


class _ReportItem:
    """One report's directory. As in ``struct tsm_report``, a blob's length remains after the blob
    is freed.
    """

    def __init__(self) -> None:
        self.write_generation = 0
        self.read_generation = 0
        self.privlevel = 0
        self.inblob = b""
        self.blobs: dict[str, bytes | None] = {"outblob": None, "auxblob": None}
        self.lengths = {"outblob": 0, "auxblob": 0}

    def put(self, name: str, blob: bytes) -> None:
        self.blobs[name] = blob
        self.lengths[name] = len(blob)

    def advance(self) -> None:
        """Advance the write generation, as ``try_advance_write_generation`` does."""
        if self.write_generation == (self.read_generation - 1) % _U64:
            raise OSError(
                errno.EBUSY, "the report has had 2^64 - 1 writes since its last read: read it first"
            )
        self.write_generation = (self.write_generation + 1) % _U64

    @property
    def is_current(self) -> bool:
        return self.blobs["outblob"] is not None and self.read_generation == self.write_generation


class TsmReports:
    """The configfs-tsm reports of the guest in ``vm``. ``root`` is the directory mounted on
    :data:`MOUNT_POINT`.
    """

    def __init__(self, vm: GuestHolder) -> None:
        self.vm = vm
        # Whether tsm_rwsem is held for writing. No operation waits while it holds the lock for
        # reading.
        self._held = False
        self.root = ConfigDirectory(itertools.count(1))
        self.root.group("tsm").group("report", self._make_item)

    def _lock(self) -> Generator[None]:
        while self._held:
            yield

    def _provider(self) -> LinuxGuest:
        """Return the guest whose driver has registered itself; fail with ENXIO if there is none."""
        guest = self.vm.guest
        if not isinstance(guest, LinuxGuest) or not guest.vmpcks:
            raise OSError(errno.ENXIO, "no driver has registered to provide reports")
        return guest

    def _make_item(self) -> Operation[Mapping[str, TextAttribute | BinaryAttribute]]:
        yield from self._lock()
        self._provider()
        report = _ReportItem()
        return {
            "generation": TextAttribute(show=lambda: self._generation_show(report)),
            "provider": TextAttribute(show=lambda: self._constant_show(PROVIDER)),
            "privlevel": TextAttribute(store=lambda text: self._privlevel_store(report, text)),
            "privlevel_floor": TextAttribute(
                show=lambda: self._constant_show(str(PRIVLEVEL_FLOOR))
            ),
            "inblob": BinaryAttribute(
                INBLOB_MAX, write=lambda data: self._inblob_write(report, data)
            ),
            "outblob": BinaryAttribute(
                OUTBLOB_MAX, read=lambda full: self._report_read(report, "outblob", full)
            ),
            "auxblob": BinaryAttribute(
                OUTBLOB_MAX, read=lambda full: self._report_read(report, "auxblob", full)
            ),
        }

    def _generation_show(self, report: _ReportItem) -> Operation[bytes]:
        yield from self._lock()
        return b"%d\n" % report.write_generation

    def _constant_show(self, text: str) -> Operation[bytes]:
        yield from self._lock()
        self._provider()
        return f"{text}\n".encode()

    def _privlevel_store(self, report: _ReportItem, text: bytes) -> Operation[None]:
        value = kstrtouint(text)
        yield from self._lock()
        self._provider()
        if not PRIVLEVEL_FLOOR <= value <= PRIVLEVEL_MAX:
            raise OSError(
                errno.EINVAL,
                f"privlevel: expected {PRIVLEVEL_FLOOR} to {PRIVLEVEL_MAX}, found {value}",
            )
        report.advance()
        report.privlevel = value

    def _inblob_write(self, report: _ReportItem, data: bytes) -> Operation[None]:
        yield from self._lock()
        report.advance()
        report.inblob = data

    def _report_read(self, report: _ReportItem, name: str, full: bool) -> Operation[bytes]:
        """Return a blob, as ``tsm_report_read`` does. If ``full`` is false, return zeros of the
        blob's length instead.
        """
        yield from self._lock()
        if not report.inblob:
            raise OSError(errno.EINVAL, "inblob: expected report data, found none")
        if not report.is_current:
            self._provider()
            report.blobs = dict.fromkeys(report.blobs)
            self._held = True
            try:
                yield from self._report_new(report)
            finally:
                self._held = False
            report.read_generation = report.write_generation
        length, blob = report.lengths[name], report.blobs[name]
        if not full:
            return bytes(length)
        if blob is None and length:
            # Here Linux 7.3 reads from address 0, which kills the process with tsm_rwsem held.
            log.warning("configfs-tsm: %s was freed, but its length was kept", name)
            raise OSError(
                errno.EFAULT, f"cannot read {name}: it was freed, but its length was kept"
            )
        return blob or b""

    def _report_new(self, report: _ReportItem) -> Operation[None]:
        """Request a new report from the guest's driver, as ``sev_report_new`` does."""
        if len(report.inblob) != _REPORT_DATA:
            raise OSError(
                errno.EINVAL, f"inblob: expected {_REPORT_DATA} bytes, found {len(report.inblob)}"
            )
        request = ReportReq(user_data=report.inblob, vmpl=report.privlevel).pack()
        response = yield from self._ask(request)
        if response.result < 0:
            raise OSError(-response.result, "the guest request failed")
        if response.result:  # an exit's result; only negative results are errors to tsm_report_read
            return
        buffer = response.payload.ljust(_REPORT_BUFFER, b"\0")
        header = ReportResponse.unpack(buffer)
        if header.status in (ResponseStatus.INVALID_PARAM, ResponseStatus.INVALID_KEY):
            raise OSError(errno.EINVAL, "the firmware refused the report request")
        if header.status:
            raise OSError(errno.ENXIO, "the firmware refused the report request")
        end = ReportResponse.SIZE + header.report_size
        if end > _REPORT_BUFFER:
            raise OSError(errno.ENOMEM, f"the firmware's answer is too long: {end} bytes")
        report.put("outblob", buffer[ReportResponse.SIZE : end])
        size = _table_size(response.data)
        if size:
            report.put("auxblob", response.data[:size])

    def _ask(self, payload: bytes) -> Operation[DriverResponse]:
        guest = self._provider()
        call = guest.submit(
            DriverRequest(MessageType.REPORT_REQ, 1, payload, REPORT_RESPONSE_SIZE, DATA_PAGES)
        )
        try:
            while call.response is None:
                if not self.vm.alive or guest.gone:
                    raise OSError(errno.ENODEV, "the guest has ended")
                yield
        except GeneratorExit:
            guest.withdraw(call)
            raise
        return call.response


def _table_size(pages: bytes) -> int:
    """Return the offset of the end of the last certificate, computed with 32-bit overflow as in the
    driver; at most 16 KiB.
    """
    size = 0
    for at in range(0, len(pages) - ENTRY_SIZE + 1, ENTRY_SIZE):
        entry = pages[at : at + ENTRY_SIZE]
        if not any(entry):
            break
        offset, length = (int.from_bytes(entry[place : place + 4], "little") for place in (16, 20))
        size = max(size, (offset + length) % _U32)
    return min(size, CERTS_MAX_SIZE)
