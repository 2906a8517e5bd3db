# SPDX-License-Identifier: Apache-2.0
"""What can happen next in a state: each step, its effect and its description.

Two rules reduce the number of states without losing an outcome:

* a step that other processes cannot observe (a pause, the clock, closing a
  description that holds no lock) is taken together with the step before it;
* with ``reduce``, a process goes first, alone, if no other process can touch what its
  next step touches: a file that it has locked, or names that only the writer with the
  turn changes. This relies on processes respecting locks. The invariant *discipline*
  checks that in every visited state, so an exploration without a violation was right to
  rely on it.

Crashes and failures are tried at every step, except at those that other processes cannot observe,
where they would make no difference.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any, NamedTuple

from explore import steps
from explore.invariants import (
    ViolationError,
    check_access,
    check_end,
    check_handshake,
    check_state,
    check_withdrawn,
    content_in_words,
    found_at_turn,
)
from explore.model import (
    EXCLUSIVE,
    MOUNT,
    NEW,
    NONE,
    OLD,
    PATH,
    SECOND,
    SECOND_NEW,
    SECOND_OLD,
    SECOND_TURN,
    SHARED,
    TURN,
    TURN_FOR,
    File,
    World,
    table,
)
from explore.process import FIRMWARE_FAILS, IN_TIME, TOO_LATE, Fails, Process
from explore.several import tables_for
from snpcerts.certfile import step
from snpcerts.certfile.reader import Empty, Table

_SHORT = {PATH: "certs", TURN: ".certs.turn", NEW: ".certs.new", OLD: ".certs.old"}
_SHORT |= {SECOND: "second", SECOND_TURN: ".second.turn"}
_SHORT |= {SECOND_NEW: ".second.new", SECOND_OLD: ".second.old"}
_SHORT[MOUNT] = "its bind mount of certs"
_OWN_NAMES = (NEW, OLD, SECOND_NEW, SECOND_OLD)
_FAULTY = (
    step.Close,
    step.OpenRead,
    step.OpenWrite,
    step.Create,
    step.LockShared,
    step.LockExclusive,
    step.Stat,
    step.StatPath,
    step.Read,
    step.Write,
    step.Truncate,
    step.Sync,
    step.SyncDirectory,
    step.CopyAttributes,
    step.Link,
    step.Rename,
    step.Unlink,
)
POWER = -1
_EIO = Fails(errno.EIO)
# Two results of a failed sync: the page cache keeps or loses the data that is not on disk.
_NEVER_WRITTEN = Fails(errno.EIO)
_LOST = Fails(errno.EIO)


class Settings(NamedTuple):
    """How an exploration proceeds, and what it checks."""

    reduce: bool = True
    discipline: bool = True  # whether access despite a lock is a violation
    patient: bool = False  # writers never give up waiting
    others: bool = True  # whether files not at the path are checked too, for R2 to R4
    reports: bool = True  # whether updates' results are checked; not with a stranger
    firmware_fails: bool = False  # a firmware change may fail, before or after its effect


class Move(NamedTuple):
    """One thing that can happen in a state, and the state after it."""

    mover: int  # index of the process, or POWER
    text: str
    world: World
    violation: ViolationError | None = None


def moves(world: World, settings: Settings) -> Iterator[Move]:
    """Yield everything that can happen next, each with the violation that it causes, if any."""
    first = _goes_first(world) if settings.reduce else None
    for index in range(len(world.processes)) if first is None else (first,):
        process = world.processes[index]
        if process.position.action is None:
            continue
        if not isinstance(process.position.action, steps.HoldForEver):
            yield from _steps_of(world, index, settings)
        if world.budget.kills and process.position.history:
            yield _killed(world, index, settings)
    if world.budget.power:
        for after in world.after_power_loss():
            after.processes = [_restarted(process) for process in world.processes]
            text = f"power fails; certs then holds {content_in_words(_at_path(after))}"
            for index in range(len(after.processes)):
                _settle(after, index, settings)
            yield _checked(Move(POWER, text, after), settings)


def _steps_of(world: World, index: int, settings: Settings) -> Iterator[Move]:
    for result in _results(world, world.processes[index], settings):
        new = world.copy()
        try:
            actual, text = _perform(new, index, result, settings)
            _advance(new, index, actual, settings)
        except ViolationError as violation:
            process = world.processes[index]
            text = _in_words(world, process, process.position.action)
            yield Move(index, f"{process.name} {text}", new, violation)
            continue
        yield _checked(Move(index, f"{world.processes[index].name} {text}", new), settings)


def _checked(move: Move, settings: Settings) -> Move:
    try:
        check_state(move.world, others=settings.others)
    except ViolationError as violation:
        return move._replace(violation=violation)
    return move


def _results(world: World, process: Process, settings: Settings) -> list[object]:
    """Return the results that the model may choose for a step. None means the real effect."""
    action = process.position.action
    if isinstance(action, step.Now):
        return [IN_TIME] if _one_time(process, settings) else [IN_TIME, TOO_LATE]
    found: list[object] = [None]
    if world.budget.faults and isinstance(action, _FAULTY):
        if isinstance(action, step.Sync) and _unsynced(world, process, action):
            found += [_NEVER_WRITTEN, _LOST]
        else:
            found.append(_EIO)
    if isinstance(action, step.Change) and settings.firmware_fails and _changes(action):
        found += [FIRMWARE_FAILS, "changes, then fails"]
    return found


def _perform(world: World, index: int, chosen: object, settings: Settings) -> tuple[object, str]:
    """Perform the process's step. Return its result and a description."""
    process = world.processes[index]
    action = process.position.action
    if isinstance(action, step.Now):
        return chosen, "checks the clock" + (": too late" if chosen == TOO_LATE else "")
    if chosen is _NEVER_WRITTEN or chosen is _LOST:
        world.lose_writes(_file(world, process, action.fd), at_once=chosen is _LOST)
        world.spend_fault()
        after = "the page cache loses them" if chosen is _LOST else "the page cache keeps them"
        return _EIO, f"{_in_words(world, process, action)}: fails, writes are lost, {after}"
    if chosen is _EIO:
        world.spend_fault()
        if isinstance(action, step.Close):
            # As on Linux, the descriptor is closed even if close fails.
            text = _in_words(world, process, action)
            _close(world, index, action)
            return chosen, f"{text}: fails"
        return chosen, f"{_in_words(world, process, action)}: fails"
    if isinstance(action, step.Change):
        wanted: Any = action.call()
        if wanted and not wanted[0].changes:  # the firmware does not change
            return tables_for(world.key, wanted), "chooses the tables for the present key"
        if chosen is not FIRMWARE_FAILS:
            world.key += 1
        if chosen is not None:
            return FIRMWARE_FAILS, f"changes the firmware: fails, the key is {world.key}"
        chosen = tables_for(world.key, wanted) if wanted else table(world.key)
        return chosen, f"changes the firmware's key to {world.key}"
    text = _in_words(world, process, action)
    try:
        result = _EFFECT[type(action)](world, index, action)
    except OSError as error:
        result = Fails(error.errno or 0)
    if isinstance(result, Fails):
        return result, f"{text}: {result}"
    if settings.discipline and isinstance(action, step.Read | step.Write | step.Truncate):
        check_access(
            world,
            _description(process, action.fd),
            write=not isinstance(action, step.Read),
        )
    return result, text + _outcome(action, result)


