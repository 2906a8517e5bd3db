# SPDX-License-Identifier: Apache-2.0
"""Objects made quickly are the objects that would have been made."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, dataclass

import pytest

from snpcerts.abi.thaw import thawed


@dataclass(frozen=True, slots=True)
class Point:
    """Something frozen."""

    x: int
    y: int = 2

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError("left of the origin")


def test_the_object_is_of_its_class_equal_and_frozen() -> None:
    made = thawed(Point)(1, 3)
    assert type(made) is Point
    assert made == Point(1, 3)
    assert hash(made) == hash(Point(1, 3))
    assert pickle.loads(pickle.dumps(made)) == made  # noqa: S301 (of our own making)
    with pytest.raises(FrozenInstanceError):
        made.x = 5  # type: ignore[misc]  # as it should be


def test_every_field_must_be_given_and_what_init_checks_is_not_checked() -> None:
    with pytest.raises(TypeError):
        thawed(Point)(1)
    assert thawed(Point)(-1, 0).x == -1
    with pytest.raises(TypeError):
        thawed(lambda: None)
