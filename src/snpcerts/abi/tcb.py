# SPDX-License-Identifier: Apache-2.0
"""TCB_VERSION: eight bytes, each a component's security patch level or reserved.

Source: SNP ABI (56860) section 2.2; Turin's layout as in virtee/sev and in genuine Turin
certificates. The eight bytes do not show which layout they have, so the caller must know the
product.

Venice's TCB has neither bootloader nor microcode. Source: virtee/sev pull request 396, whose
reviewer compared it with section 2.3 of the SNP ABI. The other three components are in the same
bytes as on Turin; release 8.0.0 of the crate ``sev`` reads them there. No genuine Venice report is
public.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NoReturn, Self

from snpcerts.errors import FormatError

TCB_SIZE = 8


class TcbLayout(enum.Enum):
    """Which component is in which byte of a TCB_VERSION. A layout is named after the first product
    that has it.
    """

    MILAN = "milan"
    TURIN = "turin"
    VENICE = "venice"

    @property
    def components(self) -> tuple[str, ...]:
        """The names of the components, in the order of their bytes."""
        return tuple(_BYTES[self])

    def problem(self, names: Collection[str]) -> str | None:
        """Return how the components ``names`` differ from the layout's, for example ``needs fmc``;
        None if they do not differ.
        """
        missing = [name for name in self.components if name not in names]
        unknown = [name for name in names if name not in self.components]
        parts = []
        if missing:
            parts.append(f"needs {', '.join(missing)}")
        if unknown:
            parts.append(f"has no {', '.join(unknown)}")
        return " and ".join(parts) or None


# The byte index of each component. The other bytes are reserved and zero.
_BYTES: dict[TcbLayout, dict[str, int]] = {
    TcbLayout.MILAN: {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
    TcbLayout.TURIN: {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7},
    TcbLayout.VENICE: {"fmc": 0, "tee": 2, "snp": 3},
}
_LAYOUTS = {frozenset(places): layout for layout, places in _BYTES.items()}


# Short names that people type, besides the components' own names.
SHORT_NAMES = {"bl": "bootloader", "tee": "tee", "snp": "snp", "ucode": "microcode", "fmc": "fmc"}
_NAMES = SHORT_NAMES | {name: name for name in SHORT_NAMES.values()}
SHORT_NAME_OF = {name: short for short, name in SHORT_NAMES.items()}
_PART = re.compile(r'"?([a-z]+)"?\s*[=:]\s*([0-9]{1,3})')
_RAW = re.compile(r"(?:0x)?([0-9a-fA-F]{16})")


@dataclass(frozen=True, slots=True)
class TcbVersion:
    """The components of a TCB_VERSION, each 0 to 255.

    A component is None exactly if the product does not have it: ``fmc`` on Milan and Genoa,
    ``bootloader`` and ``microcode`` on Venice. TCBs have no total order; use :meth:`covers`.
    """

    bootloader: int | None
    tee: int
    snp: int
    microcode: int | None
    fmc: int | None = None

    def __post_init__(self) -> None:
        components = self.components()
        for name, value in components.items():
            if not 0 <= value <= 255:
                raise FormatError("TCB_VERSION", f"expected 0 to 255, found {value}", field=name)
        if frozenset(components) not in _LAYOUTS:
            _misfit(components)

    @classmethod
    def of(cls, components: Mapping[str, int]) -> Self:
        """Return the TCB with these components, given by name.

        Raises :class:`FormatError` if no layout has exactly these components.
        """
        if frozenset(components) not in _LAYOUTS:
            _misfit(components)
        named = {name: components.get(name) for name in ("bootloader", "microcode", "fmc")}
        return cls(tee=components["tee"], snp=components["snp"], **named)

    @property
    def layout(self) -> TcbLayout:
        """The layout that has these components."""
        if self.fmc is None:
            return TcbLayout.MILAN
        return TcbLayout.VENICE if self.bootloader is None else TcbLayout.TURIN

    def components(self) -> dict[str, int]:
        """Return the name and the value of each component that is not None, ``fmc`` first."""
        named = {
            "fmc": self.fmc,
            "bootloader": self.bootloader,
            "tee": self.tee,
            "snp": self.snp,
            "microcode": self.microcode,
        }
        return {name: value for name, value in named.items() if value is not None}

    @classmethod
    def unpack(cls, data: bytes, layout: TcbLayout) -> Self:
        """Parse the eight bytes of a TCB in ``layout``.

        Raises :class:`FormatError` for another size or a non-zero reserved byte.
        """
        if len(data) != TCB_SIZE:
            raise FormatError("TCB_VERSION", f"expected {TCB_SIZE} bytes, found {len(data)}")
        places = _BYTES[layout]
        for index, value in enumerate(data):
            if value and index not in places.values():
                raise FormatError(
                    "TCB_VERSION",
                    f"the reserved byte is {value:#04x}; in the {layout.value} layout it must be 0",
                    offset=index,
                    hint="check the product: another product may lay out its TCB differently",
                )
        return cls.of({name: data[index] for name, index in places.items()})

    @classmethod
    def parse(cls, text: str, layout: TcbLayout | None = None) -> Self:
        """Parse a TCB in any form that commands print or people type.

        The forms are ``bootloader=4 tee=0 snp=24 microcode=219``, ``bl=4,tee=0,snp=24,ucode=219``,
        the JSON object, and the eight bytes in hexadecimal, in the order of a report. Only the last
        form needs a ``layout``. Raises :class:`FormatError` for anything else, and for a component
        that is missing, repeated or not in the layout.
        """
        raw = _RAW.fullmatch(text.strip())
        if raw is not None:
            if layout is None:
                raise FormatError(
                    "TCB",
                    (
                        "cannot read eight raw bytes: their order depends on the product, which "
                        "is not known"
                    ),
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
                    f"cannot read {part[:40]!r}: expected NAME=VALUE, and each name only once",
                    hint="write bl=4,tee=0,snp=24,ucode=219; on Turin, add fmc=1; "
                    "on Venice, write fmc=1,tee=0,snp=4",
                )
            values[name] = int(match[2])
        tcb = cls.of(values)
        problem = None if layout is None else layout.problem(values)
        if problem is not None:
            raise FormatError("TCB", f"a TCB of this product {problem}")
        return tcb

    def pack(self) -> bytes:
        """Return the eight bytes in this value's layout."""
        out = bytearray(TCB_SIZE)
        for name, value in self.components().items():
            out[_BYTES[self.layout][name]] = value
        return bytes(out)

    def covers(self, other: TcbVersion) -> bool:
        """Return whether every component is at least as high as the same component of ``other``.

        Raises :class:`FormatError` if the two have different layouts, because such TCBs cannot be
        compared.
        """
        if self.layout is not other.layout:
            raise FormatError(
                "TCB_VERSION", "the two TCBs have different layouts, so they cannot be compared"
            )
        mine, theirs = self.components(), other.components()
        return all(mine[name] >= theirs[name] for name in mine)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.components().items())


def _misfit(components: Collection[str]) -> NoReturn:
    """Raise an error that says how ``components`` differ from those of the closest layout."""
    places = min(_BYTES.values(), key=lambda each: len(each.keys() ^ set(components)))
    for name in places:
        if name not in components:
            raise FormatError(
                "TCB", f"{SHORT_NAME_OF[name]} is missing; every component needs a value"
            )
    extra = ", ".join(name for name in components if name not in places)
    raise FormatError("TCB", f"no product has a TCB with both {extra} and {', '.join(places)}")
