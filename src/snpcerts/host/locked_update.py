# SPDX-License-Identifier: Apache-2.0
"""The exclusive section: locks and empties the certificate files, changes the firmware, and fills
the files.

Nothing is fetched in the section. The content of the files depends on the firmware's status after
the command, not on the command's arguments. So the files are right even after a refused command. If
the table for the key is not cached, the file gets the empty table.
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
from snpcerts.host.expected_content import ExpectedContent, Key, expected_content
from snpcerts.host.host_firmware import FirmwareState
from snpcerts.host.table_cache import EMPTY_TABLE, TableCache

_ReadState = Callable[[], FirmwareState]


@dataclass(frozen=True, slots=True)
class FileResult:
    """The content of one file after an exclusive section. ``missing`` is the expected key if its
    table was not cached.
    """

    file: FileConfig
    expected: ExpectedContent | None  # None if the firmware's status could not be read
    entries: int
    missing: Key | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """The result of an exclusive section. Times are in seconds.

    ``waited`` is the wait for the locks. ``held`` is the longest time for which a lock was held,
    and ``firmware`` the part of it that the firmware command took. ``unread`` is the error if the
    firmware's status could not be read after the command; the files are then empty. ``refused`` is
    the command's error, or else ``unread``; if only the command failed, the files match the
    firmware's actual state.
    """

    state: FirmwareState | None
    files: tuple[FileResult, ...]
    waited: float
    held: float
    firmware: float
    refused: SnpCertsError | None = None
    unread: SnpCertsError | None = None

    @property
    def in_step(self) -> bool:
        """Whether every file has the right content."""
        return self.state is not None and not any(
            each.missing or each.problem for each in self.files
        )

    def figures(self) -> dict[str, float]:
        """Return the times in milliseconds, for programs."""
        return {
            "lock_wait_ms": round(self.waited * 1000, 3),
            "lock_held_ms": round(self.held * 1000, 3),
            "firmware_ms": round(self.firmware * 1000, 3),
        }


class _Chooser:
    """Chooses the tables after the firmware command has ended."""

    def __init__(
        self, files: Sequence[FileConfig], read_state: _ReadState, table_cache: TableCache
    ) -> None:
        self._files = files
        self._read_state = read_state
        self._table_cache = table_cache
        self.state: FirmwareState | None = None
        self.failure: SnpCertsError | None = None
        self.published: list[FileResult] = []

    def tables(self) -> list[bytes]:
        self.published.clear()
        try:
            self.state = self._read_state()
        except SnpCertsError as error:
            # It is unknown which key signs, so no certificate is right.
            self.state, self.failure = None, error
            self.published += [FileResult(file, None, 0) for file in self._files]
            return [EMPTY_TABLE.encode() for _ in self._files]
        return [self._table(file, expected_content(self.state, file)) for file in self._files]

    def _table(self, file: FileConfig, expected: ExpectedContent) -> bytes:
        table = self._table_cache.table_for(file, expected)
        missing = expected if table is None and isinstance(expected, Key) else None
        table = EMPTY_TABLE if table is None else table
        self.published.append(FileResult(file, expected, len(table), missing))
        return table.encode()


def run(
    files: Sequence[FileConfig],
    read_state: _ReadState,
    table_cache: TableCache,
    *,
    command: Callable[[], None] | None = None,
    lock_wait: float,
    wrong_tables: Mapping[str, bytes] = MappingProxyType({}),
    performer: Performer = system.perform,
) -> UpdateResult:
    """Lock and empty ``files``, issue the firmware ``command``, then publish the matching tables.

    Raises :class:`~snpcerts.certfile.writer.LockHeldError` and errors about invalid paths, always
    before the firmware changes. The result has the firmware's answer, and the error of a file that
    cannot be written after that. ``wrong_tables`` has, by path, the tables that were found to be
    wrong: however this ends, none of them stays in its file.
    """
    chooser = _Chooser(files, read_state, table_cache)
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
        [Target(file.path, file.strategy, wrong_tables.get(file.path)) for file in files],
        change,
        chooser.tables,
        lock_wait=lock_wait,
        performer=performer,
    )
    problems = {path: str(error) for path, error in done.problems}
    return UpdateResult(
        state=chooser.state,
        files=tuple(
            FileResult(
                each.file, each.expected, each.entries, each.missing, problems[each.file.path]
            )
            if each.file.path in problems
            else each
            for each in chooser.published
        ),
        waited=done.waited,
        held=done.held,
        firmware=took,
        refused=refused[0] if refused else chooser.failure,
        unread=chooser.failure,
    )
