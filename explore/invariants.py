# SPDX-License-Identifier: Apache-2.0
"""The invariants: what must hold in every state, or when a request or an update ends."""

from __future__ import annotations

from typing import Any

from explore.model import (
    EXCLUSIVE,
    MOUNT,
    OLD,
    PATH,
    SECOND,
    SECOND_TURN,
    TURN,
    World,
    table,
)
from explore.process import TOO_LATE, FirmwareError, Position, Process
from snpcerts.abi.cert_table import EMPTY
from snpcerts.certfile import step
from snpcerts.certfile.writer import LockHeldError

MATCH = "match"
CRASH_SAFE = "crash-safe"
PROGRESS = "progress"
BOUNDED = "bounded"
NO_HARM = "no harm"
LASTING = "lasting"
DISCIPLINE = "discipline"
TIDY = "tidy"

MEANING = {
    MATCH: "if a request is answered with certificates, the key that they certify signs the report",
    CRASH_SAFE: "a file that no writer has locked holds the empty table or the current key's table",
    PROGRESS: "a writer gets through while readers keep coming",
    BOUNDED: "no process retries without checking the clock, or after its time is over",
    NO_HARM: "an update that does not get the lock leaves path, file and names as they were",
    LASTING: "a later power failure does not undo what an update has reported",
    DISCIPLINE: "no process reads or writes a file that another's lock protects",
    TIDY: "a process that is done has closed its descriptors and left no temporary files behind",
}


_PATHS = (PATH, SECOND)


class ViolationError(Exception):
    """An invariant does not hold."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant
        self.what = what


def check_handshake(world: World, delivered: bytes | None) -> None:
    """Check, when the firmware signs, that the table in the guest's buffer matches the firmware's
    key.
    """
    if delivered and delivered not in (table(world.key), table(world.key, SECOND)):
        raise ViolationError(
            MATCH,
            f"the guest gets {content_in_words(delivered)} with a report signed by key {world.key}",
        )


def check_state(world: World, *, others: bool = True) -> None:
    """Check that no file without an exclusive lock contains a wrong table.

    If ``others`` is set, check every file that a process can reach, not only those at the paths.
    """
    exclusive = {each.file for each in world.descriptions.values() if each.lock == EXCLUSIVE}
    paths = {world.names.get(path): path for path in (PATH, SECOND)}
    turns = {world.names.get(turn) for turn in (TURN, SECOND_TURN)}
    for number, file in world.files.items():
        if number in exclusive or number in turns or not (others or number in paths):
            continue
        data, at_path = file.data, paths.get(number)
        right = [table(world.key, at_path)] if at_path else [table(world.key, p) for p in _PATHS]
        # A leading terminator ends the table, whatever follows it.
        if data in right or data.startswith(EMPTY) or (not data and not at_path):
            continue
        if data == world.wrong:
            continue  # the update did not cause this, and has not ended yet
        # If only a name on disk refers to a file, the file matters only after a power failure.
        if number not in world.names.values() and not any(
            each.file == number for each in world.descriptions.values()
        ):
            continue
        names = {PATH: "the path", SECOND: "the second path", None: "a file that is still open"}
        at = names[at_path]
        raise ViolationError(
            CRASH_SAFE,
            f"{at} holds {content_in_words(data)} without an exclusive lock; "
            f"the firmware's key is {world.key}",
        )


def check_access(world: World, description: int, *, write: bool) -> None:
    """Check that no other description's lock forbids this read or write."""
    mine = world.descriptions[description]
    for number, other in world.descriptions.items():
        if number == description or other.file != mine.file or not other.lock:
            continue
        if write or other.lock == EXCLUSIVE:
            raise ViolationError(
                DISCIPLINE, "a process reads or writes a file that another's lock protects"
            )


def found_at_turn(world: World, path: str) -> tuple[Any, ...]:
    """Return what an update finds when its turn comes: path, content, names, content on disk."""
    file = world.names.get(path)
    return (
        file,
        world.files[file].data if file is not None else None,
        tuple(sorted(world.names)),
        _lasting(world, path),
    )


