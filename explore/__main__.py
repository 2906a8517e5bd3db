# SPDX-License-Identifier: Apache-2.0
"""``python -m explore``: visits every interleaving and crash of the certificate file's protocol.

It prints one line for each exploration: states, transitions, depth (the number of steps to the
farthest state), seconds. For a violation it prints the shortest schedule, one line for each step.
The exit code is 1 if an invariant does not hold, or if a wrong variant was not detected.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from explore import signing_key
from explore.bounds import FULL, LIVELY, PROGRESS, PROGRESS_OF_THREE, SMALL
from explore.drawing import add_counterexample
from explore.invariants import MEANING
from explore.mutants import KILLED, MUTANTS, Mutant
from explore.progress import explore_progress
from explore.scenario import Scenario
from explore.search import Exploration, explore
from explore.strategies import STRATEGIES
from snpcerts.trace import Timeline

Draw = Callable[[str, Exploration], None]
"""Draws the counterexample of the exploration with this name, if it has one."""

_HEAD = f"{'states':>9} {'transitions':>12} {'depth':>6} {'seconds':>8}  participants"


def main(arguments: list[str] | None = None) -> int:
    """Run the explorations that the arguments select. Return 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m explore", description=__doc__)
    parser.add_argument("--bound", choices=("small", "full"), default="full")
    parser.add_argument(
        "--strategy",
        choices=tuple(STRATEGIES),
        help="Run only the explorations with this strategy.",
    )
    parser.add_argument(
        "--mutants",
        nargs="*",
        metavar="NAME",
        help="Explore wrong variants of the protocol (all, or those named); print their schedules.",
    )
    parser.add_argument(
        "--trace",
        metavar="FILE",
        help="Draw the counterexamples as a timeline for ui.perfetto.dev; a step lasts 1 ms.",
    )
    chosen = parser.parse_args(arguments)
    timeline = Timeline("python -m explore")

    def draw(name: str, result: Exploration) -> None:
        if result.start is not None:
            add_counterexample(timeline, name, result.start, result.way, result.violation)

    code = _run(chosen, draw)
    if chosen.trace is not None:
        Path(chosen.trace).write_text(timeline.to_json(), encoding="utf-8")
    return code


def _run(chosen: argparse.Namespace, draw: Draw) -> int:
    if chosen.mutants is not None:
        return _mutants(chosen.mutants, draw)
    full = chosen.bound == "full"
    print("invariants:")
    for name, meaning in MEANING.items():
        print(f"  {name:12} {meaning}")
    wrong = _safety(_with(chosen.strategy, FULL if full else SMALL), draw)
    wrong += _progress(_with(chosen.strategy, (*PROGRESS, *(PROGRESS_OF_THREE if full else ()))))
    if chosen.strategy is None:
        wrong += _signing_key(6 if full else 4)
    return 1 if wrong else 0


def _signing_key(depth: int) -> int:
    print("\ndoes each file match the signing key, with every firmware?")
    print(f"{'states':>9} {'transitions':>12} {'depth':>6}  firmware")
    wrong = 0
    for choices in signing_key.READINGS:
        result = signing_key.explore(choices, depth=depth)
        print(f"{result.states:9,} {result.transitions:12,} {depth:6}  {choices.name}", flush=True)
        wrong += _print_violation(result)
    for agent in signing_key.MUTANTS:
        found = [signing_key.explore(each, agent, depth=4) for each in signing_key.READINGS]
        seen = next((each for each in found if each.wrong), None)
        print(f"  {agent.name} ({agent.wrong}): {'found' if seen else 'NOT FOUND'}")
        wrong += seen is None
    return wrong


def _print_violation(result: signing_key.Explored) -> int:
    if not result.wrong:
        return 0
    print(f"  VIOLATION {result.wrong}")
    for number, line in enumerate(result.schedule, 1):
        print(f"  {number:4} {line}")
    return 1


def _with(strategy: str | None, scenarios: Iterable[Scenario]) -> list[Scenario]:
    return [
        each
        for each in scenarios
        if strategy is None or strategy in {name for name, _ in each.writers}
    ]


def _safety(scenarios: list[Scenario], draw: Draw) -> int:
    if not scenarios:
        return 0
    print(f"\n{_HEAD}")
    wrong = 0
    for scenario in scenarios:
        result = explore(scenario.world(), scenario.settings)
        _line(result, scenario.name)
        if result.violation is not None:
            wrong += 1
            _schedule(result)
            draw(scenario.name, result)
    return wrong


def _progress(scenarios: list[Scenario]) -> int:
    if not scenarios:
        return 0
    print("\ncan a steady stream of readers keep the writer waiting forever?")
    print(_HEAD)
    wrong = 0
    for scenario in scenarios:
        result = explore_progress(scenario.world())
        strategy = scenario.writers[0][0]
        expected = all((strategy, kind) in LIVELY for kind in scenario.readers)
        answers = result.graph.answers if result.graph else {}
        gets = "; ".join(
            f"after the update, {kind} gets {' or '.join(sorted(what))}"
            for kind, what in answers.items()
        )
        _line(result, f"{scenario.name}: {'yes' if result.violation else 'no'}; {gets}")
        if expected is not (result.violation is None):
            wrong += 1
            _schedule(result)
    return wrong


def _mutants(names: list[str], draw: Draw) -> int:
    known = {each.name: each for each in MUTANTS}
    if unknown := set(names) - set(known):
        print(f"unknown mutant {', '.join(sorted(unknown))}; the mutants are {', '.join(known)}")
        return 2
    wrong = 0
    for mutant in [known[name] for name in names] or MUTANTS:
        result = mutant.explore()
        found = result.violation.invariant if result.violation else ""
        verdict = f"violated: {found}" if found else "all invariants hold"
        print(f"\n{mutant.name}: {mutant.wrong}\n  {verdict}; {mutant.why}")
        if result.violation:
            print(f"  {result.violation.what}")
        _lines(result)
        draw(mutant.name, result)
        wrong += found != mutant.invariant
    killed = sum(mutant.invariant != "" for mutant in _chosen(names))
    print(f"\n{killed} of {len(KILLED)} wrong variants, {wrong} not as expected")
    return 1 if wrong else 0


def _chosen(names: list[str]) -> list[Mutant]:
    return [each for each in MUTANTS if not names or each.name in names]


def _line(result: Exploration, name: str) -> None:
    figures = f"{result.states:9,} {result.transitions:12,} {result.depth:6} {result.seconds:8.1f}"
    print(f"{figures}  {name}", flush=True)


def _schedule(result: Exploration) -> None:
    print(f"  VIOLATION {result.violation}" if result.violation else "  expected a VIOLATION")
    _lines(result)


def _lines(result: Exploration) -> None:
    for number, line in enumerate(result.schedule, 1):
        print(f"  {number:4} {line}")


if __name__ == "__main__":
    sys.exit(main())
