# SPDX-License-Identifier: Apache-2.0
"""Which key signs, with an agent, an operator's commands and guests in use, in any order.

``SNPCERTS_CRASHES=every`` runs every order of the operations, under every firmware, with and
without SIGKILL: many hours. Otherwise a sample, which is the same each time.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from snpcerts.abi.product import Product
from snpcerts.emulator.psp.choices import NAMES, PUBLISHED, choices_of

from ..emulated import Emulated
from ..keys import prepare_platform
from ..sizes import sized
from .scenario import OPERATIONS, Course
from .site import key_server
from .test_command_crash import HOW_MANY

pytestmark = pytest.mark.slow

ORDERS = tuple(itertools.permutations(OPERATIONS))
# The courses that matter most: each has a kept VLEK, a lowered TCB, and both through a reload.
ALWAYS = (
    ("load_vlek", "set_config", "reload", "restart", "commit", "mask"),
    ("set_config", "load_vlek", "commit", "mask", "restart", "reload"),
)


def chosen(played: str) -> Sequence[tuple[str, ...]]:
    if HOW_MANY == "every":
        return ORDERS
    more = random.Random(played).sample(ORDERS, 2)
    return sized((ALWAYS[0][:4],), (*ALWAYS, *more))


@pytest.fixture(params=sized((PUBLISHED,), NAMES))
def host(
    request: pytest.FixtureRequest, emulated: Emulated, tmp_path: Path
) -> Iterator[tuple[str, Course]]:
    played = request.param
    emulated = Emulated(tmp_path / "platform", tmp_path / "certs")  # the fixture skips for us
    prepare_platform(emulated.directory, Product.GENOA, choices_of(played))
    emulated.issue_certificates()
    (tmp_path / "site").mkdir()
    with key_server(emulated) as url:
        course = Course(emulated, tmp_path / "site", url, random.Random(played))
        try:
            yield played, course
        finally:
            course.close()


def test_in_every_order_reports_match_their_certificates_and_an_empty_file_has_its_reason(
    host: tuple[str, Course],
) -> None:
    """Every other course has SIGKILL in it: of a command under way, or of the agent."""
    played, course = host
    kills = random.Random(played)  # not the course's own, which timing draws from
    for number, order in enumerate(chosen(played)):
        course.settle()
        for name in order:
            victim = kills.choice(("", "command", "agent")) if number % 2 == 0 else ""
            course.perform(name, victim)
        course.prove_all()
    assert course.reports > 3 * len(order)
    assert 0 < course.empty < course.reports
