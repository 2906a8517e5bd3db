# SPDX-License-Identifier: Apache-2.0
"""What the host's commands do to TCBs, mask bits and the VLEK, row by row."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.guest_message import KeySelect
from snpcerts.abi.product import Product
from snpcerts.abi.psp import SevStatus, SnpConfig, WrappedVlekHashstick
from snpcerts.abi.report import SigningKey
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.psp.chip import Chip, CloudProvider
from snpcerts.emulator.psp.chip_model import CHIP_MODELS, ApiVersion
from snpcerts.emulator.psp.choices import DOCUMENTED, NAMES, choices_of
from snpcerts.emulator.psp.firmware import Firmware, FirmwareError
from snpcerts.errors import InputError, UsageError
from tests.emulator.firmware_guest import FirmwareGuest, verify
from tests.endorsement.small_ca import PINNED

OLD = CHIP_MODELS[Product.MILAN].tcb
NEW = replace(OLD, snp=OLD.snp + 1)
LOWER = replace(OLD, snp=OLD.snp - 1)
NEWER_BUILD = ApiVersion(1, 55, 30)
RESET = SnpConfig()
PROVIDER = CloudProvider("CN=cc-us-east-2.amazonaws.com", bytes(range(32)))


def load_vlek(firmware: Firmware) -> None:
    firmware.snp_vlek_load(PROVIDER.hashstick_for(firmware.chip, firmware.state.reported))


def config(tcb: TcbVersion, flags: int = 0) -> SnpConfig:
    return SnpConfig(reported_tcb=tcb.pack(), flags=flags)


def refused(firmware: Firmware, status: SevStatus, *what: Any) -> None:
    """Check that the command fails with ``status`` and leaves the platform unchanged."""
    before = firmware.save_state()
    with pytest.raises(FirmwareError) as caught:
        what[0](*what[1:])
    assert caught.value.status is status
    assert firmware.save_state() == before


def test_an_update_moves_current_and_nothing_else(firmware: Firmware) -> None:
    load_vlek(firmware)
    before = firmware.state
    firmware.update(NEW, NEWER_BUILD)
    assert firmware.state == replace(before, current=NEW, version=NEWER_BUILD)


def test_commit_moves_committed_and_reported_to_current(firmware: Firmware) -> None:
    firmware.snp_set_config(config(OLD, flags=3))
    firmware.update(NEW, NEWER_BUILD)
    firmware.snp_commit()
    state = firmware.state
    assert state.current == state.committed == state.reported == NEW
    assert state.committed_version == NEWER_BUILD
    assert (state.mask_chip_id, state.mask_chip_key) == (True, True)


def test_commit_undoes_a_lowered_reported_tcb(firmware: Firmware) -> None:
    firmware.snp_set_config(config(LOWER))
    firmware.snp_commit()
    assert firmware.state.reported == OLD


def test_commit_cannot_be_undone(firmware: Firmware) -> None:
    firmware.update(NEW, NEWER_BUILD)
    firmware.snp_commit()
    refused(firmware, SevStatus.INVALID_CONFIG, firmware.update, OLD, NEWER_BUILD)
    refused(firmware, SevStatus.INVALID_CONFIG, firmware.update, NEW, ApiVersion(1, 55, 29))


def test_before_the_commit_an_update_can_be_rolled_back(firmware: Firmware) -> None:
    before = firmware.state
    firmware.update(NEW, NEWER_BUILD)
    firmware.update(OLD, ApiVersion(1, 55, 29))
    assert firmware.state == before


def test_another_products_firmware_is_refused(firmware: Firmware) -> None:
    refused(firmware, SevStatus.INVALID_PARAM, firmware.update, CHIP_MODELS[Product.TURIN].tcb)


def test_set_config_takes_the_given_tcb_and_both_mask_bits(firmware: Firmware) -> None:
    for flags in (3, 1, 2, 0):
        firmware.snp_set_config(config(LOWER, flags))
        state = firmware.state
        assert state.reported == LOWER
        assert (state.mask_chip_id, state.mask_chip_key) == (bool(flags & 1), bool(flags & 2))
        assert (state.current, state.committed) == (OLD, OLD)


def test_set_config_of_zero_resets_to_committed_not_to_current(firmware: Firmware) -> None:
    firmware.snp_set_config(config(LOWER, flags=3))
    firmware.update(NEW)
    firmware.snp_set_config(RESET)
    state = firmware.state
    assert state.reported == OLD
    assert (state.mask_chip_id, state.mask_chip_key) == (False, False)


@pytest.mark.parametrize("component", ["bootloader", "tee", "snp", "microcode"])
def test_set_config_above_committed_in_any_component_is_refused(
    component: str, firmware: Firmware
) -> None:
    """Even if the other components are far below, and even if the current TCB is that high."""
    above = {component: getattr(OLD, component) + 1}
    firmware.update(replace(OLD, **above))
    asked = replace(TcbVersion(0, 0, 0, 0), **above)
    refused(firmware, SevStatus.INVALID_PARAM, firmware.snp_set_config, config(asked))


@pytest.mark.parametrize(
    "asked",
    [
        SnpConfig(reported_tcb=OLD.pack(), flags=4),
        SnpConfig(reported_tcb=OLD.pack(), flags=1 << 31),
        SnpConfig(reported_tcb=OLD.pack(), rsvd=bytes(51) + b"\1"),
        SnpConfig(reported_tcb=bytes((1, 0, 1, 0, 0, 0, 0, 0))),
    ],
)
def test_set_config_with_reserved_bits_is_refused(asked: SnpConfig, firmware: Firmware) -> None:
    refused(firmware, SevStatus.INVALID_PARAM, firmware.snp_set_config, asked)


def test_a_loaded_vlek_signs_by_default(firmware: Firmware) -> None:
    guest = FirmwareGuest(firmware)
    assert guest.report().signing_key is SigningKey.VCEK
    load_vlek(firmware)
    report = guest.report()
    assert report.signing_key is SigningKey.VLEK
    verify(report, PROVIDER.vlek_key(OLD).public_key())
    assert report.fields.chip_id == firmware.chip.chip_id
    explicit = guest.report(key_sel=KeySelect.VCEK)
    assert explicit.signing_key is SigningKey.VCEK
    verify(explicit, firmware.vcek_public_key(OLD))


def test_a_vlek_is_the_same_on_every_chip_of_its_provider() -> None:
    for _ in range(2):
        firmware = Firmware(Chip.create(Product.MILAN))
        load_vlek(firmware)
        assert firmware.signing_public_key() == PROVIDER.vlek_key(OLD).public_key()
    assert PROVIDER.vlek_key(OLD) is PROVIDER.vlek_key(OLD)
    other = CloudProvider("CN=another", bytes(32))
    numbers = {
        key.private_numbers().private_value
        for key in (PROVIDER.vlek_key(OLD), PROVIDER.vlek_key(NEW), other.vlek_key(OLD))
    }
    assert len(numbers) == 3


def test_a_vlek_goes_when_reported_changes_and_only_then(firmware: Firmware) -> None:
    load_vlek(firmware)
    firmware.snp_set_config(config(OLD, flags=1))  # the same TCB
    firmware.snp_commit()  # nothing new to commit
    firmware.update(NEW)
    assert firmware.state.vlek is not None
    firmware.snp_commit()
    assert firmware.state.vlek is None
    load_vlek(firmware)
    firmware.snp_set_config(config(OLD))
    assert firmware.state.vlek is None
    load_vlek(firmware)
    firmware.snp_set_config(RESET)
    assert firmware.state.vlek is None


def test_shutdown_forgets_the_vlek_and_waits_for_guests(firmware: Firmware) -> None:
    load_vlek(firmware)
    guest = FirmwareGuest(firmware)
    refused(firmware, SevStatus.DFFLUSH_REQUIRED, firmware.snp_shutdown)
    firmware.decommission(guest.context)
    firmware.snp_shutdown()
    assert firmware.state.vlek is None
    assert firmware.snp_platform_status().state == 0
    firmware.snp_init()
    assert firmware.snp_platform_status().state == 1
    assert firmware.state.vlek is None


def test_before_snp_init_only_guests_are_refused(firmware: Firmware) -> None:
    """The firmware accepts the other commands then; Linux's driver refuses some of them."""
    firmware.snp_shutdown()
    firmware.snp_shutdown()  # nothing to do
    refused(firmware, SevStatus.INVALID_PLATFORM_STATE, firmware.launch_start, 0x30000)
    firmware.snp_set_config(config(LOWER))
    load_vlek(firmware)
    firmware.update(NEW)
    firmware.snp_commit()
    assert firmware.snp_platform_status().reported_tcb == NEW.pack()
    firmware.snp_init()
    refused(firmware, SevStatus.INVALID_PLATFORM_STATE, firmware.snp_init)


