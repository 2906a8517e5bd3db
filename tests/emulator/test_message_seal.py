# SPDX-License-Identifier: Apache-2.0
"""Sealing guest messages: the cipher's parameters, the round trip, hostile pages."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.guest_message import MAX_PAYLOAD, MESSAGE_SIZE, MessageType, ReportRequest
from snpcerts.emulator.psp.message_seal import SealError, header_for, open_sealed, seal
from snpcerts.errors import UsageError

KEY = bytes.fromhex("fe246add1ac33915ee4bf86e869b0ba572bd33f26e883404d7c70cca0b40b4b3")
CIPHERTEXT = bytes.fromhex(
    "a1a156d62d7eb58a8677e5fbf38aad4cc3dc9322e16ed02e324e740580b76bf7c671cb56fb030af6b345692677e7"
    "231ef2100d39ef12b866701dadcfa95aa766920616db36aa883089e7ecabd1640b9a772a788858e9bfd7f122088f"
    "163af2ad"
)
TAG = bytes.fromhex("ee858c71f018162db682ecee7244a4cd")
AAD = bytes.fromhex("01016000050160000000000001") + bytes(35)


def test_a_request_seals_to_the_golden_vector() -> None:
    """Key, nonce and authenticated bytes come from a genuine guest's first request."""
    page = seal(KEY, header_for(MessageType.REPORT_REQ, 1, 1), ReportRequest(vmpl=1).pack())
    assert len(page) == MESSAGE_SIZE
    assert page[:0x10] == TAG
    assert page[0x10:0x30] == bytes(16) + (1).to_bytes(8, "little") + bytes(8)
    assert page[0x30:0x60] == AAD
    assert page[0x60:0xC0] == CIPHERTEXT
    assert not any(page[0xC0:])


@given(
    key=st.binary(min_size=32, max_size=32),
    payload=st.binary(max_size=MAX_PAYLOAD),
    seqno=st.integers(0, 2**64 - 1),
    vmpck=st.integers(0, 3),
)
def test_what_was_sealed_opens_to_the_same(
    key: bytes, payload: bytes, seqno: int, vmpck: int
) -> None:
    header = header_for(MessageType.KEY_REQ, seqno, vmpck)
    opened, found = open_sealed(key, seal(key, header, payload))
    assert found == payload
    assert replace(opened, authtag=bytes(32), msg_sz=0) == header


@given(at=st.integers(0, 0xBF), flip=st.integers(1, 255))
def test_a_changed_byte_is_noticed_where_the_cipher_covers_it(at: int, flip: int) -> None:
    """Not covered: the tag field's upper half, and the reserved bytes after the sequence number."""
    page = bytearray(seal(KEY, header_for(MessageType.REPORT_REQ, 1, 1), bytes(96)))
    page[at] ^= flip
    if 0x10 <= at < 0x20 or 0x28 <= at < 0x30:
        assert open_sealed(KEY, bytes(page))[1] == bytes(96)
    else:
        with pytest.raises(SealError):
            open_sealed(KEY, bytes(page))


def test_a_header_that_was_received_can_be_sealed_again() -> None:
    """Its old tag and size do not leak into the new page."""
    page = bytearray(seal(KEY, header_for(MessageType.REPORT_REQ, 1, 1), bytes(96)))
    page[0x10:0x20] = b"x" * 16  # not under the tag
    header, _ = open_sealed(KEY, bytes(page))
    again = seal(KEY, header, b"short")
    assert again[0x10:0x20] == bytes(16)
    assert open_sealed(KEY, again)[1] == b"short"


def test_another_vmpck_does_not_open_it() -> None:
    page = seal(KEY, header_for(MessageType.REPORT_REQ, 1, 1), bytes(96))
    with pytest.raises(SealError, match="tag of message 1"):
        open_sealed(bytes(32), page)


@given(st.binary(max_size=200), st.sampled_from([200, MESSAGE_SIZE - 1, MESSAGE_SIZE]))
def test_any_bytes_are_refused(start: bytes, size: int) -> None:
    with pytest.raises(SealError):
        open_sealed(KEY, start.ljust(size, b"\0"))


def test_sizes_are_bounded() -> None:
    header = header_for(MessageType.REPORT_REQ, 1, 0)
    with pytest.raises(UsageError, match="4000"):
        seal(KEY, header, bytes(MAX_PAYLOAD + 1))
    with pytest.raises(UsageError, match="32 bytes"):
        seal(KEY[:16], header, b"")
    page = bytearray(seal(KEY, header, bytes(MAX_PAYLOAD)))
    page[0x36:0x38] = (MAX_PAYLOAD + 1).to_bytes(2, "little")
    with pytest.raises(SealError, match="msg_sz: expected at most 4000 bytes, found 4001"):
        open_sealed(KEY, bytes(page))
