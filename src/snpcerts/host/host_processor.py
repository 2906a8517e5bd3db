# SPDX-License-Identifier: Apache-2.0
"""Finds the product of this host's processor, because ``/dev/sev`` does not report it.

Source: proc_cpuinfo(5), which shows the combined family and model of CPUID leaf 0x80000001.
"""

from __future__ import annotations

import re

from snpcerts.abi.product import Cpuid, Product, product_of_cpuid
from snpcerts.errors import RefusedError

CPUINFO = "/proc/cpuinfo"
_LIMIT = 8192  # bytes; the first processor's part is enough
_HINT = "set the product with --product, or as product in the configuration file"


def product_of_host(path: str = CPUINFO) -> Product:
    """Return the product of the first processor in ``path``. Raises :class:`RefusedError` if the
    file cannot be read, or if snpcerts does not support the processor.
    """
    vendor, family, model, _ = _processor(path)
    if vendor == "AuthenticAMD" and family.isdecimal() and model.isdecimal():
        product = product_of_cpuid(int(family), int(model))
        if product is not None and not product.is_pinned:
            raise RefusedError(f"{path}: {product.unpinned_text}")
        if product is not None:
            return product
    raise RefusedError(
        f"{path}: {vendor or 'a processor without a name'} family {family or '?'} model "
        f"{model or '?'} is not a known SEV-SNP processor",
        hint=_HINT,
    )


def cpuid_of_host(path: str = CPUINFO) -> Cpuid | None:
    """Return the family, model and stepping of the first processor.

    None if the processor is not AMD's or ``path`` does not contain these numbers.
    """
    try:
        vendor, *numbers = _processor(path)
    except RefusedError:
        return None
    if vendor != "AuthenticAMD" or not all(re.fullmatch(r"[0-9]{1,3}", each) for each in numbers):
        return None
    family, model, stepping = map(int, numbers)
    return Cpuid(family, model, stepping) if max(family, model, stepping) < 256 else None


def _processor(path: str) -> tuple[str, str, str, str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(_LIMIT)
    except OSError as error:
        raise RefusedError(f"{path}: {error.strerror}", hint=_HINT) from None
    vendor, family, model, stepping = (
        _field(text, name) for name in ("vendor_id", "cpu family", "model", "stepping")
    )
    return vendor, family, model, stepping


def _field(text: str, name: str) -> str:
    match = re.search(rf"^{name}\s*: *(.*?) *$", text, re.MULTILINE)
    return "" if match is None else match[1]
