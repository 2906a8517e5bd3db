# SPDX-License-Identifier: Apache-2.0
"""Processor products that attest, and how each is recognised.

Sources: family and model ranges as in virtee/sev and the AMD revision guides;
key-server names and hwID lengths from KDS (57230) chapter 3 and the
certificates themselves.
"""

from __future__ import annotations

import enum
import functools

from snpcerts.abi.tcb import TcbLayout


class Product(enum.Enum):
    """A product line with its own root key. The value is the key server's name."""

    MILAN = "Milan"
    GENOA = "Genoa"  # Bergamo and Siena are Genoa to the key server
    TURIN = "Turin"

    @property
    def kds_name(self) -> str:
        """The product as written in key-server paths; case matters there."""
        return self.value

    @property
    def tcb_layout(self) -> TcbLayout:
        """How the eight bytes of a TCB_VERSION are laid out on this product."""
        return TcbLayout.TURIN if self is Product.TURIN else TcbLayout.MILAN

    @property
    def hwid_size(self) -> int:
        """Significant bytes of the chip ID: the size of a VCEK's hwID extension."""
        return 8 if self is Product.TURIN else 64


# (family, first model, last model, product); family and model as the combined
# values of CPUID leaf 0x80000001, which reports of version 3 and later carry.
_MODELS = (
    (0x19, 0x00, 0x0F, Product.MILAN),
    (0x19, 0x10, 0x1F, Product.GENOA),
    (0x19, 0xA0, 0xAF, Product.GENOA),
    (0x1A, 0x00, 0x11, Product.TURIN),
)


@functools.lru_cache(maxsize=64)
def product_of_cpuid(family: int, model: int) -> Product | None:
    """The product of a combined CPUID family and model, or None if not known."""
    for known_family, first, last, product in _MODELS:
        if family == known_family and first <= model <= last:
            return product
    return None


def product_of_name(name: str) -> Product | None:
    """The product of a certificate's productName, such as ``Milan-B0`` or ``Turin``.

    Only the part before the dash counts: certificates of B1 parts say B0.
    """
    stem = name.partition("-")[0]
    return next((product for product in Product if product.value == stem), None)


def hwid_of_chip_id(chip_id: bytes, product: Product) -> bytes:
    """The significant bytes of a report's 64-byte chip ID on ``product``."""
    return chip_id[: product.hwid_size]
