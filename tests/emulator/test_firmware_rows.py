# SPDX-License-Identifier: Apache-2.0
"""The emulated firmware against AMD's published one, row by row.

Each expected value was taken from amd/AMD-ASPFW, directory ``sev_uapp/src``, at the
function named; none is from our code.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest

from snpcerts.abi.guest_message import (
    KeyRequest,
    KeyResponse,
    KeySelect,
    MessageHeader,
    MessageType,
    ReportRequest,
    SecretsPage,
)
from snpcerts.abi.kvm import PageType
from snpcerts.abi.product import Product
from snpcerts.abi.psp import SevStatus, SnpConfig
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.psp.chip import Chip, CloudProvider
from snpcerts.emulator.psp.choices import choices_of
from snpcerts.emulator.psp.cpuid_check import CpuidFunction
from snpcerts.emulator.psp.firmware import CpuidPageError, Firmware, FirmwareError
from snpcerts.emulator.psp.guest_context import PAGE_TYPE_VMSA, GuestContext
from snpcerts.emulator.psp.message_seal import seal
from tests.emulator.firmware_guest import HOST_DATA, POLICY, FirmwareGuest
from tests.emulator.id_blocks import key_bytes, key_digest, new_key, signature, signed

TCB = TcbVersion(bootloader=9, tee=1, snp=20, microcode=72)
REPORT = ReportRequest().pack()
MILAN_B1 = 0xA00F11


@pytest.fixture
def published() -> Firmware:
    return Firmware(Chip.create(Product.GENOA), tcb=TCB, choices=choices_of("genoa-1.55.25"))


@pytest.fixture
def guest(published: Firmware) -> FirmwareGuest:
    return FirmwareGuest(published)


def status_of(guest: FirmwareGuest, page: bytes) -> int:
    """Return the mailbox status; after a refusal, check that no sequence number is used up."""
    before = list(guest.context.counters)
    try:
        guest.firmware.guest_request(guest.context, page)
    except FirmwareError as refused:
        assert guest.context.counters == before
        return refused.status
    return 0


# sev_mcmd.c: snp_mcmd_guest_request, from line 5184. If a message has two faults, the one that is
# checked first determines the status.
INVALID_PARAM, BAD_MEASUREMENT, AEAD_OFLOW = 0x16, 0x0B, 0x1D


@pytest.mark.parametrize(
    ("change", "size", "spoil_tag", "status"),
    [
        ({"hdr_version": 2, "msg_seqno": 9}, 96, True, INVALID_PARAM),  # 5297
        ({"hdr_sz": 0x50}, 96, True, INVALID_PARAM),
        ({"algo": 2}, 96, True, INVALID_PARAM),
        ({}, 0, True, INVALID_PARAM),  # msg_size == 0
        ({}, 95, True, INVALID_PARAM),  # not a multiple of 16
        ({"msg_vmpck": 4}, 96, True, INVALID_PARAM),
        ({"msg_seqno": 9}, 96, True, BAD_MEASUREMENT),  # the tag before the number
        ({"msg_seqno": 9, "msg_version": 2}, 96, False, AEAD_OFLOW),  # 5360, before the version
        ({"msg_seqno": 9, "msg_type": 0}, 96, False, AEAD_OFLOW),
        ({"msg_version": 0}, 96, False, INVALID_PARAM),
        ({"msg_version": 2}, 96, False, INVALID_PARAM),
        ({"msg_type": 0x12}, 96, False, INVALID_PARAM),  # TSC_INFO_RSP
        ({"msg_type": 0x13}, 96, False, INVALID_PARAM),
        # Not checked: the reserved fields, and whether msg_size suffices for the type.
        ({"rsvd1": bytes(7) + b"\1"}, 96, False, 0),
        ({"rsvd2": 7}, 96, False, 0),
        ({"rsvd3": b"\1" * 35}, 96, False, 0),
        ({}, 16, False, 0),
        ({}, 4000, False, 0),
        ({}, 4000, True, BAD_MEASUREMENT),
    ],
)
def test_guest_request_checks_in_the_published_order(
    change: dict[str, Any], size: int, spoil_tag: bool, status: int, guest: FirmwareGuest
) -> None:
    header: MessageHeader = replace(guest.header(MessageType.REPORT_REQ), **change)
    page = bytearray(seal(guest.vmpcks[0], header, bytes(size)))
    page[0] ^= spoil_tag
    assert status_of(guest, bytes(page)) == status


def test_a_message_beyond_its_page_is_refused(guest: FirmwareGuest) -> None:
    page = bytearray(seal(guest.vmpcks[0], guest.header(MessageType.REPORT_REQ), REPORT))
    page[0x36:0x38] = (4016).to_bytes(2, "little")
    assert status_of(guest, bytes(page)) == INVALID_PARAM


def test_bytes_16_to_31_of_the_tag_are_not_judged(guest: FirmwareGuest) -> None:
    page = bytearray(seal(guest.vmpcks[0], guest.header(MessageType.REPORT_REQ), REPORT))
    page[0x10:0x20] = b"\xff" * 16
    assert status_of(guest, bytes(page)) == 0


def report_payload(*, vmpl: int = 0, key_sel: int = 0, rsvd: bytes = bytes(24)) -> bytes:
    return bytes(64) + struct.pack("<II", vmpl, key_sel) + rsvd


@pytest.mark.parametrize(
    ("payload", "vmpck", "status"),
    [
        # SNP_MSG_REPORT_REQ, from line 5617: the reserved bytes, then KEY_SEL, then VMPL.
        (report_payload(rsvd=bytes(23) + b"\1", key_sel=3), 0, 0x16),
        (report_payload(key_sel=1 << 2), 0, 0x16),
        (report_payload(key_sel=3 | 1 << 31), 0, 0x16),
        (report_payload(key_sel=3), 1, 0x27),  # and VMPL 0 < VMPCK 1
        (report_payload(key_sel=2), 1, 0x27),  # no VLEK
        (report_payload(), 1, 0x16),
        (report_payload(vmpl=1), 1, 0),
        (report_payload(vmpl=4), 0, 0),  # no upper bound
        (report_payload(vmpl=2**32 - 1), 0, 0),
    ],
)
def test_answers_to_report_requests(
    payload: bytes, vmpck: int, status: int, guest: FirmwareGuest
) -> None:
    answer = guest.ask(MessageType.REPORT_REQ, payload, vmpck)
    assert len(answer) == 0x4C0, "must be sizeof(snp_msg_report_rsp_t), even if refused"
    assert struct.unpack_from("<II", answer) == (status, 0x4A0)
    assert not any(answer[8:0x20])
    assert any(answer[0x20:]) == (status == 0)
    if not status:
        assert answer[0x20 + 0x30 : 0x20 + 0x34] == payload[64:68]


def test_launch_tcb_is_what_was_committed_at_the_start(published: Firmware) -> None:
    """sev_mcmd.c: snp_mcmd_gctx_create 5134: get_committed_tcb."""
    published.update(replace(TCB, snp=21))
    guest = FirmwareGuest(published)
    published.snp_commit()
    assert guest.report().fields.launch_tcb == TCB.pack()


def test_a_report_says_of_the_platform_what_its_firmware_knows(published: Firmware) -> None:
    """In sev_rmp.h, snp_platform_info_t has SMT_EN and TSME_EN, and its other bits are reserved. In
    sev_mcmd.h, snp_platform_status_buffer_t has IS_RMP_INIT, and the rest of that byte is reserved.
    """
    assert FirmwareGuest(published).report().fields.platform_info == 0b01
    assert published.snp_platform_status().rmp == 0b01
    newer = Firmware(Chip.create(Product.GENOA))
    assert FirmwareGuest(newer).report().fields.platform_info & 1 << 5
    assert newer.snp_platform_status().rmp == 0b11


# Payload sizes by sev_rmp.h: snp_msg_*_rsp_t.
@pytest.mark.parametrize(
    ("kind", "payload", "vmpck", "status", "size"),
    [
        (MessageType.EXPORT_REQ, struct.pack("<QII", 0x5000, 0, 0), 0, 0x10, 0xFA0),
        (MessageType.EXPORT_REQ, struct.pack("<QII", 0x5001, 0, 0), 0, 0x16, 0xFA0),
        (MessageType.EXPORT_REQ, struct.pack("<QII", 0x5000, 2, 0), 0, 0x16, 0xFA0),
        (MessageType.IMPORT_REQ, struct.pack("<QII16x", 0x5000, 0x300, 3), 0, 0x10, 0x10),
        (MessageType.IMPORT_REQ, struct.pack("<QII16x", 0x5000, 0x300, 2), 0, 0x16, 0x10),
        (MessageType.ABSORB_REQ, struct.pack("<QII16x", 0x5000, 0, 0), 0, 0x10, 0x10),
        (MessageType.ABSORB_REQ, struct.pack("<QII15xB", 0x5000, 0, 0, 1), 0, 0x16, 0x10),
        (MessageType.VMRK_REQ, struct.pack("<Q24x32x", 0x5000), 0, 0x10, 0x10),
        (MessageType.VMRK_REQ, struct.pack("<Q24x32x", 0x5000), 1, 0x16, 0x10),
        (MessageType.ABSORB_NOMA_REQ, struct.pack("<QII16x", 0, 0x300, 3), 0, 0x0B, 0x10),
        (MessageType.ABSORB_NOMA_REQ, struct.pack("<QII16x", 1, 0x300, 3), 0, 0x16, 0x10),
    ],
)
def test_migration_messages_are_answered_under_seal(
    kind: MessageType, payload: bytes, vmpck: int, status: int, size: int, guest: FirmwareGuest
) -> None:
    answer = guest.ask(kind, payload, vmpck)
    assert len(answer) == size
    assert int.from_bytes(answer[:4], "little") == status
    rest = struct.pack("<II", 0x300, 3) if kind is MessageType.EXPORT_REQ else b""
    assert answer[4:] == rest.ljust(size - 4, b"\0")


def cpuid_list(*functions: CpuidFunction, reserved: int = 0, count: int | None = None) -> bytes:
    head = struct.pack("<IIQ", len(functions) if count is None else count, reserved, 0)
    return head + b"".join(function.pack() for function in functions)


SOUND = (
    CpuidFunction(eax_in=0, eax=0x10, ebx=0x68747541),
    CpuidFunction(eax_in=1, eax=0x800F12, ebx=0x800),  # an older family than the processor's
    CpuidFunction(eax_in=0x4000_0000, eax=7, reserved=5),  # outside both ranges: not judged
    CpuidFunction(eax_in=3),
    CpuidFunction(eax_in=0x8000_0000, eax=0x8000_0028),
)
# Pairs of a wrong entry and its correction. cpuid_lookup.c: sanitize_cpuid_entry.
WRONG = (
    (CpuidFunction(eax_in=0, eax=0x11), CpuidFunction(eax_in=0, eax=0x10)),
    (
        CpuidFunction(eax_in=1, eax=0xB00F00, ebx=0x01000440),
        CpuidFunction(eax_in=1, eax=MILAN_B1, ebx=0x01000840),
    ),
    (CpuidFunction(eax_in=3, edx=1), CpuidFunction(eax_in=3)),
    (CpuidFunction(eax_in=0x12, ecx_in=1, eax=1), CpuidFunction(eax_in=0x12, ecx_in=1)),
    (
        CpuidFunction(eax_in=0x8000_0000, eax=0x8000_0029),
        CpuidFunction(eax_in=0x8000_0000, eax=0x8000_0028),
    ),
)


def test_a_cpuid_request_is_checked_and_corrected() -> None:
    """The answer is as long as its request, and has the number of entries that were judged."""
    guest = FirmwareGuest(Firmware(Chip.create(Product.MILAN)))
    payload = cpuid_list(*SOUND)
    answer = guest.ask(MessageType.CPUID_REQ, payload)
    assert answer == struct.pack("<IIQ", 0, 4, 0) + payload[16:]
    for given, right in WRONG:
        answer = guest.ask(MessageType.CPUID_REQ, cpuid_list(given))
        assert answer == struct.pack("<IIQ", 0x16, 1, 0) + right.pack()
    answer = guest.ask(MessageType.CPUID_REQ, cpuid_list(replace(SOUND[0], reserved=1)))
    assert struct.unpack_from("<II", answer) == (0x16, 1)
    for payload in (cpuid_list(reserved=1), cpuid_list(count=65)):
        assert guest.ask(MessageType.CPUID_REQ, payload) == struct.pack("<IIQ", 0x16, 0, 0)


def test_a_cpuid_page_is_judged_and_the_right_values_given_back() -> None:
    """sev_mcmd.c: snp_mcmd_launch_update 6905."""
    firmware = Firmware(Chip.create(Product.MILAN))
    context = firmware.launch_start(POLICY)
    for given, right in WRONG:
        with pytest.raises(CpuidPageError) as caught:
            firmware.launch_update(
                context, 0, PageType.CPUID, cpuid_list(SOUND[2], given).ljust(4096, b"\0")
            )
        assert caught.value.status is SevStatus.INVALID_PARAM
        assert caught.value.page == cpuid_list(SOUND[2], right).ljust(4096, b"\0")
    assert context.measurement == bytes(48)
    for malformed in (cpuid_list(count=65), cpuid_list(reserved=1)):
        with pytest.raises(FirmwareError) as refused:
            firmware.launch_update(context, 0, PageType.CPUID, malformed.ljust(4096, b"\0"))
        assert refused.value.status is SevStatus.INVALID_PARAM
    firmware.launch_update(context, 0, PageType.CPUID, cpuid_list(*SOUND).ljust(4096, b"\0"))
    assert context.measurement != bytes(48)


@pytest.mark.parametrize(
    ("khz", "scale"),
    [
        # sev_mcmd.c: calc_tsc_scale, against 99800 kHz (sev_plat.h, REF_CLK_GENOA), rounded up.
        (0, 0),
        (99_800, 1 << 32),
        (199_600, 2 << 32),
        (149_700, 0x1_8000_0000),
        (99_801, 0x1_0000_A81C),
    ],
)
def test_tsc_info_is_the_guests_frequency_over_the_reference_clocks(
    khz: int, scale: int, published: Firmware
) -> None:
    guest = FirmwareGuest(published)
    guest.context.desired_tsc_khz = khz
    answer = guest.ask(MessageType.TSC_INFO_REQ, bytes(128))
    assert struct.unpack("<IIQQI100x", answer) == (0, 0, scale, 0, 200)
    refused = guest.ask(MessageType.TSC_INFO_REQ, bytes(127) + b"\1")
    assert refused == (0x16).to_bytes(4, "little") + bytes(124)


def test_the_secrets_page_has_the_tsc_factor_and_the_tweak_bitmap(published: Firmware) -> None:
    """sev_mcmd.h 611; sev_es.c: sev_es_create_vmsa_bitmap, here as bytes in memory order."""
    context = published.launch_start(POLICY)
    page = published.launch_update(context, 0, PageType.SECRETS, bytes(4096))
    assert page is not None
    assert SecretsPage.unpack(page).version == 3
    assert page[0x160:0x164] == (200).to_bytes(4, "little")
    bitmap = page[0x100:0x140]
    assert bitmap[:16].hex() == "00000000008000880000" + "0000eeff0000"
    assert bitmap[16:32].hex() == "f0ffffffffffffffff3f000000000000"
    assert bitmap[32:].hex() == "000000000000" + "ff" * 25 + "00"


@pytest.mark.parametrize(
    ("kind", "size", "status"),
    [
        (0, 4096, SevStatus.INVALID_PARAM),
        (7, 4096, SevStatus.INVALID_PARAM),
        (PageType.CPUID, 8192, SevStatus.INVALID_PAGE_SIZE),
        (PageType.SECRETS, 8192, SevStatus.INVALID_PAGE_SIZE),
        (PAGE_TYPE_VMSA, 8192, SevStatus.INVALID_PAGE_SIZE),
    ],
)
def test_page_types_and_their_sizes(
    kind: int, size: int, status: SevStatus, published: Firmware
) -> None:
    context = published.launch_start(POLICY)
    with pytest.raises(FirmwareError) as caught:
        published.launch_update(context, 0, kind, bytes(size))
    assert caught.value.status is status


def test_what_the_firmware_sets_in_a_vmsa_is_measured_as_zero(published: Firmware) -> None:
    """sev_mcmd.c 6832: GUEST_TSC_SCALE and GUEST_TSC_OFFSET, at 0x2F0 and 0x2F8 (sev_es.h)."""
    digests = []
    for at in (None, 0x2F0, 0x2FF, 0x2EF, 0x300):
        page = bytearray(4096)
        if at is not None:
            page[at] = 1
        context = published.launch_start(POLICY)
        published.launch_update(context, 0xFFFF_FFFF_F000, PAGE_TYPE_VMSA, bytes(page))
        digests.append(context.measurement)
    assert digests[0] == digests[1] == digests[2]
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    "policy",
    [
        0x10000,  # bit 17 clear
        POLICY | 1 << 21,  # CXL, which KVM lets through
        POLICY | 1 << 22,  # AES-256-XTS, likewise
        POLICY | 1 << 63,
        0x20000,  # no SMT, on a host that has it
        POLICY | 1 << 8 | 56,  # ABI 1.56
    ],
)
def test_an_unsatisfiable_policy_is_policy_failure(policy: int, published: Firmware) -> None:
    """sev_mcmd.c: snp_mcmd_launch_start; sev_guest.h: bits 21 and up are reserved."""
    with pytest.raises(FirmwareError) as caught:
        published.launch_start(policy)
    assert caught.value.status is SevStatus.POLICY_FAILURE


def test_an_id_block_is_judged_in_order(published: Firmware) -> None:
    """sev_mcmd.c: snp_mcmd_launch_finish: digest, policy, algorithms, ID key, author key."""
    context = published.launch_start(POLICY)
    published.launch_update(context, 0, PageType.NORMAL, bytes(4096))
    digest, id_key, author_key, other = context.measurement, new_key(), new_key(), new_key()
    sound = signed(digest, POLICY, id_key=id_key, author_key=author_key)

    def spoilt(page: bytes, at: int, data: bytes) -> bytes:
        return page[:at] + data + page[at + len(data) :]

    forged = signature(other, sound[0])
    off_curve = (2).to_bytes(4, "little") + b"\1" * 144
    cases = [
        (signed(bytes(48), 0, id_key=id_key, algorithms=(9, 9)), False, SevStatus.BAD_MEASUREMENT),
        (signed(digest, 0, id_key=id_key, algorithms=(9, 9)), False, SevStatus.POLICY_FAILURE),
        (signed(digest, POLICY, id_key=id_key, algorithms=(2, 1)), False, SevStatus.INVALID_PARAM),
        (
            signed(digest, POLICY, id_key=id_key, author_key=author_key, algorithms=(1, 0)),
            True,
            SevStatus.INVALID_PARAM,
        ),
        (signed(digest, POLICY, id_key=id_key, curve=1), False, SevStatus.BAD_SIGNATURE),
        ((sound[0], spoilt(sound[1], 0x40, forged)), True, SevStatus.BAD_SIGNATURE),
        ((sound[0], spoilt(sound[1], 0x240, off_curve)), True, SevStatus.BAD_SIGNATURE),
        ((sound[0], spoilt(sound[1], 0x680, forged)), True, SevStatus.BAD_SIGNATURE),
        ((sound[0], spoilt(sound[1], 0x880, key_bytes(other))), True, SevStatus.BAD_SIGNATURE),
        (signed(digest, POLICY, id_key=id_key), True, SevStatus.BAD_SIGNATURE),  # no author at all
    ]
    for block, author, status in cases:
        with pytest.raises(FirmwareError) as caught:
            published.launch_finish(context, id_block=block, author_key_en=author)
        assert caught.value.status is (SevStatus.INVALID_PARAM if status is None else status)
    # The version of an ID block is ignored.
    block = signed(digest, POLICY, id_key=id_key, version=99)
    published.launch_finish(context, id_block=block)
    assert context.author_key_en is False


def test_an_author_key_is_noted_even_without_an_id_block(published: Firmware) -> None:
    """sev_mcmd.c: snp_mcmd_launch_finish: gctx->author_key_en = lf->auth_key_en, in any case."""
    fields = FirmwareGuest(published, author_key_en=True).report().fields
    assert fields.flags & 1
    assert fields.author_key_digest == bytes(48)


@pytest.mark.parametrize("refused", ["author key", "ID key"])
def test_an_id_block_is_kept_if_only_its_author_key_is_refused(
    refused: str, published: Firmware
) -> None:
    """sev_mcmd.c: snp_mcmd_launch_finish: the block goes into the context before that check.

    So reports of a guest whose ID block was refused have the block's family, image, SVN and ID key.
    But gctx->id_block_en stays clear, so derived keys do not depend on the ID key.
    """
    id_key, author_key, other = new_key(), new_key(), new_key()

    def refuse(context: GuestContext) -> None:
        block, auth = signed(
            context.measurement,
            POLICY,
            id_key=id_key,
            author_key=author_key,
            family_id=b"F" * 16,
            image_id=b"I" * 16,
            guest_svn=7,
        )
        at = {"author key": 0x680, "ID key": 0x40}[refused]
        forged = signature(other, b"something else")
        auth = auth[:at] + forged + auth[at + len(forged) :]
        with pytest.raises(FirmwareError) as caught:
            published.launch_finish(context, id_block=(block, auth), author_key_en=True)
        assert caught.value.status is SevStatus.BAD_SIGNATURE

    guest = FirmwareGuest(published, before_finish=refuse)
    fields = guest.report().fields
    kept = (b"F" * 16, b"I" * 16, 7, key_digest(id_key))
    nothing = (bytes(16), bytes(16), 0, bytes(48))
    found = (fields.family_id, fields.image_id, fields.guest_svn, fields.id_key_digest)
    assert found == (kept if refused == "author key" else nothing)
    assert fields.author_key_digest == bytes(48)
    assert fields.flags & 1 == 0
    assert key(guest, KeyRequest()) == key(FirmwareGuest(published), KeyRequest())


def test_feature_info(published: Firmware) -> None:
    """sev_mcmd.h 58 to 81; sev_mcmd.c: snp_mcmd_feature_info, and platform_status: always set."""
    assert published.snp_platform_status().flags & 1 << 3
    assert published.snp_feature_info(0) == (1, 1, 0b11, 0)
    assert published.snp_feature_info(1) == (0x1FF, 0, 0, 0)
    with pytest.raises(FirmwareError) as caught:
        published.snp_feature_info(2)
    assert caught.value.status is SevStatus.INVALID_PARAM


def key(guest: FirmwareGuest, request: KeyRequest, vmpck: int = 0) -> tuple[int, bytes]:
    answer = KeyResponse.unpack(guest.ask(MessageType.KEY_REQ, request.pack(), vmpck))
    return answer.status, answer.key


def test_a_derived_key_always_depends_on_host_data_and_on_who_vouches(published: Firmware) -> None:
    """sev_mcmd.c: SNP_MSG_KEY_REQ 5427, "Always": vmpl, host_data, idblock_key, gfs."""
    id_key, author_key, other = new_key(), new_key(), new_key()
    blocks = (
        None,
        {"id_key": id_key},
        {"id_key": other},
        {"id_key": id_key, "author_key": author_key},
        {"id_key": id_key, "author_key": other},
    )
    guests = [FirmwareGuest(published, id_block=block) for block in blocks]
    guests.append(FirmwareGuest(published, host_data=HOST_DATA[::-1]))
    for request in (KeyRequest(), KeyRequest(guest_field_select=1 << 3)):
        keys = [key(guest, request) for guest in guests]
        assert all(status == 0 for status, _ in keys)
        assert len(set(keys)) == len(guests)
    # With an author key, the derived key depends on the author key and not on the ID key.
    twin = FirmwareGuest(published, id_block={"id_key": other, "author_key": author_key})
    assert key(twin, KeyRequest()) == key(guests[3], KeyRequest())


@pytest.mark.parametrize(
    ("request_", "vmpck", "status"),
    [
        (KeyRequest(rsvd=1, root_key_select=3 << 1), 0, 0x16),
        (KeyRequest(root_key_select=1 << 3), 0, 0x16),
        (KeyRequest(root_key_select=3 << 1), 1, 0x27),
        (KeyRequest(root_key_select=3 << 1 | 1), 0, 0),  # ignored for the VMRK
        (KeyRequest(root_key_select=KeySelect.VLEK << 1), 0, 0x27),
        (KeyRequest(), 1, 0x16),  # vmpl 0 < vmpck 1
        (KeyRequest(vmpl=7), 1, 0),
        (KeyRequest(guest_field_select=1 << 6), 0, 0x16),
        (KeyRequest(guest_svn=9, tcb_version=b"\xff" * 8), 0, 0),  # not selected, not judged
        (KeyRequest(guest_field_select=1 << 4, guest_svn=1), 0, 0x16),
        (KeyRequest(guest_field_select=1 << 5, tcb_version=TCB.pack()), 0, 0),
        (
            KeyRequest(guest_field_select=1 << 5, tcb_version=replace(TCB, tee=2, snp=0).pack()),
            0,
            0x16,
        ),
        (KeyRequest(guest_field_select=1 << 5, tcb_version=b"\0\0\1\0\0\0\0\0"), 0, 0x16),
    ],
)
def test_answers_to_key_requests(
    request_: KeyRequest, vmpck: int, status: int, guest: FirmwareGuest
) -> None:
    found, derived = key(guest, request_, vmpck)
    assert found == status
    assert any(derived) == (status == 0)


@pytest.mark.parametrize("played", ["genoa-1.55.25", "documented", "observed-2022"])
def test_what_is_sealed_without_the_tcb_bit_is_lost_with_a_commit(played: str) -> None:
    """A tool seals a disk with a derived key; then its host is updated.

    Without the bit, the key depends on the reported TCB. With the bit, it depends on the TCB that
    the tool names, and a newer host can still derive that key.
    """
    host = Firmware(Chip.create(Product.GENOA), tcb=TCB, choices=choices_of(played))
    guest = FirmwareGuest(host)
    bare = KeyRequest(guest_field_select=1 << 3)
    named = KeyRequest(guest_field_select=1 << 3 | 1 << 5, tcb_version=TCB.pack())
    sealed_bare, sealed_named = key(guest, bare), key(guest, named)
    host.update(replace(TCB, snp=21))
    assert (key(guest, bare), key(guest, named)) == (sealed_bare, sealed_named), "must not change"
    host.snp_commit()
    assert key(guest, bare)[0] == 0
    assert key(guest, bare) != sealed_bare, "without the bit, the disk must not open"
    assert key(guest, named) == sealed_named, "with the bit, the disk must still open"
    host.snp_set_config(SnpConfig(reported_tcb=TCB.pack()))
    assert key(guest, bare) == sealed_bare, "reporting the old TCB must give the old key again"
    again = FirmwareGuest(host)
    assert key(again, named) == sealed_named, "the same guest, started again, must get the same key"


def test_a_key_rooted_in_a_vlek_is_not_derived_anew_for_a_tcb(published: Firmware) -> None:
    """sev_mcmd.c, from line 5548: the hashstick itself is the root of the derived key."""
    provider = CloudProvider("CN=provider", bytes(32))
    published.snp_vlek_load(provider.hashstick_for(published.chip, TCB))
    guest = FirmwareGuest(published)
    by_vlek = KeyRequest(root_key_select=KeySelect.VLEK << 1)
    before = key(guest, by_vlek)
    published.snp_set_config(SnpConfig(reported_tcb=replace(TCB, snp=19).pack()))
    assert key(guest, by_vlek) == before
    assert key(guest, KeyRequest()) == key(guest, replace(by_vlek, root_key_select=0))
