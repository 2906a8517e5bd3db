# SPDX-License-Identifier: Apache-2.0
"""The model on which the steps act: names, files, open file descriptions, locks, disk and firmware.

Rules of open-file-description locks: each description is one owner. Shared locks are compatible
with each other; all others conflict. A new lock of an owner replaces its previous one. Closing the
last descriptor of a description drops the lock. Other kinds of locks (``flock``) do not conflict
with these.

Rules of the disk: a write is in the page cache immediately, but is certain to be on disk only after
a sync of its file. Before that, each piece of the write may or may not survive a power failure,
independently of other pieces. A piece is within one sector: the first 24 bytes are one piece, the
rest of a table is one or two. A change of a name is certain only after a sync of the directory. If
a sync fails, Linux considers the pages written: no later sync writes them, and the page cache may
lose them at any time. A rename is on disk completely or not at all. An inode number is reused when
its file no longer exists.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from snpcerts.abi.cert_table import EMPTY

if TYPE_CHECKING:
    from explore.process import Process

FOLDER = "/host"
PATH = f"{FOLDER}/certs"
TURN = f"{FOLDER}/.certs.turn"
NEW = f"{FOLDER}/.certs.new"
OLD = f"{FOLDER}/.certs.old"
# A second certificate file, for other guests of the same host.
SECOND = f"{FOLDER}/second"
SECOND_TURN = f"{FOLDER}/.second.turn"
SECOND_NEW = f"{FOLDER}/.second.new"
SECOND_OLD = f"{FOLDER}/.second.old"
# For each name, the file whose lock gives a writer the turn to change that name.
TURN_FOR = {PATH: TURN, NEW: TURN, OLD: TURN}
TURN_FOR |= {SECOND: SECOND_TURN, SECOND_NEW: SECOND_TURN, SECOND_OLD: SECOND_TURN}
# A bind mount of the file that PATH named when the mount was made.
MOUNT = "/guest/certs"

NONE, SHARED, EXCLUSIVE = 0, 1, 2
_FIRST = len(EMPTY)
_PIECE = 4


@cache
def table(key: int, path: str = PATH) -> bytes:
    """Return the table that certifies ``key``, for one path: a first entry and one or two more
    pieces.
    """
    fill = bytes([key + (101 if path == SECOND else 1)])
    return fill * (_FIRST + _PIECE * (2 - key % 2))


class Description(NamedTuple):
    """An open file description."""

    file: int
    lock: int  # NONE, SHARED or EXCLUSIVE
    vmm: str  # the VMM whose vCPUs share the description; "" if it is not shared


class File(NamedTuple):
    """A file: its content in the page cache, and what is certain or possible on disk."""

    data: bytes
    disk: bytes
    pending: tuple[tuple[int, bytes | None], ...]  # (offset, piece) or (size, None)


NamesChange = tuple[tuple[str, int | None], ...]


class Budget(NamedTuple):
    """How many failures of each kind may still happen."""

    kills: int = 0  # of one process, between any two steps
    power: int = 0  # power failures
    faults: int = 0  # steps that fail with an OSError


class World:
    """One state of the model. Its parts are replaced and never modified, so a shallow copy is
    enough.
    """

    __slots__ = (
        "budget",
        "changes",
        "descriptions",
        "disk",
        "files",
        "key",
        "names",
        "processes",
        "wrong",
    )

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.files: dict[int, File] = {}
        self.descriptions: dict[int, Description] = {}
        self.disk: dict[str, int] = {}  # names that are certainly on disk
        self.changes: tuple[NamesChange, ...] = ()  # changes of names since then
        self.key = 0
        self.wrong: bytes | None = None  # a table that drift made wrong, until an update ends
        self.processes: list[Process] = []
        self.budget = Budget()

    def copy(self) -> World:
        new = World.__new__(World)
        new.names = self.names.copy()
        new.files = self.files.copy()
        new.descriptions = self.descriptions.copy()
        new.disk = self.disk
        new.changes = self.changes
        new.key = self.key
        new.wrong = self.wrong
        new.processes = self.processes.copy()
        new.budget = self.budget
        return new

    # Names

    def change_names(self, *entries: tuple[str, int | None]) -> None:
        """Make names refer to other files, or remove them (None)."""
        for name, file in entries:
            if file is None:
                self.names.pop(name, None)
            else:
                self.names[name] = file
        if self.budget.power:
            self.changes = (*self.changes, entries)
        self.drop_unreachable()

    def sync_names(self) -> None:
        if self.budget.power:
            self.disk = {name: file for name, file in self.names.items() if name != MOUNT}
            self.changes = ()
            self.drop_unreachable()

    def new_file(self) -> int:
        """Create an empty file without a name. The file gets the lowest free number.

        Numbers start at 101 on the first device and at 201 on the second.
        """
        number = 101
        while number in self.files:
            number += 1
        self.files[number] = File(b"", b"", ())
        return number

    def drop_unreachable(self) -> None:
        """Drop the files to which no name, no description and nothing on the disk refers."""
        kept = set(self.names.values()) | {each.file for each in self.descriptions.values()}
        if self.budget.power:
            kept |= set(self.disk.values())
            kept |= {file for change in self.changes for _, file in change if file is not None}
        if len(kept) != len(self.files):
            self.files = {number: file for number, file in self.files.items() if number in kept}

    # Content

    def write(self, number: int, data: bytes, offset: int) -> None:
        file = self.files[number]
        pieces: list[tuple[int, bytes | None]] = list(_pieces(data, offset))
        self._change(number, patched(file.data, pieces), pieces)

    def truncate(self, number: int, size: int) -> None:
        pieces: list[tuple[int, bytes | None]] = [(size, None)]
        self._change(number, patched(self.files[number].data, pieces), pieces)

    def _change(self, number: int, data: bytes, pieces: list[tuple[int, bytes | None]]) -> None:
        file = self.files[number]
        if self.keeps_content:
            self.files[number] = File(data, file.disk, (*file.pending, *pieces))
        else:
            self.files[number] = File(data, file.disk, ())

    def sync(self, number: int) -> None:
        if self.keeps_content:
            file = self.files[number]
            self.files[number] = File(file.data, patched(file.disk, file.pending), ())

    def lose_writes(self, number: int, *, at_once: bool) -> None:
        """Record that a sync has failed: the kernel assumes that all data is on disk, and never
        writes the data that is not.

        The page cache keeps this data or, if ``at_once`` is set, loses it.
        """
        file = self.files[number]
        self.files[number] = File(file.disk if at_once else file.data, file.disk, ())

    def spend_fault(self) -> None:
        """Take one failing step from the budget."""
        self.budget = self.budget._replace(faults=self.budget.faults - 1)
        if not self.keeps_content:
            self.files = {each: File(file.data, b"", ()) for each, file in self.files.items()}

    @property
    def keeps_content(self) -> bool:
        """Whether the content of files on disk still matters."""
        return bool(self.budget.power or self.budget.faults)

    # Descriptions and locks

    def open(self, number: int, vmm: str = "") -> int:
        """Open the file ``number``. Return the number of the new description, which is the lowest
        free one.
        """
        found = 0
        while found in self.descriptions:
            found += 1
        self.descriptions[found] = Description(number, NONE, vmm)
        return found

    def conflicts(self, number: int, lock: int) -> bool:
        """Whether another description's lock conflicts with ``lock``."""
        mine = self.descriptions[number]
        return any(
            other.file == mine.file and other.lock + lock > EXCLUSIVE
            for each, other in self.descriptions.items()
            if each != number and other.lock
        )

    def set_lock(self, number: int, lock: int) -> None:
        self.descriptions[number] = self.descriptions[number]._replace(lock=lock)

    def locked(self, file: int) -> int:
        """Return the strongest lock on a file: NONE, SHARED or EXCLUSIVE."""
        return max((d.lock for d in self.descriptions.values() if d.file == file), default=NONE)

    def close(self, number: int) -> None:
        """Drop a description, unless a process still has a descriptor for it."""
        if any(number == each for process in self.processes for _, each in process.fds):
            return
        del self.descriptions[number]
        self.drop_unreachable()

    # Power

    def after_power_loss(self) -> Iterable[World]:
        """Return every state that a power failure may leave, without the processes."""
        seen = set()
        for names in directories(tuple(sorted(self.disk.items())), self.changes):
            numbers = sorted({file for _, file in names})
            for contents in product(*(contents_on_disk(self.files[each]) for each in numbers)):
                outcome = (names, tuple(zip(numbers, contents, strict=True)))
                if outcome in seen:
                    continue
                seen.add(outcome)
                new = World()
                new.budget = self.budget._replace(power=self.budget.power - 1)
                new.key = self.key
                new.wrong = self.wrong
                new.names = dict(names)
                if MOUNT in self.names and PATH in new.names:
                    new.names[MOUNT] = new.names[PATH]
                new.disk = dict(names) if new.budget.power else {}
                new.files = {
                    number: File(data, data if new.keeps_content else b"", ())
                    for number, data in outcome[1]
                }
                yield new


