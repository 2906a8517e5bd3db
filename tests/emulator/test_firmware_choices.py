# SPDX-License-Identifier: Apache-2.0
"""What each firmware that the emulator can imitate does where sources disagree.

The values of the published firmware were taken from its source (amd/AMD-ASPFW, ``sev_uapp/src``) at
the function named, those of AMD's document from texts that restate it. None is from our code.
"""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from cryptography.exceptions import InvalidSignature

from snpcerts.abi.guest_message import KeySelect, MessageType, ReportRequest
from snpcerts.abi.product import Product
from snpcerts.abi.psp import SevStatus, SnpConfig
from snpcerts.abi.report import SigningKey
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.psp.chip import Chip, CloudProvider
from snpcerts.emulator.psp.choices import (
    DEFAULT_REASON,
    NAMES,
    ROWS,
    FirmwareChoices,
    choices_of,
)
from snpcerts.emulator.psp.firmware import Firmware, FirmwareError
from snpcerts.emulator.psp.message_seal import seal
from snpcerts.errors import UsageError
from tests.emulator.firmware_guest import FirmwareGuest, verify

OLD = TcbVersion(bootloader=9, tee=1, snp=20, microcode=72)
NEW = replace(OLD, snp=21)
LOWER = replace(OLD, snp=19)
PROVIDER = CloudProvider("CN=provider", bytes(range(32)))
PUBLISHED, DOCUMENTED, OBSERVED = "genoa-1.55.25", "documented", "observed-2022"


def firmware(played: str) -> Firmware:
    return Firmware(Chip.create(Product.GENOA), tcb=OLD, choices=choices_of(played))


def load_vlek(on: Firmware) -> None:
    on.snp_vlek_load(PROVIDER.hashstick_for(on.chip, on.state.reported))


def config(tcb: TcbVersion | None = None, flags: int = 0) -> SnpConfig:
    return SnpConfig(reported_tcb=bytes(8) if tcb is None else tcb.pack(), flags=flags)


def signs(on: Firmware, key_sel: KeySelect = KeySelect.DEFAULT) -> tuple[SigningKey, object]:
    """Return which key a report names as its signing key, and the TCB whose key verifies it."""
    report = FirmwareGuest(on).report(key_sel=key_sel)
    kind = report.signing_key
    assert kind is not None
    for tcb in (OLD, NEW, LOWER):
        of_kind = {
            SigningKey.VCEK: on.vcek_public_key(tcb),
            SigningKey.VLEK: PROVIDER.vlek_key(tcb).public_key(),
        }
        if kind in of_kind:
            try:
                verify(report, of_kind[kind])
            except InvalidSignature:
                continue
            return kind, tcb
    assert not any(report.fields.signature)
    return kind, None


def test_every_choice_has_one_row_with_a_source_for_each_firmware() -> None:
    named = [row.choice for row in ROWS]
    assert sorted(named) == sorted({f.name for f in fields(FirmwareChoices)} - {"name"})
    for row in ROWS:
        assert row.published.source.startswith(("sev_mcmd.c: ", "sev_plat.c: "))
        kinds = {type(row.reading(name).answer) for name in NAMES}
        assert len(kinds) == 1, row.choice
        for name in NAMES:
            assert row.reading(name).source
            assert getattr(choices_of(name), row.choice) == row.reading(name).answer
        answers = {str(row.reading(name).answer) for name in NAMES}
        silent = row.documented is None and row.observed is None
        assert silent or len(answers) == 2, f"{row.choice}: must have two answers"


def test_the_default_has_a_reason_and_no_other_name_is_known() -> None:
    assert choices_of(None) is choices_of(DOCUMENTED)
    assert "1.55.29" in DEFAULT_REASON
    with pytest.raises(UsageError, match="unknown firmware"):
        choices_of("milan")


@pytest.mark.parametrize(
    ("played", "signer"),
    [
        (PUBLISHED, (SigningKey.VLEK, OLD)),  # sev_mcmd.c: snp_mcmd_commit 9011: VLEK untouched
        (DOCUMENTED, (SigningKey.VCEK, NEW)),  # virtee/sev, snp_commit: deletes the hashstick
        (OBSERVED, (SigningKey.VCEK, NEW)),
    ],
)
def test_what_signs_after_a_commit(played: str, signer: tuple[SigningKey, TcbVersion]) -> None:
    on = firmware(played)
    load_vlek(on)
    on.update(NEW)
    on.snp_commit()
    assert on.state.reported == NEW
    assert signs(on) == signer
    assert bool(on.snp_platform_status().flags & 4) == (played == PUBLISHED)