def test_a_hashstick_for_another_tcb_is_refused_lower_or_higher(firmware: Firmware) -> None:
    firmware.update(NEW)
    for tcb in (LOWER, NEW):
        blob = PROVIDER.hashstick_for(firmware.chip, tcb)
        refused(firmware, SevStatus.BAD_SVN, firmware.snp_vlek_load, blob)


def test_a_hashstick_for_another_chip_is_refused(firmware: Firmware) -> None:
    blob = PROVIDER.hashstick_for(Chip.create(Product.MILAN), OLD)
    refused(firmware, SevStatus.BAD_MEASUREMENT, firmware.snp_vlek_load, blob)


@given(at=st.integers(0, WrappedVlekHashstick.SIZE - 1), flip=st.integers(1, 255))
def test_a_damaged_hashstick_is_refused_wherever_the_tag_covers_it(at: int, flip: int) -> None:
    firmware = Firmware(Chip(Product.MILAN, bytes(32)))
    blob = bytearray(PROVIDER.hashstick_for(firmware.chip, OLD))
    blob[at] ^= flip
    if 0x0C <= at < 0x10:  # reserved, not judged, not under the tag
        firmware.snp_vlek_load(bytes(blob))
        return
    status = SevStatus.BAD_SVN if 0x190 <= at < 0x198 else SevStatus.BAD_MEASUREMENT
    refused(firmware, status, firmware.snp_vlek_load, bytes(blob))


