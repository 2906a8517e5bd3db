# SPDX-License-Identifier: Apache-2.0
"""Scenarios about the answer: the table, a buffer that is too small, absurd sizes, a short read."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial

from snpcerts.abi.cert_table import EMPTY, PAGE_SIZE, pages_of
from snpcerts.conformance.file_observer import (
    DATA_READS,
    READS,
    read_short,
    refuse_open,
    takes_lock,
)
from snpcerts.conformance.trial import (
    TABLE_SIZE,
    Scenario,
    Script,
    Trial,
    TrialVcpu,
    above_memory,
)
from snpcerts.conformance.trial_guest import Answer
from snpcerts.emulator.frontdoor.bpf import Syscall
from snpcerts.emulator.frontdoor.file_watch import FileCall

_BLOCKS = 16 * PAGE_SIZE  # bytes on disk; a file's blocks say nothing about its size
SHORT_READS = 3  # in a row: the second read does not return the whole rest either
_ERRORS = 20  # requests in a row that fail in the same way
# Converted to bytes, some of these numbers wrap in 64 bits, and some in 32. All are so large that
# an attempt to allocate that many pages should fail, and not use up this machine's memory.
_HUGE_NPAGES = (
    (1 << 64) - 1,
    1 << 52,
    (1 << 52) + 1,
    1 << 63,
    1 << 32,
    1 << 31,
    1 << 24,
    (1 << 24) + 1,
    (1 << 24) + (1 << 19),
)


def asks_for(answer: Answer, pages: int) -> str | None:
    """Return what is wrong with an answer that should be ENOSPC with npages ``pages``.

    Returns None if the answer is correct.
    """
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
    """Check an answer as :func:`asks_for` does, and check that the guest's memory is unchanged."""
    problem = asks_for(answer, pages)
    if problem is None and not answer.untouched:
        problem = "the VMM answered ENOSPC, but wrote to the guest's memory"
    return problem


def _delivered(trial: Trial, vcpu: TrialVcpu) -> Script:
    for size in (TABLE_SIZE, 5000, 16_000):
        table = trial.served.table(size)
        trial.served.rewrite(table)
        answer = yield from vcpu.ask(pages_of(size))
        trial.judge("table-delivered", answer.delivers(table))
    answer = yield from vcpu.ask(8)  # more pages than needed
    trial.judge("table-delivered", answer.delivers(table))


def _large(trial: Trial, vcpu: TrialVcpu) -> Script:
    check, room = "large-table", vcpu.pages.data_pages
    field = (vcpu.pages.data, room * PAGE_SIZE)
    for size in (401, 4095, 4097, 8193, 5 * PAGE_SIZE, 71_680):
        pages = pages_of(size)
        if pages + 2 > room:
            trial.advise(
                check,
                f"a table of {size} bytes was not tried, because the VM has too little memory",
            )
            return
        table = trial.served.table(size)
        trial.served.rewrite(table)
        answer = yield from vcpu.ask(pages, field=field)
        wrong = answer.delivers(table)
        trial.judge(check, None if wrong is None else f"a table of {size} bytes: {wrong}")


def _stale(trial: Trial, vcpu: TrialVcpu) -> Script:
    """Serve a large table, then small ones, so that freed memory contains old certificates."""
    for size in (16_000, 2000, 4100, 5000, 450):
        trial.served.rewrite(trial.served.table(size))
        answer = yield from vcpu.ask(4)
        if not answer.ok:
            trial.skip("no-stale-bytes", f"the table was not delivered: {answer}")
            return
    trial.served.remove()
    yield from vcpu.ask(4)
    # As in every scenario, the answers are judged at the end.


def _small(trial: Trial, vcpu: TrialVcpu) -> Script:
    trial.served.rewrite(trial.served.table(TABLE_SIZE))
    answer = yield from vcpu.ask(1)
    trial.judge("too-small", asks_and_writes_nothing(answer, 2))
    trial.served.rewrite(trial.served.table(3 * PAGE_SIZE + 1))
    trial.served.preallocate(_BLOCKS)
    answer = yield from vcpu.ask(3)
    trial.judge("too-small", asks_and_writes_nothing(answer, 4))
    trial.served.rewrite(trial.served.table(PAGE_SIZE + 1))
    answer = yield from vcpu.ask(1)
    trial.judge("too-small", asks_and_writes_nothing(answer, 2))
    trial.served.rewrite(trial.served.table(4 * PAGE_SIZE - 1))
    answer = yield from vcpu.ask(1)
    trial.judge("too-small", asks_and_writes_nothing(answer, 4))
    yield from _outgrown_at_lock(trial, vcpu)