def _changes(action: step.Change) -> bool:
    wanted: Any = action.call()
    return not wanted or bool(wanted[0].changes)


def _unsynced(world: World, process: Process, action: step.Sync) -> bool:
    return bool(world.files[_file(world, process, action.fd)].pending)


def _file(world: World, process: Process, fd: int) -> int:
    return world.descriptions[_description(process, fd)].file


def _advance(world: World, index: int, result: object, settings: Settings) -> None:
    """Give a process the result of its step, and take the following steps that no other process can
    observe.
    """
    process = world.processes[index]
    world.processes[index] = process._replace(position=process.position.after(result))
    _settle(world, index, settings)


def _settle(world: World, index: int, settings: Settings) -> None:
    while True:
        process = world.processes[index]
        action = process.position.action
        if action is None:
            if not process.left:
                return
            check_end(world, process, process.position, reports=settings.reports)
            check_withdrawn(world, process, process.position)
            _next_job(world, index)
        elif not _unseen(world, process, action, settings):
            return
        else:
            chosen = _results(world, process, settings)[0]
            result, _ = _perform(world, index, chosen, settings)
            process = world.processes[index]
            world.processes[index] = process._replace(position=process.position.after(result))


def _unseen(world: World, process: Process, action: Any, settings: Settings) -> bool:
    """Whether no other process can observe this step."""
    if world.budget.faults and isinstance(action, _FAULTY):
        return False
    match action:
        case step.Resolve() | step.Pause() | step.CopyAttributes() | step.Deliver():
            return True
        case step.Now():
            return _one_time(process, settings)
        case step.Close(fd=fd):
            found = world.descriptions[_description(process, fd)]
            return not found.lock and not found.vmm
        case step.Sync() | step.SyncDirectory():
            return not world.budget.power
    if not settings.reduce:
        return False
    match action:
        case step.Handshake():
            return not process.delivered
        case step.Stat(fd=fd) | step.Read(fd=fd):
            return world.descriptions[_description(process, fd)].lock != NONE
    return (
        not any(world.budget)
        and len(_results(world, process, settings)) == 1
        and _private(world, process, action)
    )


