# SPDX-License-Identifier: Apache-2.0
"""The explorations: a small set that runs with the tests, and a full set that takes minutes."""

from __future__ import annotations

from explore.model import Budget
from explore.scenario import NOTHING, USUAL, Scenario
from explore.transition import Settings

_KILL = Budget(kills=1)
_POWER = Budget(power=1)
_BOTH = Budget(kills=1, power=1)
_FAULTS = Budget(faults=2)
_LOST_WRITES = Budget(power=1, faults=1)
_FIRMWARE = Settings(firmware_fails=True)
_UNREDUCED = Settings(reduce=False)
_STRANGER = Settings(reduce=False, reports=False)
# An update empties a wrong table despite its readers' locks. So these explorations do not rely on
# locks to leave out interleavings, and do not check that they are respected.
_AGAINST = Settings(reduce=False, discipline=False)


def _scenario(
    readers: str,
    writers: str,
    budget: Budget = NOTHING,
    settings: Settings = USUAL,
    *,
    missing: bool = False,
    wrong: bool = False,
) -> Scenario:
    """Make a scenario. ``readers`` lists kinds, such as "R1 R2"; ``writers`` lists strategies with
    their numbers of updates, such as "swap:2 in-place:1".
    """
    pairs = (each.split(":") for each in writers.split())
    return Scenario(
        tuple(readers.split()),
        tuple((strategy, int(updates)) for strategy, updates in pairs),
        budget,
        settings,
        missing,
        wrong,
    )


SMALL = (
    _scenario("R1 R1", "there-and-back:1"),
    _scenario("R1", "there-and-back:1 there-and-back:1", _KILL),
    _scenario("R1", "there-and-back:1 there-and-back:1", _POWER),
    _scenario("R1", "there-and-back:1", _BOTH),
    _scenario("R1", "there-and-back:1 in-place:1", _POWER),
    _scenario("R1", "there-and-back:1", _FAULTS, _FIRMWARE),
    _scenario("R1", "there-and-back:1 swap:1", _KILL, missing=True),
    _scenario("R2 R3", "there-and-back:1", _KILL),
    _scenario("R1 R4", "there-and-back:1", _BOTH),
    _scenario("R1 R1", "swap:1"),
    _scenario("R1", "swap:1 swap:1", _KILL),
    _scenario("R1", "swap:1 swap:1", _POWER),
    _scenario("R1", "swap:1", _BOTH),
    _scenario("R1", "swap:1 in-place:1", _KILL),
    _scenario("R1", "swap:1 in-place:1", _POWER),
    _scenario("R1", "in-place:2", _BOTH),
    _scenario("R1", "swap:1", _FAULTS, _FIRMWARE),
    _scenario("R1", "in-place:1", _FAULTS, _FIRMWARE),
    _scenario("R1", "swap:1 in-place:1", _KILL, missing=True),
    _scenario("R2 R3", "swap:2", _KILL),
    _scenario("R2 R4", "swap:1 in-place:1", _POWER),
    _scenario("R1 R4", "in-place:2", _KILL),
    _scenario("R1", "there-and-back:1", _KILL, _UNREDUCED),
    _scenario("R1", "in-place:1 stranger:1", _KILL, _STRANGER),
    _scenario("R1 holder", "there-and-back-wrong:1", _KILL, _AGAINST, wrong=True),
    _scenario("R1 holder", "swap-wrong:1", _KILL, _AGAINST, wrong=True),
    _scenario("R1 holder", "in-place-wrong:1", _KILL, _AGAINST, wrong=True),
    _scenario("holder", "there-and-back-wrong:2", _POWER, _AGAINST, wrong=True),
    _scenario("holder", "swap-wrong:1", _LOST_WRITES, _AGAINST, wrong=True),
    _scenario("holder", "in-place-wrong:2", _LOST_WRITES, _AGAINST, wrong=True),
    _scenario("R3", "swap-wrong:1 in-place-wrong:1", NOTHING, _AGAINST, wrong=True),
    _scenario("R1 R5", "several-in-place:1", _KILL),
    _scenario("R5", "several-there-and-back:1", _POWER),
    _scenario("R5", "several-swap:1", _BOTH),
    _scenario("R5", "several-in-place:1", _LOST_WRITES, _FIRMWARE),
)

