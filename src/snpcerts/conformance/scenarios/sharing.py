# SPDX-License-Identifier: Apache-2.0
"""Scenarios in which the guest shares pages for a request and takes them back, as Linux's driver
does.
"""

from __future__ import annotations

from collections.abc import Sequence

from snpcerts.abi.cert_table import PAGE_SIZE
from snpcerts.abi.ghcb import PageStateOperation
from snpcerts.conformance.scenarios.buffers import slot_boundaries
from snpcerts.conformance.trial import TABLE_SIZE, Scenario, Script, Trial, TrialVcpu, field_around
from snpcerts.conformance.trial_guest import FIELD_PAGES, pages_at
from snpcerts.emulator.guest.page_state_calls import LARGE_PAGE

CHECK = "page-state"
_LARGE_PAGES = LARGE_PAGE // PAGE_SIZE
_MARK = bytes(range(1, 65))  # written to pages that must keep their content


def _script(trial: Trial, vcpu: TrialVcpu) -> Script:
    table = trial.served.table(TABLE_SIZE)
    trial.served.replace(table)
    if _ignored(trial) or not vcpu.guest.vm.exits_for_page_state:
        return
    yield from _field(trial, vcpu, table)
    yield from _large(trial, vcpu, table)
    yield from _across_slots(trial, vcpu, table)
    yield from _named_private(trial, vcpu, table)


def _ignored(trial: Trial) -> bool:
    """Return whether the VMM has ignored a page state change. If so, record a failure."""
    why = None if trial.guest is None else trial.guest.ignored
    if why is not None:
        trial.judge(CHECK, why)
    return why is not None


def _field(trial: Trial, vcpu: TrialVcpu, table: bytes) -> Script:
    """Change the state of several pages at once, then of each page separately, and of one page
    with the GHCB MSR.
    """
    guest, cpu, pages = vcpu.guest, vcpu.cpu, vcpu.pages
    for at_once in (FIELD_PAGES, 1):
        for number in range(0, FIELD_PAGES, at_once):
            gpa = pages.data + number * PAGE_SIZE
            next_one = gpa + at_once * PAGE_SIZE
            others = [next_one] if number + at_once < FIELD_PAGES else []
            yield from _make_private(trial, vcpu, gpa, at_once, others)
        for number in range(0, FIELD_PAGES, at_once):
            gpa = pages.data + number * PAGE_SIZE
            yield from guest.make_shared(cpu, pages, gpa, at_once)
        if _ignored(trial):
            return
        answer = yield from vcpu.ask(2)
        trial.judge(CHECK, answer.delivers(table))
    for operation in (PageStateOperation.PRIVATE, PageStateOperation.SHARED):
        yield from guest.set_page_state_early(cpu, pages.data + PAGE_SIZE, operation)
    answer = yield from vcpu.ask(2)
    trial.judge(CHECK, answer.delivers(table))


def _large(trial: Trial, vcpu: TrialVcpu, table: bytes) -> Script:
    """Change the state of a 2 MiB page with one entry, use a buffer in that page, then change one
    4 KiB page of it alone.
    """
    guest, cpu, pages = vcpu.guest, vcpu.cpu, vcpu.pages
    slot = guest.vm.slots.largest()
    gpa = 0 if slot is None else (pages.ghcb - LARGE_PAGE) & -LARGE_PAGE
    if slot is None or gpa < slot.gpa + LARGE_PAGE:
        return  # a small VM has no free 2 MiB page
    yield from guest.make_private(cpu, pages, gpa, _LARGE_PAGES)
    yield from guest.make_shared(cpu, pages, gpa, _LARGE_PAGES)
    if _ignored(trial):
        return
    middle = gpa + 5 * PAGE_SIZE
    for _ in range(2):
        answer = yield from vcpu.ask(2, gpa=middle, field=field_around(middle, 2))
        trial.judge(CHECK, answer.delivers(table))
        others = (gpa, middle - PAGE_SIZE, middle + PAGE_SIZE, gpa + LARGE_PAGE - PAGE_SIZE)
        yield from _make_private(trial, vcpu, middle, 1, others)
        yield from guest.make_shared(cpu, pages, middle, 1)
    yield from guest.make_private(cpu, pages, gpa, _LARGE_PAGES)


def _make_private(
    trial: Trial, vcpu: TrialVcpu, gpa: int, pages: int, others: Sequence[int]
) -> Script:
    """Make pages private. The shared pages at ``others`` must keep their content."""
    cpu = vcpu.cpu
    for each in others:
        yield from cpu.write(each, _MARK)
    yield from vcpu.guest.make_private(cpu, vcpu.pages, gpa, pages)
    for each in others:
        if (yield from cpu.read(each, len(_MARK))) != _MARK:
            trial.judge(
                CHECK,
                f"the guest made {pages_at(gpa, pages)} private; the shared page at GPA {each:#x} "
                "must keep its content, but has lost it",
            )


def _across_slots(trial: Trial, vcpu: TrialVcpu, table: bytes) -> Script:
    """Change the state of pages in two adjacent memory slots at once."""
    guest, cpu, pages = vcpu.guest, vcpu.cpu, vcpu.pages
    for boundary in slot_boundaries(trial, vcpu)[:1]:
        gpa = boundary - 2 * PAGE_SIZE
        yield from guest.make_shared(cpu, pages, gpa, 4)
        if _ignored(trial):
            return
        answer = yield from vcpu.ask(2, gpa=gpa, field=(gpa, 4 * PAGE_SIZE))
        trial.judge(CHECK, answer.delivers(table))
        yield from guest.make_private(cpu, pages, gpa, 4)


def _named_private(trial: Trial, vcpu: TrialVcpu, table: bytes) -> Script:
    """Let the guest name private pages as its buffer. The guest must not see the answer, and its VM
    must continue.
    """
    guest, cpu, pages = vcpu.guest, vcpu.cpu, vcpu.pages
    private = pages.data + 2 * PAGE_SIZE
    yield from guest.make_private(cpu, pages, private, 2)
    yield from vcpu.ask(2, gpa=private, field=(pages.data, PAGE_SIZE))
    if cpu.mismatch(private, 2 * PAGE_SIZE, private=True) is not None and not _ignored(trial):
        trial.advise(
            CHECK,
            "a request named private pages as its buffer, and the VMM has made them shared: only "
            "the guest may change their state, with KVM_HC_MAP_GPA_RANGE",
        )
    yield from guest.make_shared(cpu, pages, private, 2)
    answer = yield from vcpu.ask(2)
    wrong = answer.delivers(table)
    problem = wrong and f"after a request whose buffer was private: {wrong}"
    if not _ignored(trial):
        trial.judge(CHECK, problem)


def _after(trial: Trial) -> None:
    """Record a page state change that the VMM ignored, even if the VMM has ended."""
    _ignored(trial)


SCENARIOS = (Scenario(checks=(CHECK,), script=_script, after=_after, strict_page_states=True),)
