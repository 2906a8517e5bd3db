# SPDX-License-Identifier: Apache-2.0
"""The two ways to give a program the emulated paths, and the choice between them.

- ``namespace``: the program's own mount namespace has the emulated paths
  (:mod:`snpcerts.emulator.frontdoor.namespace`). Only ioctls are trapped.
- ``trap``: every call that opens or examines a path is trapped
  (:mod:`snpcerts.emulator.frontdoor.path_calls`). This way needs no mount namespace.

Either way, no ioctl of KVM or SEV reaches a real device.
"""

from __future__ import annotations

import enum
import os
from typing import Final

from snpcerts.emulator.frontdoor import namespace
from snpcerts.emulator.frontdoor.seccomp import FrontDoorUnavailableError
from snpcerts.errors import UsageError

VARIABLE: Final = "SNPCERTS_DOOR"


class Way(enum.Enum):
    """A way to give a program the emulated paths."""

    NAMESPACE = "namespace"
    TRAP = "trap"


def wanted(name: str | None = None) -> Way | None:
    """Return the way called ``name``; if ``name`` is None, the way that SNPCERTS_DOOR names.

    Returns None if there is no name or it is "auto": then :func:`choose` takes ``namespace`` if the
    kernel allows it, otherwise ``trap``.
    """
    name = os.environ.get(VARIABLE) if name is None else name
    if not name or name == "auto":
        return None
    try:
        return Way(name)
    except ValueError:
        names = ", ".join(way.value for way in Way)
        raise UsageError(f"{VARIABLE}={name!r}: expected {names} or auto") from None


def choose(way: Way | None) -> tuple[Way, str]:
    """Return the way to use and the reason for it.

    Raises :class:`FrontDoorUnavailableError` if ``way`` cannot be used.
    """
    if way is Way.TRAP:
        return Way.TRAP, "as requested"
    reason = namespace.missing()
    if not reason:
        return Way.NAMESPACE, "the kernel allows a private mount namespace"
    if way is Way.NAMESPACE:
        raise FrontDoorUnavailableError(
            f"the front door cannot use a mount namespace: {reason}",
            hint="run this as root, allow user namespaces, or use --door trap",
        )
    return Way.TRAP, f"no private mount namespace: {reason}"
