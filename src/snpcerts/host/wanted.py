# SPDX-License-Identifier: Apache-2.0
"""Which key's certificates belong in a certificate file, given what the firmware is.

Source: SNP ABI (56860), SNP_GUEST_REQUEST and MSG_REPORT_REQ: KEY_SEL 0 means
the VLEK where one is loaded and the VCEK where none is; with MASK_CHIP_KEY
reports are not signed at all.
"""

from __future__ import annotations

from dataclasses import dataclass

from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.vek import VekKind
from snpcerts.host.config import FileConfig, KeySelect
from snpcerts.host.firmware import State


@dataclass(frozen=True, slots=True)
class Key:
    """A signing key of this host: its kind and its TCB; the chip goes without saying."""

    kind: VekKind
    tcb: TcbVersion

    def __str__(self) -> str:
        return f"{self.kind.name} at {self.tcb}"


@dataclass(frozen=True, slots=True)
class NoKey:
    """No certificate matches what this file's guests get, so the table must be empty."""

    reason: str

    def __str__(self) -> str:
        return f"the empty table ({self.reason})"


Wanted = Key | NoKey


def wanted(state: State, file: FileConfig) -> Wanted:
    """What ``file`` must hold while the firmware is in ``state``."""
    if state.chip_key_masked:
        return NoKey("MASK_CHIP_KEY is in force: reports are not signed")
    if file.kind is VekKind.VLEK:
        if state.vlek_loaded:
            return Key(VekKind.VLEK, state.reported)
        if file.without_vlek is None:
            return NoKey("no VLEK is loaded")
    elif state.vlek_loaded and file.key_select is KeySelect.DEFAULT:
        return NoKey("a VLEK is loaded, and signs what guests ask for by default")
    if state.chip_id_masked:
        return NoKey("MASK_CHIP_ID is in force: no report can be tied to the VCEK's chip")
    return Key(VekKind.VCEK, state.reported)


def signing_key(state: State) -> VekKind | None:
    """The kind of key that signs by default; None while reports are not signed."""
    if state.chip_key_masked:
        return None
    return VekKind.VLEK if state.vlek_loaded else VekKind.VCEK
