# SPDX-License-Identifier: Apache-2.0
"""AMD's products that support SNP attestation, and the facts about each of them.

Everything that differs between products follows from the product's row here, from its
:class:`~snpcerts.abi.tcb.TcbLayout` and, for the emulator, from its row in
``emulator/psp/chip_model.py``.

Sources: family and model ranges as in virtee/sev and the AMD revision guides. Venice's ranges are
the first that Linux lists for Zen 6 (``bsp_init_amd``); they contain Venice's ranges in release
8.0.0 of the crate ``sev``. Key server names and hwID lengths come from KDS (57230) chapter 3 and
the certificates themselves. Root keys and the digests of root certificates come from the key
server's certificate chains. They agree with the copies in virtee/sev and google/go-sev-guest. The
digests also agree with those in confidential-containers/trustee. No certificate chain of Venice is
public. Until Venice's root is pinned here, Venice's reports and certificates are refused, with an
error that names Venice.
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass
from typing import Final, NamedTuple

from snpcerts.abi.tcb import TcbLayout, TcbVersion

CHIP_ID_SIZE = 64  # CHIP_ID in a report


class Product(enum.Enum):
    """A product line with its own root key. The value is the product's name on the key server."""

    MILAN = "Milan"
    GENOA = "Genoa"
    TURIN = "Turin"
    VENICE = "Venice"

    @property
    def kds_name(self) -> str:
        """The product's name in key server paths, which are case-sensitive."""
        return self.value

    @property
    def keyword(self) -> str:
        """The product's name in options, policy files and file names, such as ``milan``."""
        return self.name.lower()

    @property
    def models(self) -> tuple[tuple[int, int, int], ...]:
        """The CPUID ranges of the product's processors, each (family, first model, last model)."""
        return _FACTS[self].models

    @property
    def tcb_layout(self) -> TcbLayout:
        """The layout of a TCB_VERSION on this product."""
        return _FACTS[self].tcb_layout

    @property
    def hwid_size(self) -> int:
        """The number of significant bytes of the chip ID, which is the size of a VCEK's hwID."""
        return _FACTS[self].hwid_size

    @property
    def oldest_report_version(self) -> int:
        """The oldest version of report that any firmware of this product writes."""
        return _FACTS[self].oldest_report_version

    @property
    def ark_spki_sha384(self) -> bytes | None:
        """The SHA-384 (48 bytes) of the root key's DER SubjectPublicKeyInfo.

        None if the key is not public. Then no report or certificate of the product can be verified.
        """
        pinned = _FACTS[self].ark_spki_sha384
        return None if pinned is None else bytes.fromhex(pinned)

    @property
    def ark_certificate_sha384(self) -> bytes | None:
        """The SHA-384 (48 bytes) of the DER root certificate that AMD publishes; None if AMD
        publishes none.
        """
        pinned = _FACTS[self].ark_certificate_sha384
        return None if pinned is None else bytes.fromhex(pinned)

    @property
    def is_pinned(self) -> bool:
        """Whether snpcerts has pinned the product's root key."""
        return _FACTS[self].ark_spki_sha384 is not None

    @property
    def unpinned_text(self) -> str:
        """The error message for a product whose root key is not pinned."""
        return (
            f"snpcerts has no pinned AMD root key for {self.value}, so it cannot verify "
            f"{self.value} reports or certificates"
        )

    def tcb_problem(self, tcb: TcbVersion) -> str | None:
        """Return why ``tcb`` cannot belong to this product; None if it can."""
        problem = self.tcb_layout.problem(tcb.components())
        return None if problem is None else f"a TCB of {self.value} {problem}; found {tcb}"


class _Facts(NamedTuple):
    """The facts about one product.

    ``models`` are (family, first model, last model), the combined values of CPUID leaf 0x80000001.
    ``hwid_size`` counts the significant bytes of the chip ID. ``oldest_report_version`` is the
    version of the first reports that its firmware wrote; reports below version 3 do not name their
    product.
    ``ark_spki_sha384`` is the SHA-384 of the root key's DER SubjectPublicKeyInfo, and
    ``ark_certificate_sha384`` that of the root certificate, both in hexadecimal; None if they are
    not public.
    """

    models: tuple[tuple[int, int, int], ...]
    tcb_layout: TcbLayout
    hwid_size: int
    oldest_report_version: int
    ark_spki_sha384: str | None
    ark_certificate_sha384: str | None


