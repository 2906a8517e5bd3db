# SPDX-License-Identifier: Apache-2.0
"""Many reports, on several cores.

Chains are verified once in each process and remembered there. Nothing is done by
processes that is not done by :func:`~snpcerts.verify.sources.verify_with`.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from datetime import datetime
from typing import Final

from snpcerts.endorsement.anchors import AMD_ANCHORS, Anchor
from snpcerts.errors import UsageError
from snpcerts.verify.evidence import Evidence
from snpcerts.verify.policy import Policy
from snpcerts.verify.sources import OWN, CollateralSource, Prepared, prepare
from snpcerts.verify.verdict import Verdict
from snpcerts.verify.verify import DEFAULT_POLICY

# Reports handed to a process at a time: some 30 ms of work, against some 0.1 ms to hand over.
CHUNK: Final = 64
_AHEAD: Final = 3  # chunks under way or waiting, for each process


def verify_many(
    evidence: Iterable[Evidence],
    sources: Sequence[CollateralSource] = (OWN,),
    policy: Policy | None = None,
    *,
    anchors: Sequence[Anchor] = AMD_ANCHORS,
    at: datetime,
    jobs: int = 1,
) -> Iterator[Verdict]:
    """The verdicts, in the order of the evidence.

    With ``jobs`` above 1 that many processes share the work; sources are asked
    in this one. Evidence is taken from its iterable only some chunks ahead of
    the verdicts, so that any number of reports takes a bounded amount of memory.
    :class:`UsageError` for a number of jobs below 1.
    """
    if jobs < 1:
        raise UsageError(f"{jobs} jobs, must be at least 1")
    policy = policy or DEFAULT_POLICY
    prepared = (prepare(each, sources, policy) for each in evidence)
    task = functools.partial(_judge, policy=policy, anchors=tuple(anchors), at=at)
    return _here(prepared, task) if jobs == 1 else _in_processes(prepared, task, jobs)


def _judge(
    chunk: list[Prepared], policy: Policy, anchors: tuple[Anchor, ...], at: datetime
) -> list[Verdict]:
    return [each.judge(policy, anchors=anchors, at=at) for each in chunk]


_Task = Callable[[list[Prepared]], list[Verdict]]


def _here(prepared: Iterable[Prepared], task: _Task) -> Iterator[Verdict]:
    for each in prepared:
        yield from task([each])


def _in_processes(prepared: Iterable[Prepared], task: _Task, jobs: int) -> Iterator[Verdict]:
    # The parent may have threads, which a fork would not survive well.
    context = multiprocessing.get_context("spawn")
    under_way: deque[Future[list[Verdict]]] = deque()
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        try:
            for chunk in _chunks(prepared):
                under_way.append(pool.submit(task, chunk))
                if len(under_way) >= jobs * _AHEAD:
                    yield from under_way.popleft().result()
            while under_way:
                yield from under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


def _chunks(prepared: Iterable[Prepared]) -> Iterator[list[Prepared]]:
    iterator = iter(prepared)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        yield chunk
