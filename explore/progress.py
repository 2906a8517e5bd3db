# SPDX-License-Identifier: Apache-2.0
"""Checks whether a steady stream of readers can keep a writer waiting forever.

Consider infinite runs in which no process gives up and every process that can move does so again
and again (weak fairness). In the finite graph of all states, such a run ends in a cycle. A
violation is a cycle in which the writer has the turn and waits for a lock in every state, and every
process that is not done moves. The violation's schedule leads to the cycle and once around it.
Without such a cycle, the writer gets the lock in every such run; it only waits for readers that
opened the old file before it was replaced.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from explore.invariants import PROGRESS, ViolationError
from explore.model import World
from explore.search import Exploration, Graph, explore
from explore.transition import Settings, moves

_PATIENT = Settings(reduce=False, discipline=False, patient=True)


def explore_progress(world: World) -> Exploration:
    """Visit all states. The violation, if any, is a cycle in which a writer starves."""
    result = explore(world, _PATIENT, keep_graph=True)
    graph = result.graph
    if result.violation is not None or graph is None:
        return result
    running = {
        index
        for index, process in enumerate(world.processes)
        if process.position.action is not None
    }
    for component in _components(graph):
        inside = set(component)
        movers = {mover for state in component for mover, to in graph.edges[state] if to in inside}
        # Processes that have ended cannot move, so the cycle needs no move by them.
        if movers and running - movers <= graph.done[component[0]]:
            start = min(component)
            result.schedule = _in_words(world, _way(graph, start))
            lap = _lap(graph, start, inside, sorted(movers))
            at_start = _after(world, _way(graph, start))
            result.schedule.append("from here on, forever:")
            result.schedule += _in_words(at_start, lap)
            result.violation = ViolationError(
                PROGRESS, "a steady stream of readers keeps the writer waiting forever"
            )
            break
    return result


def _way(graph: Graph, state: int) -> list[int]:
    way = []
    while graph.parents[state] >= 0:
        way.append(graph.choices[state])
        state = graph.parents[state]
    return way[::-1]


def _after(world: World, way: list[int]) -> World:
    for choice in way:
        world = next(islice(moves(world, _PATIENT), choice, None)).world
    return world


def _in_words(world: World, way: list[int]) -> list[str]:
    lines = []
    for choice in way:
        move = next(islice(moves(world, _PATIENT), choice, None))
        lines.append(move.text)
        world = move.world
    return lines


def _lap(graph: Graph, start: int, inside: set[int], movers: list[int]) -> list[int]:
    """Return choices that lead once around the cycle, with at least one move of each process."""
    lap: list[int] = []
    at = start
    for wanted in movers:
        way, at = _towards(graph, at, inside, mover=wanted)
        lap += way
    if at != start:
        lap += _towards(graph, at, inside, state=start)[0]
    return lap


def _towards(
    graph: Graph,
    start: int,
    inside: set[int],
    *,
    mover: int | None = None,
    state: int | None = None,
) -> tuple[list[int], int]:
    """Return the shortest path in the component to a move of ``mover``, or to ``state``."""
    seen = {start}
    frontier: deque[tuple[int, list[int]]] = deque([(start, [])])
    while frontier:
        at, way = frontier.popleft()
        for choice, (who, to) in enumerate(graph.edges[at]):
            if to not in inside:
                continue
            if who == mover or to == state:
                return [*way, choice], to
            if to not in seen:
                seen.add(to)
                frontier.append((to, [*way, choice]))
    raise LookupError("the component is not strongly connected")


def _components(graph: Graph) -> list[list[int]]:
    """Return the strongly connected components of the states in which a writer waits (Tarjan)."""
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    on_stack: set[int] = set()
    stack: list[int] = []
    found: list[list[int]] = []
    waiting = graph.waiting

    def followers(state: int) -> list[int]:
        return [to for _, to in graph.edges[state] if waiting[to]]

    for root, waits in enumerate(waiting):
        if not waits or root in order:
            continue
        work = [(root, iter(followers(root)))]
        order[root] = low[root] = len(order)
        stack.append(root)
        on_stack.add(root)
        while work:
            state, rest = work[-1]
            for to in rest:
                if to not in order:
                    order[to] = low[to] = len(order)
                    stack.append(to)
                    on_stack.add(to)
                    work.append((to, iter(followers(to))))
                    break
                if to in on_stack:
                    low[state] = min(low[state], order[to])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[state])
                if low[state] == order[state]:
                    component = []
                    while True:
                        each = stack.pop()
                        on_stack.discard(each)
                        component.append(each)
                        if each == state:
                            break
                    found.append(component)
    return found
