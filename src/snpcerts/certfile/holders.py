# SPDX-License-Identifier: Apache-2.0
"""Finds the processes that hold a lock on a file, from ``/proc``.

Source: proc_pid_fdinfo(5), proc_locks(5), proc_pid_stat(5). The kernel does not say which process
owns an open-file-description lock, so this module inspects the file descriptors of every process.
It cannot find the locks of a process that this user may not inspect. The kernel does not report how
long a lock has been held, only how long the process that holds it has run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final

from snpcerts.printable import printable

_COMMAND_LIMIT: Final = 1 << 16  # bytes of a command line that are read
_COMMAND_SHOWN: Final = 120  # characters of a command line that messages show
_FDINFO_LIMIT: Final = 1 << 16
_START_TIME: Final = 19  # index of field 22 of /proc/PID/stat among the fields after the command

KINDS: Final = {"OFDLCK": "OFD", "POSIX": "POSIX", "FLOCK": "flock"}


@dataclass(frozen=True, slots=True)
class Holder:
    """One process that holds a lock.

    ``kind`` is ``OFDLCK``, ``POSIX`` or ``FLOCK``. ``vm`` is the VM's name, if the process's
    command line is that of a VMM. ``since`` is when the process started.
    """

    pid: int
    command: str
    kind: str
    exclusive: bool
    vm: str | None = None
    since: datetime | None = None

    @property
    def blocks(self) -> bool:
        """Whether the lock conflicts with OFD locks. An flock(2) lock does not."""
        return self.kind != "FLOCK"

    def __str__(self) -> str:
        mode = "exclusive" if self.exclusive else "shared"
        parts = [self.command, f"{mode} {KINDS.get(self.kind, self.kind)} lock"]
        if self.vm is not None:
            parts.insert(1, f"VM {self.vm}")
        if self.since is not None:
            parts.append(f"running since {self.since:%Y-%m-%d %H:%M:%S} UTC")
        return f"pid {self.pid} ({', '.join(parts)})"


def blockers_of(path: str) -> tuple[str, ...]:
    """Return a description of each process whose lock on the file at ``path`` conflicts with OFD
    locks.
    """
    return tuple(str(each) for each in holders_of(path) if each.blocks)


def holders_of(path: str) -> tuple[Holder, ...]:
    """Return every process found to hold a lock on the file at ``path``, ordered by process ID."""
    return holders_of_each((path,))[0]


def holders_of_each(paths: Sequence[str]) -> list[tuple[Holder, ...]]:
    """Return the result of :func:`holders_of` for each path, inspecting every process only once."""
    wanted = [_identity(path) for path in paths]
    found: dict[tuple[int, int], dict[tuple[int, str, bool], Holder]] = {
        identity: {} for identity in wanted if identity is not None
    }
    for pid in _processes() if found else ():
        for number in _descriptors(pid):
            for identity, kind, exclusive in _locks_of(pid, number):
                if identity in found:
                    argv = _command_line(pid)
                    found[identity][pid, kind, exclusive] = Holder(
                        pid, _shown(argv), kind, exclusive, vm_named_in(argv), _started(pid)
                    )
    by_process = {
        identity: tuple(holders[key] for key in sorted(holders))
        for identity, holders in found.items()
    }
    return [() if identity is None else by_process[identity] for identity in wanted]


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def vm_named_in(argv: list[str]) -> str | None:
    """Return the VM's name from a VMM's command line: ``-name NAME``, ``-name guest=NAME,...``.

    As in QEMU, a doubled comma means one comma.
    """
    for option, value in pairwise(argv):
        if option in ("-name", "--name"):
            fields = re.split(r"(?<!,),(?!,)", value)
            named = [field.removeprefix("guest=") for field in fields if field.startswith("guest=")]
            name = named[0] if named else fields[0]
            return printable(name.replace(",,", ","), _COMMAND_SHOWN)
    return None


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _descriptors(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/fd")
    except OSError:  # the process has ended, or this user may not inspect it
        return []


def locks_through(
    pid: int, number: str | int, identity: tuple[int, int]
) -> Iterator[tuple[str, bool]]:
    """Yield the kind of each lock that descriptor ``number`` of process ``pid`` owns, and whether
    the lock is exclusive.

    ``identity`` is the file's device and inode. Yields nothing if the descriptor is closed or
    refers to another file.
    """
    for of, kind, exclusive in _locks_of(pid, number):
        if of == identity:
            yield kind, exclusive


def _locks_of(pid: int, number: str | int) -> Iterator[tuple[tuple[int, int], str, bool]]:
    """Yield each lock that the descriptor owns: the file's device and inode, the lock's kind, and
    whether it is exclusive.
    """
    try:
        with open(f"/proc/{pid}/fdinfo/{number}", "rb", buffering=0) as file:
            data = file.read(_FDINFO_LIMIT)
        if b"lock:" not in data:
            # A stat may hang on a network file system whose server is gone, so only descriptors
            # that own a lock are statted.
            return
        # Use stat, not the numbers in fdinfo. Those come from the super block's device, which
        # differs from stat's on some file systems.
        status = os.stat(f"/proc/{pid}/fd/{number}")
    except OSError:
        return
    for line in data.decode("ascii", errors="replace").splitlines():
        words = line.split()
        # lock: 1: OFDLCK ADVISORY WRITE -1 fe:00:2220772 0 EOF
        if len(words) >= 5 and words[0] == "lock:":
            yield (status.st_dev, status.st_ino), words[2], words[4] == "WRITE"


def _command_line(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            data = file.read(_COMMAND_LIMIT)
    except OSError:
        return []
    return [word.decode(errors="replace") for word in data.split(b"\0") if word]


def _shown(argv: list[str]) -> str:
    return printable(" ".join(argv)[:_COMMAND_SHOWN]) or "?"


def _started(pid: int) -> datetime | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        with open("/proc/stat", encoding="ascii") as file:
            booted = next(int(line.split()[1]) for line in file if line.startswith("btime "))
        ticks = int(fields[_START_TIME])
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    return datetime.fromtimestamp(booted + ticks / os.sysconf("SC_CLK_TCK"), UTC)
