# SPDX-License-Identifier: Apache-2.0
"""Scenarios in which the file changes between two requests, is missing, or is a directory."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from functools import partial

from snpcerts.abi.cert_table import EMPTY
from snpcerts.conformance.file_observer import refuse_open, takes_lock
from snpcerts.conformance.scenarios.locking import RELEASE_LIMIT, UPDATE_TIME
from snpcerts.conformance.served_file import ServedFile
from snpcerts.conformance.trial import TABLE_SIZE, Scenario, Script, Trial, TrialVcpu
from snpcerts.conformance.trial_guest import Answer
from snpcerts.emulator.frontdoor.file_watch import FileCall, OpenCall


def _served_after(
    check: str,
    *changes: Callable[[Trial], None],
    after: Callable[[Trial, TrialVcpu], Script] | None = None,
) -> Scenario:
    def script(trial: Trial, vcpu: TrialVcpu) -> Script:
        trial.served.replace(trial.served.table(TABLE_SIZE))
        yield from vcpu.ask(4)
        for change in changes:
            change(trial)
            answer = yield from vcpu.ask(4)
            trial.judge(check, answer.delivers(trial.served.content or b""))
            # Nothing has changed since the previous request.
            answer = yield from vcpu.ask(4)
            trial.judge(check, answer.delivers(trial.served.content or b""))
        if after is not None:
            yield from after(trial, vcpu)

    return Scenario(checks=(check,), script=script)


def _replace(trial: Trial) -> None:
    trial.served.replace(trial.served.table(TABLE_SIZE))


def _replace_unnoticed(trial: Trial) -> None:
    trial.served.replace_unnoticed(trial.served.table(TABLE_SIZE))


def _replace_directory(trial: Trial) -> None:
    trial.served.replace_directory(trial.served.table(TABLE_SIZE))


def _replaced_while_busy(trial: Trial, vcpu: TrialVcpu) -> Script:
    """Replace the file after a request that got BUSY because of an update.

    A VMM may keep open the file that it could not lock, but must compare it with the path again.
    """
    served = trial.served
    if not (yield from trial.wait_for(served.lock, RELEASE_LIMIT)):
        return
    yield from vcpu.ask(4)
    served.unlock()
    served.replace(served.table(TABLE_SIZE))
    answer = yield from vcpu.ask(4)
    wrong = answer.delivers(served.content or b"")
    trial.judge("file-replaced", wrong and f"after EAGAIN: {wrong}")


def _rewrite(trial: Trial) -> None:
    trial.served.rewrite(trial.served.table(TABLE_SIZE))


def _rewrite_unnoticed(trial: Trial) -> None:
    trial.served.rewrite(trial.served.table(TABLE_SIZE), same_time=True)


def _make_pages_dirty(trial: Trial) -> None:
    trial.served.make_pages_dirty()


def _store(trial: Trial) -> None:
    trial.served.store(trial.served.table(TABLE_SIZE))


def _store_last_byte(trial: Trial) -> None:
    """Change only the last byte, so that the rest of the file does not show the change."""
    old = trial.served.content or b""
    trial.served.store(old[:-1] + bytes((old[-1] ^ 2,)))


def _grow(trial: Trial) -> None:
    trial.served.rewrite(trial.served.table(12_000))


def _shrink(trial: Trial) -> None:
    trial.served.rewrite(trial.served.table(2_000))


def _empty(answer: Answer) -> str | None:
    """Return what is wrong with an answer that the VMM gave while it could not read the file;
    None if nothing is wrong.
    """
    request = answer.request
    if request is not None and request.ret == errno.EIO:
        return "ret 5 (EIO): a Linux guest then destroys its VMPCK"
    if not answer.ok:
        return f"expected ret 0 and an empty table, found {answer}"
    if answer.got(len(EMPTY)) != EMPTY:
        return "ret 0, but the buffer does not begin with an empty table (24 zero bytes)"
    return None


def _gone(
    check: str,
    take_away: Callable[[Trial], None],
    first: Callable[[Trial, TrialVcpu], Script] | None = None,
) -> Scenario:
    def script(trial: Trial, vcpu: TrialVcpu) -> Script:
        trial.served.replace(trial.served.table(TABLE_SIZE))
        yield from vcpu.ask(2)
        if first is not None:
            yield from first(trial, vcpu)
        take_away(trial)
        for _ in range(2):
            answer = yield from vcpu.ask(2)
            trial.judge(check, _empty(answer))
        if trial.served.content is None and trial.served.path.is_file():
            trial.judge(check, "expected no file, but the VMM created one at the path")
        trial.observer.meddle_open = lambda _: None
        table = trial.served.table(TABLE_SIZE)
        trial.served.replace(table)
        answer = yield from vcpu.ask(2)
        wrong = answer.delivers(table)
        trial.judge(check, None if wrong is None else f"when the file is back: {wrong}")

    return Scenario(checks=(check,), script=script)


def _removed_at_lock(trial: Trial, vcpu: TrialVcpu) -> Script:
    """Remove the file after the VMM has opened it and before the VMM locks it."""
    served = trial.served
    table = served.content or b""
    removed: list[FileCall] = []

    def meddle(call: FileCall) -> None:
        if not removed and takes_lock(call):
            removed.append(call)
            served.remove()

    trial.observer.meddle = meddle
    answer = yield from vcpu.ask(2)
    trial.observer.meddle = lambda _: None
    request = answer.request
    wrong = None
    if removed and (request is None or request.ret != errno.EAGAIN):
        wrong = _empty(answer)
        if answer.delivers(table) is None:
            wrong = "the guest got the table of a file that no longer exists"
    trial.judge("missing-file", wrong and f"removed between open and lock: {wrong}")
    served.replace(served.table(TABLE_SIZE))


def _forbid_open(trial: Trial) -> None:
    # Use a new file, because a VMM that keeps the old one open need not open it again.
    _replace(trial)
    trial.observer.meddle_open = partial(refuse_open, errno.EACCES)


def _open_fails(trial: Trial, vcpu: TrialVcpu) -> Script:
    check, served = "open-fails", trial.served
    for code in (errno.EMFILE, errno.ENOMEM, errno.EIO):
        table = served.table(TABLE_SIZE)
        served.replace(table)
        trial.observer.meddle_open = partial(refuse_open, code)
        answer = yield from vcpu.ask(2)
        trial.observer.meddle_open = lambda _: None
        request = answer.request
        # A VMM that keeps the directory or the file open might not open the path at all.
        wrong = None
        if request is None or request.ret != errno.EAGAIN:
            wrong = None if answer.delivers(table) is None else _empty(answer)
        trial.judge(check, None if wrong is None else f"{errno.errorcode[code]}: {wrong}")
        answer = yield from vcpu.ask(2)
        wrong = answer.delivers(table)
        trial.judge(check, None if wrong is None else f"after {errno.errorcode[code]}: {wrong}")


def _refuse_writers(trial: Trial, vcpu: TrialVcpu) -> Script:
    check = "read-only-file"
    table = trial.served.table(TABLE_SIZE)
    trial.served.replace(table)

    def refuse(call: OpenCall) -> int | None:
        return None if call.flags & os.O_ACCMODE == os.O_RDONLY else -errno.EACCES

    trial.observer.meddle_open = refuse
    answer = yield from vcpu.ask(2)
    wrong = answer.delivers(table)
    trial.judge(
        check, None if wrong is None else f"with a file that cannot be opened for writing: {wrong}"
    )


def _start_as_link(served: ServedFile) -> None:
    served.replace(served.table(TABLE_SIZE))
    served.make_link()


def _link(trial: Trial, vcpu: TrialVcpu) -> Script:
    check, served = "symbolic-link", trial.served
    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("a link", lambda: None),
        (
            "the link points to another file",
            lambda: served.point_elsewhere(served.table(TABLE_SIZE)),
        ),
        (
            "the link has an absolute path to another directory",
            lambda: served.point_elsewhere(served.table(TABLE_SIZE), absolute=True),
        ),
        ("a file in place of the link", lambda: served.replace(served.table(TABLE_SIZE))),
        ("a link in place of the file", served.make_link),
        (
            "the link points to another file",
            lambda: served.point_elsewhere(served.table(TABLE_SIZE)),
        ),
    )
    for what, change in steps:
        change()
        answer = yield from vcpu.ask(2)
        wrong = answer.delivers(served.content or b"")
        trial.judge(check, None if wrong is None else f"{what}: {wrong}")


def _before_lock(trial: Trial, vcpu: TrialVcpu) -> Script:
    check, served = "changed-before-lock", trial.served
    for size in (TABLE_SIZE, 12_000, 2000):
        served.replace(served.table(TABLE_SIZE))
        served.make_pages_dirty()
        yield from vcpu.ask(4)
        changed: list[bytes] = []

        def meddle(call: FileCall, size: int = size, changed: list[bytes] = changed) -> None:
            if not changed and takes_lock(call):
                changed.append(served.table(size))
                if size == TABLE_SIZE:
                    served.store(changed[0])
                else:
                    served.rewrite(changed[0], same_time=True)

        trial.observer.meddle = meddle
        answer = yield from vcpu.ask(4)
        trial.observer.meddle = lambda _: None
        if not changed:
            trial.skip(check, "the VMM takes no lock")
            return
        _judge_change(trial, answer, changed[0])
    yield from _before_later_locks(trial, vcpu)
    yield from _while_waiting(trial, vcpu)


def _before_later_locks(trial: Trial, vcpu: TrialVcpu) -> Script:
    """Rewrite the file whenever the VMM is about to take a lock while it holds none.

    A VMM may examine the file under one lock and read it under another, but what it saw under the
    first lock is then out of date.
    """
    served = trial.served
    for sizes in ((2000, 12_000, TABLE_SIZE), (12_000, 2000, 12_000)):
        served.replace(served.table(TABLE_SIZE))
        left = list(sizes)

        def meddle(call: FileCall, left: list[int] = left) -> None:
            if left and takes_lock(call) and served.locked() is None:
                served.rewrite(served.table(left.pop(0)), same_time=True)

        trial.observer.meddle = meddle
        answer = yield from vcpu.ask(4)
        trial.observer.meddle = lambda _: None
        _judge_change(trial, answer, served.content or b"")


def _while_waiting(trial: Trial, vcpu: TrialVcpu) -> Script:
    """Hold the lock, as an update does, when the VMM first tries to take it. Then rewrite and
    unlock the file.
    """
    served = trial.served
    for size in (2000, 12_000):
        served.replace(served.table(TABLE_SIZE))
        if not served.lock():
            return
        tried: list[float] = []

        def meddle(call: FileCall, tried: list[float] = tried) -> None:
            if takes_lock(call):
                tried.append(time.monotonic())

        def tick(size: int = size, tried: list[float] = tried) -> None:
            if tried and time.monotonic() - tried[0] > UPDATE_TIME:
                tried.clear()
                trial.tick = lambda: None
                served.rewrite(served.table(size))
                served.unlock()

        trial.observer.meddle, trial.tick = meddle, tick
        answer = yield from vcpu.ask(4)
        trial.observer.meddle, trial.tick = lambda _: None, lambda: None
        served.unlock()
        request = answer.request
        if request is not None and request.ret != errno.EAGAIN:
            _judge_change(trial, answer, served.content or b"")


def _judge_change(trial: Trial, answer: Answer, new: bytes) -> None:
    if answer.request is not None and answer.request.ret == errno.EAGAIN:
        trial.judge("changed-before-lock", None)
        return
    wrong = answer.delivers(new)
    trial.judge(
        "changed-before-lock",
        None
        if wrong is None
        else f"the file changed to {len(new)} bytes before the VMM locked it: {wrong}",
    )


SCENARIOS = (
    _served_after(
        "file-replaced",
        _replace,
        _replace_unnoticed,
        _replace_directory,
        after=_replaced_while_busy,
    ),
    _served_after(
        "file-rewritten",
        _rewrite,
        _rewrite_unnoticed,
        _make_pages_dirty,
        _store,
        _store_last_byte,
    ),
    _served_after("file-grown", _grow),
    _served_after("file-shrunk", _shrink),
    _gone("missing-file", lambda trial: trial.served.remove(), _removed_at_lock),
    _gone("unreadable-file", lambda trial: trial.served.put_directory()),
    _gone("empty-file", lambda trial: trial.served.replace(b"")),
    _gone("permission-denied", _forbid_open),
    Scenario(checks=("open-fails",), script=_open_fails),
    # The link exists before the VMM starts, because a VMM may resolve the path then.
    Scenario(checks=("symbolic-link",), script=_link, start=_start_as_link),
    Scenario(checks=("read-only-file",), script=_refuse_writers),
    Scenario(checks=("changed-before-lock",), script=_before_lock),
)
