# SPDX-License-Identifier: Apache-2.0
"""How a Linux guest asks its host to make pages private or shared.

Source: ``set_pages_state``, ``__set_pages_state`` and ``vmgexit_psc`` in Linux
``arch/x86/coco/sev/core.c``, and ``__page_state_change`` for changes before the guest has a GHCB.
The instruction PVALIDATE needs no emulation.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from snpcerts.abi.ghcb import (
    PAGE_SIZE,
    PSC_ENTRY_SIZE,
    PSC_HEADER_SIZE,
    SHARED_BUFFER,
    ExitCode,
    Field,
    GhcbPage,
    MsrCode,
    PageStateOperation,
    ResponseCode,
)
from snpcerts.emulator.guest.program import Event, GuestCpu, Vmgexit

PROTOCOL_VERSION: Final = 2
LARGE_PAGE: Final = 1 << 21
ENTRIES_MAX: Final = 64  # VMGEXIT_PSC_MAX_ENTRY
ES_VMM_ERROR, ES_EXCEPTION = 2, 4  # enum es_result
_EVENT_VALID, _EVENT_TYPE, _TYPE_EXCEPTION = 1 << 31, 7 << 8, 3 << 8
_UD, _GP = 6, 13
_LARGE: Final = 1 << 56

Changing = Generator[Event, int, bool]


def change_early(gpa: int, operation: PageStateOperation) -> Changing:
    """Change the state of one page with the GHCB MSR protocol; return whether the host changed
    it.
    """
    answer = yield Vmgexit(operation << 52 | gpa | MsrCode.PSC_REQ)
    return answer == MsrCode.PSC_RSP


def change(
    cpu: GuestCpu, ghcb: int, gpa: int, pages: int, operation: PageStateOperation
) -> Changing:
    """Change the state of ``pages`` 4 KiB pages at ``gpa``; return whether the host changed them
    all.

    One request lists at most :data:`ENTRIES_MAX` entries. An aligned range of 2 MiB is one entry.
    """
    end = gpa + pages * PAGE_SIZE
    while gpa < end:
        entries: list[int] = []
        while gpa < end and len(entries) < ENTRIES_MAX:
            large = not gpa % LARGE_PAGE and end - gpa >= LARGE_PAGE
            entries.append(operation << 52 | gpa | (_LARGE if large else 0))
            gpa += LARGE_PAGE if large else PAGE_SIZE
        if not (yield from _change_list(cpu, ghcb, entries)):
            return False
    return True


def _change_list(cpu: GuestCpu, ghcb: int, entries: list[int]) -> Changing:
    page = bytearray((yield from cpu.read(ghcb, PAGE_SIZE)))
    view = GhcbPage(page)
    view.clear_valid_bitmap()
    last = len(entries) - 1
    header = (last << 16).to_bytes(PSC_HEADER_SIZE, "little")
    room = (PSC_HEADER_SIZE + ENTRIES_MAX * PSC_ENTRY_SIZE) - len(header)
    listed = b"".join(each.to_bytes(PSC_ENTRY_SIZE, "little") for each in entries)
    page[SHARED_BUFFER : SHARED_BUFFER + PSC_HEADER_SIZE + room] = header + listed.ljust(
        room, b"\0"
    )
    while True:
        view.put(Field.SW_SCRATCH, ghcb + SHARED_BUFFER)
        if (yield from call_hypervisor(cpu, ghcb, page, ExitCode.PSC, 0, 0)):
            return False
        page[:] = yield from cpu.read(ghcb, PAGE_SIZE)
        current, end, reserved = _header(page)
        if view.get(Field.SW_EXITINFO2) or reserved or end > last:
            return False
        if current > end:
            return True


def _header(page: bytearray) -> tuple[int, int, int]:
    header = page[SHARED_BUFFER : SHARED_BUFFER + PSC_HEADER_SIZE]
    return (
        int.from_bytes(header[:2], "little"),
        int.from_bytes(header[2:4], "little"),
        int.from_bytes(header[4:], "little"),
    )


def call_hypervisor(
    cpu: GuestCpu, ghcb: int, page: bytearray, code: int, info1: int, info2: int
) -> Generator[Event, int, int]:
    """Write ``page`` to the GHCB and execute VMGEXIT, as ``sev_es_ghcb_hv_call`` does.

    Returns 0 or a positive ``es_result``.
    """
    view = GhcbPage(page)
    view.protocol_version = PROTOCOL_VERSION
    view.usage = 0
    view.put(Field.SW_EXITCODE, code)
    view.put(Field.SW_EXITINFO1, info1)
    view.put(Field.SW_EXITINFO2, info2)
    yield from cpu.write(ghcb, bytes(page))
    yield Vmgexit(ghcb)
    after = GhcbPage(bytearray((yield from cpu.read(ghcb, PAGE_SIZE))))
    return _failure(after.get(Field.SW_EXITINFO1), after.get(Field.SW_EXITINFO2))


def _failure(info1: int, info2: int) -> int:
    """Return the ``es_result`` of a VMGEXIT; 0 if the host handled the request."""
    code = info1 & 0xFFFF_FFFF
    if code == ResponseCode.NO_ACTION:
        return 0
    injected = info2 & (_EVENT_VALID | _EVENT_TYPE) == _EVENT_VALID | _TYPE_EXCEPTION
    if code == ResponseCode.ISSUE_EXCEPTION and injected and info2 & 0xFF in (_UD, _GP):
        return ES_EXCEPTION
    return ES_VMM_ERROR
