# SPDX-License-Identifier: Apache-2.0
"""Inserts a function between a protocol and what carries out its steps, to watch or disturb
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from snpcerts.certfile import system
from snpcerts.certfile.step import Performer, Steps, relayed


def relay(through: Callable[[Any], Steps[Any]], performer: Performer = system.perform) -> Performer:
    """Return a performer that passes every step to ``through``, then to ``performer``.

    ``through(action)`` is a generator; see :func:`~snpcerts.certfile.step.relayed`.
    """

    def perform(steps: Steps[Any]) -> Any:
        return performer(relayed(steps, through))

    return perform
