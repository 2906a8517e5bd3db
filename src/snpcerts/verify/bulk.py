# SPDX-License-Identifier: Apache-2.0
"""Verifies many reports on several cores.

Each process verifies a chain once and remembers the result. The verdicts are those of
:func:`~snpcerts.verify.sources.verify_with`. Starting a process takes as long as verifying hundreds
of reports, so other processes start only for many reports or, if the number of reports is unknown,
after many were verified. This process itself judges reports throughout.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import operator
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from datetime import datetime
from typing import Final

from snpcerts.endorsement.anchors import AMD_ANCHORS, Anchor
from snpcerts.errors import UsageError
from snpcerts.verify.evidence import Evidence
from snpcerts.verify.judging import DEFAULT_POLICY
from snpcerts.verify.policy import Policy
from snpcerts.verify.sources import OWN, CollateralSource, Prepared, prepare
from snpcerts.verify.verdict import Verdict

# Reports passed to a process at a time: about 30 ms of work. Passing them takes about 0.1 ms.
CHUNK: Final = 64
# Below this number of reports, no other process is started.
WORTHWHILE: Final = 1000
_AHEAD: Final = 3  # chunks in progress or waiting, for each process
# Verdicts are returned in order, so finished chunks may have to wait for an earlier one. At most
# this many chunks, finished or not, are held at a time; they take about 30 MB.
_WAITING: Final = 64


def verify_many(
    evidence: Iterable[Evidence],
    sources: Sequence[CollateralSource] = (OWN,),
    policy: Policy | None = None,
    *,
    anchors: Sequence[Anchor] = AMD_ANCHORS,
    at: datetime,
    jobs: int = 1,
    count: int | None = None,
) -> Iterator[Verdict]:
    """Return the verdicts on ``evidence``, in the same order.

    With ``jobs`` above 1, up to that many processes, including this one, share the work. Only this
    process asks the sources. It takes evidence from the iterable only a few chunks ahead of the
    verdicts, so memory is bounded for any number of reports. Give the number of reports as
    ``count`` if the iterable has no length, so that no process is started for a few reports. Raises
    :class:`UsageError` if ``jobs`` is below 1.
    """
    if jobs < 1:
        raise UsageError(f"jobs: expected at least 1, found {jobs}")
    policy = policy or DEFAULT_POLICY
    if count is None:
        hint = operator.length_hint(evidence, -1)
        count = None if hint < 0 else hint
    prepared = (prepare(each, sources, policy, at, anchors) for each in evidence)
    task = functools.partial(_judge, policy=policy, anchors=tuple(anchors), at=at)
    if jobs == 1 or (count is not None and count < WORTHWHILE):
        return _here(prepared, task)
    return _in_processes(prepared, task, jobs, 0 if count is not None else WORTHWHILE)


def _judge(
    chunk: list[Prepared], policy: Policy, anchors: tuple[Anchor, ...], at: datetime
) -> list[Verdict]:
    return [each.judge(policy, anchors=anchors, at=at) for each in chunk]


_Task = Callable[[list[Prepared]], list[Verdict]]


def _here(prepared: Iterable[Prepared], task: _Task) -> Iterator[Verdict]:
    for each in prepared:
        yield from task([each])


def _in_processes(
    prepared: Iterator[Prepared], task: _Task, jobs: int, alone: int
) -> Iterator[Verdict]:
    """Judge the first ``alone`` reports in this process alone, and the others in ``jobs``
    processes.
    """
    yield from _here(itertools.islice(prepared, alone), task)
    chunks = _chunks(prepared)
    first = next(chunks, None)
    if first is None:
        return
    # The parent may have threads, which make a fork unsafe.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs - 1, mp_context=context, initializer=_end_with_parent)
    work = _Work(pool, task, (jobs - 1) * _AHEAD)
    try:
        for chunk in itertools.chain((first,), chunks):
            work.take(chunk)
            yield from work.finished()
        while work.rest():
            yield from work.finished()
    finally:
        # A caller that has all verdicts need not wait for the processes to end.
        pool.shutdown(wait=False, cancel_futures=True)


class _Work:
    """The chunks whose verdicts have not been returned yet, in order. Each has been
    submitted to the pool or judged here.
    """

    def __init__(self, pool: ProcessPoolExecutor, task: _Task, ahead: int) -> None:
        self._pool = pool
        self._task = task
        self._ahead = ahead
        # Until this is done, no process has started, and a submitted chunk would have to wait.
        self._started = pool.submit(_started)
        # Each chunk stays beside its future, because this process may take the chunk back.
        self._given: deque[tuple[list[Prepared], Future[list[Verdict]]]] = deque()

    def take(self, chunk: list[Prepared]) -> None:
        """Submit the chunk to the pool if the pool has too little work. Otherwise judge the chunk
        here.
        """
        under_way = sum(not future.done() for _, future in self._given)
        if self._started.done() and under_way < self._ahead:
            self._given.append((chunk, self._pool.submit(self._task, chunk)))
        else:
            self._given.append((chunk, _done(self._task(chunk))))

    def finished(self) -> Iterator[Verdict]:
        """Yield the verdicts that are next in order. Wait for a chunk only if too many other chunks
        wait behind it.
        """
        while self._given and (self._given[0][1].done() or len(self._given) > _WAITING):
            yield from self._given.popleft()[1].result()

    def rest(self) -> bool:
        """Judge a chunk that no process has begun, or wait for the oldest chunk. Return False if no
        chunk is left.
        """
        if not self._given:
            return False
        for index in range(len(self._given) - 1, -1, -1):
            chunk, future = self._given[index]
            if future.cancel():
                self._given[index] = chunk, _done(self._task(chunk))
                return True
        wait((self._given[0][1],))
        return True


def _end_with_parent() -> None:
    """Make this process of the pool end when its parent ends.

    The process holds both ends of the pool's queue, so it would otherwise wait forever.
    """
    parent = multiprocessing.parent_process()

    def wait_for_end() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_end, name="end of the parent", daemon=True).start()


def _started() -> None:
    """Do nothing. The result shows that a process of the pool has started."""


def _done(verdicts: list[Verdict]) -> Future[list[Verdict]]:
    future: Future[list[Verdict]] = Future()
    future.set_result(verdicts)
    return future


def _chunks(prepared: Iterator[Prepared]) -> Iterator[list[Prepared]]:
    while chunk := list(itertools.islice(prepared, CHUNK)):
        yield chunk