def check_end(world: World, process: Process, end: Position, *, reports: bool = True) -> None:
    """Check, when a request or an update has ended, that the state matches its result."""
    if process.fds:
        raise ViolationError(TIDY, f"{process.name} ends with {len(process.fds)} descriptors open")
    if not process.writer or not reports:
        return
    if SECOND in world.names:
        _check_end_of_several(world, process, end)
        return
    path = world.names.get(PATH)
    data = world.files[path].data if path is not None else None
    lasting = _lasting(world, PATH)
    if end.error is None:
        if data != table(world.key):
            raise ViolationError(
                NO_HARM, f"the update reports success, but the path holds {content_in_words(data)}"
            )
        if stray := set(world.names) - {PATH, TURN, MOUNT}:
            raise ViolationError(TIDY, f"the update leaves {', '.join(sorted(stray))} behind")
        if lasting - {data}:
            raise ViolationError(
                LASTING, "the update reports success, but the disk may hold another table"
            )
    elif isinstance(end.error, LockHeldError) and process.before:
        before_path, before_data, before_names, before_lasting = dict(process.before)[PATH]
        # Undoing an interrupted update may put the original file back at the path.
        undone = (
            OLD in before_names
            and (before_data or b"").startswith(EMPTY)
            and data is not None
            and (data.startswith(EMPTY) or data == table(world.key))
        )
        # The update must empty a table that it knows is wrong, even despite a reader's lock.
        undone = undone or (before_data == world.wrong and (data or b"").startswith(EMPTY))
        if (path != before_path or data != before_data) and not undone:
            raise ViolationError(
                NO_HARM,
                "the update reports that nothing has changed, but the path held "
                f"{content_in_words(before_data)} and now holds {content_in_words(data)}",
            )
        if stray := set(world.names) - set(before_names):
            raise ViolationError(TIDY, f"the update leaves {', '.join(sorted(stray))} behind")
        changed = lasting - before_lasting - {data}
        # An empty table may replace a wrong one, or return with the file that was set aside.
        if world.wrong in before_lasting or undone:
            changed = {each for each in changed if not (each or b"").startswith(EMPTY)}
        if changed:
            raise ViolationError(
                LASTING,
                "the update reports that nothing has changed, but the disk may have changed",
            )
    elif isinstance(end.error, FirmwareError) and (data is None or not data.startswith(EMPTY)):
        raise ViolationError(NO_HARM, "the firmware command failed, but the table is not empty")


def _check_end_of_several(world: World, process: Process, end: Position) -> None:
    """Check an update of two files as :func:`check_end` does. Each file must contain what the
    update's result says.
    """
    before = dict(process.before)
    for path in _PATHS:
        file = world.names.get(path)
        data = world.files[file].data if file is not None else None
        right, lasting = table(world.key, path), _lasting(world, path)
        where = f"{path} holds {content_in_words(data)}"
        if end.error is None:
            # A file that could not be written is empty and listed in the problems.
            problems = {each for each, _ in getattr(end.value, "problems", ())}
            if data != right and not (path in problems and (data or b"").startswith(EMPTY)):
                raise ViolationError(NO_HARM, f"the update reports success, but {where}")
            if path not in problems and lasting - {data}:
                raise ViolationError(
                    LASTING,
                    f"the update reports success and {where}, but the disk may hold another table",
                )
        elif isinstance(end.error, LockHeldError) and path in before:
            found, found_lasting = before[path][1], before[path][3]
            if data not in (right, found):
                raise ViolationError(
                    NO_HARM, f"the update reports that nothing changed, but {where}"
                )
            changed = lasting - found_lasting - {data}
            if any(not (each or b"").startswith(EMPTY) for each in changed):
                raise ViolationError(
                    LASTING,
                    "the update reports that nothing has changed, but the disk may have changed",
                )
        elif isinstance(end.error, FirmwareError) and not (data or b"").startswith(EMPTY):
            raise ViolationError(NO_HARM, f"the firmware command failed, but {where}")
    if end.error is None and (stray := set(world.names) - {*_PATHS, TURN, SECOND_TURN}):
        raise ViolationError(TIDY, f"the update leaves {', '.join(sorted(stray))} behind")


def check_withdrawn(world: World, process: Process, end: Position) -> None:
    """Check, when an update that knew of a wrong table has ended, that no reader can still get that
    table.

    From then on, a wrong table is a violation. An update that ended because a step failed, or
    before its turn, does not count.
    """
    done = end.error is None or isinstance(end.error, LockHeldError | FirmwareError)
    if world.wrong is None or not process.writer or not process.before or not done:
        return
    path = world.names.get(PATH)
    if path is not None and world.files[path].data == world.wrong:
        raise ViolationError(MATCH, "the update ends and leaves a table that it knows is wrong")
    world.wrong = None


def _lasting(world: World, path: str) -> frozenset[bytes | None]:
    """Return what a path may contain after a power failure at this moment."""
    if not world.budget.power:
        return frozenset()
    found: set[bytes | None] = set()
    for after in world.after_power_loss():
        file = after.names.get(path)
        found.add(after.files[file].data if file is not None else None)
    return frozenset(found)


def unbounded_retries(positions: list[Position]) -> list[Position]:
    """Return a loop that never reads the clock, or ignores "too late"; an empty list if there is
    none.
    """
    done: set[Position] = set()
    for start in positions:
        trail: list[Position] = []
        if loop := _loop_from(start, trail, done):
            return loop
    return []


def _loop_from(at: Position, trail: list[Position], done: set[Position]) -> list[Position]:
    if at in trail:
        return trail[trail.index(at) :]
    # A loop through the hand-shake is not a retry: the hand-shake ends one request, and the next
    # request has time of its own.
    if at in done or at.action is None or isinstance(at.action, step.Handshake):
        return []
    trail.append(at)
    asks = isinstance(at.action, step.Now) and at.timed
    for result, following in at.known():
        if asks and result != TOO_LATE:
            continue
        if loop := _loop_from(following, trail, done):
            return loop
    trail.pop()
    done.add(at)
    return []


def content_in_words(data: bytes | None) -> str:
    if data is None:
        return "no file"
    if not data:
        return "no bytes"
    if data.startswith(EMPTY):
        return "the empty table"
    for key in range(8):
        if data == table(key):
            return f"the table of key {key}"
        if data == table(key, SECOND):
            return f"the second table of key {key}"
    return "a torn table"
