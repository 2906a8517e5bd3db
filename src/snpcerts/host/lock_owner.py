# SPDX-License-Identifier: Apache-2.0
"""Who holds a certificate file's lock, in an operator's words: process, VM, since when.

Source: proc_pid_stat(5), proc_pid_cmdline(5). A VM's name is what its VMM's
command line says behind ``-name``, as QEMU's and libvirt's do.
"""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from snpcerts.certfile.holders import holders_of
from snpcerts.printable import printable

_COMMAND_LIMIT = 1 << 16
_START_FIELD = 22 - 3  # starttime, counted from the field after the command's name


@dataclass(frozen=True, slots=True)
class LockOwner:
    """One process that holds a lock."""

    pid: int
    command: str
    exclusive: bool
    vm: str | None
    started: datetime | None

    def __str__(self) -> str:
        parts = [f"pid {self.pid}", "exclusive" if self.exclusive else "shared", self.command]
        if self.vm is not None:
            parts.append(f"VM {self.vm}")
        if self.started is not None:
            parts.append(f"running since {self.started:%Y-%m-%d %H:%M:%SZ}")
        return ", ".join(parts)


def owners_of(path: str) -> tuple[LockOwner, ...]:
    """Every process seen to hold a lock on the file; without privileges, the user's own only."""
    return tuple(
        LockOwner(each.pid, each.command, each.exclusive, _vm(each.pid), _started(each.pid))
        for each in holders_of(path)
    )


def vm_name(words: list[str]) -> str | None:
    """The VM's name on a VMM's command line: ``-name web1`` or ``-name guest=web1,debug...``."""
    for word, value in itertools.pairwise(words):
        if word in ("-name", "--name"):
            options = dict(part.partition("=")[::2] for part in re.split(r"(?<!,),(?!,)", value))
            name = options.get("guest") or value.partition(",")[0]
            return printable(name.replace(",,", ","), 200)
    return None


def _vm(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            data = file.read(_COMMAND_LIMIT)
    except OSError:
        return None
    return vm_name([word.decode(errors="replace") for word in data.split(b"\0")])


def _started(pid: int) -> datetime | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command's name stands in parentheses and may hold any byte.
            fields = file.read(4096).rpartition(b")")[2].split()
        with open("/proc/stat", "rb") as file:
            boot = next(line for line in file if line.startswith(b"btime "))
    except (OSError, StopIteration):
        return None
    if len(fields) <= _START_FIELD:
        return None
    seconds = int(boot.split()[1]) + int(fields[_START_FIELD]) / os.sysconf("SC_CLK_TCK")
    return datetime.fromtimestamp(seconds, UTC)
