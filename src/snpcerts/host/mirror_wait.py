# SPDX-License-Identifier: Apache-2.0
"""Waits until the fleet's mirror has the certificates that a firmware command will need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import RefusedError, RetryLaterError
from snpcerts.host.announce import (
    NOT_FOUND,
    REFUSED,
    STORED,
    Announcer,
    MirroredCertificate,
)
from snpcerts.host.expected_content import Key
from snpcerts.kds.clock import Clock
from snpcerts.mirror.announcement import Announcement

# Limits of the pause between two requests, in seconds. Within them, the mirror's estimate
# determines the pause.
SHORTEST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
_UNKNOWN_PAUSE: Final = 10.0


def wait_for_mirror(
    announcer: Announcer,
    announcement: Announcement,
    keys: Iterable[Key],
    patience: float,
    *,
    notice: Callable[[str], None],
    clock: Clock | None = None,
) -> None:
    """Wait until the mirror has the VCEK certificates of ``keys``, for at most ``patience``
    seconds.

    Each request is an announcement, so the mirror queues the certificates that it lacks. No mirror
    has VLEK certificates, so this does not wait for those. Raises :class:`RetryLaterError` if the
    time runs out, or if the mirror says that AMD's key server does not have a certificate or that a
    certificate does not verify. Raises :class:`RefusedError` if the mirror refuses the announcement
    or does not mention a certificate.
    """
    clock = clock or Clock()
    tcbs = {key.tcb for key in keys if key.kind is VekKind.VCEK}
    deadline = clock.now() + patience
    while tcbs:
        pause, problem = _UNKNOWN_PAUSE, ""
        try:
            found = {each.tcb: each for each in announcer.send(announcement)}
        except RetryLaterError as error:
            problem = error.message
        else:
            missing = [_of(found, tcb) for tcb in tcbs if _of(found, tcb).state != STORED]
            if not missing:
                return
            for each in missing:
                _require_obtainable(each)
            pause, problem = _pause(missing)
        pause = min(max(pause, SHORTEST_PAUSE), LONGEST_PAUSE)
        left = deadline - clock.now()
        if left <= 0:
            raise RetryLaterError(
                f"{problem} (waited {patience:.0f} s); nothing has been changed",
                hint="run the command again later; a mirror that has this request continues to "
                "fetch the certificate",
                code="certificate-unavailable",
            )
        notice(f"{problem}; asking again in {min(pause, left):.0f} s")
        clock.sleep(min(pause, left))


def _of(found: Mapping[TcbVersion, MirroredCertificate], tcb: TcbVersion) -> MirroredCertificate:
    if tcb not in found:
        raise RefusedError(
            f"the mirror did not say whether it has the certificate at {tcb}",
            hint="check that the mirror runs this release of snpcerts",
        )
    return found[tcb]


def _require_obtainable(missing: MirroredCertificate) -> None:
    if missing.state == NOT_FOUND:
        raise RetryLaterError(
            f"the mirror says that the key server has no certificate for this chip at "
            f"{missing.tcb}; nothing has been changed",
            hint="try again later: AMD's key server sometimes answers 404 for a valid chip, for a "
            "day or longer",
            code="certificate-unavailable",
        )
    if missing.state == REFUSED:
        raise RetryLaterError(
            f"the mirror got a certificate for {missing.tcb} that does not verify; nothing has "
            "been changed",
            hint="look in the mirror's log, which says what is wrong with the certificate",
            code="certificate-unavailable",
        )


def _pause(missing: list[MirroredCertificate]) -> tuple[float, str]:
    """Return how many seconds to wait before the next request, and a description of what is
    missing.
    """
    waits = [each.wait for each in missing if each.wait is not None]
    what = f"the mirror does not have the certificate at {missing[0].tcb} yet"
    if not waits:
        return _UNKNOWN_PAUSE, what
    return max(waits), f"{what}, but expects it in {math.ceil(max(waits))} s"
