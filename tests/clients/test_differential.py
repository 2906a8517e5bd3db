# SPDX-License-Identifier: Apache-2.0
"""snpcerts accepts nothing that go-sev-guest refuses, in any shape, whatever was changed."""

from __future__ import annotations

from pathlib import Path

from snpcerts.abi.report import REPORT_SIZE
from snpcerts.verify.evidence import Evidence
from tests.endorsement.small_ca import flipped
from tests.sizes import sized
from tests.verify.shapes import ALONE, BUNDLES, WHOLE, table_of

from .differential import compare, inputs, judge
from .published import Published

INPUTS = sized(700, 4000)


def test_go_sev_guest_accepts_what_is_accepted_here(
    sevguest: Path, published: tuple[Published, ...]
) -> None:
    found = compare(sevguest, published, INPUTS, seed=7)
    assert not found.alone, str(found)
    assert found.inputs == INPUTS
    assert found.both == found.accepted
    # snpcerts accepts all unchanged inputs, and many in which the change does not matter.
    assert found.accepted > len(published) * len({*WHOLE, *ALONE, *BUNDLES})
    assert found.altered > 0
    assert found.refused > INPUTS // 5


def test_go_sev_guest_refuses_a_changed_bit(
    sevguest: Path, published: tuple[Published, ...]
) -> None:
    """Otherwise its agreement with snpcerts would prove nothing."""
    piece = published[0]
    report = Evidence.from_bytes(piece.report).report.raw
    table = table_of(piece.certificates)
    changed = [flipped(report, at) for at in range(0, 0x2A0, 16)]
    lines = judge(sevguest, [each + table for each in (report, *changed)], piece.at)
    assert lines[0] == "accepted"
    assert all(line.startswith("refused ") for line in lines[1:])
    assert judge(sevguest, [report[: REPORT_SIZE - 1]], piece.at)[0].startswith("refused ")


def test_every_shape_and_change_is_among_the_inputs(published: tuple[Published, ...]) -> None:
    made = list(inputs(published, 2000, seed=1))
    assert {each.shape for each in made} == {*WHOLE, *ALONE, *BUNDLES}
    assert {each.change.partition(":")[0] for each in made} == {
        "nothing",
        "report",
        "certificates",
        "shape",
    }
    assert made == list(inputs(published, 2000, seed=1))
