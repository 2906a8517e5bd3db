# SPDX-License-Identifier: Apache-2.0
"""The error that the emulated firmware raises."""

from __future__ import annotations

from snpcerts.abi.psp import SevStatus
from snpcerts.errors import RefusedError


class FirmwareError(RefusedError):
    """The firmware ended a command with a status other than SUCCESS.

    ``status`` is the status in the PSP mailbox. The command changed nothing, except as
    ``Firmware.launch_finish`` says.
    """

    code = "firmware-status"

    def __init__(self, status: SevStatus, problem: str) -> None:
        super().__init__(f"firmware status {status:#04x} {status.name}: {problem}")
        self.status = status
