# SPDX-License-Identifier: Apache-2.0
"""What all processes of a host know about one key server: when it may be asked again, and what
failed.

All times are those of :class:`snpcerts.kds.clock.Clock`, in seconds. In the file, they are relative
to the time of writing, which is stored both by that clock and as time of day. The clock's time is
right until the machine reboots, even if the time of day is set. The time of day is used after a
reboot. Nothing in the file can delay a request for more than an hour.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from snpcerts.kds.clock import Clock
from snpcerts.kds.errors import KdsNotFoundError, KdsUnavailableError, KdsUntrustedError
from snpcerts.kds.retry import MAX_GAP, MAX_RETRY_AFTER
from snpcerts.printable import printable

MAX_SIZE: Final = 1 << 15  # bytes on disk

_FORGET: Final = MAX_RETRY_AFTER  # seconds
_MAX_FAILURES: Final = 16
_MAX_TEXT: Final = 300
_MAX_REASONS: Final = 4
# A process that tries again does so within this many seconds after its wait.
_GRACE: Final = 5.0

# The errors with which a request can end.
KdsError = KdsUnavailableError | KdsNotFoundError | KdsUntrustedError


@dataclass(frozen=True, slots=True)
class Failure:
    """The failure of the last request for a resource.

    ``tries`` counts the consecutive requests that failed. The next request must not come before
    ``again_at``. ``over`` says that the process that sent the request has given up.
    """

    at: float
    tries: int
    over: bool
    again_at: float
    problem: str
    code: str
    message: str
    hint: str | None
    retry_after: float | None
    reasons: tuple[str, ...]

    @classmethod
    def of(
        cls, error: KdsError, problem: str, *, at: float, tries: int, over: bool, again_at: float
    ) -> Failure:
        """Return the failure for ``error``. ``problem`` says in a few words what went wrong."""
        message = error.message
        retry_after: float | None = None
        reasons: tuple[str, ...] = ()
        if isinstance(error, KdsUntrustedError):
            message, reasons = error.subject, error.reasons
        elif isinstance(error, KdsUnavailableError):
            retry_after = error.retry_after
        return cls(
            at,
            tries,
            over,
            again_at,
            problem,
            error.code,
            message,
            error.hint,
            retry_after,
            reasons,
        )

    def error(self) -> KdsError | None:
        """Recreate the error for another process that wants the same resource. Return None if the
        error's code is unknown.
        """
        if self.code == KdsUnavailableError.code:
            return KdsUnavailableError(self.message, retry_after=self.retry_after, hint=self.hint)
        if self.code == KdsNotFoundError.code:
            return KdsNotFoundError(self.message, hint=self.hint)
        if self.code == KdsUntrustedError.code:
            return KdsUntrustedError(self.message, reasons=self.reasons, hint=self.hint)
        return None

    def counts_for(self, since: float, now: float) -> bool:
        """Return whether this failure also counts for a process that first wanted the resource at
        the time ``since``.
        """
        return self.at >= since or (not self.over and now < self.again_at + _GRACE)


@dataclass(slots=True)
class ServerState:
    """The state of one key server, as the file holds it.

    ``saved`` is the time at which the state was written, and ``asking`` the time at which a request
    for a VCEK started, if it has not ended. No request may be sent before ``hold_until``, and no
    request for a VCEK before ``next_at``. ``gap`` is the pause that the server was observed to
    require between two requests for VCEKs.
    """

    saved: float = -math.inf
    asking: float | None = None
    hold_until: float = -math.inf
    next_at: float = -math.inf
    refusals: int = 0
    refused_at: float = -math.inf
    gap: float = 0.0
    failures: dict[str, Failure] = field(default_factory=dict)

    def cut_off(self, now: float, gap: float, request: float) -> None:
        """Record that a process was stopped during its request for a VCEK. ``gap`` seconds must
        still pass before the next one.
        """
        if self.asking is not None:
            self.next_at = max(self.next_at, min(now, self.asking + request) + gap)
            self.asking = None

    def forget(self, now: float) -> None:
        """Remove what is too old to matter at the time ``now``."""
        if now > self.refused_at + _FORGET:
            self.refusals, self.gap = 0, 0.0
        recent = {
            path: each
            for path, each in self.failures.items()
            if now <= max(each.at, each.again_at) + _FORGET
        }
        kept = sorted(recent, key=lambda path: recent[path].at)[-_MAX_FAILURES:]
        self.failures = {path: recent[path] for path in kept}

    def refused(self, now: float, hold_off: float, gap: float) -> None:
        """Record a 429: send no request for ``hold_off`` seconds, and then leave ``gap`` seconds
        between requests for VCEKs.
        """
        self.hold_until = now + min(hold_off, MAX_RETRY_AFTER)
        self.refusals += 1
        self.refused_at = now
        self.gap = max(self.gap, min(gap, MAX_GAP))

    def encode(self, clock: Clock) -> bytes:
        """Return the state as JSON of at most :data:`MAX_SIZE` bytes."""
        at = self.saved
        failures = [
            {
                "path": path,
                "at": each.at - at,
                "tries": each.tries,
                "over": each.over,
                "again_at": each.again_at - at,
                "problem": _brief(each.problem),
                "code": each.code,
                "message": _brief(each.message),
                "hint": None if each.hint is None else _brief(each.hint),
                "retry_after": each.retry_after,
                "reasons": [_brief(reason) for reason in each.reasons[:_MAX_REASONS]],
            }
            for path, each in self.failures.items()
        ]
        said = {
            "boot": clock.boot,
            "at": at,
            "wall": clock.wall() - (clock.now() - at),
            "asking": None if self.asking is None else self.asking - at,
            "hold_off": max(self.hold_until - at, 0.0),
            "next": max(self.next_at - at, 0.0),
            "refusals": self.refusals,
            "refused": max(self.refused_at - at, -_FORGET),
            "gap": self.gap,
            "failures": failures,
        }
        data = json.dumps(said).encode()
        while len(data) > MAX_SIZE and failures:
            del failures[: (len(failures) + 1) // 2]  # the oldest
            data = json.dumps(said).encode()
        return data

    @classmethod
    def decode(cls, data: bytes, clock: Clock) -> ServerState | None:
        """Parse the file's bytes, and convert its times to those of ``clock``. Return None if the
        bytes are unusable.
        """
        try:
            said = json.loads(data)
            at = _written_at(said, clock)
            if at is None:
                return None
            asking = said["asking"]
            found = cls(
                saved=at,
                asking=None if asking is None else at + _number(asking, -MAX_RETRY_AFTER, 0),
                hold_until=at + _number(said["hold_off"], 0, MAX_RETRY_AFTER),
                next_at=at + _number(said["next"], 0, MAX_RETRY_AFTER),
                refusals=int(_number(said["refusals"], 0, 1 << 20)),
                refused_at=at + _number(said["refused"], -_FORGET, 0),
                gap=_number(said["gap"], 0, MAX_GAP),
            )
            for each in said["failures"][:_MAX_FAILURES]:
                found.failures[_text(each["path"], 2048)] = _failure(each, at)
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return found


def _written_at(said: Mapping[str, Any], clock: Clock) -> float | None:
    at, now = float(said["at"]), clock.now()
    if said["boot"] == clock.boot != "":
        return at if now - 2 * _FORGET <= at <= now else None
    # The state was written before a reboot, or by another machine. Ignore a state from the future
    # or from long ago.
    elapsed = clock.wall() - float(said["wall"])
    return now - elapsed if 0 <= elapsed <= _FORGET else None


def _brief(text: str) -> str:
    return printable(text, _MAX_TEXT)[:_MAX_TEXT]


def _number(value: object, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    if not least <= value <= most:
        raise ValueError
    return float(value)


def _text(value: object, most: int = _MAX_TEXT) -> str:
    if not isinstance(value, str):
        raise TypeError
    if len(value) > most or not value.isprintable():
        raise ValueError
    return value


def _failure(said: Mapping[str, Any], at: float) -> Failure:
    hint, retry_after = said["hint"], said["retry_after"]
    if not isinstance(said["over"], bool):
        raise TypeError
    return Failure(
        at=at + _number(said["at"], -MAX_RETRY_AFTER * 2, 0),
        tries=int(_number(said["tries"], 1, 1 << 20)),
        over=said["over"],
        again_at=at + _number(said["again_at"], -MAX_RETRY_AFTER * 2, MAX_RETRY_AFTER),
        problem=_text(said["problem"]),
        code=_text(said["code"]),
        message=_text(said["message"]),
        hint=None if hint is None else _text(hint),
        retry_after=None if retry_after is None else _number(retry_after, 0, MAX_RETRY_AFTER),
        reasons=tuple(_text(reason) for reason in said["reasons"][:_MAX_REASONS]),
    )
