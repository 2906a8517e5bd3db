# SPDX-License-Identifier: Apache-2.0
"""Where evidence lies in files, and what belongs together.

A file is a report, a report with its table right behind it, an HCL report or a
protocol buffer. A table may also lie beside it: ``host.bin`` and ``host.table``,
``outblob`` and ``auxblob``. A directory with one report and certificates by name
(``vcek.pem``, ``ask.pem``...), as snpguest leaves them, is one piece of evidence;
any other directory is searched, one level deep, for as many as it has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from snpcerts.abi.cert_table import MAX_SIZE
from snpcerts.abi.report import REPORT_SIZE
from snpcerts.cli.files import read_input
from snpcerts.errors import InputError, UsageError

if TYPE_CHECKING:
    from snpcerts.verify.evidence import Evidence
    from snpcerts.verify.sources import Given

# Certificates of one directory, by the name of their file.
SLOTS = ("vcek", "vlek", "ask", "asvk", "ark", "crl")
CHAIN = "cert_chain"
_FORMS = (".der", ".pem")
_TABLES = (".table", ".auxblob")
_OUTBLOB, _AUXBLOB = "outblob", "auxblob"
# What lies beside evidence and is none.
_OTHER = (".json", ".md", ".txt", ".toml", ".log", ".request", ".crt", ".cer", ".crl", ".key")
MAX_FILES = 1_000_000


@dataclass(frozen=True, slots=True)
class EvidenceFiles:
    """One piece of evidence on disk: its report, its table, its certificates' directory."""

    report: str
    table: str | None = None
    certificates: str | None = None

    def read(self) -> Evidence:
        """The evidence; :class:`InputError` naming the file for what cannot be read."""
        from snpcerts.verify.evidence import MAX_EVIDENCE, Evidence

        data = read_input(self.report, limit=MAX_EVIDENCE)
        with _named(self.report):
            evidence = Evidence.from_bytes(data)
        if self.table is None:
            return evidence
        if evidence.table is not None:
            raise InputError(
                f"{self.report}: must be {REPORT_SIZE} bytes, found {len(data)}",
                hint=f"there is a table behind it and another in {self.table}",
            )
        table = read_input(self.table, limit=MAX_SIZE)
        with _named(self.table):
            return Evidence.from_parts(evidence.report, table)


def places(path: str) -> Iterator[EvidenceFiles]:
    """The evidence at ``path``, a file or a directory, in order of names.

    Raises :class:`InputError` for a directory that holds none.
    """
    if not os.path.isdir(path):
        yield EvidenceFiles(path, _beside(path))
        return
    names = _listed(path)
    one = _one(path, names)
    if one is not None:
        yield one
        return
    found = False
    for name in names:
        below = os.path.join(path, name)
        if os.path.isdir(below):
            inner = _one(below, _listed(below))
            if inner is not None:
                found = True
                yield inner
        elif _may_be_evidence(name):
            found = True
            yield EvidenceFiles(below, _beside(below))
    if not found:
        raise InputError(f"{path}: the directory holds no evidence", hint="name a report")


def certificates(folder: str, *, beside_evidence: bool = False) -> Given:
    """The certificates of a directory, by name; :class:`InputError` when it is none.

    Those that lie beside evidence are the word of whoever sent it.
    """
    from snpcerts.verify.collateral import Collateral, SuppliedCrl, Supplier
    from snpcerts.verify.sources import Given

    if not os.path.isdir(folder):
        problem = "is not a directory" if os.path.lexists(folder) else "No such file or directory"
        raise InputError(f"{folder}: {problem}")
    found = {slot: certificate(folder, slot) for slot in SLOTS}
    chain = certificate(folder, CHAIN)
    if chain is not None:
        intermediate, root = _split_chain(os.path.join(folder, CHAIN), chain)
        # As the key server sends it, a chain is of VCEKs or of VLEKs and does not say which.
        found["ask"] = found["ask"] or intermediate
        found["ark"] = found["ark"] or root
    asvk, crl = found.pop("asvk"), found.pop("crl")
    lists: tuple[SuppliedCrl, ...] = ()
    if crl is not None:
        supplier = Supplier.EVIDENCE if beside_evidence else Supplier.CALLER
        # Its name does not say whether it is for VCEKs or VLEKs.
        lists = (SuppliedCrl(crl, None, supplier, f"crl in {folder}"),)
    given = Collateral(**found, lists=lists)
    if given.ask is None and asvk is not None:
        given = replace(given, ask=asvk)
    return Given(given, asvk)


def certificate(folder: str, name: str) -> bytes | None:
    """The file ``name.der`` or ``name.pem``; :class:`UsageError` when both are there."""
    paths = [os.path.join(folder, name + form) for form in _FORMS]
    there = [path for path in paths if os.path.lexists(path)]
    if len(there) > 1:
        raise UsageError(f"{there[0]} and {there[1]}: keep one of them")
    return read_input(there[0]) if there else None


class _named:  # noqa: N801 (used as a statement)
    """Put the file's name in front of what is wrong with its content."""

    def __init__(self, path: str) -> None:
        self._path = path

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
                    raise InputError(f"{folder}: more than {MAX_FILES} files")
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}") from None
    return sorted(name for name in names if not name.startswith("."))


def _one(folder: str, names: list[str]) -> EvidenceFiles | None:
    """The directory as one piece of evidence, where it is one."""
    if _OUTBLOB in names:
        table = os.path.join(folder, _AUXBLOB) if _filled(folder, _AUXBLOB) else None
        return EvidenceFiles(os.path.join(folder, _OUTBLOB), table, folder)
    if not any(slot + form in names for slot in SLOTS for form in _FORMS):
        return None
    reports = [
        name for name in names if _may_be_evidence(name) and _size(folder, name) >= REPORT_SIZE
    ]
    if len(reports) != 1:
        return None
    report = os.path.join(folder, reports[0])
    return EvidenceFiles(report, _beside(report), folder)


def _may_be_evidence(name: str) -> bool:
    stem, suffix = os.path.splitext(name)
    return not (suffix in (*_TABLES, *_FORMS, *_OTHER) or name == _AUXBLOB or stem == _AUXBLOB)


def _filled(folder: str, name: str) -> bool:
    return _size(folder, name) > 0


def _size(folder: str, name: str) -> int:
    path = os.path.join(folder, name)
    return os.path.getsize(path) if os.path.isfile(path) else 0


def _beside(path: str) -> str | None:
    """The table that lies beside a report, if there is one that is not empty."""
    folder, name = os.path.split(path)
    if name == _OUTBLOB:
        return os.path.join(folder, _AUXBLOB) if _filled(folder, _AUXBLOB) else None
    stem, _ = os.path.splitext(path)
    for table in (stem + form for form in _TABLES):
        if table != path and os.path.isfile(table) and os.path.getsize(table):
            return table
    return None


def _split_chain(path: str, data: bytes) -> tuple[bytes, bytes]:
    """(intermediate, root) of a chain as the key server sends it: PEM, the intermediate first."""
    mark = b"-----END CERTIFICATE-----"
    first, found, rest = data.partition(mark)
    if not found or mark not in rest:
        raise InputError(f"{path}: is not a chain of two PEM certificates")
    return first + mark, rest
