# SPDX-License-Identifier: Apache-2.0
"""Reads the content of a certificate file and judges whether it is the right one.

If the file contains a table, the file and the firmware's state are read under one shared lock, the
same lock that VMMs take. So no update that follows the protocol can run between the two reads.
"""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from snpcerts.abi.cert_table import ARK_GUID, ASK_GUID, VCEK_GUID, VLEK_GUID, CertTable, TableEntry
from snpcerts.certfile.file import CertFile
from snpcerts.certfile.reader import Busy, Empty, Found, Table
from snpcerts.certfile.recognise import table_problem, was_updated_before
from snpcerts.endorsement.judge import ChainBytes, ChipJudge
from snpcerts.endorsement.vek import EndorsementCert
from snpcerts.host.config import FileConfig
from snpcerts.host.expected_content import ExpectedContent, Key, NoKey, expected_content
from snpcerts.host.host_firmware import FirmwareState

# Seconds to wait for a lock. An update holds it for less, unless it issues a firmware command.
LOOK_WAIT = 1.0


class FileMatch(enum.Enum):
    """How the content of a file compares with the firmware's signing key."""

    RIGHT = "right"
    OUTDATED = "outdated"  # certifies the key, but is incomplete or has another fault
    EMPTY = "empty"  # harmless: guests fetch certificates themselves
    MISSING = "missing"  # also harmless
    WRONG = "wrong"  # another key's, lapsed, damaged, or should be empty: guests may be misled
    FOREIGN = "foreign"  # not a certificate file and never was: the path may be mistyped
    UNREADABLE = "unreadable"
    LOCKED = "locked"  # being updated

    @property
    def harmful(self) -> bool:
        """Whether guests may get a wrong table."""
        return self is FileMatch.WRONG


@dataclass(frozen=True, slots=True)
class FileState:
    """One file: its content, its expected content, and what is wrong with it.

    ``state`` is the firmware's state when the file was read. ``table`` is None if no table can be
    read. ``leaf`` and ``not_after`` come from the table, trusted or not. ``lapsed``: the file is
    wrong only because a certificate expired or was revoked. ``garbage``: the file is wrong because
    it is not a table. ``data`` is the bytes that were read.
    """

    file: FileConfig
    state: FirmwareState
    expected: ExpectedContent
    match: FileMatch
    problems: tuple[str, ...] = ()
    table: CertTable | None = None
    leaf: EndorsementCert | None = None
    not_after: datetime | None = None
    lapsed: bool = False
    garbage: bool = False
    data: bytes | None = None

    @property
    def in_step(self) -> bool:
        """Whether the file has the right content."""
        return self.match is FileMatch.RIGHT


def read_file_state(
    file: FileConfig,
    read_state: Callable[[], FirmwareState],
    judge: ChipJudge,
    at: datetime,
    *,
    extras: Callable[[CertTable], Sequence[TableEntry]] = lambda _: (),
    lock_wait: float = LOOK_WAIT,
) -> FileState:
    """Read one file and the firmware's state.

    ``extras`` returns the entries that a table should have besides the certificates. A table whose
    other entries are not exactly these is outdated. Raises what ``read_state`` raises.
    """
    seen: list[Found] = []
    state: FirmwareState = CertFile(file.path).serve(
        deliver=seen.append, handshake=read_state, lock_wait=lock_wait
    )
    expected = expected_content(state, file)
    found = seen[0]
    if isinstance(found, Table):
        why = table_problem(found.data)
        if why is None:
            held = _of_table(file, state, expected, found.data, judge, at, extras)
            return replace(held, data=found.data)
        ours = was_updated_before(file.path)
        match = FileMatch.WRONG if ours else FileMatch.FOREIGN
        problem = f"malformed table: {why}" if ours else f"not a certificate file: {why}"
        return FileState(file, state, expected, match, (problem,), garbage=True, data=found.data)
    if isinstance(found, Empty):
        if isinstance(expected, NoKey):
            return FileState(file, state, expected, FileMatch.RIGHT, table=CertTable())
        problem = f"the file is empty, but should hold the certificates of the {expected}"
        return FileState(file, state, expected, FileMatch.EMPTY, (problem,), table=CertTable())
    if isinstance(found, Busy):
        problem = (
            f"the file is locked by an update that was still running after {found.waited:.1f} s"
        )
        return FileState(file, state, expected, FileMatch.LOCKED, (problem,))
    match = FileMatch.MISSING if found.problem == _NO_SUCH_FILE else FileMatch.UNREADABLE
    return FileState(file, state, expected, match, (f"unreadable: {found.problem}",))


_NO_SUCH_FILE = os.strerror(errno.ENOENT)
_CERTIFICATES = frozenset((VCEK_GUID, VLEK_GUID, ASK_GUID, ARK_GUID))


def _of_table(
    file: FileConfig,
    state: FirmwareState,
    expected: ExpectedContent,
    data: bytes,
    judge: ChipJudge,
    at: datetime,
    extras: Callable[[CertTable], Sequence[TableEntry]],
) -> FileState:
    table = CertTable.decode(data)
    if not isinstance(expected, Key):
        problem = f"the file holds certificates, but should hold {expected}"
        return FileState(file, state, expected, FileMatch.WRONG, (problem,), table)
    judged = judge.judge(
        ChainBytes.from_table(table, expected.kind), expected.kind, expected.tcb, at
    )
    match = FileMatch.RIGHT
    problems = tuple(map(str, judged.wrong + judged.lapsed + judged.early))
    lapsed = bool(judged.lapsed) and not judged.wrong
    if judged.wrong or lapsed:
        match = FileMatch.WRONG
    elif judged.early:
        match = FileMatch.OUTDATED
    elif {each for each in table if each.guid not in _CERTIFICATES} != set(extras(table)):
        match, problems = FileMatch.OUTDATED, ("the extra entries differ from the configuration",)
    return FileState(
        file, state, expected, match, problems, table, judged.leaf, judged.not_after, lapsed
    )
