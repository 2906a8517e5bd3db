# SPDX-License-Identifier: Apache-2.0
"""Draws a counterexample as a timeline for Perfetto: the steps of each process, and its locks.

Each step is drawn as one millisecond, because the model orders steps but does not time them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from explore.invariants import ViolationError
from explore.model import EXCLUSIVE, NONE, TURN, World
from explore.transition import POWER, Move, file_name
from snpcerts.trace import Timeline, Track

_STEP: Final = 1e-3  # seconds
_FIRMWARE: Final = "firmware"
_FAILED_TRY: Final = ": locked by another process"
_READS, _SIGNS = "reads ", "re-enters KVM_RUN"


def add_counterexample(
    timeline: Timeline,
    group: str,
    first: World,
    way: Sequence[Move],
    violation: ViolationError | None,
) -> None:
    """Add the moves from the state ``first`` to the violation, as one group of tracks."""
    names = [each.name for each in first.processes]
    rows = {number: timeline.track(name, group) for number, name in enumerate(names)}
    firmware = timeline.track(_FIRMWARE, group)
    read_at: dict[int, float] = {}
    for number, move in enumerate(way):
        at = number * _STEP
        track = rows.get(move.mover, firmware)
        text = move.text.removeprefix(f"{names[move.mover]} ") if move.mover != POWER else move.text
        name = "lock wait" if text.endswith(_FAILED_TRY) else text
        timeline.slice(track, name, at, at + _STEP, {"step": number + 1, "what": text})
        if text.startswith(_READS):
            read_at[move.mover] = at
        elif text.startswith(_SIGNS):
            timeline.slice(firmware, f"signs for {names[move.mover]}", at, at + _STEP)
            points = [(track, read_at.pop(move.mover))] if move.mover in read_at else []
            timeline.arrow("certificates, then signature", *points, (track, at), (firmware, at))
    _add_states(timeline, group, names, [first, *(move.world for move in way)])
    if violation is not None and way:
        track = rows.get(way[-1].mover, firmware)
        timeline.instant(track, f"VIOLATION {violation}", (len(way) - 0.5) * _STEP)


def _add_states(
    timeline: Timeline, group: str, names: Sequence[str], worlds: Sequence[World]
) -> None:
    """Draw the locks and the signing key, which last longer than one step."""
    since: dict[tuple[Track, str], int] = {}
    for number in range(len(worlds) + 1):
        now = _lasting(timeline, group, names, worlds[number]) if number < len(worlds) else set()
        for ended in since.keys() - now:
            track, name = ended
            timeline.slice(track, name, since.pop(ended) * _STEP, number * _STEP)
        for begun in now - since.keys():
            since[begun] = number


def _lasting(
    timeline: Timeline, group: str, names: Sequence[str], world: World
) -> set[tuple[Track, str]]:
    found = {(timeline.track("signing key", group), f"key {world.key}")}
    for name, process in zip(names, world.processes, strict=True):
        for _, number in process.fds:
            held = world.descriptions[number]
            if held.lock == NONE:
                continue
            turn = held.file == world.names.get(TURN)
            file = "the turn file" if turn else file_name(held.file)
            track = timeline.track(f"{name}: locks on {file}", group)
            found.add((track, "exclusive lock" if held.lock == EXCLUSIVE else "shared lock"))
    return found
