# SPDX-License-Identifier: Apache-2.0
"""The exclusive section: every certificate file locked and empty, the firmware changed, the
files filled in by what its status says then.

Nothing is fetched in here. What the firmware was asked for does not count:
its status is read again, and a key whose table is not at hand gets the empty
one. So the section is right after a command that was refused, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from snpcerts.certfile import several, system
from snpcerts.certfile.several import Target
from snpcerts.certfile.step import Performer
from snpcerts.errors import SnpCertsError
from snpcerts.host.config import FileConfig
from snpcerts.host.host_firmware import FirmwareState
from snpcerts.host.stock import EMPTY_TABLE, Stock
from snpcerts.host.wanted import Key, Wanted, wanted

_ReadState = Callable[[], FirmwareState]


@dataclass(frozen=True, slots=True)
class Published:
    """What one file holds after the section; ``missing`` is the key without a cached table."""

    file: FileConfig
    wanted: Wanted | None  # None when the firmware's status could not be read
    entries: int
    missing: Key | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """How it went; times in seconds.

    ``waited`` for the locks, ``held`` the longest lock, ``firmware`` the part of
    that which the firmware command took. ``refused`` is the command's error:
    the files then match the firmware as it was left.
    """

    state: FirmwareState | None
    files: tuple[Published, ...]
    waited: float
    held: float
    firmware: float
    refused: SnpCertsError | None = None

    @property
    def in_step(self) -> bool:
        """Every file holds what it should."""
        return self.state is not None and not any(
            each.missing or each.problem for each in self.files
        )

    def figures(self) -> dict[str, float]:
        """The times in milliseconds, for programs."""
        return {
            "lock_wait_ms": round(self.waited * 1000, 3),
            "lock_held_ms": round(self.held * 1000, 3),
            "firmware_ms": round(self.firmware * 1000, 3),
        }


class _Chooser:
    """Gives the tables, once the firmware is what it will be."""

    def __init__(self, files: Sequence[FileConfig], read_state: _ReadState, stock: Stock) -> None:
        self._files = files
        self._read_state = read_state
        self._stock = stock
        self.state: FirmwareState | None = None
        self.failure: SnpCertsError | None = None
        self.published: list[Published] = []

    def tables(self) -> list[bytes]:
        self.published.clear()
        try:
            self.state = self._read_state()
        except SnpCertsError as error:
            # Which key signs is not known, so no certificate is right.
            self.state, self.failure = None, error
            self.published += [Published(file, None, 0) for file in self._files]
            return [EMPTY_TABLE.encode() for _ in self._files]
        return [self._table(file, wanted(self.state, file)) for file in self._files]

    def _table(self, file: FileConfig, want: Wanted) -> bytes:
        table = self._stock.table_for(file, want)
        missing = want if table is None and isinstance(want, Key) else None
        table = EMPTY_TABLE if table is None else table
        self.published.append(Published(file, want, len(table), missing))
        return table.encode()


def run(
    files: Sequence[FileConfig],
    read_state: _ReadState,
    stock: Stock,
    *,
    command: Callable[[], None] | None = None,
    lock_wait: float,
    condemned: Mapping[str, bytes] = MappingProxyType({}),
    performer: Performer = system.perform,
) -> Section:
    """Lock and empty ``files``, give the firmware ``command``, publish what matches then.

    Raises :class:`~snpcerts.certfile.writer.LockHeldError` and the errors of
    paths that are none, always before the firmware is touched. What the
    firmware says, or a file that cannot be written after it, is in the result.
    ``condemned`` has, by path, the tables that were found to be wrong: no end
    of this leaves one of those in its file.
    """
    chooser = _Chooser(files, read_state, stock)
    refused: list[SnpCertsError] = []
    took = 0.0

    def change() -> list[bytes]:
        nonlocal took
        if command is not None:
            start = time.monotonic()
            try:
                command()
            except SnpCertsError as error:
                refused.append(error)
            took = time.monotonic() - start
        return chooser.tables()

    done = several.perform(
        [Target(file.path, file.strategy, condemned.get(file.path)) for file in files],
        change,
        chooser.tables,
        lock_wait=lock_wait,
        performer=performer,
    )
    problems = {path: str(error) for path, error in done.problems}
    return Section(
        state=chooser.state,
        files=tuple(
            Published(each.file, each.wanted, each.entries, each.missing, problems[each.file.path])
            if each.file.path in problems
            else each
            for each in chooser.published
        ),
        waited=done.waited,
        held=done.held,
        firmware=took,
        refused=refused[0] if refused else chooser.failure,
    )
