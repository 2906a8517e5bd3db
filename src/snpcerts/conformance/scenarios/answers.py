# SPDX-License-Identifier: Apache-2.0
"""Answers: the table, too small a buffer, absurd sizes, a short read."""

from __future__ import annotations

import errno

from snpcerts.abi.cert_table import EMPTY, PAGE_SIZE, pages_of
from snpcerts.conformance.file_observer import READS, read_short
from snpcerts.conformance.trial import TABLE_SIZE, Scenario, Script, Trial, TrialVcpu
from snpcerts.conformance.trial_guest import Answer
from snpcerts.emulator.frontdoor.file_watch import FileCall


def asks_for(answer: Answer, pages: int) -> str | None:
    """What is wrong with an answer that should ask for ``pages`` pages; None if correct."""
    request = answer.request
    if request is None:
        return f"no exit occurred; the guest got: {answer}"
    if request.ret == errno.ENOSPC and request.needed == pages:
        return None
    found = f"ret {request.ret}"
    if request.ret == errno.ENOSPC:
        found += f" and npages {request.needed}"
    return f"expected ret {errno.ENOSPC} (ENOSPC) and npages {pages}, found {found}"


def asks_and_writes_nothing(answer: Answer, pages: int) -> str | None:
    """As :func:`asks_for`; the guest's memory must also be unchanged."""
    problem = asks_for(answer, pages)
    if problem is None and not answer.untouched:
        problem = "ENOSPC, but the guest's memory was written to"
    return problem


def _delivered(trial: Trial, vcpu: TrialVcpu) -> Script:
    for size in (TABLE_SIZE, 5000, 16_000):
        table = trial.served.table(size)
        trial.served.rewrite(table)
        answer = yield from vcpu.ask(pages_of(size))
        trial.judge("table-delivered", answer.delivers(table))
    answer = yield from vcpu.ask(8)  # with room to spare
    trial.judge("table-delivered", answer.delivers(table))


def _small(trial: Trial, vcpu: TrialVcpu) -> Script:
    trial.served.rewrite(trial.served.table(TABLE_SIZE))
    answer = yield from vcpu.ask(1)
    trial.judge("too-small", asks_and_writes_nothing(answer, 2))
    trial.served.rewrite(trial.served.table(3 * PAGE_SIZE + 1))
    answer = yield from vcpu.ask(3)
    trial.judge("too-small", asks_and_writes_nothing(answer, 4))


def _exact(trial: Trial, vcpu: TrialVcpu) -> Script:
    for pages in (1, 2, 4):
        table = trial.served.table(pages * PAGE_SIZE)
        trial.served.rewrite(table)
        answer = yield from vcpu.ask(pages)
        trial.judge("exact-pages", answer.delivers(table))
    answer = yield from vcpu.ask(3)
    trial.judge("exact-pages", asks_for(answer, 4))


def _none(trial: Trial, vcpu: TrialVcpu) -> Script:
    trial.served.rewrite(trial.served.table(TABLE_SIZE))
    answer = yield from vcpu.ask(0)
    trial.judge("no-buffer", asks_and_writes_nothing(answer, 2))
    answer = yield from vcpu.ask(0, gpa=0)
    trial.judge("no-buffer", asks_and_writes_nothing(answer, 2))


def _huge(trial: Trial, vcpu: TrialVcpu) -> Script:
    table = trial.served.table(TABLE_SIZE)
    trial.served.rewrite(table)
    for npages in ((1 << 64) - 1, 1 << 52, (1 << 52) + 1, 1 << 63, 1 << 32):
        answer = yield from vcpu.ask(npages)
        request = answer.request
        problem = None
        if request is None or request.ret not in (0, errno.EIO):
            problem = f"npages {npages:#x}: expected the table or EIO, found {answer}"
        elif request.ret == 0 and (wrong := answer.delivers(table)) is not None:
            problem = f"npages {npages:#x}: {wrong}"
        trial.judge("huge-npages", problem)


def _short(trial: Trial, vcpu: TrialVcpu) -> Script:
    table = trial.served.table(TABLE_SIZE)
    trial.served.rewrite(table)
    cut: list[FileCall] = []

    def meddle(call: FileCall) -> int | None:
        if cut or call.call not in READS:
            return None
        done = read_short(call)
        if done is not None:
            cut.append(call)
        return done

    trial.observer.meddle = meddle
    answer = yield from vcpu.ask(2)
    trial.observer.meddle = lambda _: None
    if not cut:
        trial.skip("short-read", "the VMM does not read the file with a call that can be cut short")
        return
    problem = answer.delivers(table)
    if problem is not None and answer.ok and answer.got(len(EMPTY)) == EMPTY:
        problem = None  # without a table there is no truncated table
    if problem is not None and answer.request is not None and answer.request.ret == errno.EAGAIN:
        problem = None
    trial.judge("short-read", problem)


SCENARIOS = (
    Scenario(checks=("table-delivered",), script=_delivered),
    Scenario(checks=("too-small",), script=_small),
    Scenario(checks=("exact-pages",), script=_exact),
    Scenario(checks=("no-buffer",), script=_none),
    Scenario(checks=("huge-npages",), script=_huge),
    Scenario(checks=("short-read",), script=_short),
)
