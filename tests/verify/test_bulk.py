# SPDX-License-Identifier: Apache-2.0
"""Many reports on several cores: the same verdicts in order, with a bounded number waiting."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest

from snpcerts.abi.report import REPORT_SIZE
from snpcerts.errors import UsageError
from snpcerts.verify import bulk
from snpcerts.verify.bulk import CHUNK, WORTHWHILE, verify_many
from snpcerts.verify.evidence import Evidence
from snpcerts.verify.judging import verify
from snpcerts.verify.verdict import Status
from tests.endorsement.small_ca import NOON, SmallCa, flipped
from tests.sizes import sized
from tests.verify.test_verify import anchors, collateral

CA = SmallCa()
WHOLE = collateral()


def numbered(number: int) -> Evidence:
    """Return a report with the unknown version ``number``, which its refusal names."""
    return Evidence(number.to_bytes(4, "little") + bytes(REPORT_SIZE - 4))


def mixed(count: int) -> list[Evidence]:
    sound, bad = CA.report(), flipped(CA.report(), 0x90)
    return [Evidence(bad if index % 7 == 3 else sound, WHOLE) for index in range(count)]


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("jobs", sized([1, 3], [1, 2, 3]))
def test_verdicts_come_out_in_order_and_as_one_by_one(jobs: int, unknown: bool) -> None:
    """This holds whether or not the number of reports is known in advance."""
    many = mixed(WORTHWHILE + CHUNK * 4 + 5)
    given = iter(many) if unknown else many
    verdicts = list(verify_many(given, anchors=anchors(), at=NOON, jobs=jobs))
    alone = [verify(each, anchors=anchors(), at=NOON) for each in many[:7]]
    assert len(verdicts) == len(many)
    for index, verdict in enumerate(verdicts):
        assert verdict.to_json() == alone[index % 7].to_json(), index
    assert all(verdict.leaf is not None for verdict in verdicts)


@pytest.mark.parametrize("count", [0, 1, WORTHWHILE - 1])
def test_for_few_reports_no_process_is_started(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(bulk, "ProcessPoolExecutor", None)
    many = [numbered(0)] * count
    for given in (many, (each for each in many)):
        assert len(list(verify_many(given, anchors=anchors(), at=NOON, jobs=8))) == count
    verdicts = verify_many((each for each in many), at=NOON, jobs=8, count=count)
    assert len(list(verdicts)) == count


def test_fewer_than_one_job_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        verify_many([], at=NOON, jobs=0)


class Lazy:
    """A pool that begins no work; ``starts`` says whether its processes start at all."""

    def __init__(self, *, starts: bool) -> None:
        self.starts = starts
        self.given: list[Future[Any]] = []

    def shutdown(self, **_named: object) -> None:
        return None

    def submit(self, task: Any, *arguments: object) -> Future[Any]:
        future: Future[Any] = Future()
        if not arguments and self.starts:
            future.set_result(task())
        if arguments:
            self.given.append(future)
        return future


@pytest.mark.parametrize("starts", [True, False])
def test_processes_that_begin_nothing_hold_nothing_up(
    monkeypatch: pytest.MonkeyPatch, starts: bool
) -> None:
    """Chunks that have not begun are taken back; a process that has not started gets none."""
    pool = Lazy(starts=starts)
    monkeypatch.setattr(bulk, "ProcessPoolExecutor", lambda *_a, **_n: pool)
    many = mixed(WORTHWHILE + CHUNK * 9)
    verdicts = list(verify_many(many, anchors=anchors(), at=NOON, jobs=3))
    refused = [index for index, each in enumerate(verdicts) if each.status is Status.REFUSED]
    assert refused == [index for index in range(len(many)) if index % 7 == 3]
    assert bool(pool.given) is starts
    assert all(future.cancelled() for future in pool.given)


def test_a_slow_process_keeps_its_chunk_and_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that has begun is waited for, while this process judges others."""
    begun, go = Event(), Event()
    here = bulk._judge

    def slow(chunk: Any, *args: Any, **named: Any) -> Any:
        if chunk[0].evidence.report.fields.version == 1000 and not go.is_set():
            begun.set()
            assert go.wait(30)
        return here(chunk, *args, **named)

    monkeypatch.setattr(bulk, "_judge", slow)
    monkeypatch.setattr(bulk, "ProcessPoolExecutor", lambda *_a, **_n: ThreadPoolExecutor(1))

    started = bulk._Work.__init__

    def wait_for_it(work: Any, *args: Any) -> None:
        started(work, *args)
        work._started.result(30)

    monkeypatch.setattr(bulk._Work, "__init__", wait_for_it)

    def evidence() -> Iterator[Evidence]:
        yield from [numbered(1001)] * WORTHWHILE
        yield from [numbered(1000)] * CHUNK
        for index in range(CHUNK * 8):
            assert begun.wait(30)
            yield numbered(2000 + index)
        go.set()

    many = verify_many(evidence(), anchors=anchors(), at=NOON, jobs=2)
    found = [str(verdict.reasons[0]) for verdict in many]
    numbers = [1001] * WORTHWHILE + [1000] * CHUNK + list(range(2000, 2000 + CHUNK * 8))
    assert all(text.endswith(f"found {each}") for each, text in zip(numbers, found, strict=True))


@pytest.mark.parametrize(("jobs", "ahead"), [(1, 0), (2, bulk._WAITING + 1)])
def test_reports_are_read_only_some_chunks_ahead(
    monkeypatch: pytest.MonkeyPatch, jobs: int, ahead: int
) -> None:
    monkeypatch.setattr(bulk, "ProcessPoolExecutor", lambda *_a, **_n: ThreadPoolExecutor(1))
    taken = 0

    def endless() -> Iterator[Evidence]:
        nonlocal taken
        while True:
            taken += 1
            yield numbered(0)

    verdicts = verify_many(endless(), anchors=anchors(), at=NOON, jobs=jobs)
    for index in range(WORTHWHILE + CHUNK * 3):
        assert next(verdicts).status is Status.REFUSED
        assert taken <= index + 1 + (0 if index < WORTHWHILE else (ahead + 1) * CHUNK)
    verdicts.close()  # type: ignore[attr-defined]  # it is a generator
