# SPDX-License-Identifier: Apache-2.0
"""The certificate table's codec: golden bytes, round trips, and hosts that lie."""

from __future__ import annotations

import struct
import tracemalloc
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi import cert_table
from snpcerts.abi.cert_table import (
    ARK_GUID,
    ASK_GUID,
    EMPTY,
    MAX_ENTRIES,
    VCEK_GUID,
    VLEK_GUID,
    CertTable,
    TableEntry,
)
from snpcerts.errors import FormatError, SnpCertsError

OTHER = uuid.UUID("fbb6ed74-e73e-44ab-8893-4252792d737a")


def entry(stored: bytes, offset: int, length: int) -> bytes:
    return struct.pack("<16sII", stored, offset, length)


def distinct(count: int, offset: int, length: int) -> bytes:
    """Return entries with different GUIDs that all refer to the same bytes."""
    return b"".join(
        entry(struct.pack("<QQ", index + 1, 7), offset, length) for index in range(count)
    )


guids = st.sampled_from([*cert_table.GUID_NAMES, OTHER]) | st.uuids().filter(
    lambda guid: guid.int and uuid.UUID(bytes_le=guid.bytes) not in cert_table.GUID_NAMES
)
tables = st.dictionaries(guids, st.binary(min_size=1, max_size=300), max_size=8).map(
    lambda blobs: CertTable(tuple(TableEntry(guid, data) for guid, data in blobs.items()))
)


def test_golden_table_of_four_entries() -> None:
    """A test of virtee/sev expects the same bytes for this table."""
    table = CertTable(
        (
            TableEntry(ARK_GUID, b"\x01" * 25),
            TableEntry(ASK_GUID, b"\x02" * 25),
            TableEntry(VCEK_GUID, b"\x05" * 15),
            TableEntry(OTHER, b"\x07" * 6),
        )
    )
    expected = (
        bytes.fromhex("c0b406a4a803495297433fb6014cd0ae7800000019000000")
        + bytes.fromhex("4ab7b379bbac4fe4a02f05aef327c7829100000019000000")
        + bytes.fromhex("63da758de6644564adc5f4b93be8accdaa0000000f000000")
        + bytes.fromhex("fbb6ed74e73e44ab88934252792d737ab900000006000000")
        + bytes(24)
        + b"\x01" * 25
        + b"\x02" * 25
        + b"\x05" * 15
        + b"\x07" * 6
    )
    assert table.encode() == expected
    assert len(expected) == table.size == 191
    assert CertTable.decode(expected) == table


def test_empty_table_is_24_zero_bytes() -> None:
    assert CertTable().encode() == EMPTY == bytes(24)
    assert CertTable.decode(bytes(4096)) == CertTable()


@given(table=tables, padding=st.integers(0, 5000))
def test_round_trip_keeps_order_unknown_guids_and_content(table: CertTable, padding: int) -> None:
    data = table.encode()
    assert CertTable.decode(data + bytes(padding)) == table
    assert len(data) == table.size
    assert (table.pages - 1) * 4096 < table.size <= table.pages * 4096


@given(data=st.binary(max_size=600))
def test_garbage_is_refused_with_our_error_only(data: bytes) -> None:
    try:
        table = CertTable.decode(data)
    except SnpCertsError:
        lenient, problems = CertTable.decode_lenient(data)
        assert problems
    else:
        lenient, problems = CertTable.decode_lenient(data)
        assert lenient == table
        assert not problems
    assert sum(len(each.data) for each in lenient) <= len(data)


headers = st.lists(
    st.tuples(guids, st.integers(0, 400), st.integers(0, 400)).map(
        lambda t: entry(t[0].bytes, t[1], t[2])
    ),
    max_size=6,
).map(b"".join)


@given(header=headers, tail=st.binary(max_size=400))
def test_copied_bytes_never_exceed_the_input(header: bytes, tail: bytes) -> None:
    """The entries are well-formed, but their offsets and lengths are arbitrary."""
    data = header + EMPTY + tail
    table, problems = CertTable.decode_lenient(data)
    assert sum(len(each.data) for each in table) <= len(data) - len(header) - 24
    if problems:
        with pytest.raises(FormatError):
            CertTable.decode(data)
    else:
        assert CertTable.decode(data) == table


V = VCEK_GUID.bytes


