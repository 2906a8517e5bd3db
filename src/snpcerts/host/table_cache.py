# SPDX-License-Identifier: Apache-2.0
"""A cache of certificate tables. They are fetched and verified before a file is locked, and read
while it is locked.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from snpcerts.abi.cert_table import (
    ARK_GUID,
    ASK_GUID,
    CRL_GUID,
    VCEK_GUID,
    VLEK_GUID,
    CertTable,
    TableEntry,
)
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.endorsement.crl import RevocationList, load_crl
from snpcerts.endorsement.judge import ChainBytes, ChipJudge, Judgement, judge_list
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import FormatError, InputError, RefusedError, RetryLaterError, SnpCertsError
from snpcerts.host.config import ExtraEntry, FileConfig
from snpcerts.host.expected_content import ExpectedContent, Key
from snpcerts.host.vlek_store import VlekStore
from snpcerts.kds.source import CertificateSource

T = TypeVar("T")

EMPTY_TABLE = CertTable()
_ENTRY_LIMIT = 1 << 16  # the most bytes in one extra entry

# Seconds between two requests for a key whose certificate was not available. AMD's key server
# sends about one certificate every ten seconds, and after a 404, asking again at once is no use.
FIRST_PAUSE = 10.0
LONGEST_BACKOFF = 300.0
LONGEST_REQUESTED_PAUSE = 3600.0  # even if the key server asked for a longer one

# A revocation list is valid for a year, but the agent fetches it again after a day, so that it soon
# knows of new revocations. If no list arrives within LIST_BUDGET seconds, the agent uses the cached
# one, if there is one, and asks again after LIST_PAUSE seconds.
LIST_AGE: Final = timedelta(days=1)
LIST_BUDGET: Final = 3.0
LIST_PAUSE: Final = 300.0


class UnavailableError(RetryLaterError):
    """A certificate is not available now. The message says why."""

    code = "certificate-unavailable"

    def __init__(
        self, message: str, *, hint: str | None = None, after: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.after = after  # the pause in seconds that the key server asked for


@dataclass(frozen=True, slots=True)
class _FailedFetch:
    """A failed fetch. The key server must not be asked again before ``until`` (monotonic)."""

    error: UnavailableError
    pause: float
    until: float

    @classmethod
    def of(cls, error: UnavailableError, last: _FailedFetch | None) -> _FailedFetch:
        pause = FIRST_PAUSE if last is None else min(2 * last.pause, LONGEST_BACKOFF)
        wait = min(max(pause, error.after or 0.0), LONGEST_REQUESTED_PAUSE)
        return cls(error, pause, time.monotonic() + wait)


def _utc() -> datetime:
    return datetime.now(UTC)


class TableCache:
    """A store of verified tables, by key. It holds nothing that :class:`ChipJudge` refuses.

    ``observe`` is called with the result of each call to the source (``ok``, or the error's code)
    and its duration in seconds.
    """

    def __init__(
        self,
        judge: ChipJudge,
        source: CertificateSource,
        vleks: VlekStore,
        *,
        clock: Callable[[], datetime] = _utc,
        observe: Callable[[str, float], None] = lambda _result, _seconds: None,
    ) -> None:
        self.judge = judge
        self.clock = clock
        self._source = source
        self._vleks = vleks
        self._observe = observe
        self._tables: dict[Key, CertTable] = {}
        self._problems: dict[str, None] = {}
        self._extras: dict[ExtraEntry, TableEntry] = {}
        self._failed: dict[Key, _FailedFetch] = {}
        self._list_due: dict[VekKind, float] = {}  # monotonic

    def __contains__(self, key: object) -> bool:
        return key in self._tables

    def put(self, key: Key, table: CertTable) -> None:
        """Store the table for ``key``. Raises :class:`RefusedError`, which lists everything that is
        wrong with the table.
        """
        judged = judge_table(self.judge, table, key, self.clock())
        if judged.wrong or judged.lapsed:
            raise RefusedError(
                f"the certificates offered for the {key} do not certify it: "
                + "; ".join(map(str, judged.wrong + judged.lapsed))
            )
        if judged.early:
            raise RefusedError(
                f"the certificates for the {key} are not valid yet: "
                + "; ".join(map(str, judged.early)),
                hint=f"check this host's clock, which says {self.clock():%Y-%m-%dT%H:%M:%SZ}",
                code="clock",
            )
        self._tables[key] = _certificates_only(table, key.kind)

    def fetch(self, key: Key) -> None:
        """Fetch the table for ``key`` from the source unless it is cached.

        Raises :class:`UnavailableError`. Until it is time to retry, this raises the same error
        again without a request. The source may be slow, so do not call this while a lock is held.
        """
        if key in self._tables:
            return
        failure = self._failed.get(key)
        if failure is not None and time.monotonic() < failure.until:
            raise failure.error
        try:
            self.put(key, self._from_source(key))
        except SnpCertsError as error:
            unavailable = UnavailableError(
                f"no certificate for the {key}: {error.message}",
                hint=error.hint,
                after=getattr(error, "retry_after", None),
            )
            self._failed[key] = _FailedFetch.of(unavailable, failure)
            raise unavailable from error
        self._failed.pop(key, None)

    def learn_revocations(self, kinds: Iterable[VekKind]) -> bool:
        """Fetch the revocation lists for these kinds of keys. Once a list has been fetched, it
        is not fetched again for a day.

        Returns whether there is a new list. An unavailable list is not an error: the cached one is
        used, if there is one.
        """
        new = False
        for kind in kinds:
            if time.monotonic() < self._list_due.get(kind, 0.0):
                continue
            before, pause = self.known_crl(kind), LIST_AGE.total_seconds()
            try:
                found = self._source.crl(
                    self.judge.product,
                    kind,
                    at=self.clock(),
                    max_age=LIST_AGE,
                    budget=LIST_BUDGET,
                )
            except SnpCertsError:
                pause = LIST_PAUSE
            else:
                new = new or found != before
            self._list_due[kind] = time.monotonic() + pause
        return new

    def known_crl(self, kind: VekKind) -> bytes | None:
        """Return the cached revocation list for ``kind``, not verified; None if there is none."""
        return self._source.known_crl(self.judge.product, kind)

    def revocation_lists(self) -> dict[VekKind, RevocationList]:
        """Return the cached revocation lists that can be read. Their signatures have not been
        checked.
        """
        found: dict[VekKind, RevocationList] = {}
        for kind in VekKind:
            data = self.known_crl(kind)
            if data is not None:
                with contextlib.suppress(FormatError):
                    found[kind] = load_crl(data)
        return found

    def drop_stale(self) -> None:
        """Drop the tables that are no longer valid, so that they are fetched again."""
        now = self.clock()
        for key, table in list(self._tables.items()):
            if not judge_table(self.judge, table, key, now).sound:
                del self._tables[key]

    def table_for(self, file: FileConfig, expected: ExpectedContent) -> CertTable | None:
        """Return the table that ``file`` should contain; None if it is not cached. Never
        fetches.
        """
        if not isinstance(expected, Key):
            return EMPTY_TABLE
        certificates = self._tables.get(expected)
        if certificates is None:
            return None
        return CertTable(certificates.entries + self.extras(file, certificates))

    def extras(self, file: FileConfig, certificates: CertTable) -> tuple[TableEntry, ...]:
        """Return the entries that the configuration adds to ``certificates`` in ``file``, with the
        content that :meth:`read_extras` read.

        A revocation list is left out, and reported, unless the table's root signed it and it is
        current.
        """
        found: list[TableEntry] = []
        for entry in file.entries:
            extra = self._extras.get(entry)
            if extra is None:
                continue
            if extra.guid == CRL_GUID:
                problem = self._list_problem(extra.data, certificates)
                if problem is not None:
                    self._problems[
                        f"{entry.path}: {problem}; the entry is left out of the table"
                    ] = None
                    continue
            found.append(extra)
        return tuple(found)

    def take_problems(self) -> tuple[str, ...]:
        """Return the problems with revocation lists since the last call, and clear them."""
        taken = tuple(self._problems)
        self._problems.clear()
        return taken

    def table_of(self, key: Key) -> CertTable | None:
        """Return the certificates for ``key``; None if they are not cached. Never fetches."""
        return self._tables.get(key)

    def kept_vleks(self) -> tuple[TcbVersion, ...]:
        """Return the TCBs with a stored VLEK certificate. The certificates are not yet verified."""
        return self._vleks.tcbs(self.judge.product)

    def read_extras(self, files: Iterable[FileConfig]) -> tuple[str, ...]:
        """Read again the entries that the configuration adds to these files' tables. Return the
        problems found.

        An entry that cannot be read is left out of the table, so that guests still get the
        certificates.
        """
        self._extras.clear()
        problems: list[str] = []
        for entry in (entry for file in files for entry in file.entries):
            try:
                self._extras[entry] = TableEntry(entry.guid, _content(entry.path))
            except InputError as error:
                problems.append(error.message)
        return tuple(problems)

    def _list_problem(self, data: bytes, certificates: CertTable) -> str | None:
        """Return why guests should not get this revocation list with these certificates; None if
        they should.
        """
        root = certificates.get(ARK_GUID)
        if root is None:
            return "the table has no ARK with which to verify this revocation list"
        try:
            crl, ark = load_crl(data), load_certificate(root, "ARK")
        except FormatError as error:
            return error.message
        problems = judge_list(VekKind.VCEK, crl, None, ark).problems_at(self.clock())
        return problems[0].message if problems else None

    def _from_source(self, key: Key) -> CertTable:
        product, at = self.judge.product, self.clock()
        if key.kind is VekKind.VCEK:
            self.learn_revocations([key.kind])
            vcek = self._observed(
                lambda: self._source.vcek(product, self.judge.hwid, key.tcb, at=at)
            )
            return vcek.table()
        leaf = self._vleks.find(product, key.tcb)
        if leaf is None:
            raise RefusedError(
                f"{self._vleks.path(product, key.tcb)}: no such certificate",
                hint="store the certificate with 'host load-vlek --vlek-cert'",
            )
        return self.vlek_table(leaf)

    def keep_vlek(self, tcb: TcbVersion, leaf: bytes) -> None:
        """Store a VLEK certificate (DER) for ``tcb``, to be used while its VLEK is loaded."""
        self._vleks.keep(self.judge.product, tcb, leaf)

    def vlek_table(self, leaf: bytes) -> CertTable:
        """Return a VLEK certificate (DER) with the chain above it, from the source."""
        product, at = self.judge.product, self.clock()
        self.learn_revocations([VekKind.VLEK])
        asvk, ark = self._observed(lambda: self._source.chain(product, VekKind.VLEK, at=at))
        return CertTable(
            (
                TableEntry(VLEK_GUID, leaf),
                TableEntry(ASK_GUID, asvk),
                TableEntry(ARK_GUID, ark),
            )
        )

    def _observed(self, call: Callable[[], T]) -> T:
        start = time.monotonic()
        try:
            result = call()
        except SnpCertsError as error:
            self._observe(error.code, time.monotonic() - start)
            raise
        self._observe("ok", time.monotonic() - start)
        return result


def judge_table(judge: ChipJudge, table: CertTable, key: Key, at: datetime) -> Judgement:
    """Judge whether a table's certificates certify ``key`` at the time ``at``."""
    return judge.judge(ChainBytes.from_table(table, key.kind), key.kind, key.tcb, at)


def _certificates_only(table: CertTable, kind: VekKind) -> CertTable:
    """Return only the key's certificates, in the order that tools expect."""
    guids = (VCEK_GUID if kind is VekKind.VCEK else VLEK_GUID, ASK_GUID, ARK_GUID)
    found = ((guid, table.get(guid)) for guid in guids)
    return CertTable(tuple(TableEntry(guid, data) for guid, data in found if data is not None))


def _content(path: str) -> bytes:
    try:
        # Open without blocking, so that a FIFO cannot hold the agent up.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(fd, "rb") as file:
            data = file.read(_ENTRY_LIMIT + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; the entry is left out of the table") from None
    if not 0 < len(data or b"") <= _ENTRY_LIMIT:
        raise InputError(
            f"{path}: expected 1 to {_ENTRY_LIMIT} bytes, found {'more' if data else 'none'}; "
            "the entry is left out of the table"
        )
    return data
