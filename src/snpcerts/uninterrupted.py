# SPDX-License-Identifier: Apache-2.0
"""Blocks of code that a signal does not interrupt.

A signal mask alone does not protect a block: if another thread gets the signal, Python still runs
the handler in the main thread. So a handler that may raise an exception first asks
:func:`postpone`.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Final

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Blocks(threading.local):
    """The blocks that this thread is in, and the signal that arrived during them."""

    depth = 0
    postponed: int | None = None


_blocks = _Blocks()


@contextlib.contextmanager
def uninterrupted(*, mask: bool = True) -> Iterator[None]:
    """Until the block ends, delay the signals that would end the command.

    A process that is started in the block inherits the signal mask. With ``mask=False`` no signal
    is masked, and the block is protected only if the signals' handlers call :func:`postpone`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    _blocks.depth += 1
    try:
        if mask:
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        yield
    finally:
        _blocks.depth -= 1
        number = None
        if not _blocks.depth:
            number, _blocks.postponed = _blocks.postponed, None
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # may run a handler, which may raise
        if number is not None:
            signal.raise_signal(number)


def postpone(number: int) -> bool:
    """Return whether a signal's handler has interrupted a block of :func:`uninterrupted`. If so,
    the handler must return at once, and the signal is raised again when the block ends.
    """
    if _blocks.depth:
        _blocks.postponed = number
    return bool(_blocks.depth)
