# SPDX-License-Identifier: Apache-2.0
"""Which key signs, with an agent, an operator's commands and guests in use, in any order.

A sample of the orders, the same each time; :mod:`tests.host.orders` runs every one.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from snpcerts.emulator.psp.choices import NAMES, PUBLISHED

from ..sizes import sized
from .orders import Order, every_order, host_in_use

pytestmark = pytest.mark.slow

# The courses that matter most: each has a kept VLEK, a lowered TCB, and both through a reload.
ALWAYS = (
    (("load_vlek", "set_config", "reload", "restart", "commit", "mask"), True),
    (("set_config", "load_vlek", "commit", "mask", "restart", "reload"), False),
)
SAMPLE = 3  # more of each firmware


def chosen(firmware: str) -> list[Order]:
    always = [Order(firmware, operations, kills) for operations, kills in ALWAYS]
    more = [each for each in every_order() if each.firmware == firmware and each not in always]
    short = Order(firmware, ALWAYS[0][0][:4], True)
    return sized([short], [*always, *more[:SAMPLE]])


@pytest.mark.parametrize("firmware", sized((PUBLISHED,), NAMES))
@pytest.mark.usefixtures("emulated")  # skips for us
def test_in_every_order_reports_match_their_certificates_and_an_empty_file_has_its_reason(
    tmp_path: Path, firmware: str
) -> None:
    with host_in_use(tmp_path, firmware) as course:
        for order in chosen(firmware):
            order.run(course)
        assert course.reports > 3 * len(order.operations)
        assert 0 < course.empty < course.reports


def test_every_order_is_run_under_every_firmware_with_and_without_a_kill() -> None:
    orders = every_order()
    assert len(orders) == 3 * 720 * 2
    assert len({each.name for each in orders}) == len(orders)
    assert all(any(each.victims()) == each.kills for each in orders)
