# SPDX-License-Identifier: Apache-2.0
"""Broken variants of the VMM's reader, each with one mistake, which show the mistake's effect.

The demo's first run uses ``no-lock``. Tests use both readers to show that the demo detects a
mismatch. Each takes the steps of the shipped protocol and changes one of them; ``performer`` runs
the steps.
"""

from __future__ import annotations

import threading
from typing import Any

from snpcerts.certfile import step, system
from snpcerts.certfile.relay import relay
from snpcerts.certfile.step import Performer, Steps


def no_lock(performer: Performer = system.perform) -> Performer:
    """Return a function that runs a reader's steps with ``performer``, but takes no lock."""

    def through(action: Any) -> Steps[Any]:
        if isinstance(action, step.LockShared):
            return True
        return (yield action)

    return relay(through, performer)


def no_handshake(performer: Performer = system.perform) -> Performer:
    """Return a function that runs a reader's steps with ``performer``, but releases the lock before
    the firmware gets the request.
    """
    closed = threading.local()  # one performer serves many vCPUs at once

    def through(action: Any) -> Steps[Any]:
        if isinstance(action, step.Handshake) and action.fd is not None:
            yield step.Close(action.fd)
            closed.fd = action.fd
        elif isinstance(action, step.Close) and action.fd == getattr(closed, "fd", None):
            closed.fd = None
            return None
        return (yield action)

    return relay(through, performer)


READERS = {"no-lock": no_lock, "no-handshake": no_handshake}
