# SPDX-License-Identifier: Apache-2.0
"""Tests whether OFD locks work on a file system.

Some network and user-space file systems refuse the lock, or grant it without excluding other
lockers. Certificate files depend on locks, so updates refuse to work on such a file system.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile

from snpcerts.abi.lock import EXCLUSIVE, F_OFD_SETLK, SHARED
from snpcerts.errors import InputError

_known_good: set[int] = set()


def require_working_locks(directory: str) -> None:
    """Raise :class:`InputError` unless OFD locks on files in ``directory`` exclude other processes.

    A file system on which locks work is remembered, so the next call for it costs one stat. A
    directory that cannot be written to passes, because the next write reports the error.
    """
    try:
        device = os.stat(directory).st_dev
        if device in _known_good:
            return
        problem = lock_problem(directory)
    except OSError:
        return
    if problem is not None:
        raise InputError(
            f"{directory}: open-file-description locks do not work here: {problem}",
            hint="put the certificate file on a local file system, such as ext4, xfs or tmpfs",
        )
    _known_good.add(device)


def lock_problem(directory: str) -> str | None:
    """Return why locks on files in ``directory`` do not work; None if they work.

    Test both directions on a temporary file: a shared lock while an exclusive one is held, and
    an exclusive lock while shared ones are held. Raises ``OSError`` if no file can be created.
    """
    with tempfile.NamedTemporaryFile(prefix=".snpcerts-lock-", dir=directory) as file:
        first = file.fileno()
        second = os.open(file.name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if not _locked(first, EXCLUSIVE):
                return "an exclusive lock was refused on an unlocked file"
            if _locked(second, SHARED):
                return "a second lock was granted alongside an exclusive one"
            if not (_locked(first, SHARED) and _locked(second, SHARED)):
                return "a second shared lock was refused"
            if _locked(first, EXCLUSIVE):
                return "an exclusive lock was granted alongside a shared one"
        except OSError as error:
            return error.strerror
        finally:
            os.close(second)
    return None


def _locked(fd: int, flock: bytes) -> bool:
    try:
        fcntl.fcntl(fd, F_OFD_SETLK, flock)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
