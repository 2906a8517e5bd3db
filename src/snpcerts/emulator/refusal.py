# SPDX-License-Identifier: Apache-2.0
"""How the emulated firmware says no, and with which status.

AMD's document (56860) was not at hand for several of these. Where public
sources are silent or disagree, the choice stands here as a named constant, so
that there is one place to mend.
"""

from __future__ import annotations

from typing import Final

from snpcerts.abi.guest_message import ResponseStatus
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


# A guest message whose tag does not verify. One observation of real firmware
# (2022) has 0x16; BAD_MEASUREMENT (0x0B) is the other candidate.
BAD_TAG: Final = Status.INVALID_PARAM
# A guest message header that is not as section 2.1 of the layout says. Same observation.
MALFORMED_MESSAGE: Final = Status.INVALID_PARAM
# A sequence number other than the one expected, under a tag that verifies. The
# same observation saw 0x1D from a kernel and 0x16 from a service module.
WRONG_SEQUENCE: Final = Status.AEAD_OFLOW
# A guest request before LAUNCH_FINISH, and any command out of a guest's order.
NOT_RUNNING: Final = Status.INVALID_GUEST_STATE
# A context of another platform, or one that was decommissioned.
UNKNOWN_GUEST: Final = Status.INVALID_GUEST

# SNP_VLEK_LOAD of a hashstick for another TCB than ReportedTcb. INVALID_CONFIG
# (0x03) is the other candidate; no public source says which.
VLEK_WRONG_TCB: Final = Status.INVALID_PARAM
# SNP_VLEK_LOAD of a hashstick whose tag does not verify. BAD_SIGNATURE (0x0A) is
# the other candidate; no public source says which.
VLEK_BAD_TAG: Final = Status.BAD_MEASUREMENT
# SNP_VLEK_LOAD on firmware below 1.54, which has no such command. UNSUPPORTED
# (0x15) is the other candidate.
VLEK_TOO_OLD: Final = Status.INVALID_COMMAND

# MSG_KEY_REQ rooted in the VCEK or VLEK while MASK_CHIP_KEY forbids both. That
# it is refused is documented; the status is not.
MASKED_KEY_DERIVATION: Final = ResponseStatus.INVALID_KEY
