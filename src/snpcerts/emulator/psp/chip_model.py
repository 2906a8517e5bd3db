# SPDX-License-Identifier: Apache-2.0
"""Facts about the processors that the emulator models, one for each product.

Sources: genuine reports and VCEK certificates of each product. For the published firmware
(``choices.PUBLISHED``): its ``sev_plat.h`` and ``sev_rmp.h``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.errors import UsageError


@dataclass(frozen=True, slots=True)
class CpuId:
    """A processor's combined family, combined model and stepping, as in reports of version 3 and
    later.
    """

    family: int
    model: int
    stepping: int

    @property
    def signature(self) -> int:
        """The value that CPUID function 1 returns in EAX."""
        return (
            self.stepping
            | (self.model & 0xF) << 4
            | 0xF << 8
            | (self.model >> 4) << 16
            | (self.family - 0xF) << 20
        )


@dataclass(frozen=True, slots=True, order=True)
class ApiVersion:
    """A firmware version of three parts, each 0 to 255. Versions sort in order of release."""

    major: int
    minor: int
    build: int

    def __post_init__(self) -> None:
        if not all(0 <= part <= 255 for part in (self.major, self.minor, self.build)):
            raise UsageError(f"firmware version {self} has a part that is not between 0 and 255")

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipModel:
    """The facts about one modelled processor.

    The keys of ``firmware`` are the report versions that the product's firmware can write. Each
    value is a firmware version found in genuine reports of that version. ``published_firmware`` has
    the report version and the firmware version of the firmware whose source AMD published; None if
    that firmware is for another product. ``tcb`` is the initial TCB of a new platform.
    ``vcek_product_name`` is the productName in the chip's VCEK certificates.
    """

    cpuid: CpuId
    firmware: dict[int, ApiVersion]
    published_firmware: dict[int, ApiVersion] | None = None
    tcb: TcbVersion
    vcek_product_name: str


CHIP_MODELS: Final = {
    Product.MILAN: ChipModel(
        cpuid=CpuId(0x19, 0x01, 1),
        firmware={3: ApiVersion(1, 55, 29), 2: ApiVersion(1, 49, 3)},
        tcb=TcbVersion(bootloader=4, tee=0, snp=24, microcode=219),
        vcek_product_name="Milan-B0",
    ),
    Product.GENOA: ChipModel(
        cpuid=CpuId(0x19, 0x11, 1),
        firmware={3: ApiVersion(1, 55, 40), 2: ApiVersion(1, 49, 3)},
        # SEV_API_MAJOR, SNP_GMSG_MAX_REPORT_VERSION
        published_firmware={2: ApiVersion(1, 55, 25)},
        tcb=TcbVersion(bootloader=10, tee=0, snp=23, microcode=84),
        vcek_product_name="Genoa",
    ),
    Product.TURIN: ChipModel(
        cpuid=CpuId(0x1A, 0x02, 1),
        firmware={5: ApiVersion(1, 55, 65)},
        tcb=TcbVersion(fmc=1, bootloader=1, tee=1, snp=4, microcode=81),
        vcek_product_name="Turin",
    ),
}
