# SPDX-License-Identifier: Apache-2.0
"""Finds reports, tables and certificates in files, and combines those that belong together.

A file may hold evidence in any format that :mod:`snpcerts.verify.evidence` reads. A report's table
may also be in a separate file beside the report: ``host.bin`` and ``host.table``, ``outblob`` and
``auxblob``. In a directory, files are recognised by their content, not by their names, and every
report found is treated as evidence. Certificates in a subdirectory that has reports are used only
for these reports; all other certificates may be used for every report. The search includes
subdirectories, but not their subdirectories.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from snpcerts.abi.cert_table import MAX_SIZE
from snpcerts.abi.report import REPORT_SIZE
from snpcerts.cli.files import INPUT_LIMIT, STANDARD_INPUT, read_input
from snpcerts.errors import InputError
from snpcerts.printable import printable

if TYPE_CHECKING:
    from snpcerts.verify.evidence import Evidence
    from snpcerts.verify.sources import Given

_NAMES_OF_CERTIFICATES: Final = ("vcek", "vlek", "ask", "asvk", "ark", "crl", "cert_chain")
_FORMS: Final = (".der", ".pem", ".crt", ".cer", ".cert", ".p7b", ".p7c", ".crl")
_TABLES: Final = (".table", ".auxblob")
_OUTBLOB, _AUXBLOB = "outblob", "auxblob"
# An unrecognisable file with one of these extensions is not taken for a damaged report.
_OTHER: Final = (".json", ".md", ".txt", ".toml", ".log", ".request", ".key", ".sh", ".py", ".yaml")
MAX_FILES: Final = 1_000_000
# Limits for certificate files in one directory: their number, and their total bytes.
_MAX_SHELF: Final = 1000
_MAX_SHELF_SIZE: Final = 32 << 20
_HEAD: Final = 4096


class Sort(enum.Enum):
    """The kind of a file in a directory, by its first bytes or, for text, by its whole content."""

    EVIDENCE = "evidence"
    TABLE = "table"
    CERTIFICATES = "certificates"
    UNKNOWN = "unknown"
    TEXT = "text"
    OTHER = "other"


@dataclass(eq=False)
class Shelf:
    """The certificate files for some of the reports in a directory. They are read once, when first
    needed.
    """

    files: tuple[str, ...]
    _given: Given | None = field(default=None, repr=False)

    def given(self, *, beside_evidence: bool) -> Given:
        """Return all certificates and revocation lists in these files, as one source."""
        if self._given is None:
            self._given = _read_shelf(
                self.files, "the certificates beside the report", beside_evidence
            )
        return self._given


@dataclass(frozen=True, slots=True)
class EvidenceFiles:
    """One piece of evidence: a report, its table, and the files beside it."""

    report: str
    table: str | None = None
    beside: Shelf | None = None

    def read(self) -> Evidence:
        """Read the evidence. Raises :class:`InputError`, which names the file, if that fails."""
        from snpcerts.verify.evidence import MAX_FILE, Evidence

        data = read_input(self.report, limit=MAX_FILE)
        with _named(self.report):
            evidence = Evidence.from_bytes(data)
        if self.table is None:
            return evidence
        if evidence.table is not None:
            raise InputError(
                f"{self.report}: expected a report of {REPORT_SIZE} bytes without a table, "
                "found a report with a table",
                hint=f"omit {self.table}, because {self.report} already contains a table",
            )
        table = read_input(self.table, limit=MAX_SIZE)
        with _named(self.table):
            try:
                return evidence.with_table(table)
            except InputError as error:
                raise not_a_table(table) or error from None


def places(path: str) -> Iterator[EvidenceFiles]:
    """Yield each piece of evidence at ``path``, a file or a directory, in the order of file names.

    Raises :class:`InputError` for a directory without evidence.
    """
    if path == STANDARD_INPUT or not os.path.isdir(path):
        yield EvidenceFiles(path, _beside(path))
        return
    top = _scanned(path)
    inner = [_scanned(folder) for folder in top.folders]
    # Certificates in a subdirectory that has reports are used only for these reports. All other
    # certificates are used for every report.
    apart = tuple(file for each in inner if not each.reports for file in each.certificates)
    shared = (*top.certificates, *apart)
    found = False
    for each in (top, *inner):
        own = each.certificates if each is not top else ()
        files = (*own, *shared)
        shelf = Shelf(files) if files else None
        for report in each.reports:
            found = True
            yield EvidenceFiles(report, _beside(report), shelf)
    if not found:
        said = "; ".join((*top.others, *(other for each in inner for other in each.others)))
        raise InputError(
            f"{path}: expected a report in this directory, found "
            f"none{': ' if said else ''}{said[:400]}",
            hint="give a report, or a directory that contains one",
        )


def certificates(path: str) -> Given:
    """Return the certificates in one file, or in all files of a directory and of its
    subdirectories, whatever the files' names are.

    Raises :class:`InputError` if there is no such directory or file.
    """
    if not os.path.lexists(path):
        raise InputError(f"{path}: No such file or directory")
    if not os.path.isdir(path):
        given = _read_shelf((path,), f"--certs {path}", False)
        if given.problems:
            raise InputError(given.problems[0])
        return given
    names = _listed(path)
    files = [each for each in (os.path.join(path, name) for name in names) if os.path.isfile(each)]
    for folder in (os.path.join(path, name) for name in names):
        if os.path.isdir(folder):
            inside = (os.path.join(folder, name) for name in _listed(folder))
            files += (each for each in inside if os.path.isfile(each))
    # Files named like certificates come first, in case the limit is reached.
    files.sort(key=lambda each: not _named_as_certificate(os.path.basename(each)))
    return _read_shelf(tuple(files), f"--certs {path}", False)


def _read_shelf(files: tuple[str, ...], name: str, beside_evidence: bool) -> Given:
    from snpcerts.endorsement.bundle import read_bundle
    from snpcerts.endorsement.file_kind import kind_of
    from snpcerts.verify.collateral import Collateral, SuppliedCrl, Supplier
    from snpcerts.verify.sources import Given

    supplier = Supplier.EVIDENCE if beside_evidence else Supplier.CALLER
    others: dict[bytes, None] = {}
    lists: dict[bytes, SuppliedCrl] = {}
    problems: list[str] = []
    total = 0
    for path in files[:_MAX_SHELF]:
        base = os.path.basename(path)
        wanted = len(files) == 1 or _named_as_certificate(base)
        try:
            if not wanted and os.path.getsize(path) > INPUT_LIMIT:
                continue
            data = read_input(path)
        except (InputError, OSError) as error:
            if wanted:
                problems.append(error.message if isinstance(error, InputError) else str(error))
            continue
        total += len(data)
        if total > _MAX_SHELF_SIZE:
            problems.append(
                f"the files are larger than {_MAX_SHELF_SIZE} bytes in total; {base} and the "
                "files after it were not used"
            )
            break
        bundle = read_bundle(data)
        others.update(dict.fromkeys(bundle.certificates))
        for each in bundle.lists:
            # The file's name does not say whether the revocation list is for VCEKs or VLEKs.
            lists.setdefault(each, SuppliedCrl(each, None, supplier, path))
        if wanted and bundle.empty:
            kind = kind_of(data)
            what = bundle.others[0] if bundle.others else kind.name
            hint = f" ({kind.unwrap})" if kind.unwrap else ""
            problems.append(printable(f"{base} is {what}, not a certificate{hint}"))
    given = Collateral(others=tuple(others), lists=tuple(lists.values()))
    return Given(given, name=name, problems=tuple(problems))


def not_a_table(data: bytes) -> InputError | None:
    """Return an error that says what ``data`` is instead of a table; None if it may be a table."""
    from snpcerts.endorsement.bundle import read_bundle
    from snpcerts.endorsement.file_kind import kind_of, looks_like_table

    if looks_like_table(data):
        return None
    kind = kind_of(data)
    if not read_bundle(data).empty:
        name = kind.name if kind.known else "a certificate in DER"
        return InputError(
            f"found {name}, not a certificate table", hint="pass the certificate with --certs"
        )
    if not kind.known:
        return None
    return InputError(f"found {kind.name}, not a certificate table", hint=kind.unwrap)


@dataclass(frozen=True, slots=True)
class _Scan:
    """The paths in a directory, by kind of file. ``others`` names up to eight files that do
    not look like reports, for an error message.
    """

    reports: tuple[str, ...]
    certificates: tuple[str, ...]
    folders: tuple[str, ...]
    others: tuple[str, ...]


def _scanned(folder: str) -> _Scan:
    by_sort: dict[Sort, list[str]] = {sort: [] for sort in Sort}
    folders: list[str] = []
    for name in _listed(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            folders.append(path)
        else:
            by_sort[sort_of(path)].append(path)
    reports = list(by_sort[Sort.EVIDENCE])
    held = [*by_sort[Sort.CERTIFICATES], *by_sort[Sort.TABLE]]
    paired = {_beside(report) for report in reports}
    # Beside certificates and in a directory of configfs, files of an unknown kind are normal. In an
    # archive of reports, such a file may be a damaged report, so it is treated as evidence.
    archive = all(path in paired for path in held) and not any(
        os.path.basename(path) == _OUTBLOB for path in reports
    )
    for sort in (Sort.UNKNOWN, Sort.TEXT):
        for path in by_sort[sort]:
            name = os.path.basename(path)
            large = sort is Sort.UNKNOWN and _size(path) >= REPORT_SIZE
            if _named_as_certificate(name):
                held.append(path)
            elif _may_be_evidence(name) and (archive or large):
                reports.append(path)
    reports.sort()
    shelf = tuple(path for path in held if path not in paired)
    others = tuple(
        printable(os.path.basename(path))
        for path in (*by_sort[Sort.OTHER], *by_sort[Sort.TEXT], *held)[:8]
    )
    return _Scan(tuple(reports), shelf, tuple(folders), others)


def sort_of(path: str) -> Sort:
    """Determine the kind of a file from its content."""
    from snpcerts.verify.evidence import MAX_FILE

    try:
        with open(path, "rb", opener=_opener) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return Sort.OTHER
            head = file.read(_HEAD)
            if status.st_size <= _HEAD:
                return _sort_of(head, status.st_size)
            found = _sort_of(head, status.st_size)
            if found is not Sort.UNKNOWN or status.st_size > MAX_FILE:
                return found
            return _sort_of(head + file.read(MAX_FILE), status.st_size)
    except OSError:
        # The code that reads the file will report the problem.
        return Sort.UNKNOWN if os.path.lexists(path) else Sort.OTHER


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def _sort_of(data: bytes, size: int) -> Sort:
    """Return the kind of a file of ``size`` bytes. ``data`` is the whole file or its first
    bytes.
    """
    from snpcerts.endorsement.encoded_text import bytes_in, starts_like_json, text_of
    from snpcerts.endorsement.file_kind import kind_of, looks_like_report, looks_like_table

    if not data:
        return Sort.OTHER
    if looks_like_report(data) or _starts_as_evidence(data):
        return Sort.EVIDENCE
    if looks_like_table(data):
        return Sort.TABLE
    if data[:1] == b"\x30" and data[1:2] >= b"\x80":
        return Sort.CERTIFICATES
    if b"-----BEGIN " in data:
        return Sort.CERTIFICATES
    text = text_of(data)
    if text is None:
        kind = kind_of(data)
        return Sort.OTHER if kind.known else Sort.UNKNOWN
    if len(data) < size:
        return Sort.UNKNOWN
    if "-----BEGIN " in text:
        return Sort.CERTIFICATES
    if starts_like_json(text):
        return _sort_of_json(data)
    inner = bytes_in(text) if len(text) >= _LEAST_TEXT else None
    if inner is not None and len(inner) > _LEAST_TEXT // 2:
        found = _sort_of(inner, len(inner))
        # Any long text without punctuation could be base64.
        return found if found is not Sort.UNKNOWN else Sort.TEXT
    return Sort.OTHER if text.startswith("#!") else Sort.TEXT


_LEAST_TEXT: Final = 400


def _sort_of_json(data: bytes) -> Sort:
    from snpcerts.endorsement.bundle import read_bundle
    from snpcerts.verify.evidence import Evidence

    try:
        Evidence.from_bytes(data)
    except InputError:
        return Sort.OTHER if read_bundle(data).empty else Sort.CERTIFICATES
    return Sort.EVIDENCE


def _starts_as_evidence(data: bytes) -> bool:
    from snpcerts.verify import attestation_proto
    from snpcerts.verify.evidence import starts_in_binary_shape

    return starts_in_binary_shape(data) or (
        len(data) > REPORT_SIZE // 2 and attestation_proto.is_attestation(data)
    )


class _named:  # noqa: N801 (used as a statement)
    """A context manager that adds the name of a file to errors about the file's content."""

    def __init__(self, path: str) -> None:
        self._path = "standard input" if path == STANDARD_INPUT else path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InputError):
            raise InputError(f"{self._path}: {error.message}", hint=error.hint) from None


def _listed(folder: str) -> list[str]:
    names: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) > MAX_FILES:
                    raise InputError(
                        f"{folder}: expected at most {MAX_FILES} files in this directory, "
                        "found more"
                    )
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}") from None
    return sorted(name for name in names if not name.startswith("."))


def _named_as_certificate(name: str) -> bool:
    stem, suffix = os.path.splitext(name.lower())
    return suffix in _FORMS or stem in _NAMES_OF_CERTIFICATES


def _may_be_evidence(name: str) -> bool:
    stem, suffix = os.path.splitext(name)
    return not (suffix in (*_TABLES, *_FORMS, *_OTHER) or name == _AUXBLOB or stem == _AUXBLOB)


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.isfile(path) else 0


def _beside(path: str) -> str | None:
    """Return the path of the table beside a report; None if no such file exists or the file is
    empty.
    """
    folder, name = os.path.split(path)
    if name == _OUTBLOB:
        table = os.path.join(folder, _AUXBLOB)
        return table if _size(table) else None
    stem, _ = os.path.splitext(path)
    for table in (stem + form for form in _TABLES):
        if table != path and _size(table):
            return table
    return None