def _pieces(data: bytes, offset: int) -> Iterable[tuple[int, bytes]]:
    end = offset + len(data)
    cuts = [at for at in range(_FIRST, end, _PIECE) if offset < at]
    for start, stop in zip([offset, *cuts], [*cuts, end], strict=True):
        yield start, data[start - offset : stop - offset]


def patched(data: bytes, pieces: Iterable[tuple[int, bytes | None]]) -> bytes:
    """Return ``data`` after writes (offset, bytes) and changes of size (size, None)."""
    for at, piece in pieces:
        if piece is None:
            data = data[:at].ljust(at, b"\0")
        else:
            data = data[:at].ljust(at, b"\0") + piece + data[at + len(piece) :]
    return data


@cache
def contents_on_disk(file: File) -> tuple[bytes, ...]:
    """Return what a file may contain after a power failure: any pending piece may be missing."""
    found = {file.disk}
    for piece in file.pending:
        found |= {patched(data, [piece]) for data in found}
    return tuple(sorted(found))


@cache
def directories(
    disk: tuple[tuple[str, int], ...], changes: tuple[NamesChange, ...]
) -> tuple[tuple[tuple[str, int], ...], ...]:
    """Return what the directory may contain after a power failure: any change may be missing."""
    found = {disk}
    for change in changes:
        for names in list(found):
            now = dict(names)
            for name, file in change:
                if file is None:
                    now.pop(name, None)
                else:
                    now[name] = file
            found.add(tuple(sorted(now.items())))
    return tuple(sorted(found))
