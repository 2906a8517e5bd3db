# SPDX-License-Identifier: Apache-2.0
"""Passes each step of a protocol through a function, which can watch or change the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from snpcerts.certfile import system
from snpcerts.certfile.step import Performer, Steps, relayed


def relay(through: Callable[[Any], Steps[Any]], performer: Performer = system.perform) -> Performer:
    """Return a function that runs a protocol's steps: it passes each step to ``through``, and
    ``performer`` then runs the steps that ``through`` yields.

    ``through(action)`` is a generator; see :func:`~snpcerts.certfile.step.relayed`.
    """

    def perform(steps: Steps[Any]) -> Any:
        return performer(relayed(steps, through))

    return perform
