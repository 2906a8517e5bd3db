# SPDX-License-Identifier: Apache-2.0
"""What can come of asking the key server, grouped by what the caller does next.

Unreachable or throttled is never reported as bad evidence: a caller that took
it so would give up for good.
"""

from __future__ import annotations

from collections.abc import Sequence

from snpcerts.errors import RefusedError, RetryLaterError


class KdsUnavailableError(RetryLaterError):
    """The key server could not be had, or said to come back.

    ``retry_after`` is the number of seconds it asked to be left alone, or None
    where it named none.
    """

    code = "kds-unavailable"

    def __init__(
        self, message: str, *, retry_after: float | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class KdsNotFoundError(RefusedError):
    """The key server answered 404.

    That is no proof of a wrong request: it has answered 404 for valid chips,
    and for its own chains, for as long as a day.
    """

    code = "kds-not-found"


class KdsUntrustedError(RefusedError):
    """What was answered is not a certificate of this chip and TCB from a trusted root.

    ``reasons`` lists all that is wrong with it, one sentence each.
    """

    code = "kds-untrusted"

    def __init__(
        self, message: str, *, reasons: Sequence[str] = (), hint: str | None = None
    ) -> None:
        super().__init__(
            ": ".join((message, *(["; ".join(reasons)] if reasons else []))), hint=hint
        )
        self.subject = message
        self.reasons = tuple(reasons)


class CacheError(RefusedError):
    """A file of the cache cannot be read or written. Certificates are still available."""

    code = "kds-cache"
