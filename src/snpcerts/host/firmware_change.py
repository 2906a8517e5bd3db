# SPDX-License-Identifier: Apache-2.0
"""Compares two states of the firmware, regardless of which program changed it in between."""

from __future__ import annotations

from collections.abc import Mapping

from snpcerts.host.host_firmware import FirmwareState


def firmware_changes(before: FirmwareState, now: FirmwareState) -> Mapping[str, str]:
    """Return a sentence for each change, keyed by a name that programs can test.

    A command that does not change the firmware's status goes unnoticed.
    """
    changed = {}
    if before.version != now.version:
        changed["version"] = f"the firmware version is {now.version}, was {before.version}"
    if before.current != now.current:
        changed["current_tcb"] = f"the current TCB is {now.current}, was {before.current}"
    if before.reported != now.reported:
        changed["reported_tcb"] = f"the reported TCB is {now.reported}, was {before.reported}"
    if before.initialised != now.initialised:
        changed["initialised"] = f"SNP is {'' if now.initialised else 'no longer '}initialised"
    if before.vlek_loaded != now.vlek_loaded:
        changed["vlek"] = "a VLEK was loaded" if now.vlek_loaded else "the VLEK was dropped"
    masks = [
        f"{name} was {'set' if bit else 'cleared'}"
        for name, bit, old in (
            ("MASK_CHIP_ID", now.chip_id_masked, before.chip_id_masked),
            ("MASK_CHIP_KEY", now.chip_key_masked, before.chip_key_masked),
        )
        if bit != old
    ]
    if masks:
        changed["masks"] = ", ".join(masks)
    return changed
