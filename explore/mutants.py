# SPDX-License-Identifier: Apache-2.0
"""Wrong variants of the protocol. An exploration must detect each variant in ``KILLED``; those in
``EQUIVALENT`` violate no invariant.

Each variant is the shipped protocol with some steps dropped, moved or replaced before they reach
the model. There is no second protocol here, and no switch in the shipped code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from explore import steps
from explore.invariants import (
    CRASH_SAFE,
    LASTING,
    MATCH,
    NO_HARM,
    PROGRESS,
    TIDY,
)
from explore.model import NEW, OLD, PATH, SECOND, TURN, Budget, World, table
from explore.progress import explore_progress
from explore.scenario import Scenario
from explore.search import Exploration, explore
from explore.several import Wanted, timed
from explore.transition import Settings
from snpcerts.abi.cert_table import EMPTY
from snpcerts.certfile import step, writer
from snpcerts.certfile.reader import Table
from snpcerts.certfile.step import Steps, relayed

Memory = dict[str, Any]
Through = Callable[[Any, Memory], Steps[Any]]


def altered(protocol: Steps[Any], through: Through) -> Steps[Any]:
    """Return the protocol with each step passed through ``through``, which gets a memory of its
    own.
    """
    memory: Memory = {}
    return relayed(protocol, lambda action: through(action, memory))


# Readers


def no_lock(action: Any, _memory: Memory) -> Steps[Any]:
    if isinstance(action, step.LockShared):
        return True
    return (yield action)


def unlock_before_delivery(action: Any, _memory: Memory) -> Steps[Any]:
    result = yield action
    if isinstance(action, step.Read):
        yield steps.Unlock(action.fd)
    return result


def no_handshake(action: Any, _memory: Memory) -> Steps[Any]:
    if isinstance(action, step.Handshake) and action.fd is not None:
        yield steps.Unlock(action.fd)
    return (yield action)


def read_before_lock(action: Any, memory: Memory) -> Steps[Any]:
    if isinstance(action, step.LockShared):
        memory["fd"] = action.fd
        return True
    if isinstance(action, step.Deliver) and isinstance(action.found, Table):
        yield step.LockShared(memory["fd"])
    return (yield action)


def no_comparison(action: Any, memory: Memory) -> Steps[Any]:
    if isinstance(action, step.StatPath):
        return memory.pop("mine")
    result = yield action
    if isinstance(action, step.Stat):
        memory["mine"] = result
    return result


def inode_without_device(action: Any, memory: Memory) -> Steps[Any]:
    result = yield action
    if isinstance(action, step.Stat):
        memory["mine"] = result
    elif isinstance(action, step.StatPath) and result.inode == memory["mine"].inode:
        return memory.pop("mine")
    return result


def one_description(action: Any, _memory: Memory) -> Steps[Any]:
    if isinstance(action, step.OpenRead):
        return (yield steps.OpenOnce(action.path))
    if isinstance(action, step.Close):
        yield steps.Unlock(action.fd)
    return (yield action)


def classic_locks(action: Any, _memory: Memory) -> Steps[Any]:
    if isinstance(action, step.Close):
        return (yield steps.CloseClassic(action.fd))
    return (yield action)


def unlock_wrong_descriptor(action: Any, _memory: Memory) -> Steps[Any]:
    if isinstance(action, step.Close):
        yield steps.UnlockNeighbour(action.fd)
    return (yield action)


# Writers


def change_first_published(action: Any, memory: Memory) -> Steps[Any]:
    if isinstance(action, step.Change):
        memory["change"], memory["syncs"] = action, 0
        return (yield steps.Foretell(PATH))
    result = yield action
    if isinstance(action, step.Sync) and "change" in memory:
        memory["syncs"] += 1
        if memory["syncs"] == 2:
            yield memory.pop("change")
    return result


def no_emptying(action: Any, _memory: Memory) -> Steps[Any]:
    if isinstance(action, step.Truncate):
        return None
    if isinstance(action, step.Write) and action.data == EMPTY:
        return None
    return (yield action)


def old_file_not_emptied(action: Any, memory: Memory) -> Steps[Any]:
    if isinstance(action, step.Truncate):
        return None
    if isinstance(action, step.Write) and action.data == EMPTY and action.fd != memory["new"]:
        return None
    result = yield action
    if isinstance(action, step.Create):
        memory["new"] = result
    return result


def no_sync_before_first_entry(action: Any, memory: Memory) -> Steps[Any]:
    if isinstance(action, step.Sync) and memory.pop("rest", False):
        return None
    if isinstance(action, step.Write) and action.offset:
        memory["rest"] = True
    return (yield action)


def first_entry_first(action: Any, memory: Memory) -> Steps[Any]:
    if isinstance(action, step.Write) and action.offset:
        memory["rest"] = action
        return None
    result = yield action
    if isinstance(action, step.Write) and "rest" in memory:
        yield memory.pop("rest")
    return result


def no_last_sync(action: Any, memory: Memory) -> Steps[Any]:
    if isinstance(action, step.Sync) and memory.pop("first", False):
        return None
    if isinstance(action, step.Write) and not action.offset and action.data != EMPTY:
        memory["first"] = True
    return (yield action)


def stale_table(action: Any, _memory: Memory) -> Steps[Any]:
    if isinstance(action, step.Change):
        chosen = yield steps.Outdated()
        yield action
        return chosen
    return (yield action)


def no_wait_for_old_readers(action: Any, memory: Memory) -> Steps[Any]:
    if isinstance(action, step.LockExclusive) and action.fd == memory.get("old"):
        return True
    result = yield action
    if isinstance(action, step.OpenWrite) and action.path == PATH:
        memory["old"] = result
    return result


def lock_wrong_descriptor(action: Any, memory: Memory) -> Steps[Any]:
    if isinstance(action, step.LockExclusive) and action.fd == memory.get("old"):
        return (yield step.LockExclusive(memory["new"]))
    result = yield action
    if isinstance(action, step.OpenWrite) and action.path == PATH:
        memory["old"] = result
    elif isinstance(action, step.Create):
        memory["new"] = result
    return result


def flock_instead(action: Any, memory: Memory) -> Steps[Any]:
    """Take flock(2) locks, which never conflict with OFD locks: they are granted at once, and
    exclude no reader.
    """
    if isinstance(action, step.LockExclusive) and memory.get("turn") not in (None, action.fd):
        return True
    result = yield action
    if isinstance(action, step.OpenOrCreate):
        memory["turn"] = result
    return result


def lock_after_rename(action: Any, memory: Memory) -> Steps[Any]:
    if isinstance(action, step.LockExclusive) and action.fd == memory.get("new"):
        return True
    result = yield action
    if isinstance(action, step.Create):
        memory["new"] = result
    elif isinstance(action, step.Rename) and action.source == NEW:
        while not (yield step.LockExclusive(memory["new"])):
            yield step.Now()
    return result


def new_file_not_locked(action: Any, memory: Memory) -> Steps[Any]:
    if isinstance(action, step.LockExclusive) and action.fd == memory.get("new"):
        return True
    result = yield action
    if isinstance(action, step.Create):
        memory["new"] = result
    return result


def no_turn(action: Any, memory: Memory) -> Steps[Any]:
    if isinstance(action, step.LockExclusive) and action.fd == memory.get("turn"):
        return True
    result = yield action
    if isinstance(action, step.OpenOrCreate):
        memory["turn"] = result
    return result


def wrong_table_handed_back(action: Any, memory: Memory) -> Steps[Any]:
    """As in an earlier version: a writer that gives up leaves the file unchanged."""
    if isinstance(action, step.Write) and memory.get(f"locked {action.fd}") is False:
        return None
    result = yield action
    if isinstance(action, step.LockExclusive):
        memory[f"locked {action.fd}"] = result
    return result


def sync_without_writing(action: Any, memory: Memory) -> Steps[Any]:
    """As in an earlier version: a writer that gives up and finds an emptied file only syncs it."""
    if isinstance(action, step.Write) and memory.get("found", b"").startswith(EMPTY):
        return None
    result = yield action
    if isinstance(action, step.Read):
        memory["found"] = result
    return result


def any_table_withdrawn(action: Any, _memory: Memory) -> Steps[Any]:
    """The writer does not check that the file still contains the table that was judged wrong."""
    if isinstance(action, step.Read):
        return table(0)
    return (yield action)


def no_way_back(action: Any, _memory: Memory) -> Steps[Any]:
    if isinstance(action, step.Rename) and action.source == OLD:
        return (yield step.Unlink(OLD))
    return (yield action)


def way_back_not_synced(action: Any, memory: Memory) -> Steps[Any]:
    if isinstance(action, step.SyncDirectory) and memory.pop("back", False):
        return None
    if isinstance(action, step.Rename):
        memory["back"] = action.source == OLD
    return (yield action)


def rename_not_synced(action: Any, _memory: Memory) -> Steps[Any]:
    if isinstance(action, step.SyncDirectory):
        return None
    return (yield action)


def new_file_not_synced(action: Any, memory: Memory) -> Steps[Any]:
    if isinstance(action, step.Sync) and action.fd == memory.get("new"):
        memory.pop("new")
        return None
    result = yield action
    if isinstance(action, step.Create):
        memory["new"] = result
    return result


def leftover_thrown_away(action: Any, _memory: Memory) -> Steps[Any]:
    if isinstance(action, step.OpenWrite) and action.path == OLD:
        yield step.Unlink(OLD)
        raise FileNotFoundError(2, "thrown away")
    return (yield action)


def lock_kept_after_error(action: Any, memory: Memory) -> Steps[Any]:
    if isinstance(action, step.Close) and memory.pop("failed", False):
        return None
    if isinstance(action, step.Unlink) and action.path == NEW:
        try:
            return (yield action)
        except OSError:
            memory["failed"] = "created" in memory
            raise
    result = yield action
    if isinstance(action, step.Create):
        memory["created"] = True
    return result


# Writers of several files


def second_file_not_emptied(action: Any, memory: Memory) -> Steps[Any]:
    empties = isinstance(action, step.Truncate) or (
        isinstance(action, step.Write) and action.data == EMPTY
    )
    if empties and action.fd == memory.get("second"):
        return None
    result = yield action
    if isinstance(action, step.OpenWrite) and action.path == SECOND:
        memory["second"] = result
    return result


def second_lock_not_taken(action: Any, memory: Memory) -> Steps[Any]:
    if isinstance(action, step.LockExclusive) and action.fd == memory.get("second"):
        return True
    result = yield action
    if isinstance(action, step.OpenWrite) and action.path == SECOND:
        memory["second"] = result
    return result


def command_without_second_lock(action: Any, _memory: Memory) -> Steps[Any]:
    """The agent gives up waiting for the second file, but still changes the firmware."""
    if isinstance(action, step.Change):
        every = [each._replace(changes=True) for each in action.call()]  # type: ignore[attr-defined]
        return (yield step.Change(lambda: every))  # type: ignore[arg-type, return-value]
    return (yield action)


def tables_in_the_order_named(action: Any, _memory: Memory) -> Steps[Any]:
    result = yield action
    return result[::-1] if isinstance(action, step.Change) else result


def one_file_after_the_other() -> Steps[Any]:
    """The second file is locked and emptied only after the command."""

    def second(action: Any) -> Steps[Any]:
        if isinstance(action, step.Change):
            tables = yield step.Change(lambda: [Wanted(SECOND, False)])  # type: ignore[arg-type, return-value]
            return tables[0]
        return (yield action)

    def both() -> Steps[Any]:
        yield from writer.update(PATH, bytes, strategy=writer.Strategy.IN_PLACE)
        strategy = writer.Strategy.IN_PLACE
        return (yield from relayed(writer.update(SECOND, bytes, strategy=strategy), second))

    return timed(both())


def second_file_filled_first() -> Steps[Any]:
    """The second file is filled for the next key before the command, and is not locked around the
    command.
    """
    in_place = writer.Strategy.IN_PLACE

    def second(action: Any) -> Steps[Any]:
        if isinstance(action, step.Change):
            return (yield steps.Foretell(SECOND))
        return (yield action)

    def first(action: Any) -> Steps[Any]:
        if isinstance(action, step.Change):
            yield from relayed(writer.update(SECOND, bytes, strategy=in_place), second)
        return (yield action)

    return timed(relayed(writer.update(PATH, bytes, strategy=in_place), first))


def move_to_another_device() -> Steps[None]:
    """Mount another file at the path. Observe the rules: take the turn and the exclusive lock."""
    turn: int = yield step.OpenOrCreate(TURN, 0o600)
    while not (yield step.LockExclusive(turn)):
        yield step.Now()
    fd: int = yield step.OpenWrite(PATH)
    while not (yield step.LockExclusive(fd)):
        yield step.Now()
    yield steps.Mount(PATH)
    yield step.Close(fd)
    yield step.Close(turn)


_PLAIN = Settings(reduce=False, discipline=False, others=False)
_ALL_FILES = _PLAIN._replace(others=True)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One wrong variant, the invariant that it violates, and a schedule that shows it."""

    name: str
    wrong: str
    invariant: str  # the violated invariant; "" if all hold
    why: str  # the schedule in one line, or why nothing goes wrong
    scenario: Scenario
    reader: Through | None = None
    writer: Through | None = None
    shows: tuple[str, ...] = ()  # strings that the schedule contains, in this order
    one_vmm: bool = False
    mover: bool = False
    program: Callable[[], Steps[Any]] | None = None  # used instead of the writer's program

    def world(self) -> World:
        reader, writer = self.reader, self.writer
        world = self.scenario.world(
            reader=None if reader is None else lambda protocol: altered(protocol, reader),
            writer=None if writer is None else lambda protocol: altered(protocol, writer),
            writers={self.scenario.writers[0][0]: self.program} if self.program else None,
            one_vmm=self.one_vmm,
        )
        if self.mover:
            self.scenario.add(world, "operator", move_to_another_device)
        return world

    def explore(self) -> Exploration:
        if self.invariant == PROGRESS:
            return explore_progress(self.world())
        return explore(self.world(), self.scenario.settings)


