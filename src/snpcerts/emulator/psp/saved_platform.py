# SPDX-License-Identifier: Apache-2.0
"""Converts an emulated platform to JSON values and back.

The values include the chip's secret in hexadecimal, but no guests: those end with the process that
emulates them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.psp.chip import HASHSTICK_SIZE, Chip, LoadedVlek
from snpcerts.emulator.psp.chip_model import CHIP_MODELS, ApiVersion, CpuId
from snpcerts.emulator.psp.choices import DOCUMENTED, choices_of
from snpcerts.emulator.psp.guest_messages import PspSnapshot
from snpcerts.emulator.psp.platform_state import PlatformState
from snpcerts.errors import InputError, SnpCertsError

_T = TypeVar("_T")

FORMAT: Final = "snpcerts emulated platform 2"
_FIRST_FORMAT: Final = "snpcerts emulated platform 1"


def write_platform(platform: PspSnapshot) -> dict[str, Any]:
    """Return ``platform`` as a dictionary of strings, numbers, lists and booleans."""
    state, cpuid = platform.state, platform.cpuid
    vlek = state.vlek
    return {
        "format": FORMAT,
        "product": state.product.value,
        "chip_secret": platform.chip.secret.hex(),
        "report_version": platform.report_version,
        "cpuid": [cpuid.family, cpuid.model, cpuid.stepping],
        "platform_info": platform.platform_info,
        "mit_vector": platform.mit_vector,
        "mit_supported": platform.mit_supported,
        "firmware": state.choices.name,
        "initialized": state.initialized,
        "initialisations": state.initialisations,
        "boots": state.boots,
        "current_tcb": state.current.pack().hex(),
        "committed_tcb": state.committed.pack().hex(),
        "config_tcb": None if state.config_tcb is None else state.config_tcb.pack().hex(),
        "vcek_tcb": state.vcek_tcb.pack().hex(),
        "version": _numbers(state.version),
        "committed_version": _numbers(state.committed_version),
        "mask_chip_id": state.mask_chip_id,
        "mask_chip_key": state.mask_chip_key,
        "vlek": None if vlek is None else [vlek.tcb.pack().hex(), vlek.hashstick.hex()],
    }


def read_platform(saved: Mapping[str, Any]) -> PspSnapshot:
    """Return the platform that ``saved``, a result of :func:`write_platform`, describes.

    Raises :class:`InputError` for anything else.
    """
    try:
        return _read(saved)
    except (KeyError, TypeError, ValueError, OverflowError, SnpCertsError) as error:
        raise InputError(
            f"the emulator's saved platform is not readable: {type(error).__name__}, {error}",
            hint="delete the saved platform to start with a new one",
        ) from error


def _read(saved: Mapping[str, Any]) -> PspSnapshot:
    if saved["format"] == _FIRST_FORMAT:
        saved = _from_first_format(saved)
    if saved["format"] != FORMAT:
        raise ValueError(f"format: expected {FORMAT!r}, found {saved['format']!r}")
    product = Product(saved["product"])
    report_version = _checked("report_version", saved["report_version"], int)
    if report_version not in CHIP_MODELS[product].firmware:
        raise ValueError(
            f"the emulator has no {product.value} firmware that writes reports of version "
            f"{report_version!r}"
        )

    def tcb_in(value: Any) -> TcbVersion:
        return TcbVersion.unpack(bytes.fromhex(value), product.tcb_layout)

    def tcb(name: str) -> TcbVersion:
        return tcb_in(saved[name])

    def flag(name: str) -> bool:
        return _checked(name, saved[name], bool)

    state = PlatformState(
        product=product,
        current=tcb("current_tcb"),
        committed=tcb("committed_tcb"),
        config_tcb=None if saved["config_tcb"] is None else tcb("config_tcb"),
        vcek_tcb=tcb("vcek_tcb"),
        version=_version("version", saved["version"]),
        committed_version=_version("committed_version", saved["committed_version"]),
        mask_chip_id=flag("mask_chip_id"),
        mask_chip_key=flag("mask_chip_key"),
        choices=choices_of(_checked("firmware", saved["firmware"], str)),
        vlek=_vlek(saved["vlek"], tcb_in),
        initialized=flag("initialized"),
        initialisations=_integers("initialisations", [saved["initialisations"]], 1, 8)[0],
        # Earlier releases did not store it.
        boots=_integers("boots", [saved.get("boots", 0)], 1, 8)[0],
    )
    family, model, stepping = _integers("cpuid", saved["cpuid"], 3, 1)
    (platform_info,) = _integers("platform_info", [saved["platform_info"]], 1, 8)
    (mit_vector,) = _integers("mit_vector", [saved["mit_vector"]], 1, 8)
    (mit_supported,) = _integers("mit_supported", [saved["mit_supported"]], 1, 8)
    return PspSnapshot(
        chip=Chip(product, bytes.fromhex(saved["chip_secret"])),
        state=state,
        report_version=report_version,
        cpuid=CpuId(family, model, stepping),
        platform_info=platform_info,
        mit_vector=mit_vector,
        mit_supported=mit_supported,
    )


def _numbers(version: ApiVersion) -> list[int]:
    return [version.major, version.minor, version.build]


def _version(name: str, value: Any) -> ApiVersion:
    major, minor, build = _integers(name, value, 3, 1)
    return ApiVersion(major, minor, build)


def _vlek(value: Any, tcb_in: Callable[[Any], TcbVersion]) -> LoadedVlek | None:
    if value is None:
        return None
    tcb, key = value
    hashstick = bytes.fromhex(key)
    if len(hashstick) != HASHSTICK_SIZE:
        raise ValueError(f"hashstick: expected {HASHSTICK_SIZE} bytes, found {len(hashstick)}")
    return LoadedVlek(tcb_in(tcb), hashstick)


def _from_first_format(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the values that were fixed, and therefore not stored, in the first format."""
    reported, vlek = saved["reported_tcb"], saved["vlek"]
    return {
        **saved,
        "format": FORMAT,
        "firmware": DOCUMENTED,
        "config_tcb": reported,
        "vcek_tcb": reported,
        "vlek": None if vlek is None else [reported, vlek],
        "mit_supported": saved["mit_vector"],
        "initialisations": 0,
    }


def _integers(name: str, value: Any, count: int, size: int) -> list[int]:
    numbers = list(value)
    if len(numbers) != count:
        raise ValueError(f"{name}: expected {count} numbers, found {len(numbers)}")
    for number in numbers:
        _checked(name, number, int).to_bytes(size, "little")
    return numbers


def _checked(name: str, value: Any, kind: type[_T]) -> _T:
    if type(value) is not kind:
        raise TypeError(f"{name}: expected {kind.__name__}, found {value!r}")
    return value
