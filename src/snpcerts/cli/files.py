# SPDX-License-Identifier: Apache-2.0
"""Reads a command's input files and writes its output files. Errors name the file."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import tempfile
from datetime import UTC, datetime
from io import FileIO

from snpcerts.certfile.trusted_path import resolve
from snpcerts.errors import InputError, RefusedError
from snpcerts.file_date import written_at

INPUT_LIMIT = 1 << 20
STANDARD_INPUT = "-"
_PART = 1 << 16
# Time limit for the first data from a named pipe, in milliseconds
WAIT_FOR_DATA = 5000


def read_input(path: str, *, limit: int = INPUT_LIMIT) -> bytes:
    """Read 1 to ``limit`` bytes from a file, a pipe or standard input (``-``).

    Raises :class:`InputError`, which names the path, for anything else.
    """
    return read_dated_input(path, limit=limit)[0]


def read_dated_input(path: str, *, limit: int = INPUT_LIMIT) -> tuple[bytes, datetime]:
    """Read a file as :func:`read_input` does. Return its bytes and its modification time (UTC)."""
    if path == STANDARD_INPUT:
        return _read_stream(0, "standard input", limit), datetime.now(UTC)
    try:
        # Open without blocking, so that opening a FIFO does not wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {_reason(error)}") from None
    try:
        status = os.fstat(fd)
        if stat.S_ISFIFO(status.st_mode):
            return _read_stream(fd, path, limit), datetime.now(UTC)
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "another kind of file"
            raise InputError(
                f"{path}: expected a regular file, found {kind}", hint="give the path of a file"
            )
        with open(fd, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{path}: {_reason(error)}") from None
    finally:
        os.close(fd)
    _check_size(path, data, limit)
    return data, written_at(status.st_mtime)


def _read_stream(fd: int, name: str, limit: int) -> bytes:
    """Read a stream to its end.

    Raises :class:`InputError` at once for a terminal, and after :data:`WAIT_FOR_DATA` for a named
    pipe to which no process has written by then.
    """
    if os.isatty(fd):
        raise InputError(
            f"cannot read {name}: it is a terminal",
            hint="redirect a file to standard input, as in snpcerts verify - < report.bin",
        )
    data = bytearray()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    try:
        while len(data) <= limit:
            # While there is no writer, poll waits; a read would return the end of the file.
            if not poll.poll(None if data or fd == 0 else WAIT_FOR_DATA):
                break
            try:
                part = os.read(fd, min(limit + 1 - len(data), _PART))
            except BlockingIOError:
                continue
            if not part:
                break
            data += part
    except OSError as error:
        raise InputError(f"{name}: {_reason(error)}") from None
    _check_size(name, data, limit)
    return bytes(data)


def _check_size(name: str, data: bytes | bytearray, limit: int) -> None:
    if not data:
        raise InputError(f"{name} is empty")
    if len(data) > limit:
        raise InputError(f"{name} is larger than {limit} bytes")


def write_output(path: str, data: bytes) -> None:
    """Atomically replace the file at ``path`` with ``data``.

    A pipe or a character device (``/dev/null``, ``/dev/stdout``) is written to and not replaced.
    Links are followed if they belong to root or this user. If writing fails, this raises
    :class:`RefusedError`, which names the path, and leaves nothing behind.
    """
    try:
        # Replace a link's target, not the link (as with /dev/stdout, redirected to a file).
        path_of_file = resolve(path)
        if _is_stream(path):
            with open(path, "wb", buffering=0) as stream:
                stream.write(data)
            return
        folder = os.path.dirname(path_of_file)
        fd, temporary = tempfile.mkstemp(prefix=".snpcerts-", dir=folder)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                os.fchmod(fd, 0o666 & ~_umask())
            os.replace(temporary, path_of_file)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    except (OSError, ValueError) as error:
        raise RefusedError(f"cannot write {path}: {_reason(error)}") from None


def open_output(path: str) -> FileIO:
    """Open a file for unbuffered writing while a command runs. An existing file is emptied.

    Links are followed if they belong to root or this user. Raises :class:`RefusedError`.
    """
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        return open(os.open(resolve(path), flags, 0o666), "wb", buffering=0)
    except (OSError, ValueError) as error:
        raise RefusedError(f"cannot write {path}: {_reason(error)}") from None


def check_output(path: str) -> None:
    """Raise the error that :func:`write_output` would raise for ``path``. Write nothing."""
    try:
        path_of_file = resolve(path)
        if not _is_stream(path):
            with tempfile.TemporaryFile(dir=os.path.dirname(path_of_file)):
                pass
    except (OSError, ValueError) as error:
        raise RefusedError(f"cannot write {path}: {_reason(error)}") from None


def _is_stream(path: str) -> bool:
    """Return whether the file at ``path`` must be written to in place instead of replaced.

    Raises ``OSError`` or ``ValueError`` if it can be neither written to nor replaced.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
        return True
    if not stat.S_ISREG(mode):
        raise ValueError("not a regular file")
    return False


def make_directory(path: str) -> None:
    """Create the directory ``path`` if it does not exist."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise RefusedError(f"cannot create the directory {path}: {_reason(error)}") from None


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)