def _of(
    *readers: str,
    strategy: str = "swap",
    updates: int = 1,
    kills: int = 0,
    power: int = 0,
    faults: int = 0,
    second: str = "",
    others: bool = False,
    wrong: bool = False,
) -> Scenario:
    writers = ((strategy, updates), (second, 1)) if second else ((strategy, updates),)
    settings = _ALL_FILES if others else _PLAIN
    return Scenario(readers, writers, Budget(kills, power, faults), settings, wrong=wrong)


KILLED = (
    Mutant(
        "reader-no-lock",
        "a reader takes no lock, or a lock of another kind such as flock",
        MATCH,
        "the reader reads key 0's table; the writer changes to key 1; the request is "
        "signed with key 1",
        _of("R1"),
        reader=no_lock,
        shows=("reads file B: the table of key 0", "key to 1", "signs with key 1"),
    ),
    Mutant(
        "reader-early-unlock",
        "a reader unlocks after reading, before it delivers",
        MATCH,
        "the reader reads and unlocks; the writer changes the key; the guest gets the old table",
        _of("R1"),
        reader=unlock_before_delivery,
        shows=("unlocks file B", "key to 1", "signs with key 1"),
    ),
    Mutant(
        "reader-no-handshake",
        "a reader unlocks before the firmware has the request",
        MATCH,
        "the table is delivered and the lock dropped; the writer changes the key; "
        "KVM_RUN signs with the new key",
        _of("R1"),
        reader=no_handshake,
        shows=("unlocks file B", "key to 1", "signs with key 1"),
    ),
    Mutant(
        "reader-reads-before-lock",
        "a reader reads before it locks",
        MATCH,
        "the reader reads key 0's table; the writer is not blocked and changes the key",
        _of("R1"),
        reader=read_before_lock,
        shows=("reads file B: the table of key 0", "key to 1", "signs with key 1"),
    ),
    Mutant(
        "reader-no-comparison",
        "a reader does not compare inodes, and the writer does not empty the old file",
        MATCH,
        "the reader opens; the writer finishes with the old file; the reader locks and "
        "reads the old file",
        _of("R1"),
        reader=no_comparison,
        writer=old_file_not_emptied,
        shows=("opens certs", "closes file B", "locks file B shared", "signs with key 1"),
    ),
    Mutant(
        "reader-inode-without-device",
        "a reader compares inode numbers but not devices",
        MATCH,
        "the reader opens; a file on another device with the same number takes its path; "
        "the key changes",
        _of("R1"),
        reader=inode_without_device,
        mover=True,
        shows=("opens certs", "mounts another file", "key to 1", "signs with key 1"),
    ),
    Mutant(
        "vcpus-one-description",
        "two vCPUs of a VMM share one open file description",
        MATCH,
        "vCPU 2 finishes and unlocks, which also drops vCPU 1's lock, and the writer gets the lock",
        _of("R1", "R1"),
        reader=one_description,
        one_vmm=True,
        shows=(
            "reads file B: the table of key 0",
            "unlocks file B",
            "key to 1",
            "signs with key 1",
        ),
    ),
    Mutant(
        "vcpus-classic-locks",
        "a VMM takes classic POSIX locks, which belong to the process",
        MATCH,
        "vCPU 2 closes its descriptor, which drops the process's lock during vCPU 1's request",
        _of("R1", "R1"),
        reader=classic_locks,
        one_vmm=True,
        shows=("reads file B: the table of key 0", "closes file B", "key to 1", "signs with key 1"),
    ),
    Mutant(
        "vcpu-unlocks-wrong-descriptor",
        "a vCPU unlocks another vCPU's descriptor instead of its own",
        MATCH,
        "vCPU 2 unlocks vCPU 1's descriptor during vCPU 1's request",
        _of("R1", "R1"),
        reader=unlock_wrong_descriptor,
        one_vmm=True,
        shows=("unlocks another vCPU's descriptor", "key to 1", "signs with key 1"),
    ),
    Mutant(
        "writer-publishes-first",
        "the new table is written before the firmware changes",
        CRASH_SAFE,
        "the writer is killed in between: the file holds key 1's table, the key is key 0",
        _of(kills=1),
        writer=change_first_published,
        shows=("the first entry of key 1's table", "is killed"),
    ),
    Mutant(
        "writer-no-emptying",
        "the file is not emptied before the firmware changes",
        CRASH_SAFE,
        "the writer is killed after the command: the file holds key 0's table, the key is key 1",
        _of(strategy="in-place", kills=1),
        writer=no_emptying,
        shows=("key to 1", "is killed"),
    ),
    Mutant(
        "writer-old-file-not-emptied",
        "the file that was replaced keeps its table",
        MATCH,
        "a reader that keeps its descriptor (R3) keeps serving key 0's table",
        _of("R3"),
        writer=old_file_not_emptied,
        shows=("opens certs", "closes file B", "reads file B: the table of key 0", "with key 1"),
    ),
    Mutant(
        "writer-no-sync-before-first-entry",
        "no sync between the rest of a table and its first entry",
        CRASH_SAFE,
        "power fails: the first entry is on disk, the rest is not",
        _of(power=1),
        writer=no_sync_before_first_entry,
        shows=("the first entry of key 1's table", "a torn table"),
    ),
    Mutant(
        "writer-first-entry-first",
        "a table's first entry is written before the rest",
        CRASH_SAFE,
        "the writer is killed in between: the first entry points to nothing",
        _of(kills=1),
        writer=first_entry_first,
        shows=("the first entry of key 1's table", "is killed"),
    ),
    Mutant(
        "writer-no-last-sync",
        "the first entry is not synced",
        LASTING,
        "the update reports success; after a power failure the table is empty again",
        _of(power=1),
        writer=no_last_sync,
        shows=("the first entry of key 1's table", "closes the turn file"),
    ),
    Mutant(
        "writer-stale-table",
        "the table is chosen before the firmware changes",
        CRASH_SAFE,
        "key 0's table is published while the key is key 1",
        _of("R1"),
        writer=stale_table,
        shows=("picks the table for the present key", "key to 1", "key 0's table"),
    ),
    Mutant(
        "writer-no-wait",
        "the writer does not wait for the old file's readers",
        MATCH,
        "the firmware changes during a request with key 0's table",
        _of("R1"),
        writer=no_wait_for_old_readers,
        shows=("reads file B: the table of key 0", "key to 1", "signs with key 1"),
    ),
    Mutant(
        "writer-locks-wrong-descriptor",
        "the writer locks its own new file again instead of the old file",
        MATCH,
        "like writer-no-wait: that lock is granted immediately and proves nothing",
        _of("R1"),
        writer=lock_wrong_descriptor,
        shows=("reads file B: the table of key 0", "key to 1", "signs with key 1"),
    ),
    Mutant(
        "writer-no-wait-there-and-back",
        "the writer does not wait for the file's readers while the stand-in is at the path",
        MATCH,
        "the firmware changes during a request with key 0's table",
        _of("R1", strategy="there-and-back"),
        writer=no_wait_for_old_readers,
        shows=("reads file B: the table of key 0", "key to 1", "signs with key 1"),
    ),
    Mutant(
        "writer-no-emptying-there-and-back",
        "the file returns to the path with its table, and the firmware changes",
        CRASH_SAFE,
        "the writer is killed after the command: the file holds key 0's table, the key is key 1",
        _of(strategy="there-and-back", kills=1),
        writer=old_file_not_emptied,
        shows=("renames .certs.old to certs", "key to 1", "is killed"),
    ),
    Mutant(
        "writer-back-not-synced-there-and-back",
        "the directory is not synced after the file has returned to the path",
        LASTING,
        "the update reports success; after a power failure the empty stand-in is at the path",
        _of(strategy="there-and-back", power=1),
        writer=way_back_not_synced,
        shows=("renames .certs.old to certs", "closes the turn file"),
    ),
    Mutant(
        "writer-hands-wrong-table-back-there-and-back",
        "a writer that gives up puts back a table that it knows is wrong",
        MATCH,
        "one VMM never releases its lock; the update ends, and all other guests get key 0's table",
        _of("R1", "holder", strategy="there-and-back-wrong", wrong=True),
        writer=wrong_table_handed_back,
        shows=("locks file B shared", "too late", "renames .certs.old to certs"),
    ),
    Mutant(
        "writer-throws-leftover-away-there-and-back",
        "a writer unlinks the file that a killed writer set aside",
        MATCH,
        "the writer does not wait for a request that has read that file",
        _of("R1", strategy="there-and-back", kills=1, second="there-and-back"),
        writer=leftover_thrown_away,
        shows=("is killed", "unlinks .certs.old", "key to 1", "signs with key 1"),
    ),
    Mutant(
        "writer-syncs-without-writing",
        "a writer syncs a file that an earlier update has emptied, without writing to it "
        "(a former bug)",
        CRASH_SAFE,
        "that update's sync failed, so the next one writes nothing; after a power failure key 0's "
        "table is back",
        _of("holder", strategy="in-place-wrong", updates=2, power=1, faults=1, wrong=True),
        writer=sync_without_writing,
        shows=("fails, writes are lost", "reads file B: the empty table", "power fails"),
    ),
    Mutant(
        "writer-flock",
        "the writer takes a flock, which does not conflict with readers' OFD locks",
        MATCH,
        "the lock is granted during a request",
        _of("R1", strategy="in-place"),
        writer=flock_instead,
        shows=("reads file B: the table of key 0", "key to 1", "signs with key 1"),
    ),
    Mutant(
        "writer-new-file-not-locked",
        "the new file is put at the path without a lock",
        MATCH,
        "a reader stats the new file while it is empty, and reads it when it contains half a table",
        _of("R1"),
        writer=new_file_not_locked,
        shows=("locks file C shared", "the first entry of key 1's table", "reads file C"),
    ),
    Mutant(
        "writer-locks-after-rename",
        "the new file is locked only after it is at the path",
        PROGRESS,
        "two readers lock the new file first, and alternate forever",
        _of("R1", "R1"),
        writer=lock_after_rename,
        shows=("renames .certs.new to certs", "forever"),
    ),
    Mutant(
        "writers-no-turn",
        "two writers do not wait for each other",
        CRASH_SAFE,
        "writer 1 renames writer 2's new file, which has no content yet, to the path",
        _of("R1", second="swap"),
        writer=no_turn,
        shows=("writer 2 (swap) opens or creates .certs.new", "writer 1 (swap) renames .certs.new"),
    ),
    Mutant(
        "writer-no-way-back",
        "a writer that gives up leaves its empty file at the path",
        NO_HARM,
        "the wait times out; the error says that nothing has changed, but guests get no table",
        _of("R1"),
        writer=no_way_back,
        shows=("too late", "unlinks .certs.old"),
    ),
    Mutant(
        "writer-hands-wrong-table-back",
        "a writer that gives up restores a table that it knows is wrong (a former bug)",
        MATCH,
        "one VMM never releases its lock; the update ends, and all other guests get key 0's table",
        _of("R1", "holder", strategy="swap-wrong", wrong=True),
        writer=wrong_table_handed_back,
        shows=("locks file B shared", "too late", "renames .certs.old to certs"),
    ),
    Mutant(
        "writer-hands-wrong-table-back-in-place",
        "a writer that gives up restores a table that it knows is wrong, in place (a former bug)",
        MATCH,
        "one VMM never releases its lock; the update ends, and all other guests get key 0's table",
        _of("R1", "holder", strategy="in-place-wrong", wrong=True),
        writer=wrong_table_handed_back,
        shows=("locks file B shared", "too late"),
    ),
    Mutant(
        "writer-withdraws-any-table",
        "a writer that gives up empties the file even if it holds a table other than the "
        "one that was judged",
        NO_HARM,
        "the first update fixes the file; the second gives up and empties a correct file",
        _of("R1", strategy="swap-wrong", updates=2, wrong=True),
        writer=any_table_withdrawn,
        shows=("key 2's table", "too late"),
    ),
    Mutant(
        "writer-way-back-not-synced",
        "a writer that gives up does not sync the directory",
        LASTING,
        "the old file is renamed back; after a power failure the empty file is at the path again",
        _of("R1", power=1),
        writer=way_back_not_synced,
        shows=("too late", "renames .certs.old to certs"),
    ),
    Mutant(
        "writer-rename-not-synced",
        "the directory is never synced",
        LASTING,
        "the update reports success; after a power failure the path leads to the old, empty file",
        _of(power=1),
        writer=rename_not_synced,
        shows=("renames .certs.new to certs", "closes the turn file"),
    ),
    Mutant(
        "writer-new-file-not-synced",
        "the empty file is not synced before it is put at the path",
        CRASH_SAFE,
        "power fails: the name is on disk, its content is not, and the file has no bytes",
        _of(power=1),
        writer=new_file_not_synced,
        shows=("renames .certs.new to certs", "no bytes"),
    ),
    Mutant(
        "writer-throws-leftover-away",
        "a writer unlinks the file that a killed writer set aside (a former bug)",
        MATCH,
        "the writer does not wait for a request that has read that file",
        _of("R1", kills=1, second="swap"),
        writer=leftover_thrown_away,
        shows=("is killed", "unlinks .certs.old", "key to 1", "signs with key 1"),
    ),
    Mutant(
        "writer-keeps-lock-after-error",
        "a second error while cleaning up leaves the new file locked (a former bug)",
        TIDY,
        "a step fails, then the unlink fails: the descriptor stays open and the file locked",
        _of(faults=2),
        writer=lock_kept_after_error,
        shows=("fails", "unlinks .certs.new: fails"),
    ),
    Mutant(
        "files-one-after-another",
        "several files are updated one after the other, not around one command",
        CRASH_SAFE,
        "the first file's update changes the key; the second file still holds key 0's table",
        _of(strategy="several-in-place"),
        program=one_file_after_the_other,
        shows=("key to 1",),
    ),
    Mutant(
        "files-second-filled-first",
        "the second file gets the next key's table before the command",
        CRASH_SAFE,
        "the second file is filled and unlocked; the firmware's key is still key 0",
        _of(strategy="several-in-place"),
        program=second_file_filled_first,
        shows=("opens second", "the first entry of key 1's table"),
    ),
    Mutant(
        "files-second-not-emptied",
        "only the first of several files is emptied before the command",
        CRASH_SAFE,
        "the writer is killed after the firmware command: the second file holds key 0's table",
        _of(strategy="several-in-place", kills=1),
        writer=second_file_not_emptied,
        shows=("key to 1", "is killed"),
    ),
    Mutant(
        "files-second-not-locked",
        "the second of several files is not locked",
        MATCH,
        "the reader reads the second file's table for key 0; the writer changes the key",
        _of("R5", strategy="several-in-place"),
        writer=second_lock_not_taken,
        shows=("the second table of key 0", "key to 1", "signs with key 1"),
    ),
    Mutant(
        "files-command-without-lock",
        "the agent cannot lock the second file, but still changes the firmware",
        CRASH_SAFE,
        "a reader holds the lock of the second file; the time is up; the key changes",
        _of("R5", strategy="several-in-place"),
        writer=command_without_second_lock,
        shows=("too late", "key to 1"),
    ),
    Mutant(
        "files-tables-mixed-up",
        "tables are chosen in the order of the files' names, but published in the order "
        "of their locks",
        CRASH_SAFE,
        "each file gets the other's table",
        _of(strategy="several-in-place"),
        writer=tables_in_the_order_named,
        shows=("key to 1",),
    ),
)

