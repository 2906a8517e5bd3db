# SPDX-License-Identifier: Apache-2.0
"""Temporary directories that are removed even if their owner is killed.

Each directory has a lease, which is a flock(2) lock on the directory itself. The kernel releases
the lock when the last process that holds it ends. Before a new directory is made, this user's
directories of the same kind that have no lease are removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from snpcerts.uninterrupted import uninterrupted

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SUFFIX = re.compile(r"[a-z0-9_]{8}\Z")  # what mkdtemp appends to the prefix
_TRIES: Final = 16


@dataclass(frozen=True, slots=True)
class TemporaryDirectory:
    """A directory of mode 0700, empty at first. ``lease`` is the file descriptor that holds the
    directory's lock.

    A process that inherits ``lease`` keeps the directory alive too.
    """

    path: Path
    lease: int

    @classmethod
    def make(cls, kind: str) -> Self:
        """Remove abandoned directories of this kind, then make ``snpcerts-KIND-...`` in the
        system's directory for temporary files.
        """
        prefix = f"snpcerts-{kind}-"
        remove_abandoned(prefix)
        for _ in range(_TRIES):
            with uninterrupted():
                path = Path(tempfile.mkdtemp(prefix=prefix))
                try:
                    lease = os.open(path, _DIRECTORY)
                except FileNotFoundError:
                    continue  # it was removed as abandoned before it was locked
                with contextlib.suppress(OSError):  # without locks, it is never removed later
                    fcntl.flock(lease, fcntl.LOCK_EX)
                if _is_at(lease, path):
                    return cls(path, lease)
                os.close(lease)
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), _place())

    def remove(self) -> None:
        """Remove the directory and its content, then release the lease."""
        with uninterrupted():
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self.lease)


@contextlib.contextmanager
def temporary_directory(kind: str) -> Iterator[Path]:
    """Yield a temporary directory, and remove it at the end of the block."""
    with contextlib.ExitStack() as stack:
        with uninterrupted():
            made = TemporaryDirectory.make(kind)
            stack.callback(made.remove)
        yield made.path


def remove_abandoned(prefix: str) -> None:
    """Remove this user's temporary directories whose names begin with ``prefix`` and that have no
    lease. Never raises OSError.
    """
    with contextlib.suppress(OSError), _opened(_place(), None) as parent:
        for name in os.listdir(parent):
            if name.startswith(prefix) and _SUFFIX.fullmatch(name[len(prefix) :]):
                with contextlib.suppress(OSError):
                    _remove_if_abandoned(parent, name)


def _place() -> str:
    """Return the directory for temporary files. The first call tests it by writing and removing a
    file.
    """
    with uninterrupted():
        return tempfile.gettempdir()


def _remove_if_abandoned(parent: int, name: str) -> None:
    with _opened(name, parent) as directory:
        if os.fstat(directory).st_uid != os.geteuid():
            return
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Hold the lock until the directory is removed. A process that has just created it waits for
        # the lock, then finds it removed and creates another.
        shutil.rmtree(name, ignore_errors=True, dir_fd=parent)


@contextlib.contextmanager
def _opened(path: str, parent: int | None) -> Iterator[int]:
    flags = _DIRECTORY if parent is not None else _DIRECTORY & ~os.O_NOFOLLOW
    descriptor = os.open(path, flags, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)