def test_a_hashstick_of_another_size_is_refused(firmware: Firmware) -> None:
    for size in (0, 431, 433):
        refused(firmware, SevStatus.INVALID_LEN, firmware.snp_vlek_load, bytes(size))


def test_firmware_below_1_54_has_no_vlek() -> None:
    firmware = Firmware(Chip.create(Product.MILAN), report_version=2)
    blob = PROVIDER.hashstick_for(firmware.chip, OLD)
    refused(firmware, SevStatus.INVALID_COMMAND, firmware.snp_vlek_load, blob)
    status, _ = FirmwareGuest(firmware).ask_report(key_sel=KeySelect.VCEK)
    assert status == 0x16  # where KEY_SEL is now, a reserved word was then


def test_masking_the_chip_key_leaves_reports_unsigned(firmware: Firmware) -> None:
    guest = FirmwareGuest(firmware)
    firmware.snp_set_config(config(OLD, flags=2))
    report = guest.report()
    assert report.mask_chip_key
    assert report.signing_key is SigningKey.NONE
    assert not any(report.fields.signature)
    assert firmware.signing_public_key() is None
    firmware.snp_set_config(RESET)
    verify(guest.report(), firmware.vcek_public_key(OLD))


@pytest.mark.parametrize("vlek", [False, True])
def test_masking_the_chip_id_hides_it_in_reports_and_nowhere_else(
    vlek: bool, firmware: Firmware
) -> None:
    guest = FirmwareGuest(firmware)
    if vlek:
        load_vlek(firmware)
    firmware.snp_set_config(config(OLD, flags=1))
    report = guest.report()
    assert report.chip_id_masked
    key = firmware.signing_public_key()
    assert key is not None
    verify(report, key)
    assert firmware.get_id() == firmware.chip.hwid


def test_status_shows_masks_vlek_guests_and_both_tcbs(firmware: Firmware) -> None:
    load_vlek(firmware)
    guests = [FirmwareGuest(firmware) for _ in range(3)]
    firmware.decommission(guests[0].context)
    firmware.update(NEW, NEWER_BUILD)
    firmware.snp_set_config(config(OLD, flags=2))
    status = firmware.snp_platform_status()
    assert status.flags == 0b1110
    assert status.guest_count == 2
    assert (status.state, status.rmp) == (1, 3)
    assert (status.current_tcb, status.reported_tcb) == (NEW.pack(), OLD.pack())
    assert (status.api_major, status.api_minor, status.build_id) == (1, 55, 30)
    plain = firmware.platform_status()
    assert (plain.api_major, plain.api_minor, plain.build, plain.state) == (1, 55, 30, 1)


def test_the_vlek_asked_for_by_name_must_be_there(firmware: Firmware) -> None:
    with pytest.raises(FirmwareError) as caught:
        firmware.signing_public_key(KeySelect.VLEK)
    assert caught.value.status is SevStatus.INVALID_KEY


_LEVEL = st.integers(0, 3)
_TCBS = st.builds(TcbVersion, _LEVEL, _LEVEL, _LEVEL, _LEVEL)
_STEPS = st.one_of(
    st.tuples(st.just("update"), _TCBS),
    st.tuples(st.just("config"), _TCBS),
    st.tuples(st.sampled_from(["commit", "vlek", "shutdown", "init", "reload"]), _TCBS),
)