def _one_time(process: Process, settings: Settings) -> bool:
    return not process.position.timed or (process.writer and settings.patient)


def _goes_first(world: World) -> int | None:
    """Return the index of a process whose next step cannot affect any other process; None if there
    is none.
    """
    for index, process in enumerate(world.processes):
        action = process.position.action
        if action is not None and _private(world, process, action):
            return index
    return None


def _private(world: World, process: Process, action: Any) -> bool:
    match action:
        case step.Now():
            return True
        case step.Stat(fd=fd) | step.Read(fd=fd):
            return world.descriptions[_description(process, fd)].lock != NONE
        case step.Write(fd=fd) | step.Truncate(fd=fd) | step.Sync(fd=fd):
            return world.descriptions[_description(process, fd)].lock == EXCLUSIVE
    if not process.writer or not _has_turn(world, process):
        return False
    match action:
        case step.Unlink(path=name) | step.Create(path=name) | step.Link(second=name):
            return name in _OWN_NAMES and _has_turn(world, process, TURN_FOR[name])
        case step.OpenWrite(path=name) | step.StatPath(path=name):
            return _has_turn(world, process, TURN_FOR.get(name, TURN))
        case step.Stat() | step.SyncDirectory():
            return True
        case step.LockExclusive(fd=fd):
            file = world.descriptions[_description(process, fd)].file
            return file in (world.names.get(NEW), world.names.get(SECOND_NEW))
    return False


def writer_waits(world: World, process: Process) -> bool:
    """Whether the process is a writer that has its turn and waits for a lock."""
    position = process.position
    # No other process can observe the steps between two tries, so a writer that waits is about to
    # try again.
    action = position.action
    return (
        process.writer
        and isinstance(action, step.LockExclusive)
        and _has_turn(world, process)
        and world.conflicts(_description(process, action.fd), EXCLUSIVE)
    )


def _has_turn(world: World, process: Process, turn: str | None = None) -> bool:
    """Whether the process has the turn to change the names of a path, by default of any path."""
    turns = {world.names.get(each) for each in (TURN, SECOND_TURN) if turn in (None, each)}
    return any(
        world.descriptions[each].file in turns and world.descriptions[each].lock == EXCLUSIVE
        for _, each in process.fds
    )


