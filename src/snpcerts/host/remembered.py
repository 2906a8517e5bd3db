# SPDX-License-Identifier: Apache-2.0
"""Determines what is known about the firmware's keys after a command or a new status reading.

The functions here do no I/O. Every rule holds for any firmware. If AMD's document, AMD's published
firmware (1.55.25) and what users have observed disagree, the key is in doubt. A file whose key is
in doubt stays empty.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from snpcerts.abi.guest_message import KeySelect
from snpcerts.endorsement.vek import VekKind
from snpcerts.host.host_firmware import FirmwareState
from snpcerts.host.initialisation import Initialisation
from snpcerts.host.known import NOTHING_DOUBTED, KnownKeys, Proof, RememberedVlek

_AGAIN: Final = (
    "run 'host prove-key' to find out, or 'host set-config --again' to derive the VCEK again"
)
_LOAD: Final = "run 'host prove-key', or load the VLEK again"

STRANGER: Final = f"the VLEK was not loaded by 'host load-vlek', so its TCB is unknown; {_LOAD}"
BEGUN: Final = f"the load of another VLEK was interrupted; {_LOAD}"


@dataclass(frozen=True, slots=True)
class Remembered:
    """The record on disk: the chip, the initialisation, and the firmware's state.

    ``chip`` is the chip ID in hexadecimal. ``state`` has no guest count.
    """

    chip: str
    initialisation: Initialisation
    state: FirmwareState


def looked(
    before: Remembered | None,
    now: FirmwareState,
    chip: str,
    initialisation: Initialisation,
    *,
    why_nothing: str = "there is no record of this host's keys",
) -> Remembered:
    """Compare ``now``, the firmware's present state, with the record ``before``. Return the new
    record.

    If ``before`` is None, there is no earlier record; ``why_nothing`` says why.
    """
    now = replace(now, guests=0)
    if before is not None and before.chip != chip:
        before, why_nothing = None, "the record of the keys is from another chip"
    if before is None:
        known = _first_seen(now, why_nothing)
    elif again := _initialised_again(before, now, initialisation):
        known = _after_initialisation(before.state, now, again)
    else:
        known = _went_on(before.state, now)
    if not initialisation.certain:
        known = _unobserved(known, now)
    return Remembered(chip, initialisation, replace(now, known=known))


def configured(remembered: Remembered) -> Remembered:
    """Record that the agent issued SNP_SET_CONFIG or SNP_COMMIT.

    The VCEK now belongs to the reported TCB.
    """
    known = replace(remembered.state.known, vcek_doubt="", lost_masks=(), proofs=())
    return _with(remembered, known)


def loading(remembered: Remembered) -> Remembered:
    """Record that the agent is about to issue SNP_VLEK_LOAD.

    Until the command ends, it is unknown which VLEK is loaded.
    """
    if not remembered.state.vlek_loaded:
        return remembered
    known = replace(remembered.state.known, vlek=None, vlek_doubt=BEGUN)
    return _with(remembered, _without_vlek_proofs(known))


def loaded(remembered: Remembered, vlek: RememberedVlek) -> Remembered:
    """Record that SNP_VLEK_LOAD succeeded and the firmware has the VLEK for the reported TCB."""
    state = remembered.state
    known = _without_vlek_proofs(state.known)
    if state.vlek_loaded and vlek.tcb == state.reported:
        known = replace(known, vlek=vlek, vlek_doubt="")
    return _with(remembered, known)


def proven(remembered: Remembered, proof: Proof) -> Remembered:
    """Record a proof that was made in the remembered state."""
    return _with(remembered, remembered.state.known.proven(proof))


def _with(remembered: Remembered, known: KnownKeys) -> Remembered:
    return replace(remembered, state=replace(remembered.state, known=known))


def _first_seen(now: FirmwareState, why: str) -> KnownKeys:
    return replace(
        NOTHING_DOUBTED,
        vlek_doubt=STRANGER if now.vlek_loaded else "",
        vcek_doubt=""
        if now.reported == now.current
        else (
            f"{why}. It is unknown whether SNP has been initialised again since the "
            "reported TCB was lowered. If it has, the VCEK is that of the current "
            f"TCB; {_AGAIN}"
        ),
    )


def _initialised_again(
    before: Remembered, now: FirmwareState, initialisation: Initialisation
) -> str:
    change = before.initialisation.change_to(initialisation)
    if not change and now.initialised and not before.state.initialised:
        change = "it was not initialised when the agent last looked"
    return change


def _after_initialisation(before: FirmwareState, now: FirmwareState, change: str) -> KnownKeys:
    masks = (
        ("MASK_CHIP_ID", before.chip_id_masked and not now.chip_id_masked),
        ("MASK_CHIP_KEY", before.chip_key_masked and not now.chip_key_masked),
    )
    return replace(
        NOTHING_DOUBTED,
        vlek_doubt=STRANGER if now.vlek_loaded else "",
        vcek_doubt=""
        if now.reported == now.current
        else (
            f"SNP was initialised again ({change}) with the reported TCB below the "
            f"current one, so the VCEK may be that of the current TCB; {_AGAIN}"
        ),
        lost_masks=tuple(name for name, lost in masks if lost),
    )


def _went_on(before: FirmwareState, now: FirmwareState) -> KnownKeys:
    """Return what is known about the keys, given that SNP has not been re-initialised since
    ``before``, so that only commands can have changed the state.
    """
    known = before.known
    if _key_facts(before) != _key_facts(now):
        known = replace(known, proofs=())
    moved = before.reported != now.reported
    masked = (now.chip_id_masked and not before.chip_id_masked) or (
        now.chip_key_masked and not before.chip_key_masked
    )
    if moved or masked:
        # Only SNP_SET_CONFIG and SNP_COMMIT change these, and both derive the VCEK again.
        known = replace(known, vcek_doubt="", lost_masks=())
    if not now.vlek_loaded:
        return replace(known, vlek=None, vlek_doubt="")
    if not before.vlek_loaded:
        return replace(known, vlek=None, vlek_doubt=STRANGER)
    if moved and not known.vlek_doubt:
        return replace(
            known,
            vlek=known.vlek,
            vlek_doubt=(
                f"the reported TCB was {before.reported} when the VLEK was loaded, and has "
                f"changed since. The firmware may have kept the VLEK; {_LOAD}"
            ),
        )
    return known


def _unobserved(known: KnownKeys, now: FirmwareState) -> KnownKeys:
    """Return ``known`` without what an undetected re-initialisation of SNP may have changed.

    All proofs are dropped. The VCEK is in doubt if the reported TCB is not the current TCB.
    """
    if now.reported != now.current and not known.vcek_doubt:
        known = replace(
            known,
            vcek_doubt=(
                "a re-initialisation of SNP cannot be detected here "
                "(/sys/module/kvm_amd does not exist), and after one the VCEK would be "
                "that of the current TCB"
            ),
        )
    return replace(known, proofs=())


def _without_vlek_proofs(known: KnownKeys) -> KnownKeys:
    kept = tuple(each for each in known.proofs if each.select is KeySelect.VCEK)
    return replace(known, proofs=kept)


def _key_facts(state: FirmwareState) -> tuple[object, ...]:
    """Return the facts that a proof depends on. If any of them changes, the proof is no longer
    valid.
    """
    return (
        state.version,
        state.current,
        state.reported,
        state.vlek_loaded,
        state.chip_id_masked,
        state.chip_key_masked,
        state.initialised,
    )


def expected_kind(state: FirmwareState, select: KeySelect) -> VekKind:
    """Return the kind of the key that signs a report requested with ``select``, provided that the
    firmware signs it.
    """
    if select is KeySelect.VLEK or (select is KeySelect.DEFAULT and state.vlek_loaded):
        return VekKind.VLEK
    return VekKind.VCEK
