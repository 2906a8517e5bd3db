# SPDX-License-Identifier: Apache-2.0
"""Keeps the VMM's output and the observed events of checks that failed or gave advice."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from snpcerts.conformance.journal import SeenEvent
from snpcerts.conformance.result import Result, ResultState
from snpcerts.conformance.trial_timeline import TrialSeen, add_trial
from snpcerts.conformance.vmm_check import BY_ID
from snpcerts.printable import printable
from snpcerts.trace import Timeline

WORTH_KEEPING: Final = (ResultState.FAILED, ResultState.ADVICE)


def write(directory: Path, result: Result, output: bytes, seen: TrialSeen, trace: bool) -> None:
    """Write ``CHECK.log`` (output) and ``CHECK.txt`` (events); with ``trace``, also
    ``CHECK.trace.json``.

    If several runs fail the same check, the names of the later files get a number. Raises
    ``OSError``.
    """
    name, number = result.id, 1
    while (directory / f"{name}.txt").exists():
        number += 1
        name = f"{result.id}-{number}"
    (directory / f"{name}.log").write_bytes(output)
    (directory / f"{name}.txt").write_text(_text(result, seen.events), "utf-8")
    if trace:
        timeline = Timeline(f"{result.id}: {result.detail}")
        add_trial(timeline, seen)
        (directory / f"{name}.trace.json").write_text(timeline.to_json(), "utf-8")


def _text(result: Result, seen: list[SeenEvent]) -> str:
    check = BY_ID[result.id]
    lines = [f"{result.id}: {result.detail}", f"asked: {check.asks}", f"rule:  {check.rule}", ""]
    start = seen[0].at if seen else 0.0
    for event in sorted(seen, key=lambda each: each.until or each.at):
        at = (event.until or event.at) - start
        lines.append(f"{at * 1000:10.3f} ms  {event.track:<9} {event.what}")
    return "".join(f"{printable(line)}\n" for line in lines)
