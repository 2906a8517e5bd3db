# SPDX-License-Identifier: Apache-2.0
"""Exits that KVM serves itself, one example of each.

``tests/kernel/test_oracle.py`` compares all of them with the kernel's own code; these tests need no
kernel source.
"""

from __future__ import annotations

import struct

import pytest

from snpcerts.abi.ghcb import CPL, Field, GhcbPage, Instruction
from snpcerts.emulator.kvm.ghcb_exit import EXIT, RESUME
from tests.emulator.test_ghcb_requests import GHCB, Bench, Host

PSC, MMIO_READ, MMIO_WRITE, AP_CREATION = 0x80000010, 0x80000001, 0x80000002, 0x80000013
SCRATCH = GHCB + 0x800
PRIVATE, SHARED = 1, 2


def exits(bench: Bench, code: int, info1: int = 0, info2: int = 0, **fields: int) -> int:
    """Fill the GHCB page with these fields, mark each as valid, and execute VMGEXIT."""
    page = bytearray(bench.peek(GHCB))
    page[0x3F0:0x400] = bytes(16)
    ghcb = GhcbPage(page)
    ghcb.put(Field.SW_EXITCODE, code)
    ghcb.put(Field.SW_EXITINFO1, info1)
    ghcb.put(Field.SW_EXITINFO2, info2)
    ghcb.put(Field.SW_SCRATCH, SCRATCH)
    for name, value in fields.items():
        ghcb.put(Field[name.upper()], value)
    page[0x3F0 + CPL // 64] |= 1 << CPL // 8 % 8
    bench.poke(GHCB, page)
    return bench.vmgexit()


def entry(gfn: int, operation: int, *, huge: bool = False, done: int = 0) -> int:
    return done | gfn << 12 | operation << 52 | huge << 56


def psc_list(bench: Bench, *entries: int, last: int | None = None) -> None:
    header = struct.pack("<HHI", 0, len(entries) - 1 if last is None else last, 0)
    bench.poke(SCRATCH, header + struct.pack(f"<{len(entries)}Q", *entries))


def hypercall(bench: Bench) -> tuple[int, ...]:
    """Return the hypercall's number, GPA, number of pages and attributes."""
    return struct.unpack_from("<4Q", bench.page, 32)


def answer(bench: Bench, result: int) -> int:
    struct.pack_into("<Q", bench.page, 88, result)
    return bench.complete()


def test_adjacent_pages_change_their_state_in_one_exit() -> None:
    bench = Bench()
    psc_list(bench, entry(8, SHARED), entry(9, SHARED), entry(512, PRIVATE, huge=True))
    assert exits(bench, PSC) == EXIT
    assert hypercall(bench) == (12, 0x8000, 2, 0)
    assert answer(bench, 0) == EXIT
    assert hypercall(bench) == (12, 512 << 12, 512, 0x11)
    assert answer(bench, 0) == RESUME
    assert bench.infos == (0, 0)
    current, *entries = struct.unpack("<H6x3Q", bench.peek(SCRATCH, 32))
    assert current == 3
    assert [each & 0xFFF for each in entries] == [1, 1, 512]


@pytest.mark.parametrize(
    ("entries", "last", "outcome"),
    [
        ((entry(1, SHARED),), 253, 1 << 32 | 1),
        ((entry(1, SHARED, huge=True),), 0, 1 << 32 | 2),  # not aligned
        ((entry(1, SHARED, done=2),), 0, 1 << 32 | 2),
    ],
)
def test_a_malformed_list_causes_no_exit(entries: tuple[int, ...], last: int, outcome: int) -> None:
    bench = Bench()
    psc_list(bench, *entries, last=last)
    assert exits(bench, PSC) == RESUME
    assert bench.infos == (0, outcome)


def test_userspace_that_refuses_a_page_state_ends_the_list() -> None:
    bench = Bench()
    psc_list(bench, entry(8, SHARED), entry(20, SHARED))
    assert exits(bench, PSC) == EXIT
    assert answer(bench, 22) == RESUME
    assert bench.infos == (0, 0x100 << 32)


def test_mmio_goes_to_userspace_and_comes_back_through_the_scratch_area() -> None:
    bench = Bench()
    assert exits(bench, MMIO_READ, 0xFEC00000, 4) == EXIT
    assert (bench.run.exit_reason, *struct.unpack_from("<Q8xIB", bench.page, 32)) == (
        6,
        0xFEC00000,
        4,
        0,
    )
    bench.page[40:44] = b"data"
    assert bench.complete() == RESUME
    assert bench.peek(SCRATCH, 5) == b"data\0"
    bench.poke(SCRATCH, b"written")
    assert exits(bench, MMIO_WRITE, 0x1000, 7) == EXIT
    assert struct.unpack_from("<Q7sxIB", bench.page, 32) == (0x1000, b"written", 7, 1)
    assert exits(Bench(), MMIO_READ, 0, 9) == RESUME


def test_port_io_of_a_register_and_of_a_string() -> None:
    bench = Bench()
    out = 0x3F8 << 16 | 1 << 4
    assert exits(bench, Instruction.IOIO, out, rax=0x41) == EXIT
    assert struct.unpack_from("<BBHIQ", bench.page, 32) == (1, 1, 0x3F8, 1, 4096)
    assert bench.page[4096] == 0x41
    assert bench.complete() == RESUME
    assert exits(bench, Instruction.IOIO, out | 5, 3) == EXIT  # INS, three bytes
    assert struct.unpack_from("<BBHI", bench.page, 32) == (0, 1, 0x3F8, 3)
    bench.page[4096:4099] = b"xyz"
    assert bench.complete() == RESUME
    assert bench.peek(SCRATCH, 3) == b"xyz"


def test_msrs_and_cpuid_are_answered_in_registers() -> None:
    bench = Bench(Host(msrs={0x10: 5 << 32 | 7}))
    assert exits(bench, Instruction.MSR, 0, rcx=0x10) == RESUME
    bench.enter()
    assert (bench.get(Field.RAX), bench.get(Field.RDX)) == (7, 5)
    assert exits(bench, Instruction.CPUID, rax=7, rcx=0) == RESUME
    bench.enter()
    assert bench.get(Field.RBX) == 0xB1
    assert exits(bench, Instruction.MSR, 0, rcx=0x1234) == RESUME
    assert bench.infos == (1, 0xFFFF_FFFF_8000_030D)  # #GP, sign-extended as KVM has it


def test_a_hypercall_of_the_guest_for_page_states_is_the_same_exit() -> None:
    bench = Bench()
    given = {"rax": 12, "rbx": 0x8000, "rcx": 2, "rdx": 0x10}
    assert exits(bench, Instruction.VMMCALL, **given) == EXIT
    assert hypercall(bench) == (12, 0x8000, 2, 0x10)
    assert answer(bench, 0) == RESUME
    bench.enter()
    assert bench.get(Field.RAX) == 0
    assert exits(bench, Instruction.VMMCALL, rax=99) == RESUME
    bench.enter()
    assert bench.get(Field.RAX) == (1 << 64) - 1000


@pytest.mark.parametrize(
    ("info1", "vmsa", "features", "infos"),
    [
        (1 << 32 | 1, 0x5000, 1, (0, 0)),
        (1 << 32 | 2, 0, 0, (0, 0)),  # destroyed, whatever the rest
        (9 << 32 | 1, 0x5000, 1, (2, 5)),
        (1 << 32 | 1, 0x5001, 1, (2, 5)),
        (1 << 32 | 1, 1 << 21, 1, (2, 5)),
        (1 << 32 | 1, 0x5000, 0x21, (2, 5)),
        (1 << 32 | 3, 0x5000, 1, (2, 5)),
    ],
)
def test_processors_are_created_and_destroyed(
    info1: int, vmsa: int, features: int, infos: tuple[int, int]
) -> None:
    bench = Bench()
    assert exits(bench, AP_CREATION, info1, vmsa, rax=features) == RESUME
    assert bench.infos == infos
    assert bench.host.asked == ([(1, info1 & 0xFFFF_FFFF)] if infos == (0, 0) else [])