EQUIVALENT = (
    Mutant(
        "writer-stand-in-not-locked",
        "the stand-in is put at the path without a lock",
        "",
        "it always holds the empty table, so a new reader gets that and not BUSY",
        _of("R1", strategy="there-and-back"),
        writer=new_file_not_locked,
    ),
    Mutant(
        "reader-no-comparison-alone",
        "a reader does not compare inodes; the writer is the shipped writer",
        "",
        "an old file is emptied before the key changes, so the reader finds no table there",
        _of("R1", "R1", updates=2, others=True),
        reader=no_comparison,
    ),
    Mutant(
        "writer-old-file-not-emptied-alone",
        "the replaced file keeps its table; all readers are shipped readers",
        "",
        "a reader that locks it finds another file at the path and starts again; only R2, R3 and "
        "R4 need the emptying",
        _of("R1", "R1", updates=2),
        writer=old_file_not_emptied,
    ),
    Mutant(
        "writer-in-place-no-comparison",
        "the in-place writer does not compare inodes after it gets the lock",
        "",
        "writers wait for their turn, so none replaces the file in between",
        _of("R1", strategy="swap", second="in-place", others=True),
        writer=no_comparison,
    ),
    Mutant(
        "reader-with-device",
        "the shipped reader, while a file on another device takes the path",
        "",
        "the control for reader-inode-without-device: the shipped reader compares both",
        _of("R1"),
        mover=True,
    ),
)
MUTANTS = KILLED + EQUIVALENT
