# SPDX-License-Identifier: Apache-2.0
"""What is remembered of chains is the same as what would be found again."""

from __future__ import annotations

import concurrent.futures
from dataclasses import replace

import pytest

from snpcerts.endorsement.anchors import AMD_ANCHORS, anchor_from_certificate
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.endorsement.vek import VekKind
from snpcerts.verify import endorsement_check
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.endorsement_check import EndorsementFindings, EndorsementMemory
from tests.endorsement.small_ca import SmallCa

CA = SmallCa()
ANCHORS = (anchor_from_certificate(load_certificate(CA.ark.make(), "ARK")),)
PARTS = Collateral(vcek=CA.leaf.make(), ask=CA.ask.make(), ark=CA.ark.make())


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Collateral]:
    """Every collateral that was really judged, in order."""
    judged: list[Collateral] = []
    find = endorsement_check.find

    def counting(kind: VekKind, parts: Collateral, anchors: object) -> EndorsementFindings:
        judged.append(parts)
        return find(kind, parts, anchors)  # type: ignore[arg-type]

    monkeypatch.setattr(endorsement_check, "find", counting)
    return judged


def test_a_chain_seen_before_is_not_judged_again(found: list[Collateral]) -> None:
    memory = EndorsementMemory()
    first = memory.findings(VekKind.VCEK, PARTS, ANCHORS)
    assert first.reasons == ()
    assert memory.findings(VekKind.VCEK, replace(PARTS, vlek=b"y"), ANCHORS) is first
    assert len(found) == 1


def test_any_difference_is_judged_anew(found: list[Collateral]) -> None:
    memory = EndorsementMemory()
    memory.findings(VekKind.VCEK, PARTS, ANCHORS)
    others = [
        (VekKind.VLEK, PARTS, ANCHORS),
        (VekKind.VCEK, PARTS, AMD_ANCHORS),
        (VekKind.VCEK, PARTS, ()),
        (VekKind.VCEK, replace(PARTS, vcek=PARTS.ask), ANCHORS),
        (VekKind.VCEK, replace(PARTS, ask=PARTS.ark, ark=PARTS.ask), ANCHORS),
        (VekKind.VCEK, replace(PARTS, ask=None), ANCHORS),
        (VekKind.VCEK, replace(PARTS, ark=b""), ANCHORS),
        (VekKind.VCEK, replace(PARTS, crl=b"x"), ANCHORS),
    ]
    for kind, parts, anchors in others:
        assert memory.findings(kind, parts, anchors).reasons
    assert len(found) == 1 + len(others)


def test_memory_is_bounded_and_forgets_the_one_unused_longest(found: list[Collateral]) -> None:
    memory = EndorsementMemory(limit=2)
    first, second, third = (replace(PARTS, ark=bytes((i,))) for i in range(3))
    for parts in (first, second, first, third):
        memory.findings(VekKind.VCEK, parts, ANCHORS)
        assert len(memory) <= 2
    assert found == [first, second, third]
    memory.findings(VekKind.VCEK, first, ANCHORS)
    assert found == [first, second, third]
    memory.findings(VekKind.VCEK, second, ANCHORS)
    assert found == [first, second, third, second]


def test_threads_share_a_memory() -> None:
    memory = EndorsementMemory(limit=3)
    variants = [PARTS, *(replace(PARTS, ark=bytes((i,))) for i in range(4))]

    def codes(number: int) -> list[str]:
        parts = variants[number % len(variants)]
        return [each.code.value for each in memory.findings(VekKind.VCEK, parts, ANCHORS).reasons]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(codes, range(200)))
    for number, result in enumerate(results):
        assert result == ([] if number % len(variants) == 0 else ["ark-unreadable"])
    assert len(memory) <= 3