# Ends


def _next_job(world: World, index: int) -> None:
    process = world.processes[index]
    left = process.left - 1 if process.left > 0 else process.left
    world.processes[index] = process._replace(
        left=left,
        delivered=None,
        misled=False,
        before=(),
        position=process.position.program.first if left else process.position,
    )


def _restarted(process: Process) -> Process:
    """Return the process after it was killed: its job is lost, and its next job begins."""
    if process.position.action is None:
        return process
    left = process.left
    if left > 0 and process.position.history:
        left -= 1
    position = process.position.program.first if left else process.position.program.ended
    return process._replace(
        position=position, fds=(), left=left, delivered=None, misled=False, before=()
    )


def _killed(world: World, index: int, settings: Settings) -> Move:
    new = world.copy()
    process = new.processes[index]
    new.budget = new.budget._replace(kills=new.budget.kills - 1)
    new.processes[index] = _restarted(process)
    for _, each in process.fds:
        new.close(each)
    _settle(new, index, settings)
    return _checked(Move(index, f"{process.name} is killed", new), settings)


def start(world: World, settings: Settings) -> None:
    """Take the first steps of every process, up to the first that another process can observe."""
    for index in range(len(world.processes)):
        _settle(world, index, settings)


# Effects


def _description(process: Process, fd: int) -> int:
    for mine, description in process.fds:
        if mine == fd:
            return description
    raise LookupError(f"{process.name} has no descriptor {fd}")


def _at_path(world: World) -> bytes | None:
    file = world.names.get(PATH)
    return world.files[file].data if file is not None else None


def _attach(world: World, index: int, description: int) -> int:
    process = world.processes[index]
    fd = 3
    taken = {mine for mine, _ in process.fds}
    while fd in taken:
        fd += 1
    world.processes[index] = process._replace(fds=(*process.fds, (fd, description)))
    return fd


def _open(world: World, index: int, action: Any) -> object:
    file = world.names.get(action.path)
    if file is None:
        return Fails(errno.ENOENT)
    return _attach(world, index, world.open(file, world.processes[index].vmm))


def _open_once(world: World, index: int, action: Any) -> object:
    file = world.names.get(action.path)
    if file is None:
        return Fails(errno.ENOENT)
    vmm = world.processes[index].vmm
    for number, each in world.descriptions.items():
        if each.vmm == vmm and each.file == file:
            return _attach(world, index, number)
    return _attach(world, index, world.open(file, vmm))


def _create(world: World, index: int, action: Any) -> object:
    if action.path in world.names:
        if isinstance(action, step.Create):
            return Fails(errno.EEXIST)
    else:
        world.change_names((action.path, world.new_file()))
    return _open(world, index, action)


def _close(world: World, index: int, action: Any) -> None:
    process = world.processes[index]
    description = _description(process, action.fd)
    world.processes[index] = process._replace(
        fds=tuple(each for each in process.fds if each[0] != action.fd)
    )
    world.close(description)


def _close_classic(world: World, index: int, action: Any) -> None:
    process = world.processes[index]
    file = world.descriptions[_description(process, action.fd)].file
    for number, each in list(world.descriptions.items()):
        if each.vmm == process.vmm and each.file == file:
            world.set_lock(number, NONE)
    _close(world, index, action)


def _lock(world: World, index: int, action: Any) -> bool:
    wanted = SHARED if isinstance(action, step.LockShared) else EXCLUSIVE
    process = world.processes[index]
    number = _description(process, action.fd)
    if world.conflicts(number, wanted):
        return False
    world.set_lock(number, wanted)
    for path, turn in ((PATH, TURN), (SECOND, SECOND_TURN)):
        if process.writer and world.descriptions[number].file == world.names.get(turn):
            found = (*process.before, (path, found_at_turn(world, path)))
            world.processes[index] = process._replace(before=found)
    return True


