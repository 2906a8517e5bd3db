# SPDX-License-Identifier: Apache-2.0
"""The shipped protocol keeps its invariants in every interleaving and crash; wrong ones do not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from explore.__main__ import main
from explore.bounds import LIVELY, PROGRESS, SMALL, UNSAFE
from explore.invariants import BOUNDED
from explore.invariants import PROGRESS as PROGRESS_INVARIANT
from explore.mutants import EQUIVALENT, KILLED, Mutant
from explore.process import Program
from explore.progress import explore_progress
from explore.scenario import Scenario
from explore.search import explore
from explore.transition import Settings

from snpcerts.certfile import step

from ..sizes import sized
from ..timelines import assert_perfetto_draws_all

# Each of these takes half a second or more; smaller scenarios have the same readers and writers.
LARGE = {
    "R2 R3 | swap x2 | 1 killed",
    "R1 R4 | there-and-back x1 | 1 killed, 1 power failure",
    "R1 | there-and-back x1 there-and-back x1 | 1 killed",
    "R1 | swap x1 swap x1 | 1 killed",
    "R3 R3 | there-and-back x1 | no crash",
}


def within_reach(scenarios: Sequence[Scenario]) -> list[Scenario]:
    """Return the scenarios that this run explores."""
    return [each for each in scenarios if each.name not in sized(LARGE, set())]


def test_the_large_scenarios_are_among_all() -> None:
    assert {each.name for each in (*SMALL, *PROGRESS)} >= LARGE


@pytest.mark.parametrize("scenario", within_reach(SMALL), ids=lambda each: each.name)
def test_every_interleaving_and_crash_keeps_the_invariants(scenario: Scenario) -> None:
    result = explore(scenario.world(), scenario.settings)
    assert result.violation is None, "\n".join(result.schedule)
    assert result.states > 500


@pytest.mark.parametrize("scenario", within_reach(PROGRESS), ids=lambda each: each.name)
def test_which_readers_can_starve_a_writer(scenario: Scenario) -> None:
    """Readers that open the file per request cannot starve a writer that replaces it. All other
    readers can starve a writer, and all readers can starve a writer that works in place.
    """
    result = explore_progress(scenario.world())
    if (scenario.writers[0][0], scenario.readers[0]) in LIVELY:
        assert result.violation is None, "\n".join(result.schedule)
    else:
        assert result.violation is not None
        assert result.violation.invariant == PROGRESS_INVARIANT
        assert "from here on, forever:" in result.schedule


@pytest.mark.parametrize(
    ("strategy", "kind", "gets"),
    [
        ("there-and-back", "R1", {"table", "busy"}),
        ("there-and-back", "R2", {"table", "empty", "busy"}),
        ("there-and-back", "R4", {"table", "busy"}),
        ("swap", "R1", {"table", "busy"}),
        ("swap", "R2", {"table", "empty", "busy"}),
        ("swap", "R4", {"empty", "busy"}),
        ("in-place", "R1", {"table", "busy"}),
        ("in-place", "R2", {"table", "busy"}),
        ("in-place", "R3", {"table", "busy"}),
        ("in-place", "R4", {"table", "busy"}),
    ],
)
def test_what_readers_of_a_kind_get_after_an_update(
    strategy: str, kind: str, gets: set[str]
) -> None:
    scenario = Scenario((kind,), ((strategy, 1),))
    graph = explore_progress(scenario.world()).graph
    assert graph is not None
    assert graph.answers[kind] == gets


# Exploring one of these without the reduction takes seconds, so only a full run does that. Other
# runs explore only those of them that are wrong variants, and with the reduction.
LONG = (
    "vcpus-one-description",
    "writer-throws-leftover-away-there-and-back",
    "vcpu-unlocks-wrong-descriptor",
    "reader-no-comparison-alone",
    "writer-old-file-not-emptied-alone",
)
WHOLE = sized([each for each in KILLED[::2] if each.name not in LONG], KILLED)
REDUCED = sized([each for each in KILLED if each not in WHOLE], KILLED)


@pytest.mark.parametrize("mutant", WHOLE, ids=lambda each: each.name)
def test_a_wrong_variant_is_detected(mutant: Mutant) -> None:
    """The exploration names the violated invariant and prints the expected schedule."""
    result = mutant.explore()
    assert result.violation is not None
    assert result.violation.invariant == mutant.invariant
    printed, at = "\n".join(result.schedule), 0
    for part in mutant.shows:
        at = printed.find(part, at)
        assert at >= 0, f"{part!r} is missing from\n{printed}"


@pytest.mark.parametrize(
    "mutant",
    sized([each for each in EQUIVALENT if each.name not in LONG], EQUIVALENT),
    ids=lambda each: each.name,
)
def test_a_variant_that_another_rule_makes_up_for_is_safe(mutant: Mutant) -> None:
    result = mutant.explore()
    assert result.violation is None, "\n".join(result.schedule)


@pytest.mark.parametrize(
    "mutant",
    [each for each in REDUCED if each.invariant != PROGRESS_INVARIANT and not each.mover],
    ids=lambda each: each.name,
)
def test_the_reduced_exploration_detects_the_same_variants(mutant: Mutant) -> None:
    """The reduction relies on locks; it reports a violation if a process does not respect them."""
    reduced = Settings(others=mutant.scenario.settings.others)
    assert explore(mutant.world(), reduced).violation is not None


def test_a_writer_that_does_not_wait_for_its_turn_is_safe_only_with_in_place() -> None:
    """``UNSAFE`` has this writer with there-and-back and swap. ``SMALL`` has it with in-place, and
    keeps the invariants.
    """
    for scenario in UNSAFE:
        assert explore(scenario.world(), scenario.settings).violation is not None


def test_the_protocol_page_lists_every_variant() -> None:
    note = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
    for mutant in (*KILLED, *EQUIVALENT):
        invariant = mutant.invariant or "none"
        assert f"| {mutant.name} | {mutant.wrong} | {invariant} | {mutant.why} |" in note


def never_asks() -> step.Steps[None]:
    fd: int = yield step.OpenRead("/host/certs")
    while not (yield step.LockShared(fd)):
        yield step.Pause(0.001)
    yield step.Close(fd)


def asks_and_goes_on() -> step.Steps[None]:
    fd: int = yield step.OpenRead("/host/certs")
    while not (yield step.LockShared(fd)):
        yield step.Now()
    yield step.Close(fd)


@pytest.mark.parametrize("impatient", [never_asks, asks_and_goes_on])
def test_a_reader_that_ignores_its_clock_is_detected(
    impatient: Callable[[], step.Steps[None]],
) -> None:
    scenario = Scenario(("impatient",))
    result = explore(scenario.world(readers={"impatient": impatient}), scenario.settings)
    assert result.violation is not None
    assert result.violation.invariant == BOUNDED


def test_a_program_that_hides_its_state_is_refused() -> None:
    """An iterator cannot be compared, so two places in a loop would be taken for one."""

    def hiding() -> step.Steps[None]:
        for path in ("a", "b"):
            yield step.Unlink(path)

    with pytest.raises(TypeError, match="tuple_iterator"):
        Program("hiding", hiding)


def test_the_command_prints_figures_and_schedules(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--mutants", "writer-no-wait"]) == 0
    printed = capsys.readouterr().out
    assert "violated: match" in printed
    assert "changes the firmware's key to 1" in printed
    assert main(["--mutants", "nothing-of-the-kind"]) == 2
    assert "writer-no-wait" in capsys.readouterr().out


def test_a_counterexample_is_drawn(tmp_path: Path) -> None:
    """A reader without a lock reads the old table and is signed for under the writer's lock."""
    drawn = tmp_path / "trace.json"
    assert main(["--mutants", "reader-no-lock", "--trace", str(drawn)]) == 0
    events = json.loads(drawn.read_text("utf-8"))["traceEvents"]
    assert_perfetto_draws_all(events)
    rows = {each["tid"]: each["args"]["name"] for each in events if each["name"] == "thread_name"}
    groups = [each["args"]["name"] for each in events if each["name"] == "process_name"]
    assert groups == ["reader-no-lock"]
    slices = {
        (rows[each["tid"]], each["name"]): (each["ts"], each["ts"] + each["dur"])
        for each in events
        if each["ph"] == "X"
    }
    reader, writer = "reader 1 (R1)", "writer 1 (swap)"
    read, _ = slices[reader, "reads file B: the table of key 0"]
    signed, _ = slices["firmware", f"signs for {reader}"]
    locked, unlocked = slices[f"{writer}: locks on file C", "exclusive lock"]
    changed, _ = slices["signing key", "key 1"]
    assert read < locked < changed <= signed < unlocked
    assert not any(row.startswith(f"{reader}: locks") for row, _ in slices)
    assert any(each["name"].startswith("VIOLATION match") for each in events)
    ends = [rows[each["tid"]] for each in events if each.get("cat") == "flow"]
    assert ends == [reader, reader, "firmware"]