def _outgrown_at_lock(trial: Trial, vcpu: TrialVcpu) -> Script:
    """When the VMM is about to lock the file, replace the file with one too large for the buffer.

    A VMM that reads directly into the guest's buffer must not do so before it has compared the file
    with the path.
    """
    served, replaced = trial.served, list[FileCall]()
    served.replace(served.table(TABLE_SIZE))

    def meddle(call: FileCall) -> None:
        if not replaced and takes_lock(call):
            replaced.append(call)
            served.replace(served.table(3 * PAGE_SIZE - 1))

    trial.observer.meddle = meddle
    answer = yield from vcpu.ask(2)
    trial.observer.meddle = lambda _: None
    request = answer.request
    if replaced and request is not None and request.ret == errno.ENOSPC:
        wrong = asks_and_writes_nothing(answer, 3)
        trial.judge("too-small", wrong and f"replaced between open and lock: {wrong}")


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
    for size in (3 * PAGE_SIZE + 1, 2000):
        trial.served.rewrite(trial.served.table(size))
        answer = yield from vcpu.ask(0)
        trial.judge("no-buffer", asks_and_writes_nothing(answer, pages_of(size)))
    trial.served.remove()
    answer = yield from vcpu.ask(0)
    if not answer.untouched:
        problem = "without a file: expected no write to the guest's memory, found a change"
        trial.judge("no-buffer", problem)


def _huge(trial: Trial, vcpu: TrialVcpu) -> Script:
    table = trial.served.table(TABLE_SIZE)
    trial.served.rewrite(table)
    for npages in _HUGE_NPAGES:
        answer = yield from vcpu.ask(npages)
        request = answer.request
        problem = None
        if request is None or request.ret not in (0, errno.EIO):
            problem = f"npages {npages:#x}: expected the table or EIO, found {answer}"
        elif request.ret == 0 and (wrong := answer.delivers(table)) is not None:
            problem = f"npages {npages:#x}: {wrong}"
        trial.judge("huge-npages", problem)
    trial.served.remove()
    for npages in _HUGE_NPAGES:
        answer = yield from vcpu.ask(npages)
        request = answer.request
        problem = None
        if request is None or request.ret not in (0, errno.EIO):
            problem = f"without a file, npages {npages:#x}: expected ret 0 or EIO, found {answer}"
        trial.judge("huge-npages", problem)


def _short(trial: Trial, vcpu: TrialVcpu) -> Script:
    for cuts in (1, SHORT_READS):
        yield from _cut_short(trial, vcpu, cuts)


def _cut_short(trial: Trial, vcpu: TrialVcpu, cuts: int) -> Script:
    """Make the first ``cuts`` reads of a request short."""
    table = trial.served.table(TABLE_SIZE)
    trial.served.rewrite(table)
    cut: list[FileCall] = []

    def meddle(call: FileCall) -> int | None:
        if len(cut) == cuts or call.call not in READS:
            return None
        done = read_short(call)
        if done is not None:
            cut.append(call)
        return done

    trial.observer.meddle = meddle
    answer = yield from vcpu.ask(2)
    trial.observer.meddle = lambda _: None
    if not cut:
        trial.skip(
            "short-read",
            (
                "the VMM does not read the file with a call that can return fewer bytes than "
                "requested"
            ),
        )
        return
    problem = answer.delivers(table)
    if problem is not None and answer.ok and answer.got(len(EMPTY)) == EMPTY:
        problem = None  # without a table there is no truncated table
    if problem is not None and answer.request is not None and answer.request.ret == errno.EAGAIN:
        problem = None
    which = "" if cuts == 1 else f"{cuts} short reads in a row: "
    trial.judge("short-read", None if problem is None else which + problem)


REFUSED_AND_WRITTEN = "the VMM refused the request, but wrote to the guest's memory"


def unharmed(answer: Answer, complete: bytes) -> str | None:
    """Return what is wrong with an answer that was given while the file was unreadable, or None.

    A refusal and an empty table are correct. So is the whole table, because the VMM may have tried
    again.
    """
    request = answer.request
    if request is None:
        return f"no exit occurred; the guest got: {answer}"
    if request.ret in (errno.EAGAIN, errno.EIO):
        return None
    if answer.ok and (answer.untouched or answer.got(len(EMPTY)) == EMPTY):
        return None
    return answer.delivers(complete)


def advise_on_refusal(trial: Trial, check: str, where: str, answer: Answer) -> None:
    """Advise against EIO for a file that cannot be read at the moment, and against a write to the
    buffer of a refused request.
    """
    refused = answer.request is not None and answer.request.ret in (errno.EAGAIN, errno.EIO)
    if refused and not answer.untouched:
        trial.advise(check, f"{where}: {REFUSED_AND_WRITTEN}")
    if answer.request is not None and answer.request.ret == errno.EIO:
        trial.advise(
            check,
            f"{where}: ret 5 (EIO), after which a Linux guest destroys its VMPCK; EAGAIN or an "
            "empty table lets it continue",
        )


