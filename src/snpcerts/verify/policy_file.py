# SPDX-License-Identifier: Apache-2.0
"""Reads policies from TOML files. An unknown key or value is an error that names the line.

The keys are the fields of :class:`~snpcerts.verify.policy.Policy`. Bytes are hexadecimal text,
versions are text such as ``"1.55"``, and ages are text such as ``"12h"``. A bit is true, false, or
``"any"`` if either value is accepted. Apart from the default demands, a policy requires only what
the file contains. Floors of a product are in the product's table::

    report_data = "0011..."
    measurements = ["7a1e...", "8922..."]
    vmpls = [0]

    [guest_policy]
    debug = false

    [minimum_tcb.milan]
    bootloader = 4
    tee = 0
    snp = 24
    microcode = 219

A floor for a single processor names the processor by its code name or its CPUID values, and
only the required components::

    [[floors]]
    processor = "bergamo"
    microcode = 27

    [[floors]]
    cpuid = { family = 0x19, model = 0x11, stepping = 1 }
    snp = 27
    microcode = 86
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from datetime import timedelta
from typing import Any, Final

from snpcerts.abi.processor_names import MAX_STEPPING, PROCESSORS, CpuidRange
from snpcerts.abi.product import Product, product_of_keyword
from snpcerts.abi.report import SigningKey
from snpcerts.abi.tcb import TcbVersion
from snpcerts.errors import InputError, SnpCertsError
from snpcerts.toml_file import Path, TomlFileError, line_of, read_toml
from snpcerts.verify.policy import (
    GuestPolicyBits,
    PlatformInfoBits,
    Policy,
    ProcessorFloor,
    Revocation,
    TcbFloor,
    WithoutCpuid,
)

MAX_POLICY_FILE: Final = 64 << 10
_ANY: Final = "any"
_VERSION = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){1,2}")
_AGE = re.compile(r"([0-9]{1,5})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

_Reader = Callable[[Any], Any]


class PolicyFileError(InputError):
    """A policy file cannot be used. ``line`` is the line of the error, counted from 1, or None if
    unknown.
    """

    code = "policy-file"

    def __init__(self, problem: str, path: Path = (), line: int | None = None) -> None:
        where = "policy" if line is None else f"policy, line {line}"
        name = f"{_name(path)}: " if path else ""
        super().__init__(f"{where}: {name}{problem}")
        self.path = path
        self.line = line


class _ProblemError(Exception):
    """A value in a policy file is wrong. The line number is not yet known."""

    def __init__(self, problem: str, path: Path = ()) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = path


def read_policy(data: bytes | str) -> Policy:
    """Return the policy in the content of a TOML file.

    Raises :class:`PolicyFileError`, which names the line, for anything that is not a policy: text
    that is not TOML, an unknown key, a value of the wrong type or size, or a TCB that lacks a
    component.
    """
    try:
        parsed, text = read_toml(data, MAX_POLICY_FILE)
    except TomlFileError as error:
        raise PolicyFileError(error.problem, line=error.line) from None
    try:
        return _policy(parsed)
    except _ProblemError as problem:
        line = line_of(text, problem.path)
        raise PolicyFileError(problem.problem, problem.path, line) from None


def read_age(text: str) -> timedelta:
    """Parse an age such as ``90m``, ``12h`` or ``7d``. Raises :class:`ValueError` for other
    text.
    """
    match = _AGE.fullmatch(text)
    if match is None or not int(match[1]):
        raise ValueError('expected an age such as "90m", "12h" or "7d"')
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _policy(parsed: Mapping[str, Any]) -> Policy:
    values: dict[str, Any] = {}
    for key, value in parsed.items():
        reader = _READERS.get(key)
        if reader is None:
            raise _ProblemError(
                f"unknown key; known keys are {', '.join(sorted(_READERS))}", (key,)
            )
        try:
            values[key] = reader(value)
            # Check each demand separately, so that an error can name the demand's line.
            Policy(**{key: values[key]})
        except _ProblemError as problem:
            raise _ProblemError(problem.problem, (key, *problem.path)) from None
        except SnpCertsError as error:
            raise _ProblemError(error.message.removeprefix(f"{key}: "), (key,)) from None
    return Policy(**values)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _ProblemError(f"expected text, found {_shown(value)}")
    return value


def _bytes(value: Any) -> bytes:
    text = _text(value)
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise _ProblemError(f"expected hexadecimal text, found {_shown(text)}") from None


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _ProblemError(f"expected a whole number, found {_shown(value)}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _ProblemError(f"expected true or false, found {_shown(value)}")
    return value


def _bit(value: Any) -> bool | None:
    if value == _ANY:
        return None
    if not isinstance(value, bool):
        raise _ProblemError(f'expected true, false or "any", found {_shown(value)}')
    return value


def _version(value: Any) -> tuple[int, ...]:
    text = _text(value)
    if _VERSION.fullmatch(text) is None:
        raise _ProblemError(f'expected a version such as "1.55" or "1.55.29", found {_shown(text)}')
    return tuple(map(int, text.split(".")))


def _age(value: Any) -> timedelta:
    text = _text(value)
    try:
        return read_age(text)
    except ValueError as error:
        raise _ProblemError(f"{error}, found {_shown(text)}") from None


def _list_of(reader: _Reader) -> _Reader:
    def read(value: Any) -> tuple[Any, ...]:
        return tuple(map(reader, value if isinstance(value, list) else [value]))

    return read


def _table(value: Any, known: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise _ProblemError(f"expected a table, found {_shown(value)}")
    for key, each in value.items():
        if key not in known:
            hint = (
                "; for a floor of one processor, write a table [[floors]]"
                if key in PROCESSORS
                else ""
            )
            raise _ProblemError(f"unknown key; known keys are {', '.join(known)}{hint}", (key,))
        yield key, each


def _bits(kind: type[GuestPolicyBits] | type[PlatformInfoBits]) -> _Reader:
    names = {field.name: None for field in fields(kind)}

    def read(value: Any) -> GuestPolicyBits | PlatformInfoBits:
        bits: dict[str, bool | None] = {}
        for key, each in _table(value, names):
            bits[key] = _below(key, _bit, each)
        return kind(**bits)

    return read


def _floor(value: Any) -> TcbFloor:
    products = {product.keyword: product for product in Product}
    floors: dict[str, TcbVersion] = {}
    for key, table in _table(value, products):
        floors[key] = _below(key, functools.partial(_tcb, product=products[key]), table)
    return TcbFloor(**floors)


def _tcb(value: Any, product: Product) -> TcbVersion:
    names = product.tcb_layout.components
    components: dict[str, int] = {}
    for key, each in _table(value, dict.fromkeys(names)):
        components[key] = _below(key, _component, each)
    for name in names:
        if name not in components:
            raise _ProblemError(
                f"expected a floor with every component of the TCB, found no {name}"
            )
    return TcbVersion.of(components)


def _component(value: Any) -> int:
    number = _number(value)
    if not 0 <= number <= 255:
        raise _ProblemError(f"expected a number from 0 to 255, found {number}")
    return number


_FLOOR_KEYS: Final = dict.fromkeys(
    ("processor", "cpuid", "fmc", "bootloader", "tee", "snp", "microcode", "bulletins")
)


def _floors(value: Any) -> tuple[ProcessorFloor, ...]:
    if not isinstance(value, list):
        raise _ProblemError(f"expected a table [[floors]] for each floor, found {_shown(value)}")
    return tuple(_below(index, _processor_floor, each) for index, each in enumerate(value))


def _processor_floor(value: Any) -> ProcessorFloor:
    read: dict[str, Any] = {}
    for key, each in _table(value, _FLOOR_KEYS):
        reader = {"processor": _processor, "cpuid": _cpuid, "bulletins": _list_of(_text)}.get(
            key, _component
        )
        read[key] = _below(key, reader, each)
    name, cpuid = read.pop("processor", None), read.pop("cpuid", None)
    if (name is None) == (cpuid is None):
        raise _ProblemError("expected either processor or cpuid in a floor, found both or neither")
    processors = cpuid if name is None else PROCESSORS[name]
    try:
        return ProcessorFloor(processors=processors, name=name or "", **read)
    except SnpCertsError as error:
        raise _ProblemError(error.message) from None


def _processor(value: Any) -> str:
    text = _text(value).lower()
    if text not in PROCESSORS:
        raise _ProblemError(f"expected one of {', '.join(PROCESSORS)}, found {_shown(text)}")
    return text


def _cpuid(value: Any) -> CpuidRange:
    known = dict.fromkeys(("family", "model", "stepping"))
    read = dict(_table(value, known))
    for key in ("family", "model"):
        if key not in read:
            raise _ProblemError(f"expected the key {key}, found no such key")
    family = _below("family", _component, read["family"])
    models = _below("model", _span, read["model"])
    steppings = _below("stepping", _span, read.get("stepping", [0, MAX_STEPPING]))
    return CpuidRange(family, models, steppings)


def _span(value: Any) -> tuple[int, int]:
    """Return the first and the last number of a range, which is a list of the two or a single
    number.
    """
    if isinstance(value, list):
        if len(value) != 2:
            raise _ProblemError(f"expected a number or [first, last], found {_shown(value)}")
        return _component(value[0]), _component(value[1])
    return _component(value), _component(value)


def _product(value: Any) -> Product:
    product = product_of_keyword(_text(value))
    if product is None:
        known = ", ".join(each.keyword for each in Product)
        raise _ProblemError(f"expected one of {known}, found {_shown(value)}")
    return product


def _below(key: str | int, reader: _Reader, value: Any) -> Any:
    try:
        return reader(value)
    except _ProblemError as problem:
        raise _ProblemError(problem.problem, (key, *problem.path)) from None


def _one_of(choices: Mapping[str, Any]) -> _Reader:
    def read(value: Any) -> Any:
        text = _text(value)
        if text not in choices:
            raise _ProblemError(f"expected one of {', '.join(choices)}, found {_shown(text)}")
        return choices[text]

    return read


_READERS: Final[dict[str, _Reader]] = {
    "products": _list_of(_product),
    "signing_key": _one_of({"vcek": SigningKey.VCEK, "vlek": SigningKey.VLEK}),
    "chip_ids": _list_of(_bytes),
    "csp_ids": _list_of(_text),
    "report_data": _bytes,
    "user_data": _bytes,
    "measurements": _list_of(_bytes),
    "host_data": _bytes,
    "id_key_digests": _list_of(_bytes),
    "author_key_digests": _list_of(_bytes),
    "family_id": _bytes,
    "image_id": _bytes,
    "minimum_guest_svn": _number,
    "vmpls": _list_of(_number),
    "guest_policy": _bits(GuestPolicyBits),
    "minimum_policy_abi": _version,
    "platform_info": _bits(PlatformInfoBits),
    "launch_mitigations": _number,
    "current_mitigations": _number,
    "minimum_firmware": _version,
    "minimum_committed_firmware": _version,
    "refuse_provisional_firmware": _flag,
    "minimum_tcb": _floor,
    "minimum_current_tcb": _floor,
    "minimum_committed_tcb": _floor,
    "minimum_launch_tcb": _floor,
    "floors": _floors,
    "floors_without_cpuid": _one_of({each.value: each for each in WithoutCpuid}),
    "allow_tcb_above_current": _flag,
    "allow_masked_chip_id": _flag,
    "revocation": _one_of({each.value: each for each in Revocation}),
    "maximum_crl_age": _age,
}

_SHOWN = 40


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _name(path: Path) -> str:
    parts = map(str, path)
    return ".".join(part if part.isprintable() and len(part) <= _SHOWN else "?" for part in parts)
