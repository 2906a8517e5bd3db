# SPDX-License-Identifier: Apache-2.0
"""Runs the agent as a service, which checks the files at intervals and repairs them.

The agent cannot prevent other programs from changing the signing key without taking the lock. Its
next check finds a file that does not match the new key, and corrects the file, or empties it until
the certificates arrive. Until that check, for at most one interval, guests may get certificates of
the old key.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from snpcerts.errors import SnpCertsError
from snpcerts.host.agent import Agent, Synced
from snpcerts.host.event import Event, EventKind
from snpcerts.host.notify import ServiceManager
from snpcerts.uninterrupted import postpone

_STOP: Final = (signal.SIGTERM, signal.SIGINT)
_AGAIN: Final = (signal.SIGHUP,)


class Interrupted(BaseException):
    """Raised by a signal to end the current round, even in the middle of a long fetch."""


class Signals:
    """The service's signals: SIGTERM and SIGINT end the watch; SIGHUP makes the watch read
    the configuration again.

    The handlers record the signal. If a signal that ends the watch arrives during a round, its
    handler also raises :class:`Interrupted`, except in a block of
    :func:`~snpcerts.uninterrupted.uninterrupted`.
    """

    def __init__(self) -> None:
        self.stop = False
        self.reload = False
        self.in_round = False
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Handle the signals in this block. Restore the old handlers at its end."""
        before = {number: signal.signal(number, self._note) for number in (*_STOP, *_AGAIN)}
        wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self._read)
            os.close(self._write)

    def wait(self, seconds: float) -> None:
        """Wait for a signal, for at most ``seconds``."""
        if not self.stop and not self.reload and select.select([self._read], [], [], seconds)[0]:
            os.read(self._read, 4096)

    def _note(self, number: int, frame: object) -> None:
        del frame
        self.stop = self.stop or number in _STOP
        self.reload = self.reload or number in _AGAIN
        if number in _STOP and self.in_round and not postpone(number):
            raise Interrupted


def watch(
    make_agent: Callable[[], Agent],
    signals: Signals,
    *,
    manager: ServiceManager,
    after_round: Callable[[Agent], None] = lambda _: None,
) -> None:
    """Check and repair the files at intervals until a signal ends the watch.

    ``make_agent`` reads the configuration. It is called again after SIGHUP. If that call
    raises an error, the old configuration stays in use.
    """
    agent = make_agent()
    agent.tell(Event(EventKind.STARTED, f"checking the files every {agent.config.interval:g} s"))
    while not signals.stop:
        try:
            signals.in_round = True
            done = agent.sync(on_safe=manager.ready)
            signals.in_round = False
        except Interrupted:
            break
        except SnpCertsError as error:
            signals.in_round = False
            agent.tell(Event(EventKind.FAILED, str(error)))
            manager.status(error.message)
        else:
            manager.status(_summary(done))
            after_round(agent)
        _pause(agent.config.interval, signals, manager)
        if signals.reload:
            signals.reload = False
            try:
                agent = make_agent()
            except SnpCertsError as error:
                agent.tell(Event(EventKind.FAILED, f"configuration not reloaded: {error}"))
            else:
                agent.tell(Event(EventKind.STARTED, "configuration reloaded"))
    manager.stopping()
    agent.tell(Event(EventKind.STOPPED, "stopped"))


def _pause(seconds: float, signals: Signals, manager: ServiceManager) -> None:
    end = time.monotonic() + seconds
    while not signals.stop and not signals.reload:
        manager.alive()
        left = end - time.monotonic()
        if left <= 0:
            return
        signals.wait(min(left, manager.watchdog or left))


def _summary(done: Synced) -> str:
    if done.problem is not None:
        return f"not in step: {done.problem.message}"
    return f"in step: {len(done.before)} certificate file{'s' * (len(done.before) != 1)}"
