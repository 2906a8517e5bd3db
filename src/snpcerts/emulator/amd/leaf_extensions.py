# SPDX-License-Identifier: Apache-2.0
"""AMD's extensions in VCEK and VLEK certificates.

Source: the genuine certificates; KDS (57230) chapter 3. The extensions are in the same
order as in the genuine certificates; the order differs between structure versions 0 and 1.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509

from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbLayout, TcbVersion
from snpcerts.emulator.psp.chip_model import CHIP_MODELS
from snpcerts.errors import UsageError

ARC: Final = "1.3.6.1.4.1.3704.1"
MAX_TEXT: Final = 127  # the maximum of a one-byte DER length

_STRUCT_VERSION = {TcbLayout.MILAN: 0, TcbLayout.TURIN: 1}
# For each patch level: the last part of its OID, and its TCB component. None marks a reserved
# level, which is always 0.
_LEVELS: dict[TcbLayout, tuple[tuple[str, str | None], ...]] = {
    TcbLayout.MILAN: (
        ("3.1", "bootloader"),
        ("3.2", "tee"),
        ("3.4", None),
        ("3.5", None),
        ("3.6", None),
        ("3.7", None),
        ("3.3", "snp"),
        ("3.8", "microcode"),
    ),
    TcbLayout.TURIN: (
        ("3.9", "fmc"),
        ("3.1", "bootloader"),
        ("3.2", "tee"),
        ("3.3", "snp"),
        ("3.5", None),
        ("3.6", None),
        ("3.7", None),
        ("3.8", "microcode"),
    ),
}


def vcek_extensions(
    product: Product, tcb: TcbVersion, hwid: bytes
) -> tuple[x509.UnrecognizedExtension, ...]:
    """Return the extensions of a VCEK certificate. hwID holds raw bytes, without an ASN.1 tag."""
    if len(hwid) != product.hwid_size:
        raise UsageError(
            f"hwID of {product.value}: expected {product.hwid_size} bytes, found {len(hwid)}"
        )
    return (*_common(product, tcb, CHIP_MODELS[product].vcek_product_name), _extension("4", hwid))


def vlek_extensions(
    product: Product, tcb: TcbVersion, csp_id: str
) -> tuple[x509.UnrecognizedExtension, ...]:
    """Return the extensions of a VLEK certificate: cspID takes the place of the VCEK's hwID."""
    return (*_common(product, tcb, product.value), _extension("5", _ia5(csp_id)))


def _common(
    product: Product, tcb: TcbVersion, product_name: str
) -> tuple[x509.UnrecognizedExtension, ...]:
    layout = product.tcb_layout
    if tcb.layout is not layout:
        raise UsageError(f"TCB {tcb} does not have {product.value}'s TCB layout")
    components = tcb.components()
    return (
        _extension("1", _integer(_STRUCT_VERSION[layout])),
        _extension("2", _ia5(product_name)),
        *(
            _extension(suffix, _integer(components[name] if name else 0))
            for suffix, name in _LEVELS[layout]
        ),
    )


def _extension(suffix: str, value: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(f"{ARC}.{suffix}"), value)


def _integer(value: int) -> bytes:
    # DER: values from 128 to 255 need a leading zero byte; without it they would be negative.
    content = value.to_bytes(value.bit_length() // 8 + 1, "big")
    return bytes((0x02, len(content))) + content


def _ia5(text: str) -> bytes:
    if not text.isascii() or not 0 < len(text) <= MAX_TEXT:
        raise UsageError(
            f"text of an extension: expected 1 to {MAX_TEXT} ASCII characters, found {text!r}"
        )
    return bytes((0x16, len(text))) + text.encode("ascii")
