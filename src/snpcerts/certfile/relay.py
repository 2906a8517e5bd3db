# SPDX-License-Identifier: Apache-2.0
"""Put something between a protocol and those who perform its steps: to watch, to disturb."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from snpcerts.certfile import system
from snpcerts.certfile.step import Performer, Steps


def relay(through: Callable[[Any], Steps[Any]]) -> Performer:
    """A performer that sends every step through ``through``.

    ``through(action)`` is a generator: what it yields is performed, what it
    returns is the action's result for the protocol, and what it raises is
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
