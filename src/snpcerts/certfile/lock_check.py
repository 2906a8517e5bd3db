# SPDX-License-Identifier: Apache-2.0
"""Test whether OFD locks work on a file system, once for each file system.

Some network and user-space file systems refuse the lock, or grant it without
keeping other lockers out. Certificate files depend on locks, so an update
refuses to work on such a file system.
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
    """Raise :class:`InputError` unless OFD locks keep others out in ``directory``.

    The file system's device is remembered, so that the second call costs one
    stat. A directory that cannot be written to passes: the next write reports
    the error.
    """
    try:
        device = os.stat(directory).st_dev
        if device in _known_good:
            return
        with tempfile.NamedTemporaryFile(prefix=".snpcerts-lock-", dir=directory) as file:
            problem = _problem(file.fileno(), file.name)
    except OSError:
        return
    if problem is not None:
        raise InputError(
            f"{directory}: open-file-description locks do not work here: {problem}",
            hint="keep certificate files on a local file system such as ext4, xfs or tmpfs",
        )
    _known_good.add(device)


def _problem(first: int, name: str) -> str | None:
    try:
        fcntl.fcntl(first, F_OFD_SETLK, EXCLUSIVE)
    except OSError as error:
        return error.strerror
    second = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.fcntl(second, F_OFD_SETLK, SHARED)
    except OSError as error:
        return None if error.errno in (errno.EAGAIN, errno.EACCES) else error.strerror
    finally:
        os.close(second)
    return "a second lock was granted beside an exclusive one"
