# SPDX-License-Identifier: Apache-2.0
"""Launch, guest requests and the reports they bring."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.guest_message import (
    KeyRequest,
    KeyResponse,
    KeySelect,
    MessageType,
    ReportRequest,
    SecretsPage,
)
from snpcerts.abi.kvm import PageType
from snpcerts.abi.product import Product
from snpcerts.abi.psp import SevStatus, SnpConfig
from snpcerts.abi.report import malformations
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.psp.chip import Chip, CloudProvider
from snpcerts.emulator.psp.chip_model import CHIP_MODELS
from snpcerts.emulator.psp.firmware import Firmware, FirmwareError, GuestContext
from snpcerts.emulator.psp.guest_context import GuestState
from snpcerts.emulator.psp.message_seal import seal
from tests.emulator.firmware_guest import HOST_DATA, POLICY, FirmwareGuest, verify
from tests.emulator.id_blocks import key_digest, new_key

SHAPES = [
    (Product.MILAN, 2),
    (Product.MILAN, 3),
    (Product.GENOA, 2),
    (Product.GENOA, 3),
    (Product.TURIN, 5),
]
PROVIDER = CloudProvider("CN=cc-us-east-2.amazonaws.com", bytes(range(32)))
REPORT = ReportRequest().pack()
ID_KEY = new_key()


def refused(status: SevStatus, what: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(FirmwareError) as caught:
        what(*arguments)
    assert caught.value.status is status


@pytest.mark.parametrize(("product", "version"), SHAPES)
def test_a_report_verifies_with_the_certificate_issued_for_it(
    product: Product, version: int, authority_of: Callable[[Product], EmulatedAuthority]
) -> None:
    firmware = Firmware(Chip.create(product), report_version=version)
    report = FirmwareGuest(firmware).report(data=b"r" * 64)
    assert malformations(report) == ()
    assert report.fields.version == version
    assert report.product is (product if version >= 3 else None)
    reported = TcbVersion.unpack(report.fields.reported_tcb, product.tcb_layout)
    leaf = authority_of(product).issue_vcek(
        firmware.get_id(), reported, firmware.vcek_public_key(reported)
    )
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    verify(report, key)
    other = Chip.create(product).vcek_key(reported).public_key()
    with pytest.raises(InvalidSignature):
        verify(report, other)


def test_every_field_of_a_report_is_the_guests_or_the_platforms() -> None:
    firmware = Firmware(Chip.create(Product.TURIN))
    id_key, author_key = new_key(), new_key()
    guest = FirmwareGuest(
        firmware,
        id_block={
            "id_key": id_key,
            "author_key": author_key,
            "family_id": b"f" * 16,
            "image_id": b"i" * 16,
            "guest_svn": 7,
        },
    )
    old = CHIP_MODELS[Product.TURIN].tcb
    new = replace(old, microcode=old.components()["microcode"] + 1)
    firmware.update(new)
    fields = guest.report(vmpl=2, data=bytes(range(64))).fields
    assert (fields.policy, fields.vmpl, fields.guest_svn) == (POLICY, 2, 7)
    assert (fields.family_id, fields.image_id) == (b"f" * 16, b"i" * 16)
    assert fields.id_key_digest == key_digest(id_key)
    assert fields.author_key_digest == key_digest(author_key)
    assert fields.flags == 1
    assert fields.report_data == bytes(range(64))
    assert fields.host_data == HOST_DATA
    assert fields.measurement == guest.context.measurement != bytes(48)
    assert fields.report_id == guest.context.report_id
    assert fields.report_id_ma == b"\xff" * 32
    assert fields.chip_id == firmware.chip.chip_id
    assert fields.current_tcb == new.pack()
    assert fields.committed_tcb == fields.reported_tcb == fields.launch_tcb == old.pack()
    assert (fields.current_major, fields.current_minor, fields.current_build) == (1, 55, 65)
    assert (fields.committed_major, fields.committed_minor, fields.committed_build) == (1, 55, 65)
    assert (fields.launch_mit_vector, fields.current_mit_vector) == (0x3F, 0x3F)
    assert fields.platform_info == 0x25


def test_guests_differ_in_report_id_and_keys(firmware: Firmware) -> None:
    one, two = FirmwareGuest(firmware), FirmwareGuest(firmware)
    assert one.report().fields.report_id != two.report().fields.report_id
    assert len({*one.vmpcks, *two.vmpcks}) == 8


def test_the_measurement_depends_on_contents_place_type_and_order(firmware: Firmware) -> None:
    def measure(*pages: tuple[int, PageType, bytes]) -> bytes:
        context = firmware.launch_start(POLICY)
        for gpa, kind, data in pages:
            firmware.launch_update(context, gpa, kind, data)
        return context.measurement

    a, b = b"a" * 4096, b"b" * 4096
    base = measure((0, PageType.NORMAL, a), (0x1000, PageType.NORMAL, b))
    assert base == measure((0, PageType.NORMAL, a + b))
    others = {
        measure((0, PageType.NORMAL, b), (0x1000, PageType.NORMAL, b)),
        measure((0, PageType.NORMAL, a), (0x2000, PageType.NORMAL, b)),
        measure((0, PageType.NORMAL, a), (0x1000, PageType.UNMEASURED, b)),
        measure((0x1000, PageType.NORMAL, b), (0, PageType.NORMAL, a)),
    }
    assert len(others | {base}) == 5
    assert measure((0, PageType.UNMEASURED, a)) == measure((0, PageType.UNMEASURED, b))


def test_launch_commands_keep_their_order(firmware: Firmware) -> None:
    page = bytes(4096)
    context = firmware.launch_start(POLICY)
    message = seal(context.vmpcks[0], FirmwareGuest(firmware).header(5), REPORT)
    refused(SevStatus.INVALID_GUEST_STATE, firmware.guest_request, context, message)
    firmware.launch_finish(context)
    assert context.host_data == bytes(32)
    refused(SevStatus.INVALID_GUEST_STATE, firmware.launch_finish, context)
    refused(
        SevStatus.INVALID_GUEST_STATE, firmware.launch_update, context, 0, PageType.NORMAL, page
    )
    firmware.guest_request(context, message)
    firmware.decommission(context)
    assert context.state is GuestState.GONE
    refused(SevStatus.INVALID_GUEST, firmware.guest_request, context, message)
    refused(SevStatus.INVALID_GUEST, firmware.decommission, context)


def test_a_guest_of_another_platform_is_unknown(firmware: Firmware) -> None:
    stranger: GuestContext = FirmwareGuest(Firmware(Chip.create(Product.MILAN))).context
    refused(SevStatus.INVALID_GUEST, firmware.guest_request, stranger, bytes(4096))


@pytest.mark.parametrize(
    ("policy", "status"),
    [
        (0x10000, SevStatus.POLICY_FAILURE),  # bit 17 must be one
        (POLICY | 1 << 26, SevStatus.POLICY_FAILURE),
        (0x20000, SevStatus.POLICY_FAILURE),  # no SMT, on a host that has it on
        (POLICY | 2 << 8, SevStatus.POLICY_FAILURE),  # ABI 2.0
        (POLICY | 1 << 8 | 56, SevStatus.POLICY_FAILURE),  # ABI 1.56 on 1.55
        (POLICY | 1 << 23, SevStatus.POLICY_FAILURE),
        (POLICY | 1 << 24, SevStatus.POLICY_FAILURE),
    ],
)
def test_a_policy_the_platform_cannot_keep_is_refused(
    policy: int, status: SevStatus, firmware: Firmware
) -> None:
    refused(status, firmware.launch_start, policy)
    assert firmware.snp_platform_status().guest_count == 0


def test_a_policy_the_platform_can_keep_is_taken(firmware: Firmware) -> None:
    for policy in (POLICY, POLICY | 1 << 8 | 55, POLICY | 1 << 19):
        assert firmware.launch_start(policy).policy == policy


@pytest.mark.parametrize(
    ("gpa", "kind", "size", "status"),
    [
        (1, PageType.NORMAL, 4096, SevStatus.INVALID_ADDRESS),
        (-4096, PageType.NORMAL, 4096, SevStatus.INVALID_ADDRESS),
        (2**64, PageType.NORMAL, 4096, SevStatus.INVALID_ADDRESS),
        (0, PageType.NORMAL, 0, SevStatus.INVALID_PAGE_SIZE),
        (0, PageType.NORMAL, 4095, SevStatus.INVALID_PAGE_SIZE),
        (0, PageType.SECRETS, 8192, SevStatus.INVALID_PAGE_SIZE),
    ],
)
def test_launch_pages_are_whole_and_aligned(
    gpa: int, kind: PageType, size: int, status: SevStatus, firmware: Firmware
) -> None:
    context = firmware.launch_start(POLICY)
    refused(status, firmware.launch_update, context, gpa, kind, bytes(size))
    assert context.measurement == bytes(48)


def test_only_a_secrets_page_comes_back(firmware: Firmware) -> None:
    context = firmware.launch_start(POLICY, gosvw=b"g" * 16)
    for kind in set(PageType) - {PageType.SECRETS}:
        assert firmware.launch_update(context, 0x2000, kind, bytes(4096)) is None
    page = firmware.launch_update(context, 0x3000, PageType.SECRETS, b"x" * 4096)
    assert page is not None
    secrets = SecretsPage.unpack(page)
    assert secrets.vmpck3 == context.vmpcks[3]
    assert secrets.gosvw == b"g" * 16
    assert secrets.fms == 0xA00F11  # a Milan of stepping B1
    assert secrets.msg_seqno_0 == 0


def test_sequence_numbers_go_up_by_two_per_vmpck(firmware: Firmware) -> None:
    guest = FirmwareGuest(firmware)
    for vmpck in (0, 0, 3, 0, 3):
        guest.report(vmpck=vmpck, vmpl=3)
    assert guest.counters == [6, 0, 0, 4]


@pytest.mark.parametrize("seqno", [0, 1, 2, 4, 5, 2**32 + 3, 2**64 - 1])
def test_any_other_sequence_number_is_refused_and_costs_nothing(
    seqno: int, firmware: Firmware
) -> None:
    guest = FirmwareGuest(firmware)
    guest.report()
    header = replace(guest.header(MessageType.REPORT_REQ), msg_seqno=seqno)
    page = seal(guest.vmpcks[0], header, REPORT)
    refused(SevStatus.AEAD_OFLOW, firmware.guest_request, guest.context, page)
    guest.report()  # number 3 is still the one expected


def test_a_message_cannot_be_replayed(firmware: Firmware) -> None:
    guest = FirmwareGuest(firmware)
    page = seal(guest.vmpcks[0], guest.header(MessageType.REPORT_REQ), REPORT)
    firmware.guest_request(guest.context, page)
    refused(SevStatus.AEAD_OFLOW, firmware.guest_request, guest.context, page)


def test_one_message_sent_by_many_threads_at_once_is_answered_once(firmware: Firmware) -> None:
    guest = FirmwareGuest(firmware)
    for _ in range(20):
        page = seal(guest.vmpcks[0], guest.header(MessageType.REPORT_REQ), REPORT)
        outcomes: list[int] = []
        start = threading.Barrier(4)

        def send(page: bytes, start: threading.Barrier, outcomes: list[int]) -> None:
            start.wait()
            try:
                firmware.guest_request(guest.context, page)
                outcomes.append(0)
            except FirmwareError as error:
                outcomes.append(error.status)

        threads = [threading.Thread(target=send, args=(page, start, outcomes)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        guest.counters[0] += 2
        assert sorted(outcomes) == [0, *[SevStatus.AEAD_OFLOW] * 3]


def test_the_last_sequence_numbers_are_not_used(firmware: Firmware) -> None:
    guest = FirmwareGuest(firmware)
    guest.counters[0] = guest.context.counters[0] = 2**64 - 2
    page = seal(guest.vmpcks[0], guest.header(MessageType.REPORT_REQ), REPORT)
    refused(SevStatus.AEAD_OFLOW, firmware.guest_request, guest.context, page)


def test_a_bad_tag_is_refused_and_costs_nothing(firmware: Firmware) -> None:
    guest = FirmwareGuest(firmware)
    for at in (0, 15, 0x60, 0xBF):
        page = bytearray(seal(guest.vmpcks[0], guest.header(MessageType.REPORT_REQ), REPORT))
        page[at] ^= 1
        refused(SevStatus.BAD_MEASUREMENT, firmware.guest_request, guest.context, bytes(page))
    wrong_key = seal(guest.vmpcks[1], guest.header(MessageType.REPORT_REQ), REPORT)
    refused(SevStatus.BAD_MEASUREMENT, firmware.guest_request, guest.context, wrong_key)
    guest.report()


@pytest.mark.parametrize(
    "change",
    [
        {"algo": 0},
        {"algo": 2},
        {"hdr_version": 2},
        {"hdr_sz": 0x61},
        {"msg_vmpck": 4},
        {"msg_version": 2},
        {"msg_version": 0},
        {"msg_type": MessageType.INVALID},
        {"msg_type": MessageType.REPORT_RSP},
        {"msg_type": MessageType.TSC_INFO_RSP},
        {"msg_type": 255},
    ],
)
def test_a_malformed_message_is_refused_even_well_sealed(
    change: dict[str, Any], firmware: Firmware
) -> None:
    guest = FirmwareGuest(firmware)
    header = replace(guest.header(MessageType.REPORT_REQ), **change)
    page = seal(guest.vmpcks[0], header, REPORT)
    refused(SevStatus.INVALID_PARAM, firmware.guest_request, guest.context, page)
    guest.report()


_FUZZED = FirmwareGuest(Firmware(Chip(Product.MILAN, bytes(32))))


@given(st.binary(max_size=200), st.sampled_from([0, 4095, 4096, 4097]))
def test_random_pages_are_refused_by_status_only(start: bytes, size: int) -> None:
    refused(
        SevStatus.INVALID_PARAM,
        _FUZZED.firmware.guest_request,
        _FUZZED.context,
        start.ljust(size, b"\0")[: max(size, 200)],
    )


_EDITS = st.dictionaries(st.integers(0, 0xBF), st.integers(1, 255), min_size=1, max_size=4)


# The firmware does not check the upper half of the tag's field and the reserved bytes after the
# sequence number, and the tag does not cover them.
_UNJUDGED = {*range(0x10, 0x20), *range(0x28, 0x30)}


@given(_EDITS)
def test_a_sound_message_changed_anywhere_is_refused_by_status_only(edits: dict[int, int]) -> None:
    page = bytearray(seal(_FUZZED.vmpcks[0], _FUZZED.header(MessageType.REPORT_REQ), REPORT))
    for at, flip in edits.items():
        page[at] ^= flip
    if all(at in _UNJUDGED for at in edits):
        _FUZZED.firmware.guest_request(_FUZZED.context, bytes(page))
        _FUZZED.counters[0] += 2
        return
    with pytest.raises(FirmwareError) as caught:
        _FUZZED.firmware.guest_request(_FUZZED.context, bytes(page))
    assert caught.value.status in (SevStatus.INVALID_PARAM, SevStatus.BAD_MEASUREMENT)


@given(
    kind=st.sampled_from(
        [(MessageType.REPORT_REQ, 96), (MessageType.KEY_REQ, 32), (MessageType.TSC_INFO_REQ, 128)]
    ),
    data=st.data(),
    vmpck=st.integers(0, 3),
)
def test_random_payloads_are_always_answered(
    kind: tuple[MessageType, int], data: st.DataObject, vmpck: int
) -> None:
    """A correctly sealed message gets an answer; bad contents get a STATUS in it."""
    msg_type, size = kind
    payload = data.draw(st.binary(min_size=size, max_size=size))
    answer = _FUZZED.ask(msg_type, payload, vmpck)
    assert int.from_bytes(answer[:4], "little") in (0, 0x16, 0x27)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"vmpl": 3}, 0),
        ({"vmpl": 4}, 0x16),
        ({"vmpl": 2**32 - 1}, 0x16),
        ({"vmpl": 4, "key_sel": KeySelect.VLEK}, 0x27),
        ({"vmpl": 1, "vmpck": 2}, 0x16),
        ({"vmpl": 2, "vmpck": 2}, 0),
        ({"key_sel": KeySelect.VCEK}, 0),
        ({"key_sel": KeySelect.VLEK}, 0x27),
        ({"key_sel": 3}, 0x27),
        ({"key_sel": 4}, 0x16),
    ],
)
def test_bad_parameters_are_answered_inside_the_response(
    request_: dict[str, Any], status: int, firmware: Firmware
) -> None:
    guest = FirmwareGuest(firmware)
    found, report = guest.ask_report(**request_)
    assert found == status
    assert (report is None) == bool(status)
    guest.report(vmpl=3, vmpck=request_.get("vmpck", 0))  # the sequence went on


def test_reserved_bytes_of_a_report_request_must_be_zero(firmware: Firmware) -> None:
    payload = ReportRequest(rsvd=bytes(23) + b"\1").pack()
    answer = FirmwareGuest(firmware).ask(MessageType.REPORT_REQ, payload)
    assert answer == (0x16).to_bytes(4, "little") + (0x4A0).to_bytes(4, "little") + bytes(0x4B8)


def test_a_guest_forbidden_the_vcek_gets_the_vlek_or_nothing(firmware: Firmware) -> None:
    guest = FirmwareGuest(firmware, vcek_disabled=True)
    assert guest.ask_report()[0] == 0x27
    assert guest.ask_report(key_sel=KeySelect.VCEK)[0] == 0x27
    firmware.snp_vlek_load(PROVIDER.hashstick_for(firmware.chip, firmware.state.reported))
    verify(guest.report(), PROVIDER.vlek_key(firmware.state.reported).public_key())
    assert guest.ask_report(key_sel=KeySelect.VCEK)[0] == 0x27


def ask_key(guest: FirmwareGuest, request: KeyRequest) -> tuple[int, bytes]:
    answer = KeyResponse.unpack(guest.ask(MessageType.KEY_REQ, request.pack()))
    return answer.status, answer.key


def test_a_derived_key_follows_root_and_selected_fields(firmware: Firmware) -> None:
    guest = FirmwareGuest(firmware, id_block={"guest_svn": 5, "id_key": ID_KEY})
    twin = FirmwareGuest(firmware, id_block={"guest_svn": 5, "id_key": ID_KEY})
    tcb = firmware.state.committed
    lower = replace(tcb, snp=tcb.snp - 1)
    requests = [
        KeyRequest(),
        KeyRequest(root_key_select=1),
        KeyRequest(vmpl=1),
        KeyRequest(guest_field_select=1 << 0),
        KeyRequest(guest_field_select=1 << 3),
        KeyRequest(guest_field_select=1 << 4, guest_svn=5),
        KeyRequest(guest_field_select=1 << 4, guest_svn=4),
        KeyRequest(guest_field_select=1 << 5, tcb_version=tcb.pack()),
        KeyRequest(guest_field_select=1 << 5, tcb_version=lower.pack()),
    ]
    answers = [ask_key(guest, request) for request in requests]
    assert all(status == 0 for status, _ in answers)
    assert len({key for _, key in answers}) == len(requests)
    assert [ask_key(guest, request) for request in requests] == answers
    again = [ask_key(twin, request) for request in requests]
    assert [one == other for one, other in zip(answers, again, strict=True)] == [
        request.root_key_select != 1 for request in requests
    ]
    # A field that is not selected does not affect the key.
    assert ask_key(guest, KeyRequest(guest_svn=3))[1] == answers[0][1]


def test_a_key_rooted_in_the_vlek_is_the_providers_on_any_chip() -> None:
    keys = []
    for _ in range(2):
        firmware = Firmware(Chip.create(Product.MILAN))
        guest = FirmwareGuest(firmware)
        by_vcek = ask_key(guest, KeyRequest())
        firmware.snp_vlek_load(PROVIDER.hashstick_for(firmware.chip, firmware.state.reported))
        by_vlek = ask_key(guest, KeyRequest())
        assert by_vlek == ask_key(guest, KeyRequest(root_key_select=KeySelect.VLEK << 1))
        assert by_vcek == ask_key(guest, KeyRequest(root_key_select=KeySelect.VCEK << 1))
        keys.append((by_vcek, by_vlek))
    assert keys[0][0] != keys[1][0]
    assert keys[0][1] == keys[1][1]


def test_a_key_request_out_of_bounds_is_answered_with_a_status(firmware: Firmware) -> None:
    guest = FirmwareGuest(firmware)
    tcb = firmware.state.committed
    firmware.update(replace(tcb, snp=tcb.snp + 1))
    above = firmware.state.current.pack()
    for request, status in (
        (KeyRequest(root_key_select=8), 0x16),
        (KeyRequest(root_key_select=3 << 1), 0x27),
        (KeyRequest(root_key_select=2 << 1), 0x27),
        (KeyRequest(root_key_select=2 << 1, guest_field_select=1 << 6), 0x27),
        (KeyRequest(rsvd=1), 0x16),
        (KeyRequest(guest_field_select=1 << 6), 0x16),
        (KeyRequest(guest_field_select=1 << 4, guest_svn=1), 0x16),
        (KeyRequest(guest_field_select=1 << 5, tcb_version=above), 0x16),
        (KeyRequest(guest_field_select=1 << 5, tcb_version=b"\0\0\1\0\0\0\0\0"), 0x16),
    ):
        assert ask_key(guest, request) == (status, bytes(32))
    # The firmware does not check fields that the request does not select.
    for request in (
        KeyRequest(guest_svn=1),
        KeyRequest(tcb_version=above),
        KeyRequest(root_key_select=3 << 1 | 1),
    ):
        assert ask_key(guest, request)[0] == 0
    firmware.snp_set_config(SnpConfig(flags=2))
    assert ask_key(guest, KeyRequest())[0] == 0x27
    assert ask_key(guest, KeyRequest(root_key_select=1))[0] == 0


def test_every_report_is_signed_with_the_key_of_its_own_reported_tcb(firmware: Firmware) -> None:
    """Two guests ask while a third thread moves the reported TCB to and fro."""
    low = replace(firmware.state.reported, snp=1)
    keys = {tcb.pack(): firmware.vcek_public_key(tcb) for tcb in (low, firmware.state.reported)}
    reports, seen_both = [], threading.Event()

    def ask(guest: FirmwareGuest) -> None:
        seen: set[bytes] = set()
        while len(seen) < 2 or not seen_both.is_set():
            report = guest.report()
            reports.append(report)
            seen.add(report.fields.reported_tcb)
            if len(reports) >= 300 and len(seen) == 2:
                seen_both.set()

    guests = [threading.Thread(target=ask, args=(FirmwareGuest(firmware),)) for _ in range(2)]
    for thread in guests:
        thread.start()
    while any(thread.is_alive() for thread in guests):
        for tcb in (low.pack(), bytes(8)):
            firmware.snp_set_config(SnpConfig(reported_tcb=tcb))
    for thread in guests:
        thread.join()
    assert {report.fields.reported_tcb for report in reports} == set(keys)
    for report in reports:
        verify(report, keys[report.fields.reported_tcb])
