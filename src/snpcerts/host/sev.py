# SPDX-License-Identifier: Apache-2.0
"""A client of ``/dev/sev``: the firmware's state, and the commands that change its key.

Source: Linux ``include/uapi/linux/psp-sev.h``, ``drivers/crypto/ccp/sev-dev.c``. EIO with a status
means that the firmware refused. Any other errno comes from the driver.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

from snpcerts.abi import psp
from snpcerts.abi.cstruct import CStruct
from snpcerts.device_file import DeviceFile
from snpcerts.device_ioctl import ioctl
from snpcerts.errors import RefusedError

DEVICE: Final = "/dev/sev"
_ID_SIZE: Final = 64
# The statuses with which firmware answers if it cannot unwrap a hashstick, or if the hashstick is
# for another TCB.
_OTHER_HASHSTICK: Final = (
    psp.SevStatus.INVALID_PARAM,
    psp.SevStatus.BAD_MEASUREMENT,
    psp.SevStatus.BAD_SVN,
)


class SevError(RefusedError):
    """A firmware command failed. ``status`` is the firmware's status code; None if the driver
    refused.
    """

    code = "sev"

    def __init__(self, command: psp.Command, number: int, status: int) -> None:
        self.errno = number
        self.status = status if number == errno.EIO and status else None
        if self.status is None:
            text = f"the driver refused: {os.strerror(number)}"
        else:
            known = self.status in psp.SevStatus.__members__.values()
            name = psp.SevStatus(self.status).name if known else "unknown"
            text = f"the firmware answered with status {self.status:#x} ({name})"
        hints = {
            errno.ENODEV: "SNP is not initialised on this host: load kvm_amd with sev_snp=1",
            errno.EPERM: "this command needs a device that is open for writing",
        }
        hint = hints.get(number)
        if command is psp.Command.SNP_VLEK_LOAD and self.status in _OTHER_HASHSTICK:
            hint = (
                "check that the hashstick is for this chip and the reported TCB. If "
                "kvm_amd was loaded again with the reported TCB below the current one, "
                "run 'host set-config --again' first"
            )
        super().__init__(f"{command.name}: {text}", hint=hint)


class Sev(DeviceFile):
    """An open ``/dev/sev``. As a context manager, it closes the device."""

    def __init__(self, path: str = DEVICE) -> None:
        """Open the device. Raises :class:`RefusedError` if the device is missing or cannot be
        opened.
        """
        super().__init__(
            path,
            hint="run this on an SEV-SNP host, with its ccp driver loaded; elsewhere, "
            "'snpcerts emulate host -- COMMAND' runs a command on an emulated host",
            forbidden_hint="run this as root",
        )

    def snp_platform_status(self) -> psp.SnpPlatformStatus:
        """Issue SNP_PLATFORM_STATUS. Return the current and reported TCB, and the other fields."""
        out = self._issue(psp.Command.SNP_PLATFORM_STATUS, psp.SnpPlatformStatus())
        return psp.SnpPlatformStatus.unpack(out)

    def hwid(self) -> bytes:
        """Issue GET_ID2. Return the chip ID as the key server uses it: 64 bytes, or 8 on Turin
        and Venice.
        """
        buffer = (ctypes.c_char * _ID_SIZE)()
        request = psp.GetId2(address=ctypes.addressof(buffer), length=_ID_SIZE)
        out = psp.GetId2.unpack(self._issue(psp.Command.GET_ID2, request))
        return buffer.raw[: out.length]

    def snp_commit(self) -> None:
        """Issue SNP_COMMIT: set the committed and the reported TCB to the current TCB. This cannot
        be undone. Some firmware then drops a loaded VLEK.
        """
        self._issue(psp.Command.SNP_COMMIT, None)

    def snp_set_config(self, config: psp.SnpConfig) -> None:
        """Issue SNP_SET_CONFIG. A ``reported_tcb`` of zeros resets the reported TCB to the
        committed TCB.
        """
        self._issue(psp.Command.SNP_SET_CONFIG, config)

    def snp_vlek_load(self, hashstick: bytes) -> None:
        """Issue SNP_VLEK_LOAD with a wrapped hashstick of 432 bytes."""
        size = psp.WrappedVlekHashstick.SIZE
        if len(hashstick) != size:
            raise RefusedError(
                f"wrapped VLEK hashstick: expected {size} bytes, found {len(hashstick)}"
            )
        buffer = ctypes.create_string_buffer(hashstick, size)
        load = psp.SnpVlekLoad(
            len=psp.SnpVlekLoad.SIZE, vlek_wrapped_address=ctypes.addressof(buffer)
        )
        self._issue(psp.Command.SNP_VLEK_LOAD, load)

    def _issue(self, command: psp.Command, argument: CStruct | None) -> bytes:
        """Issue a command. Return the argument structure as the driver left it."""
        data = bytearray(b"" if argument is None else argument.pack())
        view = (ctypes.c_char * len(data)).from_buffer(data) if data else None
        pointer = 0 if view is None else ctypes.addressof(view)
        issue = bytearray(psp.IssueCmd(cmd=command, data=pointer).pack())
        try:
            ioctl(self.fd, psp.SEV_ISSUE_CMD, issue)
        except OSError as error:
            status = psp.IssueCmd.unpack(issue).error
            raise SevError(command, error.errno or errno.EIO, status) from None
        finally:
            del view
        return bytes(data)
