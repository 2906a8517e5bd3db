# SPDX-License-Identifier: Apache-2.0
"""Changes to a host's firmware that operators make without an ioctl of ``/dev/sev``.

Linux shuts SNP down and initialises it again when kvm_amd is unloaded and loaded (7.3:
``arch/x86/kvm/svm/sev.c``, ``sev_hardware_unsetup``; ``drivers/crypto/ccp/sev-dev.c``,
``__sev_snp_shutdown_locked``). The platform vendor's tool installs a live update; a write to sysfs
verifies a mitigation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.kvm.platform import Platform
from snpcerts.emulator.psp.chip_model import ApiVersion
from snpcerts.errors import InputError, RefusedError, UsageError


def carry_out(platform: Platform, order: Mapping[str, Any]) -> Mapping[str, object]:
    """Perform ``order["do"]``: ``reload``, ``reboot``, ``update`` or ``verify-mitigation``.

    Raises :class:`FirmwareError` if the firmware refuses, :class:`RefusedError` if the kernel would
    refuse, and :class:`InputError` for an invalid order.
    """
    firmware, do = platform.firmware, order.get("do")
    state = firmware.state
    if do in ("reload", "reboot") and platform.vms:
        raise RefusedError(
            f"cannot {do}: kvm_amd is in use by {', '.join(sorted(platform.vms))}",
            hint="end these VMs first",
        )
    if do == "reload":
        firmware.reload()
    elif do == "reboot":
        tcb = _changed(state.committed, _numbers(order, "tcb"))
        firmware.reboot(tcb, ApiVersion(*_version(order, state.committed_version)))
    elif do == "update":
        tcb = _changed(state.current, _numbers(order, "tcb"))
        version = ApiVersion(*_version(order, state.version))
        firmware.update(tcb, version, mit_supported=_number(order, "mitigations"))
    elif do == "verify-mitigation":
        firmware.snp_verify_mitigation(_number(order, "vector") or 0)
    else:
        raise InputError(
            "firmware operation: expected reload, reboot, update or verify-mitigation, found "
            f"{do!r}"
        )
    return {"ok": True}


def _changed(current: TcbVersion, components: Mapping[str, int]) -> TcbVersion:
    for name in components:
        if name not in current.components():
            raise UsageError(f"this product's TCB has no component {name!r}")
    return replace(current, **components)


def _version(order: Mapping[str, Any], now: ApiVersion) -> tuple[int, int, int]:
    parts = order.get("version")
    if parts is None:
        return now.major, now.minor, now.build
    if not isinstance(parts, list) or [type(part) for part in parts] != [int, int, int]:
        raise InputError(f"firmware version: expected three numbers, found {parts!r}")
    major, minor, build = parts
    return major, minor, build


def _numbers(order: Mapping[str, Any], name: str) -> Mapping[str, int]:
    found = order.get(name, {})
    if not isinstance(found, dict) or not all(type(value) is int for value in found.values()):
        raise InputError(f"{name}: expected an object whose values are integers, found {found!r}")
    return found


def _number(order: Mapping[str, Any], name: str) -> int | None:
    found = order.get(name)
    if found is not None and (type(found) is not int or not 0 <= found < 1 << 64):
        raise InputError(f"{name}: expected an unsigned 64-bit integer, found {found!r}")
    return found
