# SPDX-License-Identifier: Apache-2.0
"""Disturb a protocol between its real system calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from snpcerts.certfile import step
from snpcerts.certfile.relay import relay as through_relay


def relay(
    *,
    before: Callable[[Any], None] = lambda _: None,
    after: Callable[[Any, Any], Any] = lambda _, result: result,
) -> step.Performer:
    """Perform steps for real, calling ``before`` and ``after`` around each.

    If ``before`` raises an ``OSError``, the step is not performed, and the protocol gets that
    error. Otherwise, the protocol gets what ``after`` returns as the step's result.
    """

    def through(action: Any) -> step.Steps[Any]:
        before(action)
        return after(action, (yield action))

    return through_relay(through)