FULL = (
    _scenario("R1 R1 R1", "there-and-back:2", _KILL),
    _scenario("R1 R1", "there-and-back:2 there-and-back:2"),
    _scenario("R1 R1 R1", "there-and-back:1 there-and-back:1", _POWER),
    _scenario("R1 R2 R3", "there-and-back:1 there-and-back:1", _KILL),
    _scenario("R1 R2 R4", "there-and-back:2", _KILL),
    _scenario("R1 R4", "there-and-back:1 there-and-back:1", _BOTH),
    _scenario("R1 R2 R4", "there-and-back:1 swap:1", _KILL),
    _scenario("R1", "there-and-back:2 in-place:2", _BOTH),
    _scenario("", "there-and-back:2 there-and-back:2", Budget(kills=2, power=1)),
    _scenario("R1 R2", "there-and-back:2", _FAULTS, _FIRMWARE),
    _scenario("R1", "there-and-back:2", Budget(kills=1, power=1, faults=1), _FIRMWARE),
    _scenario("R1 R1", "there-and-back:1 there-and-back:1", _KILL, _UNREDUCED),
    _scenario("R1 holder", "there-and-back-wrong:2", _BOTH, _AGAINST, wrong=True),
    _scenario("holder", "there-and-back-wrong:2", _LOST_WRITES, _AGAINST, wrong=True),
    _scenario("holder", "swap-wrong:2", _LOST_WRITES, _AGAINST, wrong=True),
    _scenario("R1 R1 R1", "swap:2", _KILL),
    _scenario("R1 R1", "swap:2 swap:2"),
    _scenario("R1 R1 R1", "swap:1 swap:1", _KILL),
    _scenario("R1 R1 R1", "swap:1 swap:1", _POWER),
    _scenario("R1 R1 R1", "swap:1 in-place:1", _KILL),
    _scenario("R1 R1 R1", "in-place:2 in-place:1", _BOTH),
    _scenario("R1 R2 R3", "swap:1 swap:1", _KILL),
    _scenario("R1 R2 R3", "swap:1 swap:1", _POWER),
    _scenario("R1 R2 R4", "swap:1 in-place:1", _KILL),
    _scenario("R2 R3 R4", "swap:1 in-place:1", _BOTH),
    _scenario("R1 R3", "swap:1 swap:1", _BOTH),
    _scenario("R1", "swap:2 in-place:2", _BOTH),
    _scenario("", "swap:2 swap:2", Budget(kills=2, power=1)),
    _scenario("R1 R2", "swap:2", _FAULTS, _FIRMWARE),
    _scenario("R1 R2", "in-place:2", _FAULTS, _FIRMWARE),
    _scenario("", "swap:2 in-place:1", Budget(kills=1, power=1, faults=1), _FIRMWARE),
    _scenario("R1 R1", "swap:1 in-place:1", _BOTH, missing=True),
    _scenario("R1 R1", "swap:1 swap:1", _KILL, _UNREDUCED),
    _scenario("R1 R1", "in-place:1 stranger:1", _BOTH, _STRANGER),
    _scenario("R1 R2 holder", "swap-wrong:1", _KILL, _AGAINST, wrong=True),
    _scenario("R1 R4 holder", "in-place-wrong:2", _KILL, _AGAINST, wrong=True),
    _scenario("R3 holder", "swap-wrong:1 in-place-wrong:1", _KILL, _AGAINST, wrong=True),
    _scenario("R1 holder", "swap-wrong:2", _BOTH, _AGAINST, wrong=True),
    _scenario("R1 R5", "several-there-and-back:1", _BOTH),
    _scenario("R5", "several-there-and-back:1", _FAULTS, _FIRMWARE),
    _scenario("R5", "several-swap:1 several-swap:1", _KILL),
    _scenario("R1 R5", "several-in-place:1", _KILL, _UNREDUCED),
)
# A writer that neither waits for its turn nor compares inodes conflicts with these strategies.
UNSAFE = tuple(
    _scenario("R1", f"{strategy}:1 stranger:1", settings=_STRANGER)
    for strategy in ("there-and-back", "swap")
)

# Two readers of one kind can alternate. Can they keep a writer out forever?
PROGRESS = tuple(
    _scenario(f"{kind} {kind}", f"{strategy}:1")
    for strategy in ("there-and-back", "swap", "in-place")
    for kind in ("R1", "R2", "R3", "R4")
)
# The (strategy, reader) pairs for which the readers cannot keep the writer out.
LIVELY = {(strategy, kind) for strategy in ("there-and-back", "swap") for kind in ("R1", "R2")}
PROGRESS_OF_THREE = tuple(
    _scenario(readers, f"{strategy}:1")
    for strategy in ("there-and-back", "swap")
    for readers in ("R1 R1 R1", "R1 R1 R2")
)
