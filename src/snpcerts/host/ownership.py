# SPDX-License-Identifier: Apache-2.0
"""Sets the group and mode of a certificate file, which determine who may read it.

A user who can read the file can hold a shared lock on it and block updates. So only the VMMs' group
may read the file.
"""

from __future__ import annotations

import grp
import os
import stat

from snpcerts.certfile import trusted_path
from snpcerts.certfile.writer import old_of
from snpcerts.errors import InputError, RefusedError
from snpcerts.host.config import FileConfig


def group_of(file: FileConfig) -> int | None:
    """Return the ID of the configured group; None if the file keeps its present group.

    Raises :class:`InputError` if there is no such group.
    """
    if file.group is None:
        return None
    try:
        return grp.getgrnam(file.group).gr_gid
    except KeyError:
        raise InputError(
            f"{file.path}: there is no group {file.group!r} on this host",
            hint="set the file's group to the group that the VMMs run in",
        ) from None


def differences(file: FileConfig) -> tuple[str, ...]:
    """Return how the file's group and mode differ from the configuration. Raises ``OSError``."""
    status = os.stat(file.path)
    found: list[str] = []
    if group_of(file) not in (None, status.st_gid):
        found.append(f"the group is {_group_name(status.st_gid)}, but should be {file.group}")
    if file.mode is not None and stat.S_IMODE(status.st_mode) != file.mode:
        found.append(
            f"the mode is {stat.S_IMODE(status.st_mode):04o}, but should be {file.mode:04o}"
        )
    return tuple(found)


def apply(file: FileConfig) -> None:
    """Set the file's group and mode, which updates preserve.

    Raises :class:`RefusedError` if that is not permitted, and the errors of :func:`group_of`.
    """
    group = group_of(file)
    path = trusted_path.resolve(file.path)
    try:
        # Use a descriptor, because another file may be at the path a moment later.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > _names_of(path, status):
                raise RefusedError(
                    (
                        f"{file.path}: not a regular file with a single name, so its group "
                        "and mode were left unchanged"
                    ),
                    hint="find out which other program uses this directory, and stop it",
                )
            if group is not None and status.st_gid != group:
                os.fchown(fd, -1, group)
            if file.mode is not None and stat.S_IMODE(status.st_mode) != file.mode:
                os.fchmod(fd, file.mode)
        finally:
            os.close(fd)
    except OSError as error:
        raise RefusedError(
            f"cannot set the group and mode of {file.path}: {error.strerror}",
            hint="run this as root",
        ) from None


def _names_of(path: str, status: os.stat_result) -> int:
    """Return how many names (hard links) the file may have: two if an update was killed, otherwise
    one.
    """
    try:
        old = os.lstat(old_of(path))
    except FileNotFoundError:
        return 1
    return 1 + ((old.st_dev, old.st_ino) == (status.st_dev, status.st_ino))


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
