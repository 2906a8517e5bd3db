# SPDX-License-Identifier: Apache-2.0
"""The file changes between two requests, is missing, or is a directory."""

from __future__ import annotations

import errno
from collections.abc import Callable

from snpcerts.abi.cert_table import EMPTY
from snpcerts.conformance.trial import TABLE_SIZE, Scenario, Script, Trial, TrialVcpu
from snpcerts.conformance.trial_guest import Answer


def _served_after(check: str, change: Callable[[Trial], None]) -> Scenario:
    def script(trial: Trial, vcpu: TrialVcpu) -> Script:
        trial.served.replace(trial.served.table(TABLE_SIZE))
        yield from vcpu.ask(4)
        change(trial)
        answer = yield from vcpu.ask(4)
        trial.judge(check, answer.delivers(trial.served.content or b""))

    return Scenario(checks=(check,), script=script)


def _replace(trial: Trial) -> None:
    trial.served.replace(trial.served.table(TABLE_SIZE))


def _grow(trial: Trial) -> None:
    trial.served.rewrite(trial.served.table(12_000))


def _shrink(trial: Trial) -> None:
    trial.served.rewrite(trial.served.table(2_000))


def _empty(answer: Answer) -> str | None:
    """What is wrong with an answer given without a file; None if correct."""
    request = answer.request
    if request is not None and request.ret == errno.EIO:
        return "ret 5 (EIO): a Linux guest then destroys its VMPCK"
    if not answer.ok:
        return f"expected ret 0 and an empty table, found {answer}"
    if answer.got(len(EMPTY)) != EMPTY:
        return "ret 0, but the buffer does not begin with an empty table (24 zero bytes)"
    return None


def _gone(check: str, take_away: Callable[[Trial], None]) -> Scenario:
    def script(trial: Trial, vcpu: TrialVcpu) -> Script:
        trial.served.replace(trial.served.table(TABLE_SIZE))
        yield from vcpu.ask(2)
        take_away(trial)
        for _ in range(2):
            answer = yield from vcpu.ask(2)
            trial.judge(check, _empty(answer))
        table = trial.served.table(TABLE_SIZE)
        trial.served.replace(table)
        answer = yield from vcpu.ask(2)
        wrong = answer.delivers(table)
        trial.judge(check, None if wrong is None else f"when the file is back: {wrong}")

    return Scenario(checks=(check,), script=script)


SCENARIOS = (
    _served_after("file-replaced", _replace),
    _served_after("file-grown", _grow),
    _served_after("file-shrunk", _shrink),
    _gone("missing-file", lambda trial: trial.served.remove()),
    _gone("unreadable-file", lambda trial: trial.served.put_directory()),
)
