# SPDX-License-Identifier: Apache-2.0
"""The fuzzer runs, keeps its corpus small, and finds planted defects."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fuzz import run as fuzz_run
from fuzz.mutation import MAX_SIZE, mutated
from fuzz.target import CORPUS, TARGETS, Target

EXECUTIONS = {"verdict": 30, "collateral": 30}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_short_run_finds_nothing(target: Target) -> None:
    done = fuzz_run.run(target.name, EXECUTIONS.get(target.name, 300), seed=1)
    assert done.finding is None
    assert done.executions == EXECUTIONS.get(target.name, 300)
    assert len(done.outcomes) > 3


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_seed_is_read_to_its_end(target: Target) -> None:
    """A seed that is refused at its first byte would teach the fuzzer nothing."""
    seeds = [path.read_bytes() for path in (CORPUS / target.name).glob("seed-*")]
    assert seeds
    assert not any("Error" in target.outcome(seed) for seed in seeds)


def test_an_unexpected_exception_is_a_finding_and_ends_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(data: bytes) -> str:
        if len(data) % 2:
            raise IndexError("a bug")
        return "even"

    planted = Target("table", read, 1)
    monkeypatch.setattr(fuzz_run, "TARGETS", (planted,))
    monkeypatch.setattr(Target, "seeds", lambda _self: [b"seed"])
    done = fuzz_run.run("table", 10_000, seed=1)
    assert done.finding is not None
    data, text = done.finding
    assert len(data) % 2 == 1
    assert "IndexError: a bug" in text
    assert done.executions < 10_000


def test_runs_of_one_seed_are_the_same() -> None:
    pool = [bytes(range(200)), b"other"]

    def inputs(seed: int) -> list[bytes]:
        rng = random.Random(seed)
        return [mutated(rng, pool[0], pool) for _ in range(200)]

    assert inputs(1) == inputs(1)
    assert inputs(1) != inputs(2)
    assert all(len(data) <= MAX_SIZE for data in inputs(1))


def test_the_corpus_is_small() -> None:
    files = [path for path in Path(CORPUS).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 400_000
