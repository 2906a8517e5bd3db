# SPDX-License-Identifier: Apache-2.0
"""Determines which certificates belong in a certificate file, from the firmware's state.

Source: SNP ABI (56860), SNP_GUEST_REQUEST and MSG_REPORT_REQ: KEY_SEL 0 means the VLEK if one is
loaded, otherwise the VCEK. With MASK_CHIP_KEY the VCEK signs no reports. A loaded VLEK may still
sign: AMD's published firmware (1.55.25) continues to sign with it; other firmware reportedly does
not. What a report has proven takes precedence over these rules.
"""

from __future__ import annotations

from dataclasses import dataclass

from snpcerts.abi.guest_message import KeySelect as KeySel
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.vek import VekKind
from snpcerts.host.config import FileConfig, GuestKeySelect
from snpcerts.host.host_firmware import FirmwareState
from snpcerts.host.known import Proof


@dataclass(frozen=True, slots=True)
class Key:
    """A signing key of this chip: its kind (VCEK or VLEK) and its TCB."""

    kind: VekKind
    tcb: TcbVersion

    def __str__(self) -> str:
        return f"{self.kind.name} at {self.tcb}"


@dataclass(frozen=True, slots=True)
class NoKey:
    """No certificate matches the reports that this file's guests get, so the table must be
    empty.
    """

    reason: str

    def __str__(self) -> str:
        return f"the empty table ({self.reason})"


ExpectedContent = Key | NoKey


def key_sel(file: FileConfig) -> KeySel:
    """Return the KEY_SEL that the guests of ``file`` use."""
    if file.key_select is GuestKeySelect.DEFAULT:
        return KeySel.DEFAULT
    return KeySel.VLEK if file.kind is VekKind.VLEK else KeySel.VCEK


def expected_content(state: FirmwareState, file: FileConfig) -> ExpectedContent:
    """Return what ``file`` should contain while the firmware is in ``state``."""
    proof = state.known.proof(key_sel(file))
    if proof is not None:
        return _proven(state, file, proof)
    if file.kind is VekKind.VLEK and state.vlek_loaded:
        return _loaded_vlek(state, file)
    if state.chip_key_masked:
        return NoKey("MASK_CHIP_KEY is set: the VCEK does not sign reports")
    if file.kind is VekKind.VLEK and file.without_vlek is None:
        return _NO_VLEK
    if state.vlek_loaded and file.key_select is GuestKeySelect.DEFAULT:
        return _VLEK_SIGNS
    if state.chip_id_masked:
        return _UNTIED
    if state.known.vcek_doubt:
        return NoKey(f"it is unknown which VCEK signs: {state.known.vcek_doubt}")
    return Key(VekKind.VCEK, state.reported)


_NO_VLEK = NoKey("no VLEK is loaded")
_VLEK_SIGNS = NoKey("a VLEK is loaded, and signs guests' reports by default")
_UNTIED = NoKey("MASK_CHIP_ID is set, so no report can be matched to the VCEK's chip")


def _loaded_vlek(state: FirmwareState, file: FileConfig) -> ExpectedContent:
    if state.chip_key_masked and not file.masked_vlek_signs:
        return NoKey(
            "MASK_CHIP_KEY is set and a VLEK is loaded. Whether the VLEK signs "
            "depends on the firmware: run 'host prove-key', or set with_mask_chip_key "
            "in the configuration"
        )
    if state.known.vlek_doubt:
        return NoKey(f"the loaded VLEK's TCB is unknown: {state.known.vlek_doubt}")
    return Key(VekKind.VLEK, state.reported)


def _proven(state: FirmwareState, file: FileConfig, proof: Proof) -> ExpectedContent:
    if proof.kind is VekKind.VLEK and file.kind is VekKind.VCEK:
        return _VLEK_SIGNS
    if proof.kind is VekKind.VCEK and file.kind is VekKind.VLEK and file.without_vlek is None:
        return _NO_VLEK
    if proof.kind is VekKind.VCEK and state.chip_id_masked:
        return _UNTIED
    key = Key(proof.kind, proof.tcb)
    if proof.tcb != state.reported:
        return NoKey(
            f"a report proved that the {key} signs, but reports have TCB "
            f"{state.reported}: no certificate matches both"
        )
    return key


def signing_key(state: FirmwareState) -> VekKind | None:
    """Return the kind of key that signs by default; None if MASK_CHIP_KEY is set, because then the
    VCEK does not sign, and only some firmware signs with a loaded VLEK.
    """
    if state.chip_key_masked:
        return None
    return VekKind.VLEK if state.vlek_loaded else VekKind.VCEK
