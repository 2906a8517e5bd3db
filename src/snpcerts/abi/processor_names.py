# SPDX-License-Identifier: Apache-2.0
"""Processors by their code names, as ranges of CPUID family, model and stepping.

A product has one root key, but its processors may have different microcode with separate numbering.
For example, the microcode levels of Genoa and Bergamo cannot be compared.

Sources: the patch levels in Linux, arch/x86/kernel/cpu/microcode/amd.c (0x0A0011xx is Milan,
0x0A0012xx Milan-X, 0x0A1011xx Genoa, 0x0A1012xx Genoa-X, 0x0AA002xx Bergamo and Siena, 0x0B0021xx
Turin, 0x0B1010xx Turin Dense); family and model ranges as in :mod:`snpcerts.abi.product`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from snpcerts.abi.product import Product, product_of_cpuid

MAX_STEPPING: Final = 15


@dataclass(frozen=True, slots=True)
class CpuidRange:
    """A range of processors of one family. ``models`` and ``steppings`` are each (first, last),
    inclusive.

    Family and model are the combined values of CPUID leaf 0x80000001, as reports of version 3 and
    later contain them.
    """

    family: int
    models: tuple[int, int]
    steppings: tuple[int, int] = (0, MAX_STEPPING)

    def contains(self, family: int, model: int, stepping: int) -> bool:
        """Return whether the processor with these CPUID values is in the range."""
        return (
            family == self.family
            and self.models[0] <= model <= self.models[1]
            and self.steppings[0] <= stepping <= self.steppings[1]
        )

    @property
    def products(self) -> frozenset[Product]:
        """The products that these processors belong to."""
        models = range(self.models[0], self.models[1] + 1)
        found = (product_of_cpuid(self.family, model) for model in models)
        return frozenset(product for product in found if product is not None)

    def __str__(self) -> str:
        def span(numbers: tuple[int, int]) -> str:
            first, last = numbers
            return f"{first:#x}" if first == last else f"{first:#x} to {last:#x}"

        return f"family {self.family:#x}, model {span(self.models)}, stepping " + (
            "any" if self.steppings == (0, MAX_STEPPING) else span(self.steppings)
        )


# Steppings after those listed are unknown and have no name.
PROCESSORS: Final = MappingProxyType(
    {
        "milan": CpuidRange(0x19, (0x00, 0x0F), (0, 1)),
        "milan-x": CpuidRange(0x19, (0x00, 0x0F), (2, 2)),
        "genoa": CpuidRange(0x19, (0x10, 0x1F), (0, 1)),
        "genoa-x": CpuidRange(0x19, (0x10, 0x1F), (2, 2)),
        "bergamo": CpuidRange(0x19, (0xA0, 0xAF), (0, 2)),
        "siena": CpuidRange(0x19, (0xA0, 0xAF), (0, 2)),
        "turin": CpuidRange(0x1A, (0x00, 0x0F), (0, 1)),
        "turin-dense": CpuidRange(0x1A, (0x10, 0x11), (0, 0)),
    }
)


def processor_names(family: int, model: int, stepping: int) -> tuple[str, ...]:
    """Return the code names of the processor with these CPUID values.

    The result has several names if CPUID cannot distinguish these processors (Bergamo and Siena).
    """
    return tuple(
        name for name, each in PROCESSORS.items() if each.contains(family, model, stepping)
    )
