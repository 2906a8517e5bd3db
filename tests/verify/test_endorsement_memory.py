# SPDX-License-Identifier: Apache-2.0
"""Remembered findings about chains equal those of a new judgement."""

from __future__ import annotations

import concurrent.futures
from dataclasses import replace
from datetime import timedelta

import pytest

from snpcerts.endorsement import judge
from snpcerts.endorsement.anchors import AMD_ANCHORS, Anchor, anchor_from_certificate
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.endorsement.judge import ChainBytes, Findings, JudgeMemory
from snpcerts.endorsement.vek import VekKind
from snpcerts.verify.collateral import Collateral
from tests.endorsement.small_ca import CrlRecipe, SmallCa

CA = SmallCa()
ANCHORS = (anchor_from_certificate(load_certificate(CA.ark.make(), "ARK")),)
PARTS = Collateral(vcek=CA.leaf.make(), ask=CA.ask.make(), ark=CA.ark.make())


def asked(
    memory: JudgeMemory, kind: VekKind, parts: Collateral, anchors: tuple[Anchor, ...] = ANCHORS
) -> Findings:
    return memory.findings(
        kind, parts.chain(kind), anchors, [each.data for each in parts.all_lists]
    )


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[ChainBytes]:
    """Return a list to which each chain is added, in order, when it is judged anew."""
    judged: list[ChainBytes] = []
    find = judge.find

    def counting(kind: VekKind, parts: ChainBytes, *rest: object) -> Findings:
        judged.append(parts)
        return find(kind, parts, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(judge, "find", counting)
    return judged


def test_a_chain_seen_before_is_not_judged_again(found: list[ChainBytes]) -> None:
    memory = JudgeMemory()
    first = asked(memory, VekKind.VCEK, PARTS, ANCHORS)
    assert first.reasons == ()
    assert asked(memory, VekKind.VCEK, replace(PARTS, vlek=b"y"), ANCHORS) is first
    assert len(found) == 1


def test_authorities_seen_with_another_leaf_are_not_judged_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For a new chip below a known ASK and ARK, only the leaf is read."""
    loaded: list[str] = []

    def counting(data: bytes, what: str) -> object:
        loaded.append(what)
        return load_certificate(data, what)

    monkeypatch.setattr(judge, "load_certificate", counting)
    memory = JudgeMemory()
    other = SmallCa(chip_id=bytes(range(2, 66))).leaf.make()
    assert asked(memory, VekKind.VCEK, PARTS, ANCHORS).reasons == ()
    assert asked(memory, VekKind.VCEK, replace(PARTS, vcek=other), ANCHORS).reasons == ()
    assert loaded == ["VCEK", "ASK", "ARK", "VCEK"]


@pytest.mark.parametrize("kind", list(VekKind))
def test_remembered_findings_about_authorities_equal_new_ones(kind: VekKind) -> None:
    """This holds for a defect in leaf, ASK, ARK or list, even if the others were seen before."""
    memory = JudgeMemory()
    bad = (None, b"x", PARTS.ask, PARTS.ark)
    for ask in (PARTS.ask, *bad):
        for ark in (PARTS.ark, *bad):
            for crl in (None, b"x"):
                for leaf in (PARTS.vcek, None, b"x", PARTS.ask):
                    parts = Collateral(vcek=leaf, vlek=leaf, ask=ask, ark=ark, crl=crl)
                    lists = [each.data for each in parts.all_lists]
                    found = asked(memory, kind, parts, ANCHORS)
                    alone = judge.find(kind, parts.chain(kind), ANCHORS, lists)
                    assert found.reasons == alone.reasons
                    assert found.facts == alone.facts
                    assert found.lists == alone.lists
                    assert found.in_force == alone.in_force


def test_out_of_force_is_exactly_when_a_certificate_or_list_is_out_of_date() -> None:
    """At any time, each certificate or list out of its validity period must give one reason."""
    recipe = CrlRecipe(CA)
    parts = replace(PARTS, crl=recipe.make())
    found = asked(JudgeMemory(), VekKind.VCEK, parts, ANCHORS)
    (crl,) = found.lists
    assert crl.this_update is not None
    assert crl.next_update is not None
    edges = {crl.this_update, crl.next_update}
    for window in found.windows:
        edges |= {window.not_before, window.not_after}
    step = timedelta(seconds=1)
    for at in (edge + shift for edge in edges for shift in (-step, 0 * step, step)):
        stale = [window for window in found.windows if window.problem_at(at)]
        assert len(found.reasons_at(at)) == len(stale), at
        late = not crl.this_update <= at <= crl.next_update
        assert len(crl.problems_at(at)) == late, at


def test_any_difference_is_judged_anew(found: list[ChainBytes]) -> None:
    memory = JudgeMemory()
    asked(memory, VekKind.VCEK, PARTS, ANCHORS)
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
        judged = asked(memory, kind, parts, anchors)
        assert judged.reasons or judged.lists[0].doubts
    assert len(found) == 1 + len(others)


def test_memory_is_bounded_and_forgets_the_one_unused_longest(found: list[ChainBytes]) -> None:
    memory = JudgeMemory(limit=2)
    first, second, third = (replace(PARTS, ark=bytes((i,))) for i in range(3))
    chains = [parts.chain(VekKind.VCEK) for parts in (first, second, third)]
    for parts in (first, second, first, third):
        asked(memory, VekKind.VCEK, parts, ANCHORS)
        assert len(memory) <= 2
    assert found == chains[:3]
    asked(memory, VekKind.VCEK, first, ANCHORS)
    assert found == chains[:3]
    asked(memory, VekKind.VCEK, second, ANCHORS)
    assert found == [*chains[:3], chains[1]]


def test_threads_share_a_memory() -> None:
    memory = JudgeMemory(limit=3)
    variants = [PARTS, *(replace(PARTS, ark=bytes((i,))) for i in range(4))]

    def codes(number: int) -> list[str]:
        parts = variants[number % len(variants)]
        return [each.code.value for each in asked(memory, VekKind.VCEK, parts, ANCHORS).reasons]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(codes, range(200)))
    for number, result in enumerate(results):
        assert result == ([] if number % len(variants) == 0 else ["ark-unreadable"])
    assert len(memory) <= 3
