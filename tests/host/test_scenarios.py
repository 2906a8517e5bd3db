# SPDX-License-Identifier: Apache-2.0
"""Which key signs, with an agent, an operator's commands and guests in use, in any order.

A sample of the orders, the same each time; :mod:`tests.host.orders` runs every one.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from snpcerts.emulator.psp.choices import NAMES, PUBLISHED

from ..sizes import sized
from .orders import Stretch, every_stretch, host_in_use, walk
from .scenario import OPERATIONS

pytestmark = pytest.mark.slow

# The courses that matter most: in each, a VLEK stays loaded, the reported TCB is lowered, and a
# reload happens.
ALWAYS = (
    (("load_vlek", "set_config", "reload", "restart", "commit", "mask"), True),
    (("set_config", "load_vlek", "commit", "mask", "restart", "reload"), False),
)


def chosen(firmware: str) -> list[Stretch]:
    always = [Stretch(firmware, operations, kills) for operations, kills in ALWAYS]
    some = next(each for each in every_stretch() if each.firmware == firmware and each.kills)
    short = Stretch(firmware, ALWAYS[0][0][:4], True)
    return sized([short], [*always, Stretch(firmware, some.operations[:18], True)])


@pytest.mark.parametrize("firmware", sized((PUBLISHED,), NAMES))
@pytest.mark.usefixtures("emulated")  # skips for us
def test_in_every_order_reports_match_their_certificates_and_an_empty_file_has_its_reason(
    tmp_path: Path, firmware: str
) -> None:
    with host_in_use(tmp_path, firmware) as course:
        for stretch in chosen(firmware):
            stretch.run(course)
        assert course.reports > 3 * len(stretch.operations)
        assert 0 < course.empty < course.reports


def test_every_order_is_run_under_every_firmware_with_and_without_a_kill() -> None:
    whole = walk(OPERATIONS)
    assert len(whole) == 873
    stretches = every_stretch()
    every = set(itertools.permutations(OPERATIONS))
    for firmware, kills in itertools.product(NAMES, (False, True)):
        part = [each for each in stretches if (each.firmware, each.kills) == (firmware, kills)]
        assert set[object]().union(*(each.orders() for each in part)) == every
        assert all(any(each.victims()) == kills for each in part)
    assert len({each.name for each in stretches}) == len(stretches)
