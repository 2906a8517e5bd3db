# SPDX-License-Identifier: Apache-2.0
"""The pages and the metrics share one read of the fleet, even in several threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest

from snpcerts.mirror.fleet_view import Fleet
from snpcerts.mirror.mirror_metrics import FleetCache


def test_simultaneous_readers_share_one_read() -> None:
    reads: list[object] = []
    go = threading.Event()

    def read() -> Fleet:
        reads.append(object())
        assert go.wait(60)
        return cast(Fleet, reads[-1])

    cache = FleetCache(read, lasts=3600)
    everyone = threading.Barrier(9)

    def reader() -> Fleet:
        everyone.wait(60)
        return cache.get()

    with ThreadPoolExecutor(8) as threads:
        found = [threads.submit(reader) for _ in range(8)]
        everyone.wait(60)
        go.set()
        assert {id(each.result(60)) for each in found} == {id(reads[0])}
    assert len(reads) == 1


def test_a_read_that_took_long_is_as_old_as_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("snpcerts.mirror.mirror_metrics.time.monotonic", lambda: now)
    reads = 0

    def read() -> Fleet:
        nonlocal now, reads
        reads += 1
        now += 10
        return cast(Fleet, object())

    cache = FleetCache(read, lasts=2)
    first = cache.get()
    assert cache.get() is not first
    assert reads == 2


def test_a_failed_read_is_tried_again_by_the_next_reader() -> None:
    fleet = cast(Fleet, object())
    answers: list[object] = [OSError("gone"), fleet]

    def read() -> Fleet:
        found = answers.pop(0)
        if isinstance(found, OSError):
            raise found
        return cast(Fleet, found)

    cache = FleetCache(read)
    with pytest.raises(OSError, match="gone"):
        cache.get()
    assert cache.get() is fleet
