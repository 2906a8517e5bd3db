# SPDX-License-Identifier: Apache-2.0
"""TCB_VERSION: eight security patch levels in eight bytes.

Source: SNP ABI (56860) section 2.2; the layout of Turin as in virtee/sev and in genuine Turin
certificates. Nothing in the eight bytes says which layout they have: the caller must know the
product.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Self

from snpcerts.errors import FormatError

TCB_SIZE = 8


class TcbLayout(enum.Enum):
    """The component in each byte of a TCB_VERSION, by the first product with that layout."""

    MILAN = "milan"
    TURIN = "turin"

    @property
    def components(self) -> tuple[str, ...]:
        """The names of the components, in the order of their bytes."""
        return tuple(_BYTES[self])

    @property
    def has_fmc(self) -> bool:
        """Whether the layout has a component for the FMC."""
        return "fmc" in _BYTES[self]


# Byte index of each component; the other bytes are reserved and zero.
_BYTES: dict[TcbLayout, dict[str, int]] = {
    TcbLayout.MILAN: {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
    TcbLayout.TURIN: {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7},
}


# Short names that people type, beside the components' own names.
SHORT_NAMES = {"bl": "bootloader", "tee": "tee", "snp": "snp", "ucode": "microcode", "fmc": "fmc"}
_NAMES = SHORT_NAMES | {name: name for name in SHORT_NAMES.values()}
_PART = re.compile(r'"?([a-z]+)"?\s*[=:]\s*([0-9]{1,3})')
_RAW = re.compile(r"(?:0x)?([0-9a-fA-F]{16})")


@dataclass(frozen=True, slots=True)
class TcbVersion:
    """The components of a TCB_VERSION, each 0 to 255.

    ``fmc`` is None exactly where the product has no such component. TCBs have no
    total order: use :meth:`covers`.
    """

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.components().items():
            if not 0 <= value <= 255:
                raise FormatError("TCB_VERSION", f"{value} is not 0 to 255", field=name)

    @property
    def layout(self) -> TcbLayout:
        """The layout of this value."""
        return TcbLayout.MILAN if self.fmc is None else TcbLayout.TURIN

    def components(self) -> dict[str, int]:
        """Return the components' names and values; ``fmc`` comes first, if it exists."""
        named = {} if self.fmc is None else {"fmc": self.fmc}
        return named | {
            "bootloader": self.bootloader,
            "tee": self.tee,
            "snp": self.snp,
            "microcode": self.microcode,
        }

    @classmethod
    def unpack(cls, data: bytes, layout: TcbLayout) -> Self:
        """Read eight bytes; raise :class:`FormatError` for another size or a non-zero reserved
        byte.
        """
        if len(data) != TCB_SIZE:
            raise FormatError("TCB_VERSION", f"needs {TCB_SIZE} bytes, found {len(data)}")
        places = _BYTES[layout]
        for index, value in enumerate(data):
            if value and index not in places.values():
                raise FormatError(
                    "TCB_VERSION",
                    f"reserved byte is {value:#04x}, must be 0 in the {layout.value} layout",
                    offset=index,
                    hint="the value may belong to another product",
                )
        return cls(**{name: data[index] for name, index in places.items()})

    @classmethod
    def parse(cls, text: str, layout: TcbLayout | None = None) -> Self:
        """Read a TCB in any form that commands print or people type.

        ``bootloader=4 tee=0 snp=24 microcode=219``, ``bl=4,tee=0,snp=24,ucode=219``, the JSON
        object, or the eight bytes in hexadecimal, in the order of a report; only these need a
        ``layout``. Raises :class:`FormatError` for anything else, and for a component that is
        missing, repeated or not in the layout.
        """
        raw = _RAW.fullmatch(text.strip())
        if raw is not None:
            if layout is None:
                raise FormatError(
                    "TCB",
                    "eight bytes without a product: name the product, which decides their order",
                )
            return cls.unpack(bytes.fromhex(raw[1]), layout)
        values: dict[str, int] = {}
        bare = text.strip().removeprefix("{").removesuffix("}")
        for part in re.split(r",\s*|(?<![:=\s])\s+(?![:=\s])", bare.strip()):
            match = _PART.fullmatch(part)
            name = None if match is None else _NAMES.get(match[1])
            if match is None or name is None or name in values:
                raise FormatError(
                    "TCB",
                    f"cannot read {part[:40]!r}",
                    hint="as in bl=4,tee=0,snp=24,ucode=219, on Turin with fmc=1",
                )
            values[name] = int(match[2])
        for short, name in SHORT_NAMES.items():
            if name not in values and name != "fmc":
                raise FormatError("TCB", f"{short} is missing; name every component")
        if layout is not None and ("fmc" in values) != layout.has_fmc:
            needs = "needs" if layout.has_fmc else "has no"
            raise FormatError("TCB", f"a TCB of this product {needs} fmc")
        return cls(**values)

    def pack(self) -> bytes:
        """Return the eight bytes in this value's layout."""
        out = bytearray(TCB_SIZE)
        for name, value in self.components().items():
            out[_BYTES[self.layout][name]] = value
        return bytes(out)

    def covers(self, other: TcbVersion) -> bool:
        """Whether every component is at least as high as the other's.

        Raises :class:`FormatError` if the two have different layouts, because those cannot be
        compared.
        """
        if self.layout is not other.layout:
            raise FormatError("TCB_VERSION", "cannot compare TCBs of two products")
        mine, theirs = self.components(), other.components()
        return all(mine[name] >= theirs[name] for name in mine)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.components().items())