_FACTS: Final = {
    Product.MILAN: _Facts(
        models=((0x19, 0x00, 0x0F),),
        tcb_layout=TcbLayout.MILAN,
        hwid_size=64,
        oldest_report_version=2,
        ark_spki_sha384="1249f67f15cf229a4069195e1a9ce537d1765ef706a1f4a1"
        "23c36be9518786515d25ecc007f366b564d2b3f31c48082e",
        ark_certificate_sha384="2f1316273dade9b896875da0acb6bc1c0547d41320ad323c"
        "bfbef6570f0305a3e7f8398d0b44bd1f36075295cefcc0db",
    ),
    Product.GENOA: _Facts(
        models=((0x19, 0x10, 0x1F), (0x19, 0xA0, 0xAF)),  # with Bergamo and Siena
        tcb_layout=TcbLayout.MILAN,
        hwid_size=64,
        oldest_report_version=2,
        ark_spki_sha384="32ab53a6ce5ec14926207396e5c475ae768a6a9831b7e860"
        "b5acf2e1c1dff222bc5a8bfc43eb5e06393189c1f246d880",
        ark_certificate_sha384="d1b7bcfe685d19e63ca792957371b619cee792db280c312e"
        "7a00433d506224d5953ad9d348d74b4e176fba1b6a616eac",
    ),
    Product.TURIN: _Facts(
        models=((0x1A, 0x00, 0x11),),
        tcb_layout=TcbLayout.TURIN,
        hwid_size=8,
        oldest_report_version=2,
        ark_spki_sha384="3475f08a9727f8ac9a1deaea5f2a2097aa59d64d05c2a678"
        "c229c873e6359d3a6926287a2a22cd5f88a385e333a2fcc5",
        ark_certificate_sha384="09da21f0e7d04ac7f1b04306ebc5d65a3c0ebec966170d22"
        "fe26c44efcce8be3ed298a80d10fcfa4131c01028fe536d8",
    ),
    Product.VENICE: _Facts(
        models=((0x1A, 0x50, 0x5F), (0x1A, 0x90, 0xAF), (0x1A, 0xC0, 0xCF)),
        tcb_layout=TcbLayout.VENICE,
        hwid_size=8,  # virtee/snpguest pull request 159
        oldest_report_version=3,  # version 2 was replaced before Venice
        ark_spki_sha384=None,
        ark_certificate_sha384=None,
    ),
}


@dataclass(frozen=True, slots=True)
class Cpuid:
    """Family, model and stepping of a processor.

    They are the combined values of CPUID leaf 0x80000001, each 0 to 255.
    """

    family: int
    model: int
    stepping: int


@functools.lru_cache(maxsize=64)
def product_of_cpuid(family: int, model: int) -> Product | None:
    """Return the product with this combined CPUID family and model; None if unknown."""
    for product in Product:
        for known_family, first, last in product.models:
            if family == known_family and first <= model <= last:
                return product
    return None


def product_of_name(name: str) -> Product | None:
    """Return the product of a certificate's productName, such as ``Milan-B0`` or ``Turin``.

    Only the text before the dash matters, because certificates of B1 processors contain B0.
    """
    stem = name.partition("-")[0]
    return next((product for product in Product if product.value == stem), None)


def product_of_keyword(text: str) -> Product | None:
    """Return the product with this keyword, in upper or lower case; None if unknown."""
    return next((product for product in Product if product.keyword == text.lower()), None)


def products_of_chip_id(chip_id: bytes) -> tuple[Product, ...]:
    """Return the products that a version 2 report with this 64-byte chip ID may come from.

    The most likely one comes first. Such a report does not name its product, but zeros at the end
    of the 64 bytes show that the product's chip IDs are shorter.
    """
    candidates = [product for product in Product if product.oldest_report_version < 3]
    longest = max(product.hwid_size for product in candidates)
    sizes = sorted({product.hwid_size for product in candidates} - {longest})
    size = next((each for each in sizes if not any(chip_id[each:])), longest)
    return tuple(product for product in candidates if product.hwid_size == size)


def hwid_of_chip_id(chip_id: bytes, product: Product) -> bytes:
    """Return the significant bytes of a 64-byte chip ID from a report of ``product``."""
    return chip_id[: product.hwid_size]
