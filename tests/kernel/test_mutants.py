# SPDX-License-Identifier: Apache-2.0
"""Each explanation of mutants that survive, of the kernel or the emulator, matches a mutant."""

from __future__ import annotations

import os
import re

import pytest

from .mutants import EMULATOR, EXPLAINED, emulator_mutants, every_trial
from .oracle import build

RELEASES = build.releases() if os.environ.get("SNPCERTS_KERNEL_TESTS") else {}


def of(side: str) -> list[str]:
    return [pattern for pattern, _ in EXPLAINED if pattern.startswith(f"{side} ")]


def test_every_part_has_code_of_the_emulator_to_change() -> None:
    assert EMULATOR.keys() == build.PARTS.keys()
    for where in {each for files in EMULATOR.values() for each in files}:
        found = list(emulator_mutants(where))
        assert found, where
        assert found[0].new() != found[-1].new()


def test_every_explanation_about_the_emulator_matches_a_mutant() -> None:
    assert len(of("kernel")) + len(of("emulator")) == len(EXPLAINED)
    files = {each for files in EMULATOR.values() for each in files}
    mutants = [str(each) for where in files for each in emulator_mutants(where)]
    for pattern in of("emulator"):
        assert any(re.match(pattern, each) for each in mutants), pattern


@pytest.mark.skipif(not RELEASES, reason="make test-kernel fetches the sources")
def test_every_explanation_about_a_kernel_matches_a_mutant() -> None:
    trials = every_trial(RELEASES, tuple(build.PARTS), ("kernel",))
    mutants = {str(each.mutant) for each in trials}
    for pattern in of("kernel"):
        assert any(re.match(pattern, each) for each in mutants), pattern
