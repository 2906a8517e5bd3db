# SPDX-License-Identifier: Apache-2.0
"""AMD's security bulletins, and the policies that they require.

The data is in ``bulletins.toml`` beside this file, with its date. Each value comes with the public
sources that agree on it.
"""

from __future__ import annotations

import datetime as dt
import functools
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from snpcerts.abi.processor_names import PROCESSORS, processor_names
from snpcerts.abi.product import Product, product_of_keyword
from snpcerts.abi.report import Report
from snpcerts.errors import UsageError
from snpcerts.verify.policy import ProcessorFloor
from snpcerts.verify.verdict import ReportTcbs

# Every year, AMD publishes several bulletins on SEV-SNP, so an older list may lack some.
OLD_AFTER: Final = dt.timedelta(days=180)


@dataclass(frozen=True, slots=True)
class BulletinFloor:
    """The lowest accepted value of one TCB component on some processors."""

    processors: tuple[str, ...]
    component: str
    value: int
    sources: tuple[str, ...]
    confirmed: bool


@dataclass(frozen=True, slots=True)
class RequiredBit:
    """A bit that must have a certain value in reports. ``key`` is the bit's table and key in a
    policy file.
    """

    key: str
    value: bool
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bulletin:
    """One of AMD's security bulletins, and what it requires of reports.

    ``required`` applies to ``products``. ``refused`` lists products for which no field of a report
    can show that they are safe. ``gaps`` describes what a policy cannot require.
    """

    id: str
    attacks: tuple[str, ...]
    cves: tuple[str, ...]
    floors: tuple[BulletinFloor, ...]
    required: tuple[RequiredBit, ...]
    products: frozenset[Product]
    refused: frozenset[Product]
    gaps: str

    @property
    def name(self) -> str:
        """The bulletin's id and its attacks, as in ``AMD-SB-3019 (EntrySign)``."""
        return f"{self.id} ({', '.join(self.attacks)})" if self.attacks else self.id

    def below(self, report: Report, tcbs: ReportTcbs) -> tuple[str, ...]:
        """Return one phrase for each confirmed floor that a TCB of the report is below.

        The result is empty for a version 2 report, which does not name its processor.
        """
        fields = report.fields
        if fields.version < 3:
            return ()
        names = processor_names(fields.cpuid_family, fields.cpuid_model, fields.cpuid_stepping)
        return tuple(
            f"{which} {floor.component} {value} is below {floor.value}"
            for floor in self.floors
            if floor.confirmed and set(names) & set(floor.processors)
            for which, tcb in (("reported", tcbs.reported), ("current", tcbs.current))
            if tcb is not None
            and (value := tcb.components().get(floor.component)) is not None
            and value < floor.value
        )


@dataclass(frozen=True, slots=True)
class Inexpressible:
    """Attacks, and why no field of a report shows whether the host is protected against them."""

    attacks: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class BulletinData:
    """The content of the data file. ``sources`` maps each source's short name to its
    description.
    """

    date: dt.date
    bulletins: tuple[Bulletin, ...]
    inexpressible: tuple[Inexpressible, ...]
    sources: Mapping[str, str]

    def find(self, name: str) -> Bulletin:
        """Find a bulletin by its id, with or without ``AMD-``, or by the name of an attack.

        Raises :class:`UsageError` if the name is unknown or no policy can require protection
        against the attack.
        """
        wanted = name.lower().removeprefix("amd-")
        for bulletin in self.bulletins:
            names = (bulletin.id.removeprefix("AMD-"), *bulletin.attacks)
            if wanted in (each.lower() for each in names):
                return bulletin
        for each in self.inexpressible:
            if wanted in (attack.lower() for attack in each.attacks):
                raise UsageError(
                    f"{name}: no policy can require protection against this attack", hint=each.why
                )
        known = ", ".join(bulletin.name for bulletin in self.bulletins)
        raise UsageError(f"expected one of the bulletins {known}, found {name[:40]!r}")

    def age_problem(self, today: dt.date) -> str | None:
        """Return a warning if the data is old on the day ``today``, otherwise None."""
        age = today - self.date
        if age <= OLD_AFTER:
            return None
        return (
            f"the list of bulletins is from {self.date}, {age.days} days ago. AMD may have "
            "published more since then: update snpcerts"
        )


@functools.cache
def bulletin_data() -> BulletinData:
    """Return the bulletins that come with this release."""
    text = files("snpcerts.verify").joinpath("bulletins.toml").read_text(encoding="utf-8")
    return read_bulletins(text)


def read_bulletins(text: str) -> BulletinData:
    """Parse the text of a data file. Raises the errors of :mod:`tomllib`, KeyError and
    ValueError.
    """
    data = tomllib.loads(text)
    bulletins = tuple(map(_bulletin, data["bulletin"]))
    inexpressible = tuple(
        Inexpressible(tuple(each["attacks"]), each["why"]) for each in data["inexpressible"]
    )
    return BulletinData(data["date"], bulletins, inexpressible, data["sources"])