@pytest.mark.parametrize(
    ("played", "signer"),
    [
        (PUBLISHED, (SigningKey.VLEK, OLD)),  # sev_mcmd.c: snp_mcmd_config 8912
        (DOCUMENTED, (SigningKey.VCEK, LOWER)),
        (OBSERVED, (SigningKey.VCEK, LOWER)),
    ],
)
def test_what_signs_after_set_config(played: str, signer: tuple[SigningKey, TcbVersion]) -> None:
    on = firmware(played)
    load_vlek(on)
    on.snp_set_config(config(LOWER))
    assert on.state.reported == LOWER
    assert signs(on) == signer


@pytest.mark.parametrize(
    ("played", "key_sel", "signer"),
    [
        # sev_mcmd.c: snp_mcmd_guest_request 5717 to 5740
        (PUBLISHED, KeySelect.DEFAULT, (SigningKey.VLEK, OLD)),
        (PUBLISHED, KeySelect.VLEK, (SigningKey.VLEK, OLD)),
        (PUBLISHED, KeySelect.VCEK, (SigningKey.NONE, None)),
        # psp-sev.h: mask_chip_key says whether attestation reports are signed
        (DOCUMENTED, KeySelect.DEFAULT, (SigningKey.NONE, None)),
        (DOCUMENTED, KeySelect.VLEK, (SigningKey.NONE, None)),
        (DOCUMENTED, KeySelect.VCEK, (SigningKey.NONE, None)),
        (OBSERVED, KeySelect.DEFAULT, (SigningKey.NONE, None)),
    ],
)
def test_what_signs_while_the_chip_key_is_masked_and_a_vlek_loaded(
    played: str, key_sel: KeySelect, signer: tuple[SigningKey, TcbVersion | None]
) -> None:
    on = firmware(played)
    load_vlek(on)
    on.snp_set_config(config(OLD, flags=2))
    assert FirmwareGuest(on).report(key_sel=key_sel).mask_chip_key
    assert signs(on, key_sel) == signer


def test_without_a_vlek_a_masked_chip_key_signs_nothing_under_any_firmware() -> None:
    for played in NAMES:
        on = firmware(played)
        on.snp_set_config(config(flags=2))
        for key_sel in (KeySelect.DEFAULT, KeySelect.VCEK):
            assert signs(on, key_sel) == (SigningKey.NONE, None)


@pytest.mark.parametrize(
    ("played", "signer"),
    [
        # sev_mcmd.c: snp_mcmd_init_common 4408 derives the VCEK without naming a TCB, which means
        # the current one
        (PUBLISHED, (SigningKey.VCEK, OLD)),
        (DOCUMENTED, (SigningKey.VCEK, LOWER)),
        (OBSERVED, (SigningKey.VCEK, LOWER)),
    ],
)
def test_what_signs_after_a_reload_with_a_lowered_reported_tcb(
    played: str, signer: tuple[SigningKey, TcbVersion]
) -> None:
    on = firmware(played)
    on.snp_set_config(config(LOWER, flags=3))
    load_vlek(on)
    before = on.snp_platform_status()
    on.reload()
    after = on.snp_platform_status()
    assert after.reported_tcb == LOWER.pack(), "must keep gPersistent.config_tcb"
    assert (before.flags & 7, after.flags & 7) == (7, 0), "must clear masks and VLEK (4683)"
    assert signs(on) == signer
    # SET_CONFIG with the same value again makes the reported TCB's VCEK sign.
    on.snp_set_config(config(LOWER))
    assert signs(on) == (SigningKey.VCEK, LOWER)
    load_vlek(on)


def test_after_such_a_reload_a_hashstick_for_the_reported_tcb_does_not_open() -> None:
    """sev_mcmd.c: snp_mcmd_vlek_load 9127: the wrapping key is derived from the VCEK in use."""
    on = firmware(PUBLISHED)
    on.snp_set_config(config(LOWER))
    on.reload()
    with pytest.raises(FirmwareError) as caught:
        load_vlek(on)
    assert caught.value.status is SevStatus.BAD_MEASUREMENT
    on.snp_commit()
    load_vlek(on)
    assert signs(on) == (SigningKey.VLEK, OLD)


@pytest.mark.parametrize(
    ("played", "committed", "reported"),
    [
        (PUBLISHED, NEW, NEW),  # sev_plat.c: init_perm, "on first run"
        (DOCUMENTED, OLD, OLD),
        (OBSERVED, OLD, OLD),
    ],
)
def test_what_is_committed_after_a_reload_of_an_uncommitted_update(
    played: str, committed: TcbVersion, reported: TcbVersion
) -> None:
    on = firmware(played)
    on.update(NEW)
    on.reload()
    fields = FirmwareGuest(on).report().fields
    assert fields.current_tcb == NEW.pack()
    assert fields.committed_tcb == committed.pack()
    assert fields.reported_tcb == reported.pack()


