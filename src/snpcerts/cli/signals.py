# SPDX-License-Identifier: Apache-2.0
"""Handles signals for commands that must clean up processes or directories before they end."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from snpcerts.uninterrupted import ENDING, postpone


class EndedBySignalError(BaseException):
    """A signal asked the command to end.

    It is not a failure, so it is not an ``Exception``, and ``except Exception`` does not catch it.
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
        if ended or postpone(number):
            return
        ended = True
        raise EndedBySignalError(number)

    before = {
        number: signal.signal(number, end)
        for number in ENDING
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        ended = True
        for number, handler in before.items():
            signal.signal(number, handler)
