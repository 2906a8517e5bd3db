# SPDX-License-Identifier: Apache-2.0
"""The products that support attestation, with one row of facts for each.

Everything that differs between products follows from its row here, from its
:class:`~snpcerts.abi.tcb.TcbLayout`, and for the emulator from its row in
``emulator/psp/chip_model.py``.

Sources: family and model ranges as in virtee/sev and the AMD revision guides;
key-server names and hwID lengths from KDS (57230) chapter 3 and the
certificates themselves; root keys from the key server's certificate chains,
which agree with the copies in virtee/sev and google/go-sev-guest.
"""

from __future__ import annotations

import enum
import functools
from typing import Final, NamedTuple

from snpcerts.abi.tcb import TcbLayout, TcbVersion

CHIP_ID_SIZE = 64  # CHIP_ID in a report


class Product(enum.Enum):
    """A product line with its own root key. The value is the key server's name."""

    MILAN = "Milan"
    GENOA = "Genoa"
    TURIN = "Turin"

    @property
    def kds_name(self) -> str:
        """The product's name in key-server paths, which are case-sensitive."""
        return self.value

    @property
    def keyword(self) -> str:
        """The product's name in options, policy files and file names: ``milan``."""
        return self.name.lower()

    @property
    def models(self) -> tuple[tuple[int, int, int], ...]:
        """The product's processors: (family, first model, last model)."""
        return _FACTS[self].models

    @property
    def tcb_layout(self) -> TcbLayout:
        """How the eight bytes of a TCB_VERSION are laid out on this product."""
        return _FACTS[self].tcb_layout

    @property
    def hwid_size(self) -> int:
        """Significant bytes of the chip ID: the size of a VCEK's hwID extension."""
        return _FACTS[self].hwid_size

    @property
    def oldest_report_version(self) -> int:
        """The oldest report version that the product's firmware has written."""
        return _FACTS[self].oldest_report_version

    @property
    def ark_spki_sha384(self) -> bytes:
        """48 bytes: the SHA-384 of the root key's DER SubjectPublicKeyInfo."""
        return bytes.fromhex(_FACTS[self].ark_spki_sha384)

    def tcb_problem(self, tcb: TcbVersion) -> str | None:
        """Return why ``tcb`` cannot belong to this product, or None."""
        if tcb.layout is self.tcb_layout:
            return None
        needs = "needs" if self.tcb_layout.has_fmc else "has no"
        return f"a TCB of {self.value} {needs} fmc, found: {tcb}"


class _Facts(NamedTuple):
    """The facts about one product.

    ``models`` are (family, first model, last model), the combined values of CPUID leaf
    0x80000001. ``hwid_size`` counts the significant bytes of the chip ID.
    ``oldest_report_version`` is the first that its firmware wrote; below 3 a report
    does not name its product. ``ark_spki_sha384`` is the SHA-384 of the root key's
    DER SubjectPublicKeyInfo, in hexadecimal.
    """

    models: tuple[tuple[int, int, int], ...]
    tcb_layout: TcbLayout
    hwid_size: int
    oldest_report_version: int
    ark_spki_sha384: str


_FACTS: Final = {
    Product.MILAN: _Facts(
        models=((0x19, 0x00, 0x0F),),
        tcb_layout=TcbLayout.MILAN,
        hwid_size=64,
        oldest_report_version=2,
        ark_spki_sha384="1249f67f15cf229a4069195e1a9ce537d1765ef706a1f4a1"
        "23c36be9518786515d25ecc007f366b564d2b3f31c48082e",
    ),
    Product.GENOA: _Facts(
        models=((0x19, 0x10, 0x1F), (0x19, 0xA0, 0xAF)),  # with Bergamo and Siena
        tcb_layout=TcbLayout.MILAN,
        hwid_size=64,
        oldest_report_version=2,
        ark_spki_sha384="32ab53a6ce5ec14926207396e5c475ae768a6a9831b7e860"
        "b5acf2e1c1dff222bc5a8bfc43eb5e06393189c1f246d880",
    ),
    Product.TURIN: _Facts(
        models=((0x1A, 0x00, 0x11),),
        tcb_layout=TcbLayout.TURIN,
        hwid_size=8,
        oldest_report_version=2,
        ark_spki_sha384="3475f08a9727f8ac9a1deaea5f2a2097aa59d64d05c2a678"
        "c229c873e6359d3a6926287a2a22cd5f88a385e333a2fcc5",
    ),
}


@functools.lru_cache(maxsize=64)
def product_of_cpuid(family: int, model: int) -> Product | None:
    """Return the product of a combined CPUID family and model, or None if not known."""
    for product in Product:
        for known_family, first, last in product.models:
            if family == known_family and first <= model <= last:
                return product
    return None


def product_of_name(name: str) -> Product | None:
    """Return the product of a certificate's productName, such as ``Milan-B0`` or ``Turin``.

    Only the part before the dash matters: certificates of B1 parts say B0.
    """
    stem = name.partition("-")[0]
    return next((product for product in Product if product.value == stem), None)


def product_of_keyword(text: str) -> Product | None:
    """Return the product that a person or a file names, in any case of letters; None if unknown."""
    return next((product for product in Product if product.keyword == text.lower()), None)


def products_of_chip_id(chip_id: bytes) -> tuple[Product, ...]:
    """Return the products whose chip IDs look like this one (64 bytes), most likely first.

    A chip ID shorter than 64 bytes ends in zeros.
    """
    longest = max(product.hwid_size for product in Product)
    sizes = sorted({product.hwid_size for product in Product} - {longest})
    size = next((each for each in sizes if not any(chip_id[each:])), longest)
    return tuple(product for product in Product if product.hwid_size == size)


def hwid_of_chip_id(chip_id: bytes, product: Product) -> bytes:
    """Return the significant bytes of a 64-byte chip ID in a report of ``product``."""
    return chip_id[: product.hwid_size]
