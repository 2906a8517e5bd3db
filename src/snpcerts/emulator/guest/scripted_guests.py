# SPDX-License-Identifier: Apache-2.0
"""Creates guests that follow a script, and records the outcomes of their requests."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import signal
from collections.abc import Callable
from functools import partial

from snpcerts.abi.cert_table import PAGE_SIZE, pages_of
from snpcerts.emulator.guest.linux import LinuxGuest
from snpcerts.emulator.guest.program import Guest, LaunchedVm
from snpcerts.emulator.guest.script import GuestScript
from snpcerts.emulator.guest.scripted import ReportOutcome, ScriptedGuest

log = logging.getLogger(__name__)


class ScriptedGuests:
    """Creates guests for all VMs of the VMMs that one command starts.

    When the guest shuts down, a VMM may reset its machine and build the VM again. So reports are
    counted per VMM process, not per VM. A guest that starts after the last report sends SIGTERM to
    its VMM process.
    """

    def __init__(self, script: GuestScript) -> None:
        self._script = script
        self._made: dict[int, dict[int, int]] = {}  # by VMM process, then by vCPU

    def __call__(self, vm: LaunchedVm) -> Guest:
        """Return a new guest for ``vm``."""
        script = self._script
        if script.serve:
            return LinuxGuest(vm, busy_delay=script.busy_delay)
        return ScriptedGuest(
            vm,
            reports=script.requests,
            first_pages=script.pages,
            pause=script.pause,
            busy_delay=script.busy_delay,
            on_report=_teller(vm.name, script.outcomes),
            made=self._made.setdefault(vm.creator, {}),
            when_done=partial(_end, vm.creator),
        )


def _end(process: int) -> None:
    log.info(("process %d reset its machine after the last report; sending SIGTERM"), process)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, signal.SIGTERM)


def _without_empty_pages(table: bytes) -> bytes:
    # Keep whole pages: a certificate may end in a zero byte. The empty table takes one page.
    return table[: max(1, pages_of(len(table.rstrip(b"\0")))) * PAGE_SIZE]


def _open_at_once(path: str, flags: int) -> int:
    """Open ``path``. A named pipe without a reader is an error, because waiting for a reader would
    stop the emulator.
    """
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


def _teller(vm: str, path: str | None) -> Callable[[ReportOutcome], None]:
    def tell(outcome: ReportOutcome) -> None:
        if path is None:
            return
        line = {
            "vm": vm,
            "vcpu": outcome.vcpu,
            "number": outcome.number,
            "errno": outcome.errno,
            "exitinfo2": outcome.exitinfo2,
            "tries": outcome.tries,
            "seconds": round(outcome.seconds, 6),
            "ended": outcome.ended,
            "report": base64.b64encode(outcome.report).decode(),
            "table": base64.b64encode(_without_empty_pages(outcome.table)).decode(),
        }
        try:
            with open(path, "a", encoding="ascii", opener=_open_at_once) as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            log.warning("%s: cannot write the outcome: %s", path, error.strerror)

    return tell