def _bulletin(table: Mapping[str, Any]) -> Bulletin:
    floors = tuple(
        BulletinFloor(
            tuple(each["processors"]),
            each["component"],
            each["value"],
            tuple(each["sources"]),
            confirmed,
        )
        for key, confirmed in (("floor", True), ("unconfirmed", False))
        for each in table.get(key, ())
    )
    required = tuple(
        RequiredBit(each["key"], each["value"], tuple(each["sources"]))
        for each in table.get("require", ())
    )
    return Bulletin(
        table["id"],
        tuple(table["attacks"]),
        tuple(table.get("cves", ())),
        floors,
        required,
        _products(table.get("products", [each.keyword for each in Product if each.is_pinned])),
        _products(table.get("refuse", ())),
        table.get("gaps", ""),
    )


def _products(names: Iterable[str]) -> frozenset[Product]:
    found = {name: product_of_keyword(name) for name in names}
    unknown = [name for name, product in found.items() if product is None]
    if unknown:
        raise ValueError(f"expected known products, found {', '.join(map(repr, unknown))}")
    return frozenset(product for product in found.values() if product is not None)


def policy_text(
    bulletins: Iterable[Bulletin], products: Iterable[Product], *, unconfirmed: bool = False
) -> str:
    """Return the text of a policy file that requires the fixes of these bulletins, for these
    products.

    For each component, a processor's floor is the highest value in any of the bulletins. A
    processor without a value in any bulletin gets no floor and is refused. Raises
    :class:`UsageError` if nothing is left to require.
    """
    chosen, accepted = tuple(bulletins), list(products)
    for bulletin in chosen:
        accepted = [each for each in accepted if each not in bulletin.refused]
    if not accepted:
        raise UsageError("no policy can be written: the bulletins rule out every product named")
    bits = _bits(chosen, accepted)
    floors = list(_floors(chosen, accepted, unconfirmed))
    if not bits and not floors and not any(bulletin.refused for bulletin in chosen):
        names = ", ".join(bulletin.name for bulletin in chosen)
        raise UsageError(
            f"no policy can be written: the values required by {names} are not known for "
            f"{', '.join(each.value for each in accepted)}",
            hint="see the known values with 'snpcerts policy bulletins'",
        )
    lines = [f"# For {', '.join(bulletin.name for bulletin in chosen)}."]
    lines += [f"# {bulletin.id}: {bulletin.gaps}" for bulletin in chosen if bulletin.gaps]
    lines.append("# Add report_data, measurements and other keys here, above the tables.")
    lines.append(f"products = [{', '.join(_toml_string(each.keyword) for each in accepted)}]")
    for table in ("guest_policy", "platform_info"):
        listed = [(key, value) for (where, key), value in bits.items() if where == table]
        if listed:
            lines += ["", f"[{table}]", *(f"{key} = {str(value).lower()}" for key, value in listed)]
    for floor in floors:
        lines += ["", "[[floors]]", f"processor = {_toml_string(floor.name)}"]
        lines += [f"{name} = {value:#x}" for name, value in floor.components().items()]
        lines.append(f"bulletins = [{', '.join(map(_toml_string, floor.bulletins))}]")
    return "\n".join(lines) + "\n"


def _toml_string(text: str) -> str:
    """Return ``text`` as a TOML string. Names of products, processors and bulletins need no
    escapes.
    """
    return f'"{text}"'


def _bits(
    bulletins: Iterable[Bulletin], products: Iterable[Product]
) -> dict[tuple[str, str], bool]:
    """Return the bits that the bulletins require, by table and key. Raises :class:`UsageError` if
    one of the products cannot have these bits.
    """
    accepted = set(products)
    found: dict[tuple[str, str], bool] = {}
    for bulletin in bulletins:
        if bulletin.required and not accepted <= bulletin.products:
            lacking = ", ".join(sorted(each.value for each in accepted - bulletin.products))
            raise UsageError(
                f"{lacking} cannot meet what {bulletin.name} requires",
                hint="leave out these products: name only the others, with --product",
            )
        for bit in bulletin.required:
            table, _, key = bit.key.partition(".")
            found[table, key] = bit.value
    return found


def _floors(
    bulletins: Iterable[Bulletin], products: Iterable[Product], unconfirmed: bool
) -> Iterator[ProcessorFloor]:
    accepted = set(products)
    for name, cpuid in PROCESSORS.items():
        if not cpuid.products & accepted:
            continue
        asked: dict[str, int] = {}
        stated: dict[str, None] = {}
        for bulletin in bulletins:
            for floor in bulletin.floors:
                if name in floor.processors and (floor.confirmed or unconfirmed):
                    asked[floor.component] = max(floor.value, asked.get(floor.component, 0))
                    stated[bulletin.id] = None
        if asked:
            yield ProcessorFloor(processors=cpuid, name=name, bulletins=tuple(stated), **asked)