@pytest.mark.parametrize(
    ("asked", "published", "documented"),
    [
        # sev_plat.c: tcb_version_to_num 1264: bl << 24 | tee << 16 | snp << 8 | microcode
        (replace(OLD, bootloader=8, snp=255, microcode=255), True, False),
        (replace(OLD, tee=0, snp=255), True, False),
        (replace(OLD, snp=19, microcode=255), True, False),
        (LOWER, True, True),
        (OLD, True, True),
        (replace(OLD, microcode=73), False, False),
        (replace(OLD, snp=21, microcode=0), False, False),
        (replace(OLD, bootloader=10, tee=0, snp=0, microcode=0), False, False),
    ],
)
def test_set_config_accepts_valid_values_only(
    asked: TcbVersion, published: bool, documented: bool
) -> None:
    for played, taken in ((PUBLISHED, published), (DOCUMENTED, documented), (OBSERVED, documented)):
        on = firmware(played)
        if not taken:
            with pytest.raises(FirmwareError) as caught:
                on.snp_set_config(config(asked))
            assert caught.value.status is SevStatus.INVALID_PARAM
            continue
        on.snp_set_config(config(asked))
        report = FirmwareGuest(on).report()
        assert report.fields.reported_tcb == asked.pack()
        assert report.fields.current_tcb == OLD.pack()
        verify(report, on.vcek_public_key(asked))


def test_a_reset_by_set_config_stores_the_committed_tcb() -> None:
    """config_tcb gets the TCB committed at the reset (8958), and keeps it until SNP_COMMIT."""
    on = firmware(PUBLISHED)
    on.snp_set_config(config())
    on.update(NEW)
    on.reload()
    assert on.state.committed == NEW
    assert on.state.reported == OLD
    assert signs(on) == (SigningKey.VCEK, NEW)


@pytest.mark.parametrize(
    ("played", "status"),
    [
        (PUBLISHED, SevStatus.BAD_MEASUREMENT),  # sev_mcmd.c: snp_mcmd_guest_request
        (DOCUMENTED, SevStatus.BAD_MEASUREMENT),
        (OBSERVED, SevStatus.INVALID_PARAM),
    ],
)
def test_a_message_with_a_bad_tag_gets_the_chosen_status(played: str, status: SevStatus) -> None:
    on = firmware(played)
    guest = FirmwareGuest(on)
    page = seal(guest.vmpcks[1], guest.header(MessageType.REPORT_REQ), ReportRequest().pack())
    with pytest.raises(FirmwareError) as caught:
        on.guest_request(guest.context, page)
    assert caught.value.status is status


def test_the_published_firmware_on_its_own_product_says_its_own_version() -> None:
    """sev_rmp.h 409: SNP_GMSG_MAX_REPORT_VERSION is 2."""
    report = FirmwareGuest(firmware(PUBLISHED)).report()
    assert report.fields.version == 2
    said = (
        report.fields.current_major,
        report.fields.current_minor,
        report.fields.current_build,
    )
    assert said == (1, 55, 25)
    on = firmware(PUBLISHED)
    load_vlek(on)
    assert signs(on) == (SigningKey.VLEK, OLD)


def test_mitigations_are_verified_one_at_a_time_and_reported() -> None:
    """Linux 7.3, sev-dev.c: snp_verify_mitigation and verified_mitigations_store."""
    on = Firmware(Chip.create(Product.TURIN))
    assert on.knows_mitigations
    assert on.snp_verify_mitigation() == (0x3F, 0x3F)
    on.update(on.state.current, mit_supported=0xFF)
    assert on.snp_verify_mitigation() == (0xFF, 0x3F)
    for vector in (0xC0, 0x100):
        with pytest.raises(FirmwareError) as caught:
            on.snp_verify_mitigation(vector)
        assert caught.value.status is SevStatus.INVALID_PARAM
    assert on.snp_verify_mitigation(0x80) == (0xFF, 0xBF)
    assert FirmwareGuest(on).report().fields.current_mit_vector == 0xBF
    assert Firmware.from_state(on.save_state()).snp_verify_mitigation() == (0xFF, 0xBF)
    old = firmware(DOCUMENTED)
    assert not old.knows_mitigations
    with pytest.raises(FirmwareError) as caught:
        old.snp_verify_mitigation()
    assert caught.value.status is SevStatus.INVALID_COMMAND
