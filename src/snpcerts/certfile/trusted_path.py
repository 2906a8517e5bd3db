# SPDX-License-Identifier: Apache-2.0
"""Resolves a path, following only symbolic links that trusted users own.

An update runs as root on files that VMMs read. The owner of a symbolic link on the path decides
which file root writes to, and a user who can write to a directory can put a link there. So
:func:`resolve` follows only links that belong to root or to the user of this process.
:func:`doubts` lists everything else that lets other users redirect the path.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from snpcerts.errors import InputError, RefusedError

_MOST_LINKS = 40  # the same limit as in Linux


@dataclass(frozen=True, slots=True)
class Doubt:
    """A directory or link through which another user could redirect the path.

    ``refused`` says whether updates refuse such a path.
    """

    place: str
    found: str
    refused: bool


def resolve(path: str) -> str:
    """Return the path with every symbolic link followed. Components that do not exist stay as they
    are.

    Raises :class:`RefusedError` for a link whose owner is neither root nor this process's user, and
    :class:`InputError` for a path with more than 40 links.
    """
    real = "/"
    for place, status, real_now in _steps(path):
        real = real_now
        if status is not None and stat.S_ISLNK(status.st_mode) and not _trusted(status.st_uid):
            raise RefusedError(
                (
                    f"{path}: {place} is a symbolic link that belongs to user "
                    f"{status.st_uid}, who could redirect the update to another file"
                ),
                hint="pass the path of the file itself, or recreate the link as root",
            )
    return real


def doubts(path: str) -> Iterator[Doubt]:
    """Yield the directories and links that other users control, on the path and on each link's
    target.

    The directory that contains the file is not checked here. Raises the same errors as
    :func:`resolve`.
    """
    seen: set[str] = set()
    folder = os.path.dirname(os.path.realpath(path))
    for place, status, _ in _steps(path):
        if status is None or place in seen:
            continue
        seen.add(place)
        owner = f"belongs to user {status.st_uid}"
        if stat.S_ISLNK(status.st_mode):
            if not _trusted(status.st_uid):
                yield Doubt(place, f"is a symbolic link that {owner}", True)
        elif stat.S_ISDIR(status.st_mode):
            if not _trusted(status.st_uid):
                yield Doubt(place, owner, False)
            elif (
                place != folder
                and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
                and not status.st_mode & stat.S_ISVTX
            ):
                mode = stat.S_IMODE(status.st_mode)
                yield Doubt(place, f"is writable by other users ({mode:04o})", False)


def _trusted(user: int) -> bool:
    return user in (0, os.geteuid())


def _steps(path: str) -> Iterator[tuple[str, os.stat_result | None, str]]:
    """Yield each component of the path from the root: its place, its status (None if missing), and
    the real path so far.
    """
    # Do not use abspath: it drops "x/..", which is wrong if x is a link.
    left = [part for part in os.path.join(os.getcwd(), path).split("/") if part][::-1]
    real, links = "/", 0
    yield "/", os.lstat("/"), "/"
    while left:
        part = left.pop()
        if part in (".", ".."):
            real = os.path.dirname(real) if part == ".." else real
            continue
        place = os.path.join(real, part)
        try:
            status = os.lstat(place)
        except (OSError, ValueError):
            yield place, None, os.path.join(place, *left[::-1])
            return
        if not stat.S_ISLNK(status.st_mode):
            real = place
            yield place, status, real
            continue
        links += 1
        if links > _MOST_LINKS:
            raise InputError(f"{path}: the path has more than {_MOST_LINKS} symbolic links")
        yield place, status, place
        target = os.readlink(place)
        left += [each for each in target.split("/") if each][::-1]
        if target.startswith("/"):
            real = "/"
    yield real, None, real
