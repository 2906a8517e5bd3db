# SPDX-License-Identifier: Apache-2.0
"""The firmware's variables, and how each SNP command changes them.

Pure: each command takes a state and returns the next one, or raises :class:`FirmwareError`.
Sources: the effects of SNP_COMMIT, SNP_SET_CONFIG and SNP_VLEK_LOAD as described in SNP ABI
(56860), restated by virtee/sev and the kernel's ``sev-guest.rst``, and as implemented by AMD's
published firmware. Where the sources differ, :mod:`snpcerts.emulator.psp.choices` selects one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Self

from snpcerts.abi.product import Product
from snpcerts.abi.psp import (
    CONFIG_MASK_CHIP_ID,
    CONFIG_MASK_CHIP_KEY,
    SevStatus,
    SnpConfig,
    WrappedVlekHashstick,
)
from snpcerts.abi.tcb import TCB_SIZE, TcbVersion
from snpcerts.emulator.psp.chip import Chip, LoadedVlek
from snpcerts.emulator.psp.chip_model import ApiVersion
from snpcerts.emulator.psp.choices import FirmwareChoices, choices_of
from snpcerts.emulator.psp.error import FirmwareError
from snpcerts.errors import FormatError, UsageError

CONFIG_KNOWN_FLAGS: Final = CONFIG_MASK_CHIP_ID | CONFIG_MASK_CHIP_KEY


VLEK_SINCE: Final = ApiVersion(1, 54, 0)


@dataclass(frozen=True, slots=True)
class PlatformState:
    """The variables that SNP_PLATFORM_STATUS and reports show, and the loaded VLEK.

    ``config_tcb`` is the TCB that SNP_SET_CONFIG has set since the last commit or boot, or None.
    ``vcek_tcb`` is the TCB that the VCEK was last derived for: the reported TCB or, on some
    firmware after SNP_INIT, the current one. No command of the firmware returns it.
    ``initialisations`` counts SNP_INIT; programs see each one in the inode number of
    ``/sys/module/kvm_amd``. ``boots`` counts boots of the host; programs see each one in
    ``boot_id``.

    Committed <= Current always holds for each component. Reported <= Committed holds for each
    component too or, if the firmware compares each TCB as one number, for these numbers. Anything
    else raises :class:`UsageError`.
    """

    product: Product
    current: TcbVersion
    committed: TcbVersion
    config_tcb: TcbVersion | None
    vcek_tcb: TcbVersion
    version: ApiVersion
    committed_version: ApiVersion
    choices: FirmwareChoices
    mask_chip_id: bool = False
    mask_chip_key: bool = False
    vlek: LoadedVlek | None = None
    initialized: bool = True
    initialisations: int = 0
    boots: int = 0

    def __post_init__(self) -> None:
        for name in ("current", "committed", "reported", "vcek_tcb"):
            tcb: TcbVersion = getattr(self, name)
            if tcb.layout is not self.product.tcb_layout:
                raise UsageError(f"{name}: the TCB does not have {self.product.value}'s TCB layout")
        if not self.current.covers(self.committed):
            raise UsageError("the committed TCB is above the current one")
        if not self._at_most_committed(self.reported):
            raise UsageError("the reported TCB is above the committed one")
        if self.version < self.committed_version:
            raise UsageError("the committed firmware version is above the current one")

    @classmethod
    def at(
        cls,
        product: Product,
        tcb: TcbVersion,
        version: ApiVersion,
        choices: FirmwareChoices | None = None,
    ) -> Self:
        """Return a platform whose current, committed and reported TCB are ``tcb``."""
        played = choices_of(None) if choices is None else choices
        return cls(product, tcb, tcb, None, tcb, version, version, played)

    @property
    def reported(self) -> TcbVersion:
        """The reported TCB: the configured one if there is one, otherwise the committed one."""
        return self.committed if self.config_tcb is None else self.config_tcb

    def init(self) -> Self:
        """Apply SNP_INIT, which derives the VCEK again."""
        if self.initialized:
            raise FirmwareError(
                SevStatus.INVALID_PLATFORM_STATE, "SNP_INIT: SNP is already initialised"
            )
        running = self.choices.init_derives_running_vcek
        return replace(
            self,
            initialized=True,
            vcek_tcb=self.current if running else self.reported,
            initialisations=self.initialisations + 1,
        )

    def shutdown(self) -> Self:
        """Apply SNP_SHUTDOWN as Linux issues it: remove the VLEK but keep a configured TCB.

        Linux sets IOMMU_SNP_SHUTDOWN. The published firmware then resets its variables at the next
        command.
        """
        after = replace(self, initialized=False, vlek=None)
        if self.choices.reload_commits:
            after = replace(after, committed=self.current, committed_version=self.version)
        if self.choices.reload_clears_masks:
            after = replace(after, mask_chip_id=False, mask_chip_key=False)
        return after

    def reboot(self, current: TcbVersion | None, version: ApiVersion | None) -> Self:
        """Reboot the host with the firmware in its BIOS. The result is the state before SNP_INIT.

        The committed TCB stays. Configuration, masks, the VLEK and any uncommitted live update are
        lost. Fails with INVALID_CONFIG if the BIOS has a TCB or version below the committed one.
        """
        bare = replace(
            self,
            current=self.committed,
            version=self.committed_version,
            config_tcb=None,
            mask_chip_id=False,
            mask_chip_key=False,
            vlek=None,
            initialized=False,
            boots=self.boots + 1,
        )
        return bare.update(current or self.committed, version or self.committed_version)

    def commit(self) -> Self:
        """Apply SNP_COMMIT: set the committed and the reported TCB to the current one.

        It works in any state and cannot be undone.
        """
        return replace(
            self,
            committed=self.current,
            committed_version=self.version,
            config_tcb=None,
            vcek_tcb=self.current,
            vlek=self._vlek_under(self.current, drops=self.choices.commit_drops_vlek),
        )

    def configure(self, config: SnpConfig) -> Self:
        """Apply SNP_SET_CONFIG, in any state. A TCB of zeros resets the reported TCB to the
        committed one.
        """
        if config.flags & ~CONFIG_KNOWN_FLAGS or any(config.rsvd):
            raise FirmwareError(
                SevStatus.INVALID_PARAM,
                "the configuration for SNP_SET_CONFIG has reserved bits set",
            )
        reported = self.committed
        if config.reported_tcb != bytes(TCB_SIZE):
            reported = self._tcb(config.reported_tcb)
        if not self._at_most_committed(reported):
            raise FirmwareError(
                SevStatus.INVALID_PARAM,
                f"the requested reported TCB {reported} is above the committed TCB "
                f"{self.committed}",
            )
        return replace(
            self,
            config_tcb=reported,
            vcek_tcb=reported,
            mask_chip_id=bool(config.flags & CONFIG_MASK_CHIP_ID),
            mask_chip_key=bool(config.flags & CONFIG_MASK_CHIP_KEY),
            vlek=self._vlek_under(reported, drops=self.choices.config_drops_vlek),
        )

    def load_vlek(self, chip: Chip, blob: bytes) -> Self:
        """Apply SNP_VLEK_LOAD: the hashstick must be for this chip and exactly the reported TCB.

        The TCB is checked before the tag. Neither the platform's state nor the reserved bytes that
        the tag does not cover are checked.
        """
        if self.version < VLEK_SINCE:
            # UNSUPPORTED (0x15) is the other candidate; no public source says which.
            raise FirmwareError(
                SevStatus.INVALID_COMMAND,
                (
                    f"firmware {self.version} does not support VLEKs; {VLEK_SINCE} is the "
                    "first version that does"
                ),
            )
        if len(blob) != WrappedVlekHashstick.SIZE:
            raise FirmwareError(
                SevStatus.INVALID_LEN,
                f"hashstick: expected {WrappedVlekHashstick.SIZE} bytes, found {len(blob)}",
            )
        asked = WrappedVlekHashstick.unpack(blob).tcb_version
        if asked != self.reported.pack():
            raise FirmwareError(
                SevStatus.BAD_SVN,
                (
                    f"the hashstick is for TCB {asked.hex()}, but the reported TCB is "
                    f"{self.reported.pack().hex()}"
                ),
            )
        # The wrapping key depends on the VCEK in use, whose TCB may differ from the reported one.
        hashstick = chip.unwrap_vlek(blob, self.vcek_tcb)
        vlek = LoadedVlek(self.reported, hashstick)
        return replace(self, vlek=vlek)

    def update(self, current: TcbVersion, version: ApiVersion) -> Self:
        """Apply a live firmware update: change the current TCB and the firmware version, nothing
        else.

        Fails with INVALID_CONFIG if either would be below the committed one.
        """
        if current.layout is not self.product.tcb_layout:
            raise FirmwareError(
                SevStatus.INVALID_PARAM, "the firmware update is for another product"
            )
        if not current.covers(self.committed) or version < self.committed_version:
            raise FirmwareError(
                SevStatus.INVALID_CONFIG,
                f"firmware {version} with TCB {current} is below the committed firmware "
                f"{self.committed_version} with TCB {self.committed}",
            )
        return replace(self, current=current, version=version)

    def _vlek_under(self, reported: TcbVersion, *, drops: bool) -> LoadedVlek | None:
        """Return the VLEK that stays loaded when the reported TCB becomes ``reported``."""
        return None if drops and reported != self.reported else self.vlek

    def _at_most_committed(self, tcb: TcbVersion) -> bool:
        if self.choices.config_compares_components:
            return self.committed.covers(tcb)
        # The components as one number, the first one most significant.
        return tuple(tcb.components().values()) <= tuple(self.committed.components().values())

    def _tcb(self, data: bytes) -> TcbVersion:
        try:
            return TcbVersion.unpack(data, self.product.tcb_layout)
        except FormatError as error:
            raise FirmwareError(SevStatus.INVALID_PARAM, str(error)) from None
