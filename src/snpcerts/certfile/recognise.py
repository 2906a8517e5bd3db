# SPDX-License-Identifier: Apache-2.0
"""Tells certificate files from other files, so that an update whose path was mistyped does not
overwrite another file.

A certificate file is empty, or begins with the empty table, or is a table. A file with other
content is foreign, unless that path has been updated before. The turn file beside the path shows
that: every update creates it (:func:`snpcerts.certfile.writer.turn_of`), and nothing removes it.
"""

from __future__ import annotations

import contextlib
import os

from snpcerts.abi.cert_table import MAX_SIZE, CertTable
from snpcerts.certfile import reader, writer
from snpcerts.certfile.step import Performer
from snpcerts.certfile.system import perform as perform_on_system
from snpcerts.errors import FormatError, RefusedError


class ForeignFileError(RefusedError):
    """The file at the path is not a certificate file, and no earlier update wrote there."""

    code = "foreign-file"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"{path}: the file was not replaced: {why}",
            hint="check the path; --force replaces the file anyway",
        )
        self.path = path


def was_updated_before(path: str) -> bool:
    """Return whether the file at this path has been updated before."""
    try:
        return os.path.lexists(writer.turn_of(os.path.realpath(path)))
    except (OSError, ValueError):
        return False


def table_problem(data: bytes) -> str | None:
    """Return why ``data`` cannot be the content of a certificate file; None if it can be."""
    if not any(data[: writer.EMPTY_SIZE]):
        return None
    try:
        CertTable.decode(data)
    except FormatError as error:
        return error.message
    return None


def require_certificate_file(path: str, perform: Performer = perform_on_system) -> None:
    """Raise :class:`ForeignFileError` if an update would destroy a file of another kind.

    A file that cannot be read passes, because the update itself reports the error. A file under an
    exclusive lock passes too: it is being updated, so it is a certificate file.
    """
    found: list[reader.Found] = []
    with contextlib.suppress(OSError):
        perform(
            reader.serve(
                path,
                deliver=found.append,
                handshake=lambda: None,
                lock_wait=0,
                size_limit=MAX_SIZE,
            )
        )
    why: str | None = None
    match found:
        case [reader.Table(data)]:
            why = table_problem(data)
        case [reader.Unreadable(problem)] if _too_large(path):
            why = problem
    if why is not None and not was_updated_before(path):
        raise ForeignFileError(path, f"not a certificate file: {why}")


def _too_large(path: str) -> bool:
    try:
        return os.path.isfile(path) and os.stat(path).st_size > MAX_SIZE
    except OSError:
        return False
