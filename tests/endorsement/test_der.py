# SPDX-License-Identifier: Apache-2.0
"""The DER reader accepts each value in its one valid form, and refuses all other forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.endorsement.der import (
    read_byte_integer,
    read_element,
    read_ia5_string,
    read_octet_string,
)
from snpcerts.errors import FormatError
from tests.endorsement.small_ca import der, ia5, integer


@given(st.integers(0, 255))
def test_a_byte_is_read_as_written(value: int) -> None:
    assert read_byte_integer(integer(value), "x", "y") == value


@pytest.mark.parametrize(
    "text",
    [
        "",  # nothing
        "02",
        "0200",  # no content
        "02020001",  # not the shortest form
        "0202007f",
        "0201ff",  # -1
        "0203000080",
        "02020100",  # 256
        "02010100",  # a byte too many
        "020102ff",
        "0a0101",  # another type
        "028101ff",  # length not in its shortest form
        "028001",  # indefinite length
        "0285000000000101",
        "02840000",
        "1f0101",  # tag of more bytes
        "020501",  # more promised than there
    ],
)
def test_other_integers_are_refused(text: str) -> None:
    with pytest.raises(FormatError):
        read_byte_integer(bytes.fromhex(text), "x", "y")


@given(st.text(st.characters(max_codepoint=127), max_size=300))
def test_ia5_text_is_read_as_written(text: str) -> None:
    assert read_ia5_string(ia5(text), "x") == text


@pytest.mark.parametrize("data", [b"\x16\x01\x80", b"\x0c\x01a", b"\x16\x01ab", b"\x16\x02a"])
def test_other_text_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        read_ia5_string(data, "x")


@given(st.binary(max_size=70_000))
def test_octets_of_any_length_are_read_as_written(data: bytes) -> None:
    assert read_octet_string(der(0x04, data), "x") == data


@given(st.binary(max_size=64), st.integers(0, 70))
def test_random_bytes_give_an_element_inside_them_or_a_format_error(data: bytes, at: int) -> None:
    try:
        element = read_element(data, at, "x")
    except FormatError:
        return
    assert at == element.start < element.end <= len(data)
    assert data[element.start : element.end].endswith(element.content)
