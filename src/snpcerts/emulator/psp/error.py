# SPDX-License-Identifier: Apache-2.0
"""How the emulated firmware says no."""

from __future__ import annotations

from snpcerts.abi.psp import Status
from snpcerts.errors import RefusedError


class FirmwareError(RefusedError):
    """The firmware ended a command with a status other than SUCCESS.

    ``status`` is what the PSP mailbox would carry. Nothing was changed by the
    command.
    """

    code = "firmware-status"

    def __init__(self, status: Status, problem: str) -> None:
        super().__init__(f"firmware status {status:#04x} {status.name}: {problem}")
        self.status = status
