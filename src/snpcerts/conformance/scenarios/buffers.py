# SPDX-License-Identifier: Apache-2.0
"""Scenarios with buffers at the end of memory, across two memory slots, and outside memory."""

from __future__ import annotations

import errno
from itertools import pairwise

from snpcerts.abi.cert_table import PAGE_SIZE
from snpcerts.conformance.trial import (
    TABLE_SIZE,
    Scenario,
    Script,
    Trial,
    TrialVcpu,
    above_memory,
    field_around,
)
from snpcerts.conformance.trial_guest import FIELD_PAGES, Answer
from snpcerts.emulator.guest.memory_slots import MemorySlot

_LAST_PAGE = (1 << 64) - PAGE_SIZE


def _slots(trial: Trial) -> list[MemorySlot]:
    return [] if trial.vm is None else list(trial.vm.slots)


def _end(vcpu: TrialVcpu) -> int:
    """Return the end of the first vCPU's pages, which is also the end of the largest slot."""
    return vcpu.pages.data + vcpu.pages.data_pages * PAGE_SIZE


def _at_end(trial: Trial, vcpu: TrialVcpu) -> Script:
    table = trial.served.table(TABLE_SIZE)
    trial.served.replace(table)
    end = _end(vcpu)
    gpa = end - 2 * PAGE_SIZE
    field = (end - FIELD_PAGES * PAGE_SIZE, FIELD_PAGES * PAGE_SIZE)
    answer = yield from vcpu.ask(2, gpa=gpa, field=field)
    trial.judge("buffer-at-slot-end", answer.delivers(table))


def slot_boundaries(trial: Trial, vcpu: TrialVcpu) -> list[int]:
    """Return the GPAs at which one memory slot ends and the next begins.

    Leaves out boundaries of read-only slots, of slots smaller than two pages, and those in the
    vCPU's own pages.
    """
    slots = _slots(trial)
    size = 2 * PAGE_SIZE
    return [
        low.end
        for low, high in pairwise(slots)
        if low.end == high.gpa
        and not (low.readonly or high.readonly)
        and min(low.size, high.size) >= size
        # Leave out a boundary at the start of the vCPU's own pages or inside them.
        and not vcpu.pages.ghcb - size < low.end < _end(vcpu)
    ]


def _across(trial: Trial, vcpu: TrialVcpu) -> Script:
    boundaries = slot_boundaries(trial, vcpu)
    if not boundaries:
        trial.skip(
            "buffer-across-slots",
            "the VM has no two adjacent writable memory slots of at least two pages each",
        )
        return
    table = trial.served.table(TABLE_SIZE)
    trial.served.replace(table)
    gpa = boundaries[0] - PAGE_SIZE
    answer = yield from vcpu.ask(2, gpa=gpa, field=field_around(gpa, 2))
    trial.judge("buffer-across-slots", answer.delivers(table))


def _refused(trial: Trial, check: str, answer: Answer) -> None:
    request = answer.request
    if request is None or request.ret != errno.EIO:
        trial.judge(check, f"expected ret {errno.EIO} (EIO), found {answer}")
    else:
        trial.judge(check, None)


def _and_goes_on(trial: Trial, vcpu: TrialVcpu, check: str, table: bytes) -> Script:
    answer = yield from vcpu.ask(2)
    wrong = answer.delivers(table)
    trial.judge(check, None if wrong is None else f"the next request: {wrong}")


def _past(trial: Trial, vcpu: TrialVcpu) -> Script:
    check = "buffer-past-memory"
    table = trial.served.table(TABLE_SIZE)
    trial.served.replace(table)
    end = _end(vcpu)
    if any(slot.gpa == end for slot in _slots(trial)):
        trial.skip(check, "another memory slot follows the largest")
        return
    field = (end - FIELD_PAGES * PAGE_SIZE, FIELD_PAGES * PAGE_SIZE)
    answer = yield from vcpu.ask(2, gpa=end - PAGE_SIZE, field=field)
    _refused(trial, check, answer)
    yield from _and_goes_on(trial, vcpu, check, table)


def _beside_slots(trial: Trial) -> list[int]:
    """Return the addresses without memory that follow a slot or precede one."""
    starts, ends = {0}, set[int]()
    for slot in _slots(trial):
        starts.add(slot.gpa)
        ends.add(slot.end)
    return sorted((ends - starts) | {start - PAGE_SIZE for start in starts - ends - {0}})


def _with_one_bit(trial: Trial, vcpu: TrialVcpu) -> list[int]:
    """Return the address of the vCPU's buffer with one more bit set, for each bit from 36 up that
    no address in the guest's memory has. One of these bits is the C-bit.
    """
    top = max((slot.end for slot in _slots(trial)), default=0)
    return [1 << bit | vcpu.pages.data for bit in range(36, 64) if 1 << bit >= top]


def _outside(trial: Trial, vcpu: TrialVcpu) -> Script:
    check = "buffer-outside-memory"
    table = trial.served.table(TABLE_SIZE)
    trial.served.replace(table)
    for gpa in (above_memory(trial), *_beside_slots(trial), *_with_one_bit(trial, vcpu)):
        _refused(trial, check, (yield from vcpu.ask(2, gpa=gpa)))
    yield from _and_goes_on(trial, vcpu, check, table)
    # The VM must also continue if the VMM writes nothing, or only the empty table.
    for npages in (0, 2):
        for gpa in (above_memory(trial), _LAST_PAGE):
            yield from vcpu.ask(npages, gpa=gpa)
        trial.served.remove()
        yield from vcpu.ask(npages, gpa=above_memory(trial))
        yield from vcpu.ask(npages, gpa=_LAST_PAGE)
        trial.served.replace(table)
    yield from _and_goes_on(trial, vcpu, check, table)


def _wraps(trial: Trial, vcpu: TrialVcpu) -> Script:
    check = "buffer-wraps"
    table = trial.served.table(TABLE_SIZE)
    trial.served.replace(table)
    for npages in (2, (1 << 64) - 1):
        _refused(trial, check, (yield from vcpu.ask(npages, gpa=_LAST_PAGE)))
    yield from _and_goes_on(trial, vcpu, check, table)


SCENARIOS = (
    Scenario(checks=("buffer-at-slot-end",), script=_at_end),
    Scenario(checks=("buffer-across-slots",), script=_across),
    Scenario(checks=("buffer-past-memory",), script=_past, also=("ret-supported",)),
    Scenario(checks=("buffer-outside-memory",), script=_outside),
    Scenario(checks=("buffer-wraps",), script=_wraps),
)