@given(st.lists(_STEPS, max_size=12))
def test_no_sequence_of_commands_breaks_the_order_of_tcbs(
    steps: list[tuple[str, TcbVersion]],
) -> None:
    """Reported <= Committed <= Current, a VLEK only for Reported, Committed never falls."""
    firmware = Firmware(
        Chip(Product.MILAN, bytes(32)),
        tcb=TcbVersion(1, 1, 1, 1),
        choices=choices_of(DOCUMENTED),
    )
    for step, tcb in steps:
        before = firmware.state
        try:
            match step:
                case "update":
                    firmware.update(tcb)
                case "config":
                    firmware.snp_set_config(config(tcb))
                case "commit":
                    firmware.snp_commit()
                case "vlek":
                    firmware.snp_vlek_load(PROVIDER.hashstick_for(firmware.chip, tcb))
                case "shutdown":
                    firmware.snp_shutdown()
                case "init":
                    firmware.snp_init()
                case "reload":
                    firmware.reload()
        except FirmwareError:
            assert firmware.state == before
        state = firmware.state
        assert state.current.covers(state.committed)
        assert state.committed.covers(state.reported)
        assert state.committed.covers(before.committed)
        assert state.vlek is None or state.vlek.tcb == state.reported


@pytest.mark.parametrize("played", NAMES)
@pytest.mark.parametrize("product", PINNED)
def test_a_platform_survives_being_saved(product: Product, played: str) -> None:
    firmware = Firmware(Chip.create(product), choices=choices_of(played))
    load_vlek(firmware)
    tcb = firmware.state.reported
    firmware.update(replace(tcb, microcode=tcb.components()["microcode"] + 1))
    firmware.snp_set_config(
        config(replace(tcb, microcode=tcb.components()["microcode"] - 1), flags=1)
    )
    again = Firmware.from_state(json.loads(json.dumps(firmware.save_state())))
    assert again.state == firmware.state
    assert again.save_state() == firmware.save_state()
    assert again.get_id() == firmware.get_id()
    assert again.signing_public_key() == firmware.signing_public_key()
    assert again.vcek_public_key(tcb) == firmware.vcek_public_key(tcb)


def test_a_platform_saved_by_the_first_release_is_read() -> None:
    """In the first release, keys were always those of the reported TCB, as in ``documented``."""
    firmware = Firmware(Chip(Product.MILAN, bytes(32)), choices=choices_of(DOCUMENTED))
    firmware.snp_set_config(config(LOWER))
    load_vlek(firmware)
    new = firmware.save_state()
    old = {
        name: value
        for name, value in new.items()
        if name not in ("firmware", "config_tcb", "vcek_tcb", "mit_supported")
    }
    old["format"] = "snpcerts emulated platform 1"
    old["reported_tcb"] = LOWER.pack().hex()
    old["vlek"] = new["vlek"][1]
    assert Firmware.from_state(old).save_state() == new


_SAVED = Firmware(Chip(Product.MILAN, bytes(32))).save_state()
_JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=20), st.lists(st.integers())
)


@given(name=st.sampled_from(sorted(_SAVED)), value=_JUNK)
def test_a_spoilt_save_is_refused_or_still_sound(name: str, value: object) -> None:
    try:
        state = Firmware.from_state(_SAVED | {name: value}).state
    except InputError:
        return
    assert state.committed.covers(state.reported)


@given(st.dictionaries(st.text(max_size=9), _JUNK))
def test_anything_else_is_not_a_saved_platform(saved: dict[str, object]) -> None:
    with pytest.raises(InputError, match="saved platform is not readable"):
        Firmware.from_state(saved)


def test_a_report_version_that_the_product_never_had_is_refused() -> None:
    with pytest.raises(UsageError, match="writes reports of version 2"):
        Firmware(Chip.create(Product.TURIN), report_version=2)
    with pytest.raises(UsageError, match="Milan's TCB layout"):
        Firmware(Chip.create(Product.MILAN), tcb=CHIP_MODELS[Product.TURIN].tcb)


def test_a_chip_is_its_secret() -> None:
    """A chip's secret determines its identity and, together with a TCB, its VCEK."""
    one, same, other = (Chip(Product.TURIN, bytes((b,)) * 32) for b in (1, 1, 2))
    tcb = CHIP_MODELS[Product.TURIN].tcb
    assert tcb.fmc is not None
    assert one.chip_id == same.chip_id != other.chip_id
    assert one.chip_id[8:] == bytes(56)
    public = one.vcek_key(tcb).public_key()
    assert public == same.vcek_key(tcb).public_key()
    assert public != other.vcek_key(tcb).public_key()
    assert public != one.vcek_key(replace(tcb, fmc=tcb.fmc + 1)).public_key()
    with pytest.raises(UsageError, match="Turin's TCB layout"):
        one.vcek_key(OLD)
    with pytest.raises(UsageError, match="32 bytes"):
        Chip(Product.MILAN, bytes(31))
