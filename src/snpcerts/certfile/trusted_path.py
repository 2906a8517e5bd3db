# SPDX-License-Identifier: Apache-2.0
"""Follow a path only where those lead who are trusted with it.

An update runs as root on files that VMMs read. Whoever owns a symbolic link on
the way decides which file root writes to, and whoever may write to a directory
may put a link there. So links are followed that root or the user of this
process has made, and no others; what else can be wrong on the way is told by
:func:`doubts`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from snpcerts.errors import InputError, RefusedError

_MOST_LINKS = 40  # as many as Linux follows


@dataclass(frozen=True, slots=True)
class Doubt:
    """Someone else may decide where the path leads; ``refused`` by updates."""

    place: str
    found: str
    refused: bool


def resolve(path: str) -> str:
    """The path with every symbolic link followed; what is missing at its end stays as written.

    Raises :class:`RefusedError` for a link of someone who is neither root nor
    this process's user, and :class:`InputError` for links in a circle.
    """
    real = "/"
    for place, status, real_now in _steps(path):
        real = real_now
        if status is not None and stat.S_ISLNK(status.st_mode) and not _trusted(status.st_uid):
            raise RefusedError(
                f"{path}: {place} is a symbolic link of user {status.st_uid}, "
                "who would decide which file is written to",
                hint="name the file itself, or make the link as root",
            )
    return real


def doubts(path: str) -> Iterator[Doubt]:
    """Directories and links on the way, as written and behind every link, that others control.

    The directory that holds the file is not judged here. Raises as :func:`resolve`.
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
                yield Doubt(place, f"others than its owner may write to it ({mode:04o})", False)


def _trusted(user: int) -> bool:
    return user in (0, os.geteuid())


def _steps(path: str) -> Iterator[tuple[str, os.stat_result | None, str]]:
    """Each place on the way from the root, what it is (None: missing), the real path so far."""
    # Not abspath, which takes x/.. for nothing: it is something where x is a link.
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
            raise InputError(f"{path}: more than {_MOST_LINKS} symbolic links on the way")
        yield place, status, place
        target = os.readlink(place)
        left += [each for each in target.split("/") if each][::-1]
        if target.startswith("/"):
            real = "/"
    yield real, None, real
