# SPDX-License-Identifier: Apache-2.0
"""Fruitless requests are counted once for all users of a cache, and forgotten after an hour."""

from __future__ import annotations

from pathlib import Path

import pytest

from snpcerts.kds.failed_requests import LIMIT, PERIOD, FruitlessRequests


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        self.now += 0.125
        return self.now


def spent(requests: FruitlessRequests) -> list[float]:
    return [requests.count()[0] for _ in range(LIMIT)]


def test_the_count_is_one_for_all_processes_and_survives_them(tmp_path: Path) -> None:
    clock = Clock()
    spent(FruitlessRequests(tmp_path, clock=clock))
    stamp, wait = FruitlessRequests(tmp_path, clock=clock).count()
    assert stamp == 0.0
    assert PERIOD - 60 < wait < PERIOD
    assert (tmp_path / "fruitless").stat().st_size == 8 * LIMIT
    clock.now += wait
    assert FruitlessRequests(tmp_path, clock=clock).count()[1] == 0.0


def test_a_request_taken_back_may_be_repeated(tmp_path: Path) -> None:
    requests = FruitlessRequests(tmp_path, clock=Clock())
    stamps = spent(requests)
    assert requests.count()[1] > 0
    requests.take_back(stamps[:2])
    assert requests.count()[1] == 0.0
    assert requests.count()[1] == 0.0
    assert requests.count()[1] > 0


def test_a_clock_set_back_causes_no_endless_wait(tmp_path: Path) -> None:
    clock = Clock()
    spent(FruitlessRequests(tmp_path, clock=clock))
    clock.now -= 1e6
    assert FruitlessRequests(tmp_path, clock=clock).count()[1] == 0.0


@pytest.mark.parametrize("content", [b"x", b"\xff" * 8 * LIMIT, b"\0" * 10_000_000])
def test_a_file_of_something_else_counts_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fruitless").write_bytes(content)
    requests = FruitlessRequests(tmp_path, clock=Clock())
    spent(requests)
    assert requests.count()[1] > 0
    assert (tmp_path / "fruitless").stat().st_size == 8 * LIMIT


def test_where_nothing_can_be_written_each_process_counts_for_itself(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    requests = FruitlessRequests(tmp_path / "file", clock=Clock())
    spent(requests)
    assert requests.count()[1] > 0
    (tmp_path / "fruitless").symlink_to(tmp_path / "file")
    requests = FruitlessRequests(tmp_path, clock=Clock())
    spent(requests)
    assert requests.count()[1] > 0
    assert (tmp_path / "file").read_bytes() == b""
