# SPDX-License-Identifier: Apache-2.0
"""``/dev/sev``: checks each call as the kernel's driver does, then runs the firmware command.

Source: ``drivers/crypto/ccp/sev-dev.c`` of Linux 7.0 with the change of 2026 that answers ENODEV to
SNP_SET_CONFIG and SNP_VLEK_LOAD while SNP is not initialised. The order of checks is the driver's,
because it decides the errno of a call with two faults. The commands that change or certify the
platform's own keys (FACTORY_RESET, PDH_GEN, PEK_GEN, PEK_CSR and PEK_CERT_IMPORT) are not emulated:
once past the driver's checks they fail with EIO and INVALID_PLATFORM_STATE. PDH_CERT_EXPORT is
emulated.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar, cast

from snpcerts.abi.psp import (
    FW_BLOB_MAX_SIZE,
    SEV_ISSUE_CMD,
    Command,
    GetId2,
    IssueCmd,
    PdhCertExport,
    SevStatus,
    SnpConfig,
    SnpVlekLoad,
    WrappedVlekHashstick,
)
from snpcerts.emulator.psp.chip_model import ApiVersion
from snpcerts.emulator.psp.firmware import Firmware, FirmwareError
from snpcerts.emulator.syscall.device import Caller

SEV_MAX: Final = len(Command)
STATE_WORKING: Final = 2
GET_ID_SINCE: Final = ApiVersion(0, 16, 0)
MAX_ALLOCATION: Final = 4 << 20  # the largest size that kzalloc allocates
ENOTSUPP: Final = 524  # defined by the kernel only, not by libc

_T = TypeVar("_T")


def _refusal(code: int) -> OSError:
    return OSError(code, os.strerror(code))


class SevDevice:
    """An open ``/dev/sev``. Several can be open on the same firmware."""

    __slots__ = ("_firmware",)

    def __init__(self, firmware: Firmware) -> None:
        self._firmware = firmware

    def ioctl(self, caller: Caller, request: int, argument: int) -> int:
        """Serve SEV_ISSUE_CMD; any other request fails with EINVAL.

        The 16-byte ``struct sev_issue_cmd`` is copied back after every known command, refused or
        not. EIO with a nonzero ``error`` field means that the firmware refused. Any other errno
        comes from the driver; ``error`` then keeps the caller's value or, if the command has
        already run, is the firmware's status.
        """
        if request != SEV_ISSUE_CMD:
            raise _refusal(errno.EINVAL)
        issued = IssueCmd.unpack(_read(caller, argument, IssueCmd.SIZE))
        if issued.cmd >= SEV_MAX:
            raise _refusal(errno.EINVAL)
        call = _SevCall(self._firmware, caller, issued.data, issued.error)
        try:
            _COMMANDS[Command(issued.cmd)](call)
        finally:
            # A fault here replaces the command's result.
            _write(caller, argument, replace(issued, error=call.error).pack())
        return 0

    def close(self) -> None:
        """Do nothing: the driver keeps no state for a descriptor."""


def _read(caller: Caller, address: int, size: int) -> bytes:
    try:
        return caller.memory.read(address, size)
    except OSError:
        raise _refusal(errno.EFAULT) from None


def _write(caller: Caller, address: int, data: bytes) -> None:
    try:
        caller.memory.write(address, data)
    except OSError:
        raise _refusal(errno.EFAULT) from None


@dataclass(slots=True)
class _SevCall:
    """One firmware command in progress. ``error`` is copied back to the caller's ``struct
    sev_issue_cmd``.
    """

    firmware: Firmware
    caller: Caller
    address: int  # address of the command's own structure
    error: int

    def read(self, size: int) -> bytes:
        return _read(self.caller, self.address, size)

    def write(self, data: bytes) -> None:
        _write(self.caller, self.address, data)

    def answer(self, command: Callable[[], _T]) -> _T | None:
        """Run ``command`` on the firmware and store the status in ``error``. Return None if the
        firmware refuses the command.
        """
        try:
            result = command()
        except FirmwareError as no:
            self.error = int(no.status)
            return None
        self.error = int(SevStatus.SUCCESS)
        return result

    def ask(self, command: Callable[[], _T]) -> _T:
        """Run ``command`` like :meth:`answer`, but raise EIO if the firmware refuses."""
        result = self.answer(command)
        if self.error:
            raise _refusal(errno.EIO)
        return cast("_T", result)

    def needs_data(self) -> None:
        if not self.address:
            raise _refusal(errno.EINVAL)

    def needs_write_mode(self) -> None:
        if not self.caller.writable:
            raise _refusal(errno.EPERM)

    def needs_snp(self) -> None:
        if not self.firmware.state.initialized:
            raise _refusal(errno.ENODEV)


def _key_command(call: _SevCall) -> None:
    call.needs_write_mode()
    _not_emulated(call)


def _factory_reset(call: _SevCall) -> None:
    """Behave like ``sev_ioctl_do_reset``: refuse with EBUSY while a guest runs."""
    call.needs_write_mode()
    if call.ask(call.firmware.platform_status).state == STATE_WORKING:
        raise _refusal(errno.EBUSY)
    _not_emulated(call)


def _pek_csr(call: _SevCall) -> None:
    """Behave like ``sev_ioctl_do_pek_csr``: return the length even if the firmware refuses."""
    call.needs_write_mode()
    asked = GetId2.unpack(call.read(GetId2.SIZE))  # same layout as struct sev_user_data_pek_csr
    room = asked.length if asked.address else 0
    if room > FW_BLOB_MAX_SIZE:
        raise _refusal(errno.EFAULT)
    call.write(replace(asked, length=room).pack())
    _not_emulated(call)


def _pek_cert_import(call: _SevCall) -> None:
    """Behave like ``sev_ioctl_do_pek_import``: read both certificates before answering."""
    call.needs_write_mode()
    # struct sev_user_data_pek_cert_import has the same layout.
    given = PdhCertExport.unpack(call.read(PdhCertExport.SIZE))
    for address, size in (
        (given.pdh_cert_address, given.pdh_cert_len),
        (given.cert_chain_address, given.cert_chain_len),
    ):
        if not address or not 0 < size <= FW_BLOB_MAX_SIZE:
            raise _refusal(errno.EINVAL)
        _read(call.caller, address, size)
    _not_emulated(call)


def _pdh_cert_export(call: _SevCall) -> None:
    """Behave like ``sev_ioctl_do_pdh_export``: if an address or a length is 0, return only the
    lengths.
    """
    asked = PdhCertExport.unpack(call.read(PdhCertExport.SIZE))
    room = (asked.pdh_cert_len, asked.cert_chain_len)
    addresses = (asked.pdh_cert_address, asked.cert_chain_address)
    if not all((*room, *addresses)):
        room = (0, 0)
    elif max(room) > FW_BLOB_MAX_SIZE:
        raise _refusal(errno.EFAULT)
    if not call.firmware.state.initialized:
        call.needs_write_mode()
    blobs = call.answer(call.firmware.pdh_cert_export)
    if blobs is not None:
        if any(size < len(blob) for size, blob in zip(room, blobs, strict=True)):
            call.error = int(SevStatus.INVALID_LEN)
        room = (len(blobs[0]), len(blobs[1]))
    call.write(replace(asked, pdh_cert_len=room[0], cert_chain_len=room[1]).pack())
    if call.error or blobs is None:
        raise _refusal(errno.EIO)
    for address, blob in zip(addresses, blobs, strict=True):
        _write(call.caller, address, blob)


def _not_emulated(call: _SevCall) -> None:
    call.error = int(SevStatus.INVALID_PLATFORM_STATE)
    raise _refusal(errno.EIO)


def _platform_status(call: _SevCall) -> None:
    call.write(call.ask(call.firmware.platform_status).pack())


def _get_id(call: _SevCall) -> None:
    _needs_get_id(call)
    call.write(call.ask(call.firmware.get_id))


def _get_id2(call: _SevCall) -> None:
    _needs_get_id(call)
    asked = GetId2.unpack(call.read(GetId2.SIZE))
    room = asked.length if asked.address else 0
    if room > MAX_ALLOCATION:
        raise _refusal(errno.ENOMEM)
    identity = call.answer(call.firmware.get_id)
    length = room if identity is None else len(identity)
    if room < length:
        # Not raised here: the length is copied back first, and a fault in that copy gives EFAULT.
        call.error = int(SevStatus.INVALID_LEN)
    call.write(replace(asked, length=length).pack())
    if call.error or identity is None:
        raise _refusal(errno.EIO)
    _write(call.caller, asked.address, identity)


def _needs_get_id(call: _SevCall) -> None:
    if call.firmware.state.version < GET_ID_SINCE:
        raise _refusal(ENOTSUPP)


def _snp_platform_status(call: _SevCall) -> None:
    call.needs_data()
    call.write(call.ask(call.firmware.snp_platform_status).pack())


def _snp_commit(call: _SevCall) -> None:
    call.ask(call.firmware.snp_commit)


def _snp_set_config(call: _SevCall) -> None:
    call.needs_data()
    call.needs_write_mode()
    call.needs_snp()
    config = SnpConfig.unpack(call.read(SnpConfig.SIZE))
    call.ask(partial(call.firmware.snp_set_config, config))


def _snp_vlek_load(call: _SevCall) -> None:
    call.needs_data()
    call.needs_write_mode()
    call.needs_snp()
    load = SnpVlekLoad.unpack(call.read(SnpVlekLoad.SIZE))
    if load.len != SnpVlekLoad.SIZE or load.vlek_wrapped_version or not load.vlek_wrapped_address:
        raise _refusal(errno.EINVAL)
    blob = _read(call.caller, load.vlek_wrapped_address, WrappedVlekHashstick.SIZE)
    call.ask(partial(call.firmware.snp_vlek_load, blob))


_COMMANDS: Final[dict[Command, Callable[[_SevCall], None]]] = {
    Command.FACTORY_RESET: _factory_reset,
    Command.PLATFORM_STATUS: _platform_status,
    Command.PEK_GEN: _key_command,
    Command.PEK_CSR: _pek_csr,
    Command.PDH_GEN: _key_command,
    Command.PDH_CERT_EXPORT: _pdh_cert_export,
    Command.PEK_CERT_IMPORT: _pek_cert_import,
    Command.GET_ID: _get_id,
    Command.GET_ID2: _get_id2,
    Command.SNP_PLATFORM_STATUS: _snp_platform_status,
    Command.SNP_COMMIT: _snp_commit,
    Command.SNP_SET_CONFIG: _snp_set_config,
    Command.SNP_VLEK_LOAD: _snp_vlek_load,
}
