# SPDX-License-Identifier: Apache-2.0
"""Frozen dataclasses made quickly, for those that are made by the million.

A frozen dataclass sets each field through ``object.__setattr__``, which takes
several times what an assignment takes. :func:`thawed` gives a function with the
same parameters that makes the same object without that: through a class with the
same slots that is not frozen, whose object is then given the class proper.

``__post_init__`` is passed over: it is for callers that know what it checks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def thawed(cls: Callable[..., T]) -> Callable[..., T]:
    """What makes objects of a frozen dataclass with slots, from all its fields in order."""
    if not isinstance(cls, type):
        raise TypeError(f"{cls!r} is no class")
    names = [(field.name, object) for field in dataclasses.fields(cls)]
    soft = dataclasses.make_dataclass(cls.__name__, names, bases=cls.__bases__, slots=True)

    def make(*values: object) -> T:
        made = soft(*values)
        made.__class__ = cls
        return made  # type: ignore[no-any-return]  # it is of cls now

    return make
