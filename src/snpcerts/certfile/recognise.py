# SPDX-License-Identifier: Apache-2.0
"""Is this a certificate file, or someone's file at a mistyped path?

A certificate file is empty, or begins with the empty table, or is a table. Any
other content is taken for a stranger's, unless an update has been made at that
path before: the writers' turn file beside it says so, and stays for good.
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
    """The file at the path is no certificate table and never was one of ours."""

    code = "foreign-file"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"{path}: is left as it is: {why}",
            hint="is the path right? --force replaces the file all the same",
        )
        self.path = path


def was_ours(path: str) -> bool:
    """Whether an update has been made at this path before."""
    try:
        return os.path.lexists(writer.turn_of(os.path.realpath(path)))
    except (OSError, ValueError):
        return False


def no_table(data: bytes) -> str | None:
    """What keeps ``data`` from being the content of a certificate file; None where nothing does."""
    if not any(data[: writer.EMPTY_SIZE]):
        return None
    try:
        CertTable.decode(data)
    except FormatError as error:
        return error.message
    return None


def require_certificate_file(path: str, perform: Performer = perform_on_system) -> None:
    """Raise :class:`ForeignFileError` where an update would destroy a stranger's file.

    What cannot be read is not judged: the update itself says what is the matter
    with it. A file under an exclusive lock is being updated, so it is ours.
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
            why = _is_none(no_table(data))
        case [reader.Unreadable(problem)] if _too_large(path):
            why = _is_none(problem)
    if why is not None and not was_ours(path):
        raise ForeignFileError(path, why)


def _is_none(why: str | None) -> str | None:
    return None if why is None else f"is no certificate file: {why}"


def _too_large(path: str) -> bool:
    try:
        return os.path.isfile(path) and os.stat(path).st_size > MAX_SIZE
    except OSError:
        return False
