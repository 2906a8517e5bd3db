# SPDX-License-Identifier: Apache-2.0
"""Real ELF files are read; broken ones are read or refused, with no other error."""

from __future__ import annotations

import contextlib
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.errors import FormatError
from snpcerts.vmm.elf import MACHINE_X86_64, parse_elf, read_elf

CALLS_IOCTL = """
#include <stdio.h>
#include <sys/ioctl.h>
int main(void) { return ioctl(0, 1, 2) + puts("x"); }
"""


def build(folder: Path, text: str, *flags: str) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler on this machine")
    source, program = folder / "program.c", folder / "program"
    source.write_text(text)
    made = subprocess.run(["cc", "-o", program, source, *flags], capture_output=True, text=True)
    if made.returncode and flags:
        pytest.skip(f"this compiler does not support {' '.join(flags)}")
    assert made.returncode == 0, made.stderr
    return program


@pytest.mark.parametrize("flags", [(), ("-no-pie",), ("-s",), ("-Wl,-z,now",), ("-fno-plt",)])
def test_a_programs_imports(flags: tuple[str, ...], tmp_path: Path) -> None:
    elf = read_elf(str(build(tmp_path, CALLS_IOCTL, *flags)))
    assert (elf.bits, elf.machine) == (64, MACHINE_X86_64)
    assert elf.interpreter is not None
    assert "ld-linux" in elf.interpreter
    assert {"ioctl", "puts"} <= elf.imports
    assert "mmap" not in elf.imports


@pytest.mark.parametrize("flags", [("-static",), ("-static-pie",)])
def test_a_static_program_has_no_interpreter(flags: tuple[str, ...], tmp_path: Path) -> None:
    assert read_elf(str(build(tmp_path, CALLS_IOCTL, *flags))).interpreter is None


def test_a_32_bit_program_is_recognised_by_its_class(tmp_path: Path) -> None:
    header = bytearray(64)
    header[:6] = b"\x7fELF\x01\x01"
    struct.pack_into("<H", header, 18, 3)
    elf = parse_elf(bytes(header))
    assert (elf.bits, elf.machine) == (32, 3)


def test_big_endian(tmp_path: Path) -> None:
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x02"
    struct.pack_into(">H", header, 18, 22)
    assert parse_elf(bytes(header)).machine == 22


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF" + bytes(60)])
def test_a_file_that_is_not_elf_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(FormatError):
        read_elf(str(tmp_path / "x"))


@given(st.binary(max_size=400))
def test_garbage_is_read_or_refused(garbage: bytes) -> None:
    for head in (b"", b"\x7fELF\x02\x01", b"\x7fELF\x01\x02"):
        with contextlib.suppress(FormatError):
            parse_elf(head + garbage)


@given(st.data())
def test_a_spoilt_program_is_read_or_refused(data: st.DataObject) -> None:
    """A real program with words of its headers and tables replaced, and with its end cut off."""
    whole = bytearray(_REAL)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, min(len(whole), 0x2000) // 4 - 1)) * 4
        value = data.draw(
            st.sampled_from([0, 1, 0x7FFFFFFF, 0xFFFFFFFF]) | st.integers(0, 2**32 - 1)
        )
        struct.pack_into("<I", whole, at, value)
    with contextlib.suppress(FormatError):
        parse_elf(bytes(whole[: data.draw(st.integers(0, len(whole)))]))


@given(st.data())
def test_spoilt_dynamic_entries_are_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(_REAL)
    offset, size = _dynamic_of(_REAL)
    for _ in range(data.draw(st.integers(1, 4))):
        at = offset + data.draw(st.integers(0, size // 8 - 1)) * 8
        value = data.draw(
            st.integers(0, 40) | st.integers(0, len(whole)) | st.integers(0, 2**64 - 1)
        )
        struct.pack_into("<Q", whole, at, value)
    with contextlib.suppress(FormatError):
        parse_elf(bytes(whole))


def _dynamic_of(data: bytes) -> tuple[int, int]:
    (at,), (count,) = struct.unpack_from("<Q", data, 32), struct.unpack_from("<H", data, 56)
    for index in range(count):
        kind, _, offset, _, _, size, _, _ = struct.unpack_from("<IIQQQQQQ", data, at + 56 * index)
        if kind == 2:
            return offset, size
    raise AssertionError("the program must have a dynamic section")


def _real() -> bytes:
    """A small dynamically linked program of this machine."""
    for name in ("true", "cat", "env"):
        path = shutil.which(name)
        if path is not None:
            data = Path(path).read_bytes()
            if data[:6] == b"\x7fELF\x02\x01":
                return data
    return Path(sys.executable).resolve().read_bytes()


_REAL = _real()
