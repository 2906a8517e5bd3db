# SPDX-License-Identifier: Apache-2.0
"""Measures the parts of an update or a request: the wait for the lock, and the steps while it is
held.

A span is never longer than what it measures. The span of a held lock begins after the kernel grants
the lock and ends before the lock is released. Times are those of ``time.monotonic``, one clock for
all processes of a machine.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from snpcerts.certfile import step, system
from snpcerts.certfile.reader import Busy
from snpcerts.certfile.relay import relay
from snpcerts.certfile.step import Performer, Steps


class SpanKind(enum.StrEnum):
    """What a span measures."""

    LOCK_WAIT = "lock wait"
    LOCK_HELD = "lock held"
    TABLE = "certificates in use"  # from reading them until the firmware has the request
    REENTRY = "KVM_RUN"  # the re-entry that carries the answer
    CHANGE = "change"  # the writer's firmware command and its choice of the new table


@dataclass(frozen=True, slots=True)
class Span:
    """A measured part of an update or a request, from ``start`` to ``end``, in seconds. ``path`` is
    the certificate file.
    """

    kind: SpanKind
    start: float
    end: float
    path: str | None = None

    def to_json(self) -> list[object]:
        """Return the fields as JSON values."""
        return [self.kind.value, self.start, self.end, self.path]

    @classmethod
    def from_json(cls, values: list[Any]) -> Self:
        """Return the span from the JSON values that :meth:`to_json` returned."""
        kind, start, end, path = values
        return cls(SpanKind(kind), start, end, path)


Tell = Callable[[Span], None]


def timed(tell: Tell, performer: Performer = system.perform) -> Performer:
    """Return a function that runs a protocol's steps by calling ``performer``, and calls ``tell``
    with each span that it measures.

    ``tell`` is called in the performing thread, in some cases with the lock held.
    """

    def perform(steps: Steps[Any]) -> Any:
        watch = _StepTimer(tell)
        try:
            return relay(watch.through, performer)(steps)
        finally:
            watch.give_up()

    return perform


@dataclass(slots=True)
class _StepTimer:
    """Measures the spans of one update or request."""

    tell: Tell
    waits_since: float | None = None
    tried_in_vain: bool = False
    turns: set[int] = field(default_factory=set)
    paths: dict[int, str] = field(default_factory=dict)
    granted: dict[int, float] = field(default_factory=dict)  # descriptor -> time of the grant
    last_grant: float = 0.0
    changed: bool = False
    read_at: float | None = None

    def through(self, action: Any) -> Steps[Any]:
        match action:
            case step.OpenRead(path=path) | step.OpenWrite(path=path) | step.Create(path=path):
                fd = yield action
                self.paths[fd] = path
                return fd
            case step.Rename(source=source, target=target):
                for fd in [fd for fd, path in self.paths.items() if path == source]:
                    self.paths[fd] = target
            case step.OpenOrCreate():
                fd = yield action
                self.turns.add(fd)
                return fd
            case step.LockShared(fd=fd) | step.LockExclusive(fd=fd):
                return (yield from self._lock(action, fd))
            case step.Read():
                self.read_at = time.monotonic()
            case step.Deliver(found=Busy()):
                self._end_wait(time.monotonic())
            case step.Handshake(fd=fd):
                return (yield from self._reenter(action, fd is not None))
            case step.Change():
                return (yield from self._change(action))
            case step.Close(fd=fd):
                self._close(fd)
        return (yield action)

    def _lock(self, action: Any, fd: int) -> Steps[Any]:
        if self.waits_since is None:
            self.waits_since = time.monotonic()
        granted = yield action
        now = time.monotonic()
        if not granted:
            self.tried_in_vain = True
        elif fd not in self.turns:
            self.granted[fd] = self.last_grant = now
            if isinstance(action, step.LockShared):
                if self.tried_in_vain:
                    self._end_wait(now)
                self.waits_since, self.tried_in_vain = None, False
        return granted

    def _end_wait(self, now: float) -> None:
        if self.waits_since is not None:
            self.tell(Span(SpanKind.LOCK_WAIT, self.waits_since, now))
        self.waits_since, self.tried_in_vain = None, False

    def give_up(self) -> None:
        """Report a wait that ended without the lock."""
        if self.tried_in_vain:
            self._end_wait(time.monotonic())

    def _reenter(self, action: Any, has_table: bool) -> Steps[Any]:
        start = time.monotonic()
        try:
            return (yield action)
        finally:
            now = time.monotonic()
            self.tell(Span(SpanKind.REENTRY, start, now))
            if has_table and self.read_at is not None:
                self.tell(Span(SpanKind.TABLE, self.read_at, now))

    def _change(self, action: Any) -> Steps[Any]:
        if not self.changed:
            self._end_wait(self.last_grant)
            self.changed = True
            self.granted = dict.fromkeys(self.granted, self.last_grant)
        start = time.monotonic()
        try:
            return (yield action)
        finally:
            self.tell(Span(SpanKind.CHANGE, start, time.monotonic()))

    def _close(self, fd: int) -> None:
        since, path = self.granted.pop(fd, None), self.paths.pop(fd, None)
        self.turns.discard(fd)
        # Report no held lock for a writer that gave up before it had every lock that it needs.
        if since is not None and (self.changed or self.waits_since is None):
            self.tell(Span(SpanKind.LOCK_HELD, since, time.monotonic(), path))
