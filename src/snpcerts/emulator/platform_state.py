# SPDX-License-Identifier: Apache-2.0
"""The firmware's variables, and what each SNP command makes of them.

Pure: a command takes a state and gives the next one or raises
:class:`FirmwareError`. Sources: the effects of SNP_COMMIT, SNP_SET_CONFIG and
SNP_VLEK_LOAD as SNP ABI (56860) has them, restated by virtee/sev and the
kernel's ``sev-guest.rst``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Self

from snpcerts.abi.product import Product
from snpcerts.abi.psp import (
    CONFIG_MASK_CHIP_ID,
    CONFIG_MASK_CHIP_KEY,
    SnpConfig,
    Status,
    WrappedVlekHashstick,
)
from snpcerts.abi.tcb import TCB_SIZE, TcbVersion
from snpcerts.emulator.chip import Chip, LoadedVlek
from snpcerts.emulator.refusal import VLEK_TOO_OLD, VLEK_WRONG_TCB, FirmwareError
from snpcerts.errors import FormatError, UsageError

CONFIG_KNOWN_FLAGS: Final = CONFIG_MASK_CHIP_ID | CONFIG_MASK_CHIP_KEY


@dataclass(frozen=True, slots=True, order=True)
class ApiVersion:
    """A firmware version, in the order in which versions follow each other. Each 0 to 255."""

    major: int
    minor: int
    build: int

    def __post_init__(self) -> None:
        if not all(0 <= part <= 255 for part in (self.major, self.minor, self.build)):
            raise UsageError(f"firmware version {self} has a part that is not 0 to 255")

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"


VLEK_SINCE: Final = ApiVersion(1, 54, 0)

# Report versions each product's firmware may speak, and the firmware of genuine
# reports of that version.
REPORT_VERSIONS: Final = {
    Product.MILAN: {3: ApiVersion(1, 55, 29), 2: ApiVersion(1, 49, 3)},
    Product.GENOA: {3: ApiVersion(1, 55, 40), 2: ApiVersion(1, 49, 3)},
    Product.TURIN: {5: ApiVersion(1, 55, 65)},
}

DEFAULT_TCB: Final = {
    Product.MILAN: TcbVersion(bootloader=4, tee=0, snp=24, microcode=219),
    Product.GENOA: TcbVersion(bootloader=10, tee=0, snp=23, microcode=84),
    Product.TURIN: TcbVersion(fmc=1, bootloader=1, tee=1, snp=4, microcode=81),
}


@dataclass(frozen=True, slots=True)
class PlatformState:
    """What SNP_PLATFORM_STATUS and reports tell of a platform, and the loaded VLEK.

    Reported <= Committed <= Current holds component by component, always:
    :class:`UsageError` otherwise.
    """

    product: Product
    current: TcbVersion
    committed: TcbVersion
    reported: TcbVersion
    version: ApiVersion
    committed_version: ApiVersion
    mask_chip_id: bool = False
    mask_chip_key: bool = False
    vlek: LoadedVlek | None = None
    initialized: bool = True

    def __post_init__(self) -> None:
        for name in ("current", "committed", "reported"):
            tcb: TcbVersion = getattr(self, name)
            if tcb.layout is not self.product.tcb_layout:
                raise UsageError(f"the {name} TCB has not the layout of {self.product.value}")
        if not self.current.covers(self.committed):
            raise UsageError("the committed TCB is above the current one")
        if not self.committed.covers(self.reported):
            raise UsageError("the reported TCB is above the committed one")
        if self.version < self.committed_version:
            raise UsageError("the committed version is above the current one")

    @classmethod
    def at(cls, product: Product, tcb: TcbVersion, version: ApiVersion) -> Self:
        """A platform whose firmware is committed: all three TCBs are ``tcb``."""
        return cls(product, tcb, tcb, tcb, version, version)

    def init(self) -> Self:
        """SNP_INIT."""
        return replace(self, initialized=True)

    def shutdown(self) -> Self:
        """SNP_SHUTDOWN: the VLEK is forgotten.

        Whether ReportedTcb and the mask bits survive is not documented; here they do.
        """
        return replace(self, initialized=False, vlek=None)

    def commit(self) -> Self:
        """SNP_COMMIT: Committed and Reported become Current. In any state; cannot be undone."""
        committed = replace(self, committed=self.current, committed_version=self.version)
        return committed._reporting(self.current)

    def configure(self, config: SnpConfig) -> Self:
        """SNP_SET_CONFIG. An all-zero TCB resets Reported to Committed."""
        self._needs_init()
        if config.flags & ~CONFIG_KNOWN_FLAGS or any(config.rsvd):
            raise FirmwareError(Status.INVALID_PARAM, "SNP_SET_CONFIG has reserved bits set")
        reported = self.committed
        if config.reported_tcb != bytes(TCB_SIZE):
            reported = self._tcb(config.reported_tcb)
        if not self.committed.covers(reported):
            raise FirmwareError(
                Status.INVALID_PARAM, f"reported TCB {reported} is above committed {self.committed}"
            )
        return replace(
            self,
            mask_chip_id=bool(config.flags & CONFIG_MASK_CHIP_ID),
            mask_chip_key=bool(config.flags & CONFIG_MASK_CHIP_KEY),
        )._reporting(reported)

    def load_vlek(self, chip: Chip, blob: bytes) -> Self:
        """SNP_VLEK_LOAD: the hashstick must be this chip's and for exactly ReportedTcb."""
        if self.version < VLEK_SINCE:
            raise FirmwareError(VLEK_TOO_OLD, f"{self.version} is below {VLEK_SINCE}: no VLEK")
        self._needs_init()
        if len(blob) != WrappedVlekHashstick.SIZE:
            raise FirmwareError(
                Status.INVALID_LEN,
                f"a hashstick is {WrappedVlekHashstick.SIZE} bytes, found {len(blob)}",
            )
        stick = WrappedVlekHashstick.unpack(blob)
        if any(stick.rsvd1) or any(stick.rsvd2):
            raise FirmwareError(Status.INVALID_PARAM, "the hashstick has reserved bytes set")
        vlek = chip.unwrap_vlek(blob)
        if vlek.tcb != self.reported:
            raise FirmwareError(
                VLEK_WRONG_TCB, f"the hashstick is for {vlek.tcb}, reported is {self.reported}"
            )
        return replace(self, vlek=vlek)

    def update(self, current: TcbVersion, version: ApiVersion) -> Self:
        """A live firmware update: Current and its version move, nothing else does.

        Below Committed it is refused, in either part.
        """
        if current.layout is not self.product.tcb_layout:
            raise FirmwareError(Status.INVALID_PARAM, "the firmware is another product's")
        if not current.covers(self.committed):
            raise FirmwareError(Status.BAD_SVN, f"{current} is below committed {self.committed}")
        if version < self.committed_version:
            raise FirmwareError(
                Status.BAD_VERSION, f"{version} is below committed {self.committed_version}"
            )
        return replace(self, current=current, version=version)

    def _reporting(self, reported: TcbVersion) -> Self:
        # The rule is stated for SNP_COMMIT; SNP_SET_CONFIG is taken to have it too.
        kept = self.vlek if reported == self.reported else None
        return replace(self, reported=reported, vlek=kept)

    def _needs_init(self) -> None:
        if not self.initialized:
            raise FirmwareError(Status.INVALID_PLATFORM_STATE, "SNP is not initialised")

    def _tcb(self, data: bytes) -> TcbVersion:
        try:
            return TcbVersion.unpack(data, self.product.tcb_layout)
        except FormatError as error:
            raise FirmwareError(Status.INVALID_PARAM, str(error)) from None
