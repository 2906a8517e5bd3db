# SPDX-License-Identifier: Apache-2.0
"""Put a function between a protocol and its performer, to watch or disturb the steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from snpcerts.certfile import system
from snpcerts.certfile.step import Performer, Steps


def relay(through: Callable[[Any], Steps[Any]]) -> Performer:
    """A performer that sends every step through ``through``.

    ``through(action)`` is a generator. Steps that it yields are performed, its
    return value becomes the action's result, and an exception that it raises is
    thrown into the protocol. ``return (yield action)`` changes nothing.
    """

    def perform(steps: Steps[Any]) -> Any:
        return system.perform(relayed(steps))

    def relayed(steps: Steps[Any]) -> Steps[Any]:
        try:
            action = next(steps)
            while True:
                try:
                    result = yield from through(action)
                except BaseException as error:
                    action = steps.throw(error)
                else:
                    action = steps.send(result)
        except StopIteration as end:
            return end.value

    return perform
