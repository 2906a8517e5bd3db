# SPDX-License-Identifier: Apache-2.0
"""Makes the certificate files match the firmware's signing key.

The agent works in rounds. In each round, it first reads the files and the firmware under the shared
locks, and corrects or empties the files that are wrong. Then it fetches the missing certificates,
with no lock held. Finally it takes the exclusive locks, reads the firmware's status again, and
writes the files.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from snpcerts.certfile import system
from snpcerts.certfile.recognise import ForeignFileError, require_certificate_file
from snpcerts.certfile.step import Performer
from snpcerts.certfile.writer import LockHeldError, Strategy
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import RefusedError, RetryLaterError, SnpCertsError
from snpcerts.host import locked_update
from snpcerts.host.config import Config, FileConfig
from snpcerts.host.event import Event, EventKind, Listener, ignore_event
from snpcerts.host.expected_content import Key, NoKey, expected_content
from snpcerts.host.file_state import FileMatch, FileState, read_file_state
from snpcerts.host.firmware_change import firmware_changes
from snpcerts.host.host_firmware import FirmwareState, HostFirmware
from snpcerts.host.locked_update import FileResult, UpdateResult
from snpcerts.host.ownership import apply
from snpcerts.host.table_cache import TableCache, UnavailableError
from snpcerts.uninterrupted import uninterrupted

# If the firmware changes this many times between fetching and publishing, the agent gives up.
TRIES = 3


@dataclass(frozen=True, slots=True)
class Synced:
    """The result of one round of :meth:`Agent.sync`.

    ``before`` is what the round found, ``updates`` what it published. ``problem`` is the first
    reason why a file still does not match the signing key.
    """

    before: tuple[FileState, ...]
    updates: tuple[UpdateResult, ...] = ()
    problem: SnpCertsError | None = None


class Agent:
    """Reads and updates the certificate files of one configuration.

    ``during`` returns a context manager, which each exclusive section enters before it waits for
    its locks. With ``force``, even a file that is not a certificate file is replaced.
    """

    def __init__(
        self,
        config: Config,
        firmware: HostFirmware,
        table_cache: TableCache,
        *,
        listener: Listener = ignore_event,
        performer: Performer = system.perform,
        during: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
        force: bool = False,
    ) -> None:
        self.config = config
        self.firmware = firmware
        self.table_cache = table_cache
        self.tell = listener
        self._performer = performer
        self._during = during
        self.force = force
        self._last: FirmwareState | None = None  # the state when sync() last read the files
        # By path: the wrong content that the file had when it was last read.
        self._wrong_tables: dict[str, bytes] = {}

    def read_files(self) -> tuple[FileState, ...]:
        """Read every certificate file and the firmware's state. Cache the tables that match the
        signing key.
        """
        self.table_cache.drop_stale()
        for problem in self.table_cache.read_extras(self.config.files):
            self.tell(Event(EventKind.FAILED, problem))
        file_states = tuple(
            read_file_state(
                file,
                self.firmware.state,
                self.table_cache.judge,
                self.table_cache.clock(),
                extras=functools.partial(self.table_cache.extras, file),
            )
            for file in self.config.files
        )
        self._tell_of_lists()
        self._wrong_tables = {
            each.file.path: each.data
            for each in file_states
            if self._harmful(each) and each.data is not None
        }
        if self.firmware.memory.problem:
            self.tell(Event(EventKind.FAILED, self.firmware.memory.problem))
        for each in file_states:
            if isinstance(each.expected, Key) and each.table is not None and each.in_step:
                with contextlib.suppress(RefusedError):  # it expired between the two reads
                    self.table_cache.put(each.expected, each.table)
        return file_states

    def _harmful(self, file_state: FileState) -> bool:
        """Whether guests could get a wrong table, and the agent is allowed to empty the file."""
        foreign = file_state.match is FileMatch.FOREIGN
        return file_state.match.harmful or (foreign and self.force)

    def _refused(self, file_state: FileState) -> bool:
        return file_state.match is FileMatch.FOREIGN and not self.force

    def make_safe(self, file_states: Iterable[FileState]) -> tuple[UpdateResult, ...]:
        """Write the right table to every wrong file, or empty the file if that table is not cached.

        A missing file is created, with the right table or empty. All files are tried before the
        first error is raised.
        """
        errors: list[SnpCertsError] = []
        updates: list[UpdateResult] = []
        for each in file_states:
            path = each.file.path
            if self._refused(each):
                errors.append(ForeignFileError(path, "; ".join(each.problems)))
                self.tell(Event(EventKind.FAILED, str(errors[-1]), path))
                continue
            if not self._harmful(each) and each.match is not FileMatch.MISSING:
                continue
            if self._harmful(each):
                kind = _kind_of_harm(each)
                matches = "" if each.lapsed or each.garbage else "the file does not match: "
                why = matches + "; ".join(each.problems)
                self.tell(Event(kind, f"{path}: {why}", path))
            try:
                updates.append(self._make_safe(each.file))
            except SnpCertsError as error:
                if isinstance(error, LockHeldError) and error.emptied:
                    message = f"{path}: emptied, but cannot be filled yet: {error}"
                    self.tell(Event(EventKind.EMPTIED, message, path))
                    continue  # the file is safe; it is filled later
                message = f"cannot empty {path}: {error}"
                self.tell(Event(EventKind.FAILED, message, path))
                errors.append(error)
        if errors:
            raise errors[0]
        return tuple(updates)

    def _make_safe(self, file: FileConfig) -> UpdateResult:
        try:
            return self.publish([file])
        except RefusedError:
            if file.strategy is Strategy.IN_PLACE:
                raise
            # If the disk is full or the directory is not writable, a new file cannot be made. It
            # may still be possible to empty the old one.
            return self.publish([replace(file, strategy=Strategy.IN_PLACE)])

    def fetch(self, keys: Iterable[Key]) -> None:
        """Fetch the tables of ``keys`` into the cache. Try all keys, then raise the first error."""
        errors: list[SnpCertsError] = []
        for key in dict.fromkeys(keys):
            try:
                self.table_cache.fetch(key)
            except SnpCertsError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def publish(
        self, files: Sequence[FileConfig], command: Callable[[], None] | None = None
    ) -> UpdateResult:
        """Update ``files`` in one exclusive section, which issues ``command`` if that is not None.
        Report the result.

        Raises the same errors as :func:`snpcerts.host.locked_update.run`, and an error for a file
        that could not be written or is not a certificate file.
        """
        if not self.force:
            for file in files:
                require_certificate_file(file.path)
        with uninterrupted(), self._during():
            done = locked_update.run(
                files,
                self.firmware.state,
                self.table_cache,
                command=command,
                lock_wait=self.config.lock_wait,
                wrong_tables=self._wrong_tables,
                performer=self._performer,
            )
        self._tell_of_lists()
        for each in done.files:
            path = each.file.path
            if each.problem is not None:
                self.tell(Event(EventKind.FAILED, each.problem, path, done.figures()))
            elif each.entries:
                message = f"{path}: the file now holds the certificates of the {each.expected}"
                self.tell(Event(EventKind.PUBLISHED, message, path, done.figures()))
            else:
                why = _why_empty(each, done)
                message = f"{path}: the file now holds the empty table: {why}"
                self.tell(Event(EventKind.EMPTIED, message, path, done.figures()))
            with contextlib.suppress(SnpCertsError):  # own() reports it
                apply(each.file)
        return done

    def _tell_of_lists(self) -> None:
        for problem in self.table_cache.take_problems():
            self.tell(Event(EventKind.FAILED, problem))

    def own(self, files: Iterable[FileConfig]) -> tuple[SnpCertsError, ...]:
        """Set the group and mode of the existing files. Report and return the errors."""
        errors: list[SnpCertsError] = []
        for file in files:
            try:
                if os.path.exists(file.path):
                    apply(file)
            except SnpCertsError as error:
                self.tell(Event(EventKind.FAILED, str(error), file.path))
                errors.append(error)
        return tuple(errors)

    def sync(self, on_safe: Callable[[], None] = lambda: None) -> Synced:
        """Make every file match the signing key. Call ``on_safe`` as soon as no file is wrong.

        If a file cannot be made to match, this does not raise: the result's ``problem`` has the
        reason. It raises if the firmware's status cannot be read.
        """
        before = self.read_files()
        self._tell_of_changes(before)
        problems: list[SnpCertsError] = []
        updates: list[UpdateResult] = []
        try:
            updates += self.make_safe(before)
        except ForeignFileError as error:
            safe = False
            problems.append(error)
        except SnpCertsError:
            safe = False  # already reported; the code below decides whether it matters
        else:
            safe = True
            on_safe()
            if self.table_cache.learn_revocations(_kinds(before)):
                before = self._without_the_revoked(before, updates, problems)
        brought = {each.files[0].file.path for each in updates if each.in_step}
        done = brought | {each.file.path for each in before if self._refused(each)}
        files = [each.file for each in before if not each.in_step and each.file.path not in done]
        for _ in range(TRIES):
            files = [file for file in files if self._bring(file, updates, problems)]
            if not files:
                break
        problems += (_restless(file) for file in files)
        if not safe and not problems:
            on_safe()  # the lock was granted after all
        problems += self.own(each.file for each in before if not self._refused(each))
        return Synced(before, tuple(updates), problems[0] if problems else None)

    def _tell_of_changes(self, file_states: Sequence[FileState]) -> None:
        """Report what has changed in the firmware since the last round, whatever program changed
        it.
        """
        for each in file_states[:1]:
            if self._last is not None:
                for what, text in firmware_changes(self._last, each.state).items():
                    self.tell(Event(EventKind.CHANGED, text, fields={"what": what}))
            self._last = each.state

    def update_is_prepared(self, state: FirmwareState) -> bool:
        """Whether the certificates of the VCEK at the current TCB are cached. After a commit, that
        VCEK signs.
        """
        return Key(VekKind.VCEK, state.current) in self.table_cache

    def _without_the_revoked(
        self,
        before: tuple[FileState, ...],
        updates: list[UpdateResult],
        problems: list[SnpCertsError],
    ) -> tuple[FileState, ...]:
        """Make safe the files whose certificates a new revocation list revokes. Return all files'
        states.
        """
        again = self.read_files()
        revoked = [each for each in again if self._harmful(each)]
        if not revoked:
            return before
        try:
            updates += self.make_safe(revoked)
        except SnpCertsError as error:
            problems.append(error)
        return again

    def _bring(
        self, file: FileConfig, updates: list[UpdateResult], problems: list[SnpCertsError]
    ) -> bool:
        """Fetch and publish the certificates of one file. Return whether the firmware changed
        in the meantime.
        """
        want = expected_content(self.firmware.state(), file)
        try:
            if isinstance(want, Key):
                self.fetch([want])
            done = self.publish([file])
        except SnpCertsError as error:
            unavailable = isinstance(error, UnavailableError)
            kind = EventKind.UNAVAILABLE if unavailable else EventKind.FAILED
            self.tell(Event(kind, f"{file.path}: {error}", file.path))
            problems.append(error)
            return False
        updates.append(done)
        problems += (RefusedError(each.problem) for each in done.files if each.problem)
        return any(each.missing for each in done.files)


def _kind_of_harm(file_state: FileState) -> EventKind:
    if file_state.garbage:
        return EventKind.GARBAGE
    return EventKind.LAPSED if file_state.lapsed else EventKind.DRIFT


def _kinds(file_states: Iterable[FileState]) -> list[VekKind]:
    kinds = (each.expected.kind for each in file_states if isinstance(each.expected, Key))
    return list(dict.fromkeys(kinds))


def _restless(file: FileConfig) -> SnpCertsError:
    return RetryLaterError(
        f"{file.path}: the firmware's state changed {TRIES} times while the agent fetched "
        "certificates",
        hint="find out which program changes the state, then run the command again",
    )


def _why_empty(each: FileResult, done: UpdateResult) -> str:
    if each.missing is not None:
        return f"the certificates of the {each.missing} are not available yet"
    if isinstance(each.expected, NoKey):
        return each.expected.reason
    return f"the firmware's status is unknown: {done.unread}"
