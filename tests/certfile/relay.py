# SPDX-License-Identifier: Apache-2.0
"""Performers that watch or disturb a protocol between its real system calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from snpcerts.certfile import step, system


def relay(
    *,
    before: Callable[[Any], None] = lambda _: None,
    after: Callable[[Any, Any], Any] = lambda _, result: result,
) -> step.Performer:
    """Perform steps for real, calling ``before`` and ``after`` around each.

    An ``OSError`` from ``before`` stands for one from the step.

    ``after`` returns the result that the protocol is given.
    """

    def perform(steps: step.Steps[Any]) -> Any:
        return system.perform(relayed(steps))

    def relayed(steps: step.Steps[Any]) -> step.Steps[Any]:
        try:
            action = next(steps)
            while True:
                try:
                    before(action)
                    result = yield action
                except OSError as error:
                    action = steps.throw(error)
                else:
                    action = steps.send(after(action, result))
        except StopIteration as end:
            return end.value

    return perform