@pytest.mark.parametrize(
    ("data", "message", "index", "offset"),
    [
        (b"", "without the zero entry", 0, 0),
        (bytes(23), "without the zero entry", 0, 0),
        (entry(V, 48, 1), "without the zero entry", 1, 24),
        (entry(V, 48, 2) + EMPTY + b"x", "extends past the table", 0, 0),
        (entry(V, 47, 1) + EMPTY + b"x", "inside the 48-byte header", 0, 0),
        (entry(V, 0, 1) + EMPTY + b"x", "inside the 48-byte header", 0, 0),
        (entry(V, 48, 0) + EMPTY, "length 0", 0, 0),
        (entry(V, 0xFFFF_FFF0, 0x20) + EMPTY, "extends past the table", 0, 0),
        (entry(V, 48, 0xFFFF_FFFF) + EMPTY, "extends past the table", 0, 0),
        (entry(bytes(16), 48, 1) + EMPTY + b"x", "zero GUID", 0, 0),
        (entry(V, 72, 1) * 2 + EMPTY + b"xy", "appears twice", 1, 24),
        (
            entry(V, 72, 2) + entry(ASK_GUID.bytes, 73, 2) + EMPTY + b"xyz",
            "overlaps the blob of entry 0",
            1,
            24,
        ),
        (
            entry(V, 73, 2) + entry(ASK_GUID.bytes, 72, 2) + EMPTY + b"xyz",
            "overlaps the blob of entry 1",
            0,
            0,
        ),
        (distinct(MAX_ENTRIES + 1, 0, 1) + EMPTY, "more than 682 entries", 682, 682 * 24),
    ],
)
def test_errors_name_the_entry_and_offset(
    data: bytes, message: str, index: int, offset: int
) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        CertTable.decode(data)
    assert caught.value.field == f"entry {index}"
    assert caught.value.offset == offset


def test_lenient_decoding_keeps_valid_entries() -> None:
    data = entry(V, 72, 2) + entry(ASK_GUID.bytes, 500, 2) + EMPTY + b"ok"
    table, problems = CertTable.decode_lenient(data)
    assert table.entries == (TableEntry(VCEK_GUID, b"ok"),)
    assert [problem.entry for problem in problems] == [1]


def test_mixed_endian_guid_is_read_with_a_warning_and_written_right() -> None:
    data = entry(VLEK_GUID.bytes_le, 48, 3) + EMPTY + b"abc"
    table = CertTable.decode(data)
    assert table.get(VLEK_GUID) == b"abc"
    assert "mixed-endian" in table.warnings[0]
    assert table.encode()[:16] == VLEK_GUID.bytes


def test_both_orders_of_one_guid_are_the_same_guid() -> None:
    data = entry(V, 72, 1) + entry(VCEK_GUID.bytes_le, 73, 1) + EMPTY + b"ab"
    with pytest.raises(FormatError, match="appears twice"):
        CertTable.decode(data)


@pytest.mark.parametrize("count", [MAX_ENTRIES, 2730])
def test_overlapping_entries_cost_no_more_than_the_table(count: int) -> None:
    """In a 64 KiB table, each entry refers to the whole body, which must not be copied for each."""
    body = min(24 * (count + 1), 65000)
    header = distinct(count, body, 65536 - body) + EMPTY
    data = header.ljust(65536, b"x")[:65536]
    tracemalloc.start()
    try:
        table, problems = CertTable.decode_lenient(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert problems
    assert sum(len(each.data) for each in table) <= len(data)
    assert peak < 20 * len(data)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([TableEntry(VCEK_GUID, b"")], "vcek is empty"),
        ([TableEntry(VCEK_GUID, b"a"), TableEntry(VCEK_GUID, b"b")], "appears twice"),
        ([TableEntry(uuid.UUID(int=0), b"a")], "zero GUID"),
        ([TableEntry(uuid.UUID(int=i + 1), b"a") for i in range(683)], "683 entries"),
        ([TableEntry(VCEK_GUID, bytes(1 << 20))], "the limit is 1048576"),
    ],
)
def test_tables_that_others_choke_on_are_not_written(
    entries: list[TableEntry], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        CertTable(tuple(entries)).encode()


def test_genuine_certificates_fit_two_pages(vectors: Path) -> None:
    milan = vectors / "milan"
    table = CertTable(
        (
            TableEntry(VCEK_GUID, (milan / "vcek.der").read_bytes()),
            TableEntry(ASK_GUID, (milan / "ask.der").read_bytes()),
            TableEntry(ARK_GUID, (milan / "ark.der").read_bytes()),
        )
    )
    assert (table.size, table.pages) == (96 + 1360 + 1677 + 1639, 2)
    assert CertTable.decode(table.encode()) == table