def _unlock(world: World, index: int, action: Any) -> None:
    world.set_lock(_description(world.processes[index], action.fd), NONE)


def _unlock_neighbour(world: World, index: int, action: Any) -> None:
    process = world.processes[index]
    mine = _description(process, action.fd)
    for number, each in list(world.descriptions.items()):
        if each.vmm == process.vmm and number != mine:
            world.set_lock(number, NONE)


def _status(world: World, file: int) -> step.FileStat:
    links = sum(each == file for name, each in world.names.items() if name != MOUNT)
    return step.FileStat(file // 100, file % 100, len(world.files[file].data), True, links)


def _stat(world: World, index: int, action: Any) -> object:
    file = world.descriptions[_description(world.processes[index], action.fd)].file
    return _status(world, file)


def _stat_path(world: World, _index: int, action: Any) -> object:
    file = world.names.get(action.path)
    return Fails(errno.ENOENT) if file is None else _status(world, file)


def _read(world: World, index: int, action: Any) -> bytes:
    process = world.processes[index]
    data = world.files[world.descriptions[_description(process, action.fd)].file].data
    if not process.writer and data == world.wrong:
        world.processes[index] = process._replace(misled=True)
    return data[: action.size]


def _write(world: World, index: int, action: Any) -> None:
    file = world.descriptions[_description(world.processes[index], action.fd)].file
    world.write(file, action.data, action.offset)


def _truncate(world: World, index: int, action: Any) -> None:
    file = world.descriptions[_description(world.processes[index], action.fd)].file
    world.truncate(file, action.size)


def _sync(world: World, index: int, action: Any) -> None:
    world.sync(world.descriptions[_description(world.processes[index], action.fd)].file)


def _link(world: World, _index: int, action: Any) -> object:
    if action.path not in world.names:
        return Fails(errno.ENOENT)
    if action.second in world.names:
        return Fails(errno.EEXIST)
    world.change_names((action.second, world.names[action.path]))
    return None


def _rename(world: World, _index: int, action: Any) -> object:
    file = world.names.get(action.source)
    if file is None:
        return Fails(errno.ENOENT)
    if world.names.get(action.target) != file:  # if both names refer to one file, both stay
        world.change_names((action.source, None), (action.target, file))
    return None


def _unlink(world: World, _index: int, action: Any) -> None:
    if action.path in world.names:
        world.change_names((action.path, None))


def _sync_directory(world: World, _index: int, _action: Any) -> None:
    world.sync_names()


def _nothing(_world: World, _index: int, _action: Any) -> None:
    return None


def _resolve(_world: World, _index: int, action: Any) -> str:
    return str(action.path)


def _deliver(world: World, index: int, action: Any) -> None:
    delivered: bytes | None = None
    if isinstance(action.found, Table):
        delivered = action.found.data
    elif isinstance(action.found, Empty):
        delivered = b""
    world.processes[index] = world.processes[index]._replace(delivered=delivered)


def _handshake(world: World, index: int, _action: Any) -> None:
    process = world.processes[index]
    if not process.misled:
        check_handshake(world, process.delivered)
    world.processes[index] = process._replace(delivered=None, misled=False)


def _foretell(world: World, _index: int, action: Any) -> bytes:
    return table(world.key + 1, action.path)


def _outdated(world: World, _index: int, _action: Any) -> bytes:
    return table(world.key)


def _mount(world: World, _index: int, action: Any) -> None:
    file = 200 + world.names[action.path] % 100
    data = table(world.key)
    world.files[file] = File(data, data if world.keeps_content else b"", ())
    world.change_names((action.path, file))


_EFFECT: dict[type, Any] = {
    step.Pause: _nothing,
    step.Resolve: _resolve,
    step.OpenRead: _open,
    step.OpenWrite: _open,
    step.Create: _create,
    step.OpenOrCreate: _create,
    step.Close: _close,
    step.LockShared: _lock,
    step.LockExclusive: _lock,
    step.Stat: _stat,
    step.StatPath: _stat_path,
    step.Read: _read,
    step.Write: _write,
    step.Truncate: _truncate,
    step.Sync: _sync,
    step.SyncDirectory: _sync_directory,
    step.CopyAttributes: _nothing,
    step.Link: _link,
    step.Rename: _rename,
    step.Unlink: _unlink,
    step.Deliver: _deliver,
    step.Handshake: _handshake,
    steps.Unlock: _unlock,
    steps.OpenOnce: _open_once,
    steps.UnlockNeighbour: _unlock_neighbour,
    steps.CloseClassic: _close_classic,
    steps.Foretell: _foretell,
    steps.Outdated: _outdated,
    steps.Mount: _mount,
}


# Descriptions.


def _in_words(world: World, process: Process, action: Any) -> str:
    def name(path: str) -> str:
        return _SHORT.get(path, path)

    def file(fd: int) -> str:
        number = world.descriptions[_description(process, fd)].file
        turns = {world.names.get(TURN): "the turn file"}
        turns[world.names.get(SECOND_TURN)] = "the second turn file"
        return turns.get(number) or file_name(number)

    match action:
        case step.OpenRead(path=path) | step.OpenWrite(path=path) | steps.OpenOnce(path=path):
            return f"opens {name(path)}"
        case step.OpenOrCreate(path=path) | step.Create(path=path):
            return f"opens or creates {name(path)}"
        case step.Close(fd=fd) | steps.CloseClassic(fd=fd):
            return f"closes {file(fd)}"
        case step.LockShared(fd=fd):
            return f"locks {file(fd)} shared"
        case step.LockExclusive(fd=fd):
            return f"locks {file(fd)} exclusively"
        case steps.Unlock(fd=fd):
            return f"unlocks {file(fd)}"
        case steps.UnlockNeighbour():
            return "unlocks another vCPU's descriptor"
        case step.Stat(fd=fd):
            return f"stats {file(fd)}"
        case step.StatPath(path=path):
            return f"stats {name(path)}"
        case step.Read(fd=fd):
            return f"reads {file(fd)}"
        case step.Write(fd=fd, data=data, offset=offset):
            what = "the first entry" if offset == 0 else "the rest"
            key = data[0] - (101 if data[0] > 100 else 1)
            kind = "zeros" if not any(data) else f"{what} of key {key}'s table"
            return f"writes {kind} to {file(fd)}"
        case step.Truncate(fd=fd):
            return f"truncates {file(fd)}"
        case step.Sync(fd=fd):
            return f"syncs {file(fd)}"
        case step.SyncDirectory():
            return "syncs the directory"
        case step.Link(path=path, second=second):
            return f"links {name(path)} to {name(second)}"
        case step.Rename(source=source, target=target):
            return f"renames {name(source)} to {name(target)}"
        case step.Unlink(path=path):
            return f"unlinks {name(path)}"
        case step.Handshake():
            return f"re-enters KVM_RUN: the firmware signs with key {world.key}"
        case steps.Foretell():
            return "picks the table for the next key"
        case steps.Outdated():
            return "picks the table for the present key"
        case steps.Mount():
            return "mounts another file over certs, with the same inode number on another device"
    return type(action).__name__


def file_name(number: int) -> str:
    letter = chr(ord("A") + number % 100 - 1)
    return f"file {letter}" if number < 200 else f"file {letter} of the other device"


def _outcome(action: Any, result: object) -> str:
    match action:
        case step.LockShared() | step.LockExclusive():
            return "" if result else ": locked by another process"
        case step.Read() if isinstance(result, bytes):
            return f": {content_in_words(result)}"
        case step.StatPath() | step.Stat() if isinstance(result, step.FileStat):
            return f": {file_name(result.device * 100 + result.inode)}"
    return ""