def _read_fails(trial: Trial, vcpu: TrialVcpu) -> Script:
    check = "read-fails"
    for code in (errno.EIO, errno.EINTR):
        for good in (0, 1):
            table = trial.served.table(12_000)
            trial.served.rewrite(table)
            failed: list[FileCall] = []

            def meddle(
                call: FileCall, code: int = code, good: int = good, failed: list[FileCall] = failed
            ) -> int | None:
                if call.call not in DATA_READS or len(failed) > good:
                    return None
                failed.append(call)
                return -code if len(failed) > good else read_short(call)

            trial.observer.meddle = meddle
            answer = yield from vcpu.ask(4)
            trial.observer.meddle = lambda _: None
            if not failed:
                yield from _map_fails(trial, vcpu)
                return
            wrong = unharmed(answer, table)
            where = f"{errno.errorcode[code]} from read {good + 1}"
            trial.judge(check, None if wrong is None else f"{where}: {wrong}")
            advise_on_refusal(trial, check, where, answer)
            answer = yield from vcpu.ask(4)
            wrong = answer.delivers(table)
            trial.judge(check, None if wrong is None else f"after {where}: {wrong}")


def _map_fails(trial: Trial, vcpu: TrialVcpu) -> Script:
    """Make mmap(2) fail, for a VMM that reads the file in no other way."""
    check, failed = "read-fails", list[FileCall]()
    table = trial.served.table(12_000)
    trial.served.replace(table)

    def meddle(call: FileCall) -> int | None:
        if call.call is not Syscall.MMAP:
            return None
        failed.append(call)
        return -errno.ENOMEM

    trial.observer.meddle = meddle
    answer = yield from vcpu.ask(4)
    trial.observer.meddle = lambda _: None
    if not failed:
        trial.skip(check, "the VMM does not read the file with a call that can fail")
        return
    wrong = unharmed(answer, table)
    trial.judge(check, wrong and f"ENOMEM from mmap: {wrong}")
    advise_on_refusal(trial, check, "ENOMEM from mmap", answer)
    answer = yield from vcpu.ask(4)
    wrong = answer.delivers(table)
    trial.judge(check, wrong and f"after ENOMEM from mmap: {wrong}")


def _after_errors(trial: Trial, vcpu: TrialVcpu) -> Script:
    """Make many requests that fail in the same way, then one that must not fail.

    A VMM may run out of something that failed requests do not give back, or may stop trying.
    """
    served, observer = trial.served, trial.observer

    def refuse_reads(call: FileCall) -> int | None:
        return -errno.EIO if call.call in READS else None

    def refuse_locks(call: FileCall) -> int | None:
        return -errno.ENOLCK if takes_lock(call) else None

    kinds: tuple[tuple[str, int, int | None, Callable[[FileCall], int | None], int], ...] = (
        ("ENOSPC", 0, None, _as_usual, 0),
        ("EIO", 2, above_memory(trial), _as_usual, 0),
        ("a file that could not be read", 2, None, refuse_reads, 0),
        ("a lock that failed", 2, None, refuse_locks, 0),
        ("no file", 2, None, _as_usual, errno.ENOENT),
        ("a file that could not be opened", 2, None, _as_usual, errno.EMFILE),
    )
    for what, npages, gpa, meddle, code in kinds:
        observer.meddle = meddle
        if code:
            observer.meddle_open = partial(refuse_open, code)
        for _ in range(_ERRORS):
            yield from vcpu.ask(npages, gpa=gpa)
        observer.meddle, observer.meddle_open = _as_usual, lambda _: None
        table = served.table(TABLE_SIZE)
        served.replace(table)
        answer = yield from vcpu.ask(2)
        wrong = answer.delivers(table)
        trial.judge("table-delivered", wrong and f"after {_ERRORS} requests with {what}: {wrong}")


def _as_usual(_: FileCall) -> None:
    """Let the call happen."""


_IN_PASSING = ("ret-supported", "nothing-outside", "no-stale-bytes")

SCENARIOS = (
    Scenario(checks=("table-delivered",), script=_delivered, also=_IN_PASSING),
    Scenario(checks=("table-delivered",), script=_after_errors),
    Scenario(checks=("large-table",), script=_large, also=_IN_PASSING),
    Scenario(checks=("no-stale-bytes",), script=_stale, environment=(("MALLOC_PERTURB_", "165"),)),
    Scenario(checks=("read-fails",), script=_read_fails),
    Scenario(checks=("too-small",), script=_small, also=_IN_PASSING),
    Scenario(checks=("exact-pages",), script=_exact, also=_IN_PASSING),
    Scenario(checks=("no-buffer",), script=_none, also=_IN_PASSING),
    Scenario(checks=("huge-npages",), script=_huge),
    Scenario(checks=("short-read",), script=_short),
)
