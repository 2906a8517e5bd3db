# SPDX-License-Identifier: Apache-2.0
"""An announcement arrives as it was sent, and nothing else is accepted as one."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.product import Cpuid, Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import FormatError
from snpcerts.host.file_state import FileMatch
from snpcerts.mirror.announcement import (
    FILE_STATES,
    MAX_BYTES,
    MAX_REPORTED_FILES,
    Announcement,
    FileReport,
    file_report,
    read_announcement,
)

from .sample_fleet import announcement

BYTE = st.integers(0, 255)
TEXT = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=40)


@st.composite
def announcements(draw: st.DrawFn) -> Announcement:
    product = draw(st.sampled_from(list(Product)))
    names = product.tcb_layout.components

    def tcb() -> TcbVersion:
        return TcbVersion.of({name: draw(BYTE) for name in names})

    files = st.builds(
        FileReport,
        path=TEXT,
        kind=st.sampled_from(VekKind),
        state=st.sampled_from(FILE_STATES),
        certificates=st.booleans(),
        not_after=st.none() | st.datetimes(timezones=st.just(UTC)),
        reason=st.just("") | TEXT,
    )
    return Announcement(
        host=draw(TEXT),
        product=product,
        hwid=draw(st.binary(min_size=product.hwid_size, max_size=product.hwid_size)),
        current=tcb(),
        reported=tcb(),
        committed=draw(st.sampled_from([None, tcb()])),
        cpuid=draw(st.none() | st.builds(Cpuid, BYTE, BYTE, BYTE)),
        agent=draw(st.just("") | TEXT),
        firmware=draw(st.just("") | TEXT),
        initialised=draw(st.booleans()),
        guests=draw(st.integers(0, 1000)),
        vlek_loaded=draw(st.booleans()),
        files=tuple(draw(st.lists(files, max_size=4))),
    )


@given(announcements())
def test_what_is_sent_is_what_is_read(announced: Announcement) -> None:
    assert read_announcement(json.dumps(announced.to_json()).encode()) == announced


def test_the_states_of_files_are_those_of_the_agent() -> None:
    assert set(FILE_STATES) == {each.value for each in FileMatch}


def altered(**values: Any) -> bytes:
    return json.dumps(announcement("host").to_json() | values).encode()


FILE = announcement("host").to_json()["files"][0]  # type: ignore[index]
TCB = {"bootloader": 1, "tee": 0, "snp": 2, "microcode": 3}


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"", "JSON"),
        (b"[]", "object"),
        (b"[" * 100_000, "JSON"),
        (b" " * (MAX_BYTES + 1), "at most"),
        (altered(version=2), "version"),
        (altered(product="Rome"), "product"),
        (altered(product=7), "product"),
        (altered(hwid="00"), "hwid"),
        (altered(hwid="zz" * 64), "hwid"),
        (altered(hwid=None), "hwid"),
        (altered(host=""), "host"),
        (altered(host="a" * 254), "host"),
        (altered(host="a\nb"), "host"),
        (altered(host="\u202eevil"), "host"),
        (altered(guests=-1), "guests"),
        (altered(guests=True), "guests"),
        (altered(guests=1e300), "guests"),
        (altered(initialised="yes"), "initialised"),
        (altered(cpuid=[1, 2, 3]), "cpuid"),
        (altered(cpuid={"family": 256, "model": 1, "stepping": 1}), "family"),
        (altered(current_tcb=None), "current_tcb"),
        (altered(current_tcb=TCB | {"fmc": 1}), "current_tcb"),
        (altered(reported_tcb=TCB | {"snp": 256}), "snp"),
        (altered(committed_tcb="1.2.3"), "committed_tcb"),
        (altered(files="none"), "files"),
        (altered(files=[FILE] * (MAX_REPORTED_FILES + 1)), "files"),
        (altered(files=[None]), "files[0]"),
        (altered(files=[FILE | {"state": "odd"}]), "state"),
        (altered(files=[FILE | {"kind": {}}]), "kind"),
        (altered(files=[FILE | {"not_after": "2027-01-31"}]), "not_after"),
        (altered(files=[FILE | {"not_after": "0001-01-01T00:00:00+23:59"}]), "not_after"),
        (altered(files=[FILE | {"certificates": 1}]), "certificates"),
    ],
)
def test_what_is_wrong_is_named(data: bytes, names: str) -> None:
    with pytest.raises(FormatError, match="announcement") as refused:
        read_announcement(data)
    assert names in refused.value.message


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text(), st.lists).map(lambda x: json.dumps(x).encode())
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        read_announcement(data)


def test_a_file_with_a_long_path_and_a_strange_reason_can_be_announced() -> None:
    file = file_report(
        "/" + "a" * 9000,
        VekKind.VCEK,
        "wrong",
        certificates=True,
        not_after=datetime(2030, 1, 1, tzinfo=UTC),
        reason="two\nlines \x1b[31m" + "b" * 9000,
    )
    announced = replace(announcement("host"), files=(file,) * MAX_REPORTED_FILES)
    data = json.dumps(announced.to_json()).encode()
    assert read_announcement(data) == announced
