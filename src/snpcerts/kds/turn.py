# SPDX-License-Identifier: Apache-2.0
"""One at a time: of many processes that lack the same certificate, one asks for it.

Each resource has a lock file in the cache. Whoever holds it asks the key
server; the others wait, and then look into the cache. When the asking failed,
what came of it stands in the lock file: those who were waiting take it for
their own answer instead of asking again one after the other, and later comers
learn how long the key server wants to be left alone.

The lock is a courtesy to the key server and no more. Whoever cannot have it in
time, or cannot write the file, asks without it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from snpcerts.kds.errors import KdsNotFoundError, KdsUnavailableError, KdsUntrustedError
from snpcerts.kds.store import Store, place_of
from snpcerts.kds.url import Resource

# The longest that a key server is left alone because it asked for it.
MAX_HOLD_OFF: Final = 3600.0

_NOTE_LIMIT: Final = 8192
_MESSAGE_LIMIT: Final = 1000
_POLL: Final = 0.02  # seconds

KdsError = KdsUnavailableError | KdsNotFoundError | KdsUntrustedError


@dataclass(frozen=True, slots=True)
class Turn:
    """Whose turn it is to ask for a resource: ours, until the context ends.

    ``waited`` tells whether another was asking just before, and ``failure``
    what came of that if it was an error; ``hold_off`` is how many seconds the
    key server still wants to be left alone.
    """

    waited: bool
    hold_off: float
    failure: KdsError | None
    _descriptor: int | None

    def note(self, error: KdsError) -> None:
        """Tell those who wait, and later comers, what came of asking."""
        if self._descriptor is not None:
            _write(self._descriptor, error)

    def note_success(self) -> None:
        """Take back what an earlier failure left for later comers."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)


@contextmanager
def turn_at(
    store: Store,
    resource: Resource,
    *,
    patience: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Turn]:
    """Wait at most ``patience`` seconds for one's turn, then go ahead with or without it."""
    started = time.time()
    descriptor = _open(store, resource)
    if descriptor is None:
        yield Turn(False, 0.0, None, None)
        return
    try:
        waited = _lock(descriptor, patience, sleep)
        note = _read(descriptor)
        failure = note.error() if waited and note is not None and note.at >= started else None
        hold_off = 0.0 if note is None else note.hold_off(time.time())
        yield Turn(waited, hold_off, failure, descriptor)
    finally:
        os.close(descriptor)


def _open(store: Store, resource: Resource) -> int | None:
    path = store.root / "lock" / ("-".join(place_of(resource).parts) + ".lock")
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.open(path, flags, 0o600)
    return None


def _lock(descriptor: int, patience: float, sleep: Callable[[float], None]) -> bool:
    """Whether there was somebody to wait for."""
    deadline = time.monotonic() + patience
    waited = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
        except OSError:  # a file system without locks
            return waited
        else:
            return waited
        if time.monotonic() >= deadline:
            return waited
        sleep(_POLL)


@dataclass(frozen=True, slots=True)
class _Note:
    at: float  # seconds since the epoch
    code: str
    message: str
    hint: str | None
    retry_after: float | None
    reasons: tuple[str, ...]

    def error(self) -> KdsError | None:
        if self.code == KdsUnavailableError.code:
            return KdsUnavailableError(self.message, retry_after=self.retry_after, hint=self.hint)
        if self.code == KdsNotFoundError.code:
            return KdsNotFoundError(self.message, hint=self.hint)
        if self.code == KdsUntrustedError.code:
            return KdsUntrustedError(self.message, reasons=self.reasons, hint=self.hint)
        return None

    def hold_off(self, now: float) -> float:
        if self.code != KdsUnavailableError.code or self.retry_after is None:
            return 0.0
        # A note from the future was written by another clock: it says nothing.
        left = self.at + min(self.retry_after, MAX_HOLD_OFF) - now
        return max(0.0, left) if self.at <= now else 0.0


def _read(descriptor: int) -> _Note | None:
    try:
        saved = json.loads(os.pread(descriptor, _NOTE_LIMIT, 0) or b"null")
        if not isinstance(saved, dict):
            return None
        retry_after, hint = saved.get("retry_after"), saved.get("hint")
        return _Note(
            float(saved["at"]),
            str(saved["code"]),
            str(saved["message"])[:_MESSAGE_LIMIT],
            None if hint is None else str(hint)[:_MESSAGE_LIMIT],
            None if retry_after is None else float(retry_after),
            tuple(str(reason) for reason in saved["reasons"]),
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _write(descriptor: int, error: KdsError) -> None:
    message = error.subject if isinstance(error, KdsUntrustedError) else error.message
    note = {
        "at": time.time(),
        "code": error.code,
        "message": message[:_MESSAGE_LIMIT],
        "hint": error.hint,
        "retry_after": error.retry_after if isinstance(error, KdsUnavailableError) else None,
        "reasons": error.reasons[:8] if isinstance(error, KdsUntrustedError) else (),
    }
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(note).encode()[:_NOTE_LIMIT], 0)
