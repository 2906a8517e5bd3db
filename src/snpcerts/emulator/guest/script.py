# SPDX-License-Identifier: Apache-2.0
"""What a VMM's guests do, as requested by the command that started the VMM."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, Self

from snpcerts.abi.cert_table import PAGE_SIZE, pages_of
from snpcerts.emulator.guest.linux import BUSY_DELAY, LinuxGuest
from snpcerts.emulator.guest.program import Guest, LaunchedVm
from snpcerts.emulator.guest.scripted import ReportOutcome, ScriptedGuest
from snpcerts.errors import InputError

log = logging.getLogger(__name__)

REQUESTS_MAX = 10_000_000
PAGES_MAX = 64
SECONDS_MAX = 3600.0


@dataclass(frozen=True, slots=True)
class GuestScript:
    """Make ``requests`` extended reports on every vCPU, then end the vCPU.

    With ``serve`` the guest stays up instead and serves programs that attach to
    it. ``pages`` is the buffer of the first request (None: four pages),
    ``pause`` and ``busy_delay`` are seconds. ``outcomes`` is an absolute path to
    which a JSON line is appended for each report.
    """

    requests: int = 1
    serve: bool = False
    pages: int | None = None
    pause: float = 0.0
    busy_delay: float = BUSY_DELAY
    outcomes: str | None = None

    @classmethod
    def from_json(cls, message: object) -> Self:
        """Read what :meth:`to_json` wrote; :class:`InputError` for anything else."""
        if not isinstance(message, dict):
            raise InputError("guest script: expected an object")
        known = {field.name for field in fields(cls)}
        if unknown := set(message) - known:
            raise InputError(f"guest script: unknown key {sorted(unknown)[0]!r}")
        script = cls(**message)
        _check("requests", script.requests, int, REQUESTS_MAX)
        _check("pages", 0 if script.pages is None else script.pages, int, PAGES_MAX)
        _check("pause", script.pause, float, SECONDS_MAX)
        _check("busy_delay", script.busy_delay, float, SECONDS_MAX)
        if not isinstance(script.serve, bool):
            raise InputError("guest script: serve is not true or false")
        if script.outcomes is not None and not _is_absolute_path(script.outcomes):
            raise InputError("guest script: outcomes is not an absolute path")
        return script

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


class ScriptedGuests:
    """Creates the guests of the VMMs that one command starts.

    A VMM may reset its machine when the guest shuts down, and build the VM again. So the reports
    are counted for each process, and the guest of a machine that comes after the last report asks
    the process to end (SIGTERM).
    """

    def __init__(self, script: GuestScript) -> None:
        self._script = script
        self._made: dict[int, dict[int, int]] = {}  # by process, then by vCPU

    def __call__(self, vm: LaunchedVm) -> Guest:
        """Return the guest for one VM."""
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
            made=self._made.setdefault(vm.owner, {}),
            when_done=partial(_end, vm.owner),
        )


def _end(process: int) -> None:
    log.info("process %d has reset its machine after the last report: SIGTERM", process)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, signal.SIGTERM)


def _check(name: str, value: object, kind: type, limit: float) -> None:
    right = isinstance(value, int | float if kind is float else int) and not isinstance(value, bool)
    if not right or not 0 <= value <= limit:  # type: ignore[operator]  # a number by the line above
        raise InputError(f"guest script: {name} is {value!r}, expected 0 to {limit}")


def _is_absolute_path(value: object) -> bool:
    try:
        return isinstance(value, str) and os.path.isabs(value) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _without_empty_pages(table: bytes) -> bytes:
    # Whole pages, because a certificate may end in a zero byte; the empty table has one page.
    return table[: max(1, pages_of(len(table.rstrip(b"\0")))) * PAGE_SIZE]


def _open_at_once(path: str, flags: int) -> int:
    """Open without blocking: a pipe without a reader is an error and must not stop the machine."""
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
            "ended": time.monotonic(),
            "report": base64.b64encode(outcome.report).decode(),
            "table": base64.b64encode(_without_empty_pages(outcome.table)).decode(),
        }
        try:
            with open(path, "a", encoding="ascii", opener=_open_at_once) as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            log.warning("%s: outcome not written: %s", path, error.strerror)

    return tell
