# SPDX-License-Identifier: Apache-2.0
"""Finds the process that handles the signal that asks the VMM to stop.

It is the process that runs the vCPUs, or one of its ancestors: a VMM may have a control process
that handles the signal, while the vCPUs' process blocks or ignores it.

Sources: proc_pid_status(5), proc_pid_syscall(5), proc_pid_fdinfo(5) of a signalfd. Number of
rt_sigtimedwait(2): Linux ``asm/unistd_64.h``.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from snpcerts.emulator.syscall.caller_memory import ProcessMemory

_RT_SIGTIMEDWAIT: Final = 128
_SIGSET_SIZE: Final = 8  # bytes


def receiver_of(number: signal.Signals, runner: int, processes: list[int]) -> int:
    """Return the process to send ``number`` to: ``runner``, unless it blocks or ignores the signal
    and one of its ancestors in ``processes`` handles the signal.
    """
    if _handles(runner, number) or not _puts_off(runner, number):
        return runner
    above = (each for each in _parents(runner) if each in processes)
    return next((each for each in above if _handles(each, number)), runner)


def may_handle(number: signal.Signals, process: int) -> bool:
    """Whether ``process`` handles the signal now, or blocks it and so may handle it later.

    Such a process can stop its vCPUs first. Any other process ends at once, or ignores the signal.
    """
    blocks = any(mask & _bit(number) for mask in _masks(process, "SigBlk"))
    return blocks or _handles(process, number)


def _handles(process: int, number: signal.Signals) -> bool:
    """Whether the process catches the signal, waits for it, or reads it from a signalfd."""
    caught = (
        handled & ~blocked
        for handled, blocked in zip(
            _masks(process, "SigCgt"), _masks(process, "SigBlk"), strict=False
        )
    )
    found = (*caught, *_awaited(process), *_from_signalfd(process))
    return any(mask & _bit(number) for mask in found)


def _puts_off(process: int, number: signal.Signals) -> bool:
    """Whether the process ignores the signal, or blocks it in every thread."""
    ignored = any(mask & _bit(number) for mask in _masks(process, "SigIgn"))
    return ignored or all(mask & _bit(number) for mask in _masks(process, "SigBlk"))


def _bit(number: signal.Signals) -> int:
    return 1 << (number - 1)


def _masks(process: int, name: str) -> list[int]:
    """Return the mask ``name`` of each thread."""
    found = []
    for thread in _threads(process):
        with contextlib.suppress(OSError):
            text = (thread / "status").read_text("ascii", errors="replace")
            found += re.findall(rf"^{name}:\s*([0-9a-f]+)", text, re.MULTILINE)
    return [int(mask, 16) for mask in found]


def _threads(process: int) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(Path(f"/proc/{process}/task").iterdir())
    return []


def _awaited(process: int) -> Iterator[int]:
    """Yield the masks of signals that threads wait for, with sigwait(3) and the like."""
    for thread in _threads(process):
        with contextlib.suppress(OSError, ValueError, IndexError):
            words = (thread / "syscall").read_text("ascii").split()
            if int(words[0]) == _RT_SIGTIMEDWAIT:
                data = ProcessMemory(process).read(int(words[1], 16), _SIGSET_SIZE)
                yield int.from_bytes(data, "little")


def _from_signalfd(process: int) -> Iterator[int]:
    """Yield the masks of the process's signalfds."""
    for number in _descriptors(process):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{process}/fdinfo/{number}").read_text("ascii", errors="replace")
            found = re.search(r"^sigmask:\s*([0-9a-f]+)", text, re.MULTILINE)
            if found is not None:
                yield int(found[1], 16)


def _descriptors(process: int) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(f"/proc/{process}/fd")
    return []


def _parents(process: int) -> Iterator[int]:
    """Yield the process's parent, that one's parent, and so on."""
    while True:
        try:
            stat = Path(f"/proc/{process}/stat").read_bytes()
            process = int(stat.rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return
        if process <= 1:
            return
        yield process
