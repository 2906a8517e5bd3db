# SPDX-License-Identifier: Apache-2.0
"""What the guests of a VMM do, as chosen by the command that starts the VMM."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from snpcerts.errors import InputError

BUSY_DELAY = 2.0  # seconds that Linux waits after BUSY, SNP_REQ_RETRY_DELAY
REQUESTS_MAX = 10_000_000
PAGES_MAX = 64
SECONDS_MAX = 3600.0


@dataclass(frozen=True, slots=True)
class GuestScript:
    """What a guest does: each vCPU requests ``requests`` extended reports, and then ends.

    With ``serve`` the guest instead stays up and serves programs that attach to it. ``pages`` is
    the size of the first request's buffer (None: four pages). ``pause`` and ``busy_delay`` are in
    seconds. ``outcomes`` is an absolute path; one JSON line is appended to it for each report.
    """

    requests: int = 1
    serve: bool = False
    pages: int | None = None
    pause: float = 0.0
    busy_delay: float = BUSY_DELAY
    outcomes: str | None = None

    @classmethod
    def from_json(cls, message: object) -> Self:
        """Return the script in ``message``, a result of :meth:`to_json`. Raises :class:`InputError`
        for anything else.
        """
        if not isinstance(message, dict):
            raise InputError("guest script: expected a JSON object")
        known = {field.name for field in fields(cls)}
        if unknown := set(message) - known:
            raise InputError(f"guest script: unknown key {sorted(unknown)[0]!r}")
        script = cls(**message)
        _check("requests", script.requests, int, REQUESTS_MAX)
        _check("pages", 0 if script.pages is None else script.pages, int, PAGES_MAX)
        _check("pause", script.pause, float, SECONDS_MAX)
        _check("busy_delay", script.busy_delay, float, SECONDS_MAX)
        if not isinstance(script.serve, bool):
            raise InputError("guest script: serve must be true or false")
        if script.outcomes is not None and not _is_absolute_path(script.outcomes):
            raise InputError("guest script: outcomes must be an absolute path")
        return script

    def to_json(self) -> dict[str, Any]:
        """Return the script as JSON values."""
        return asdict(self)


def _check(name: str, value: object, kind: type, limit: float) -> None:
    right = isinstance(value, int | float if kind is float else int) and not isinstance(value, bool)
    if not right or not 0 <= value <= limit:  # type: ignore[operator]  # right: it is a number
        raise InputError(f"{name} of the guest script: expected 0 to {limit}, found {value!r}")


def _is_absolute_path(value: object) -> bool:
    try:
        return isinstance(value, str) and os.path.isabs(value) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False
