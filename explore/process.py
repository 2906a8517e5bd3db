# SPDX-License-Identifier: Apache-2.0
"""The position of a process in its protocol.

A generator cannot be copied. But the results of its steps determine what a protocol does, so a
process consists of its program and these results. To try several results, the explorer makes a new
generator and sends it the same results again. Each sequence of results is run once, and its
:class:`Position` is cached.

Two sequences lead to the same position if the suspended frames agree in everything that can decide
the next step: the place in each frame, its local variables, and active exceptions. The model
chooses freely whether the clock says "in time" or "too late", so times decide nothing and are left
out. Thus a loop of retries has a finite number of states.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import errno
import gc
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from snpcerts.certfile import step
from snpcerts.certfile.step import Steps
from snpcerts.errors import SnpCertsError

IN_TIME = 0.0
TOO_LATE = 1e9


class Fails(NamedTuple):
    """The result of a step that fails: its errno, or 0 for a firmware command."""

    errno: int

    def error(self) -> Exception:
        return FirmwareError() if self.errno == 0 else OSError(self.errno, "fails")

    def __str__(self) -> str:
        return "the command fails" if self.errno == 0 else errno.errorcode[self.errno]


class FirmwareError(Exception):
    """The firmware command failed, or its answer was lost."""


FIRMWARE_FAILS = Fails(0)
_ListIterator: type[Iterator[object]] = type(iter([]))


class Position:
    """A position in a program: the next step, or how the program ended."""

    __slots__ = ("_next", "action", "error", "history", "number", "program", "timed", "value")

    def __init__(self, program: Program, number: int, history: tuple[Any, ...]) -> None:
        self.program = program
        self.number = number
        self.history = history
        self.action: Any = None
        self.value: object = None
        self.error: Exception | None = None
        self.timed = False  # whether the program has already read the clock
        self._next: dict[tuple[type, object], Position] = {}

    def after(self, result: object) -> Position:
        """Return the program's position after this result."""
        key = (type(result), result)
        found = self._next.get(key)
        if found is None:
            found = self._next[key] = self.program.position((*self.history, result))
        return found

    def known(self) -> list[tuple[object, Position]]:
        """Return the results tried so far, and the positions that they led to."""
        return [(result, position) for (_, result), position in self._next.items()]


class Program:
    """The program that processes of one kind run repeatedly."""

    def __init__(self, kind: str, start: Callable[[], Steps[Any]]) -> None:
        self.kind = kind
        self._start = start
        self._known: dict[object, Position] = {}
        self.first = self.position(())
        self.ended = Position(self, -1, ())

    def positions(self) -> list[Position]:
        return list(self._known.values())

    def position(self, history: tuple[Any, ...]) -> Position:
        """Run the program from the start with these results. Equal positions are the same
        object.
        """
        steps = self._start()
        action: Any = None
        value: object = None
        error: Exception | None = None
        timed = False
        try:
            action = next(steps)
            for result in history:
                timed = timed or isinstance(action, step.Now)
                if isinstance(result, Fails):
                    action = steps.throw(result.error())
                else:
                    action = steps.send(result)
        except StopIteration as end:
            action, value = None, end.value
        except (SnpCertsError, OSError, FirmwareError) as raised:
            action, error = None, raised
        if action is None:
            place: object = (frozen(value), _kind_of(error) if error else None)
        else:
            # Whether the clock was read before matters only at the next reading.
            place = (timed and isinstance(action, step.Now), _place(steps))
        if action is not None:
            _abandon(steps)
        found = self._known.get(place)
        if found is None:
            found = self._known[place] = Position(self, len(self._known), history)
            found.action, found.value, found.error, found.timed = action, value, error, timed
        return found


class Process(NamedTuple):
    """One process that runs a program."""

    name: str
    position: Position
    fds: tuple[tuple[int, int], ...]  # descriptor, description
    left: int  # jobs to do, including the current one; -1: no limit
    delivered: bytes | None  # the guest's table, possibly empty; None if there is none, or BUSY
    before: tuple[tuple[str, Any], ...]  # what an update found at each path when its turn came
    writer: bool
    vmm: str
    misled: bool = False  # whether it has read the wrong table before an update ended


class _AbandonedError(BaseException):
    """Raised in a generator that is not needed any longer, to end it."""


def _abandon(steps: Steps[Any]) -> None:
    """End a suspended generator, which may yield a few more steps while it cleans up."""
    try:
        while True:
            steps.throw(_AbandonedError())
    except (_AbandonedError, StopIteration):
        return


def _place(steps: Any) -> tuple[object, ...]:
    """Return everything in a suspended generator that decides its next step."""
    frame = steps.gi_frame
    inner = steps.gi_yieldfrom
    variables = frame.f_locals
    place: list[object] = [frame.f_code.co_qualname, frame.f_lasti]
    for name, value in sorted(variables.items()):
        if isinstance(value, float):
            continue
        place.append(
            (name, _place(value) if isinstance(value, types.GeneratorType) else frozen(value))
        )
    if inner is not None:
        place.append(_place(inner))
    mine = {id(value) for value in variables.values()}
    code_names = {id(each) for each in (frame, variables, frame.f_code)}
    for each in gc.get_referents(steps):
        if isinstance(each, BaseException):
            place.append(_kind_of(each))
        elif isinstance(each, int):
            place.append(each)
        elif isinstance(each, _ListIterator):
            place.append(tuple(map(frozen, copy.copy(each))))  # the rest of the iterator
        elif id(each) in mine or id(each) in code_names or each is inner or each is None:
            continue
        elif not isinstance(each, types.CodeType | types.FunctionType | types.CellType | str):
            raise TypeError(f"{frame.f_code.co_qualname} holds {each!r}, which cannot be compared")
    return tuple(place)


def _kind_of(error: BaseException) -> tuple[object, ...]:
    return (type(error).__name__, getattr(error, "errno", None))


def frozen(value: object) -> object:
    """Return a hashable value that compares as ``value`` does, except that all times are equal."""
    if value is None or isinstance(value, bool | int | str | bytes | enum.Enum):
        return (type(value).__name__, value)
    if isinstance(value, float):
        return "a time"
    if isinstance(value, tuple | list):
        return (type(value).__name__, *map(frozen, value))
    if isinstance(value, dict):
        return tuple((key, frozen(each)) for key, each in sorted(value.items()))
    if isinstance(value, BaseException):
        return _kind_of(value)
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return (type(value).__name__, *(frozen(getattr(value, each.name)) for each in fields))
    if isinstance(value, types.FunctionType) and value.__closure__:
        # Each run of the protocol creates this function anew, so compare its code and the values
        # in its closure.
        kept = (cell.cell_contents for cell in value.__closure__)
        return (value.__code__, *map(frozen, kept))
    if callable(value):
        return value
    raise TypeError(f"cannot compare a {type(value).__name__}")
