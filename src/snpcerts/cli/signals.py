# SPDX-License-Identifier: Apache-2.0
"""Handles signals for commands that must clean up processes or directories before they end."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Final

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EndedBySignalError(BaseException):
    """A signal asked the command to end.

    Being no failure, it is not an ``Exception``, so ``except Exception`` does not catch it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


@contextlib.contextmanager
def ends_cleanly() -> Iterator[None]:
    """Leave the block at the first signal that would end the command, and ignore later signals.

    Signals that were already ignored (as under nohup) stay ignored. Outside the main thread, this
    context manager does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ended = False

    def end(number: int, _frame: FrameType | None) -> None:
        nonlocal ended
        if ended:
            return
        if _deferral.depth:
            _deferral.number = number
            return
        ended = True
        raise EndedBySignalError(number)

    before = {
        number: signal.signal(number, end)
        for number in _ENDING
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        ended = True
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let a signal end the command only after the block, so that nothing in it happens by half.

    A signal mask would not do that: Python runs a handler in the main thread even if another thread
    got the signal. Outside the main thread, this context manager does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _deferral.depth += 1
    try:
        yield
    finally:
        _deferral.depth -= 1
        number = _deferral.number
        if number is not None and not _deferral.depth:
            _deferral.number = None
            signal.raise_signal(number)


@dataclass(slots=True)
class _Deferral:
    """The blocks of :func:`deferred` that the main thread is in, and the signal that came."""

    depth: int = 0
    number: int | None = None


_deferral = _Deferral()
