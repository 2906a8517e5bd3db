# SPDX-License-Identifier: Apache-2.0
"""Errors of key server requests, grouped by what the caller does next.

An unreachable or throttling server is never reported as bad evidence, because a caller would then
give up for good.
"""

from __future__ import annotations

from collections.abc import Sequence

from snpcerts.errors import RefusedError, RetryLaterError


class KdsUnavailableError(RetryLaterError):
    """The key server was unreachable, or refused the request for now.

    ``retry_after`` is the number of seconds to wait, or None if the server named none.
    """

    code = "kds-unavailable"

    def __init__(
        self, message: str, *, retry_after: float | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class KdsNotFoundError(RefusedError):
    """The key server answered 404.

    That does not prove a wrong request: it has answered 404 for valid chips, and for its own
    chains, for up to a day.
    """

    code = "kds-not-found"


class KdsUntrustedError(RefusedError):
    """The answer is not a certificate for this chip and TCB from a trusted root.

    ``reasons`` lists every problem, one sentence each.
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
    """A file of the cache cannot be read or written. Certificates can still be fetched."""

    code = "kds-cache"
