# SPDX-License-Identifier: Apache-2.0
"""Visits every state, breadth first, so that a violation is found with its shortest schedule.

States are compared in full, not by a digest: each new part gets a number, and a state is the tuple
of its parts' numbers. Processes that run the same program are interchangeable, so their order does
not count.
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from dataclasses import dataclass, field
from itertools import islice

from explore.invariants import BOUNDED, ViolationError, unbounded_retries
from explore.model import World
from explore.transition import Move, Settings, moves, start, writer_waits
from snpcerts.certfile import step


@dataclass(slots=True)
class Exploration:
    """The result of an exploration."""

    states: int = 0
    transitions: int = 0
    depth: int = 0
    seconds: float = 0.0
    violation: ViolationError | None = None
    schedule: list[str] = field(default_factory=list)
    start: World | None = None  # where the schedule starts
    way: list[Move] = field(default_factory=list)  # the schedule, with the states it leads to
    complete: bool = True
    graph: Graph | None = None


@dataclass(slots=True)
class Graph:
    """The graph of all states and moves, to study runs that never end."""

    edges: list[list[tuple[int, int]]] = field(default_factory=list)  # (mover, state)
    waiting: list[bool] = field(default_factory=list)  # whether a writer waits for a lock
    done: list[frozenset[int]] = field(default_factory=list)  # processes that have ended
    answers: dict[str, set[str]] = field(default_factory=dict)  # of readers, after the last update
    parents: list[int] = field(default_factory=list)
    choices: list[int] = field(default_factory=list)


class _Numbers(dict[object, int]):
    def __missing__(self, part: object) -> int:
        number = self[part] = len(self)
        return number


class _Names:
    """Assigns numbers to states and their parts."""

    def __init__(self, *, interchangeable: bool) -> None:
        self._processes = _Numbers()
        self._rests = _Numbers()
        self._interchangeable = interchangeable

    def of(self, world: World) -> tuple[int, ...]:
        descriptions = world.descriptions
        parts = []
        for each in world.processes:
            position = each.position
            fds = tuple(
                (fd, descriptions[number], number if descriptions[number].vmm else -1)
                for fd, number in each.fds
            )
            parts.append(
                self._processes[
                    (
                        position.program.kind,
                        position.number,
                        fds,
                        each.left,
                        each.delivered,
                        each.before,
                        each.misled,
                    )
                ]
            )
        if self._interchangeable:
            parts.sort()
        rest = (
            world.key,
            world.wrong,
            tuple(sorted(world.names.items())),
            tuple(sorted(world.files.items())),
            world.budget,
            tuple(sorted(world.disk.items())),
            world.changes,
        )
        return (self._rests[rest], *parts)


def explore(
    world: World,
    settings: Settings,
    *,
    state_limit: int = 0,
    keep_graph: bool = False,
) -> Exploration:
    """Visit every state that can be reached from ``world``, until an invariant is violated."""
    begun = time.perf_counter()
    start(world, settings)
    names = _Names(interchangeable=not keep_graph)
    seen = {names.of(world): 0}
    parents, choices = array("l", [-1]), array("l", [-1])
    depths = array("l", [0])
    frontier = deque([(0, world)])
    result = Exploration(graph=Graph() if keep_graph else None)
    first = world
    while frontier:
        number, world = frontier.popleft()
        edges: list[tuple[int, int]] = []
        for choice, move in enumerate(moves(world, settings)):
            result.transitions += 1
            if move.violation is not None:
                result.violation = move.violation
                way = [*_way_to(number, parents, choices), choice]
                result.start, result.way = first, _moves_along(first, way, settings)
                result.schedule = [each.text for each in result.way]
                frontier.clear()
                break
            key = names.of(move.world)
            following = seen.get(key)
            if following is None:
                following = seen[key] = len(seen)
                parents.append(number)
                choices.append(choice)
                depths.append(depths[number] + 1)
                frontier.append((following, move.world))
            edges.append((move.mover, following))
        if result.graph is not None:
            result.graph.edges.append(edges)
            result.graph.waiting.append(_waits(world))
            _note_answers(world, result.graph)
            result.graph.done.append(
                frozenset(
                    index
                    for index, process in enumerate(world.processes)
                    if process.position.action is None
                )
            )
        if state_limit and len(seen) > state_limit:
            result.complete = False
            break
    if result.graph is not None:
        result.graph.parents, result.graph.choices = list(parents), list(choices)
    result.states = len(seen)
    result.depth = max(depths)
    if result.violation is None:
        _check_programs(first, result)
    result.seconds = time.perf_counter() - begun
    return result


def _check_programs(first: World, result: Exploration) -> None:
    """Check, in the parts of the programs that were run, that every loop reads the clock."""
    programs = {each.position.program for each in first.processes if each.writer or each.left < 0}
    for program in sorted(programs, key=lambda each: each.kind):
        if loop := unbounded_retries(program.positions()):
            result.violation = ViolationError(
                BOUNDED, f"{program.kind} may loop forever, whatever its clock says"
            )
            result.schedule = [f"{program.kind}: {type(each.action).__name__}" for each in loop]


def _note_answers(world: World, graph: Graph) -> None:
    """Record what readers get after the last update, no matter when they opened the file."""
    if any(each.writer and each.position.action is not None for each in world.processes):
        return
    for each in world.processes:
        if isinstance(each.position.action, step.Handshake):
            answer = "busy" if each.delivered is None else "table" if each.delivered else "empty"
            graph.answers.setdefault(each.position.program.kind, set()).add(answer)


def _waits(world: World) -> bool:
    """Whether a writer that has the turn waits for a lock."""
    return any(writer_waits(world, each) for each in world.processes)


def _way_to(number: int, parents: array[int], choices: array[int]) -> list[int]:
    way = []
    while parents[number] >= 0:
        way.append(choices[number])
        number = parents[number]
    return way[::-1]


def _moves_along(world: World, way: list[int], settings: Settings) -> list[Move]:
    made = []
    for choice in way:
        move = next(islice(moves(world, settings), choice, None))
        made.append(move)
        world = move.world
    return made
