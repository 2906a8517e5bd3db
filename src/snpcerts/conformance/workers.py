# SPDX-License-Identifier: Apache-2.0
"""Runs pieces of work in forked processes, several at a time.

Each piece gets its own process, which ends when this one ends. If an exception ends this process,
it first ends the others and waits for them.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from types import FrameType
from typing import Final, Generic, NoReturn, TypeVar

from snpcerts.errors import RefusedError
from snpcerts.parent_process import end_with_parent
from snpcerts.uninterrupted import ENDING, uninterrupted

Outcome = TypeVar("Outcome")
_PATIENCE: Final = 10.0  # time limit for a process to end its own processes, in seconds


class StopWorkerError(BaseException):
    """The parent asked this process to end. ``except Exception`` does not catch this error."""


_asked_to_stop = False


def end_if_asked() -> None:
    """Raise :class:`StopWorkerError` if the parent has asked this process to end.

    This is not done in a signal handler: an exception could then be raised while a program is being
    started, and the program would be lost.
    """
    if _asked_to_stop:
        raise StopWorkerError


@dataclass(slots=True)
class _Worker(Generic[Outcome]):
    pid: int
    number: int
    line: Connection


def in_parallel(
    pieces: Sequence[Callable[[], Outcome]], jobs: int, on_start: Callable[[int], None]
) -> list[Outcome]:
    """Call all ``pieces``, at most ``jobs`` at a time. Return their results in order.

    ``on_start`` gets the index of each piece when it starts. Results are pickled. If a piece raises
    an exception, it is raised here after the other processes have ended. This process must have
    only one thread.
    """
    found: dict[int, Outcome] = {}
    running: dict[Connection, _Worker[Outcome]] = {}
    waiting = list(range(len(pieces)))[::-1]
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                number = waiting.pop()
                on_start(number)
                worker = _fork(pieces[number], number)
                running[worker.line] = worker
            for line in wait(list(running)):
                if isinstance(line, Connection):
                    worker = running[line]
                    found[worker.number] = _result(worker)
                    del running[line]
                    _reap(worker)
    finally:
        _end(list(running.values()))
    return [found[number] for number in range(len(pieces))]


def _fork(piece: Callable[[], Outcome], number: int) -> _Worker[Outcome]:
    ours, theirs = Pipe(duplex=False)
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    with uninterrupted():
        pid = os.fork()
        if pid == 0:
            _work(piece, parent, theirs)
    theirs.close()
    return _Worker(pid, number, ours)


def _stop(_number: int, _frame: FrameType | None) -> None:
    global _asked_to_stop  # noqa: PLW0603 (of this process, which has one task)
    _asked_to_stop = True


def _work(piece: Callable[[], Outcome], parent: int, line: Connection) -> NoReturn:
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGHUP):  # the parent decides
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _stop)
        end_with_parent(parent, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        try:
            answer: tuple[bool, object] = True, piece()
        except Exception as error:
            answer = False, error
        line.send_bytes(pickle.dumps(answer))
        code = 0
    finally:
        os._exit(code)


def _result(worker: _Worker[Outcome]) -> Outcome:
    try:
        good, value = pickle.loads(worker.line.recv_bytes())  # noqa: S301 (our own process)
    except EOFError:
        raise RefusedError(
            "a process of the conformance suite was killed",
            hint="try again with fewer --jobs: the machine may be short of memory",
        ) from None
    if not good:
        raise value
    outcome: Outcome = value
    return outcome


def _reap(worker: _Worker[Outcome]) -> None:
    worker.line.close()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(worker.pid, 0)


def _end(workers: Sequence[_Worker[Outcome]]) -> None:
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGTERM)
    until = time.monotonic() + _PATIENCE
    for worker in workers:
        left = until - time.monotonic()
        while left > 0 and worker.line.poll(left):  # ends when the process ends
            try:
                worker.line.recv_bytes()
            except EOFError:
                break
            left = until - time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
        _reap(worker)
