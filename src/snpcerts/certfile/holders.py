# SPDX-License-Identifier: Apache-2.0
"""Who holds a lock on a file, found in ``/proc``.

Source: proc_pid_fdinfo(5), proc_locks(5). The kernel does not say which process
owns an open-file-description lock, so every process's descriptors are looked
at. Without the right to look into another user's process, its locks stay
unnamed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

_COMMAND_LIMIT = 200


@dataclass(frozen=True, slots=True)
class Holder:
    """One process that holds a lock: its kind is ``OFDLCK``, ``POSIX`` or ``FLOCK``."""

    pid: int
    command: str
    kind: str
    exclusive: bool

    def __str__(self) -> str:
        mode = "exclusive" if self.exclusive else "shared"
        kinds = {"OFDLCK": "OFD", "POSIX": "POSIX", "FLOCK": "flock"}
        return f"pid {self.pid} ({self.command}, {mode} {kinds.get(self.kind, self.kind)} lock)"


def holders_of(path: str) -> tuple[Holder, ...]:
    """Every process seen to hold a lock on the file at ``path``, by process number."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    found: dict[tuple[int, str, bool], Holder] = {}
    for pid in _processes():
        for number in _descriptors(pid):
            for kind, exclusive in _locks(pid, number, (status.st_dev, status.st_ino)):
                found[pid, kind, exclusive] = Holder(pid, _command(pid), kind, exclusive)
    return tuple(found[key] for key in sorted(found))


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _descriptors(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/fd")
    except OSError:  # gone, or not ours to look at
        return []


def _locks(pid: int, number: str, identity: tuple[int, int]) -> Iterator[tuple[str, bool]]:
    """Kind and mode of each lock that a descriptor's description owns on the file."""
    try:
        # Stat, not the numbers in fdinfo: those are the super block's, which
        # on some file systems is not the device that a stat shows.
        status = os.stat(f"/proc/{pid}/fd/{number}")
        if (status.st_dev, status.st_ino) != identity:
            return
        with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        words = line.split()
        # lock: 1: OFDLCK ADVISORY WRITE -1 fe:00:2220772 0 EOF
        if len(words) >= 5 and words[0] == "lock:":
            yield words[2], words[4] == "WRITE"


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(_COMMAND_LIMIT).split(b"\0")
    except OSError:
        return "?"
    text = b" ".join(words).decode(errors="replace").strip()
    return "".join(char if char.isprintable() else "?" for char in text) or "?"
