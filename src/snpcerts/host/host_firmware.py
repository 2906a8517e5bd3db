# SPDX-License-Identifier: Apache-2.0
"""What the firmware reports: its TCBs, its masks, and whether a VLEK is loaded.

Source: SNP_PLATFORM_STATUS (SNP ABI, 56860; Linux ``psp-sev.h``). It does not include the committed
TCB. No host interface shows that; only attestation reports do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from snpcerts.abi import psp
from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.errors import FormatError, RefusedError
from snpcerts.host.known import NOTHING_DOUBTED, KnownKeys, Proof


class SevDriver(Protocol):
    """The commands that the agent issues to ``/dev/sev``; see :class:`snpcerts.host.sev.Sev`."""

    def snp_platform_status(self) -> psp.SnpPlatformStatus: ...

    def hwid(self) -> bytes: ...

    def snp_commit(self) -> None: ...

    def snp_set_config(self, config: psp.SnpConfig) -> None: ...

    def snp_vlek_load(self, hashstick: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class FirmwareState:
    """The firmware's state at one moment. ``initialised`` refers to SNP, not SEV.

    ``known`` has the remembered facts about the firmware's keys, which the firmware does not
    report.
    """

    current: TcbVersion
    reported: TcbVersion
    vlek_loaded: bool
    chip_id_masked: bool
    chip_key_masked: bool
    initialised: bool
    version: str  # firmware version: major.minor.build
    guests: int
    known: KnownKeys = NOTHING_DOUBTED

    @property
    def config_flags(self) -> int:
        """The mask bits, as flags of SNP_SET_CONFIG."""
        return (
            self.chip_id_masked * psp.CONFIG_MASK_CHIP_ID
            | self.chip_key_masked * psp.CONFIG_MASK_CHIP_KEY
        )


class KeyMemory(Protocol):
    """The record of the firmware's keys; see :class:`snpcerts.host.key_memory.Memory`."""

    problem: str

    def observe(self, read: Callable[[], FirmwareState]) -> FirmwareState: ...

    def configure(self, read: Callable[[], FirmwareState], give: Callable[[], None]) -> None: ...

    def load_vlek(
        self,
        read: Callable[[], FirmwareState],
        give: Callable[[], None],
        tcb: TcbVersion,
        certificate: bytes,
    ) -> None: ...

    def prove(
        self, read: Callable[[], FirmwareState], taken_in: FirmwareState, proof: Proof
    ) -> None: ...


class HostFirmware:
    """The firmware behind an open device, on a processor of ``product``.

    ``hwid`` is the chip ID as certificates contain it: 64 bytes, or 8 on Turin and Venice. Every
    command that may change a key goes through ``memory``.
    """

    def __init__(
        self, device: SevDriver, product: Product, memory: Callable[[bytes], KeyMemory]
    ) -> None:
        """Read the chip ID from ``device``, and let ``memory`` open the key record of that chip.

        Raises :class:`RefusedError` if the chip ID's size is wrong for ``product``.
        """
        self.device = device
        self.product = product
        self.hwid = device.hwid()
        if len(self.hwid) != product.hwid_size:
            raise RefusedError(
                f"GET_ID2: expected a chip ID of {product.hwid_size} bytes on {product.value}, "
                f"found {len(self.hwid)} bytes",
                hint="check the product (--product, or product in the configuration file)",
            )
        self.memory = memory(self.hwid)

    def state(self) -> FirmwareState:
        """Read SNP_PLATFORM_STATUS, and add what is known about the firmware's keys.

        Raises the same errors as :func:`read_firmware`.
        """
        return self.memory.observe(self.read_firmware)

    def commit(self) -> None:
        """Issue SNP_COMMIT."""
        self.memory.configure(self.read_firmware, self.device.snp_commit)

    def set_config(self, config: psp.SnpConfig) -> None:
        """Issue SNP_SET_CONFIG."""
        self.memory.configure(self.read_firmware, lambda: self.device.snp_set_config(config))

    def load_vlek(self, hashstick: bytes, tcb: TcbVersion, certificate: bytes) -> None:
        """Issue SNP_VLEK_LOAD with a hashstick for ``tcb``. ``certificate`` (DER) certifies the
        VLEK.
        """
        self.memory.load_vlek(
            self.read_firmware, lambda: self.device.snp_vlek_load(hashstick), tcb, certificate
        )

    def prove(self, taken_in: FirmwareState, proof: Proof) -> None:
        """Record a proof of the signing key. ``taken_in`` is the firmware's state when the proof
        was made.
        """
        self.memory.prove(self.read_firmware, taken_in, proof)

    def read_firmware(self) -> FirmwareState:
        """Read SNP_PLATFORM_STATUS. Unlike :meth:`state`, do not add what the agent remembers.

        Raises :class:`~snpcerts.host.sev.SevError`, and :class:`RefusedError` if TCBs are not in
        the product's layout.
        """
        status = self.device.snp_platform_status()
        try:
            current, reported = (
                TcbVersion.unpack(tcb, self.product.tcb_layout)
                for tcb in (status.current_tcb, status.reported_tcb)
            )
        except FormatError as error:
            raise RefusedError(
                f"SNP_PLATFORM_STATUS: {error}",
                hint="check the product (--product, or product in the configuration file)",
            ) from None
        return FirmwareState(
            current=current,
            reported=reported,
            vlek_loaded=bool(status.flags & psp.STATUS_VLEK_EN),
            chip_id_masked=bool(status.flags & psp.STATUS_MASK_CHIP_ID),
            chip_key_masked=bool(status.flags & psp.STATUS_MASK_CHIP_KEY),
            initialised=bool(status.state),
            version=f"{status.api_major}.{status.api_minor}.{status.build_id}",
            guests=status.guest_count,
        )
