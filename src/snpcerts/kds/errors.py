# SPDX-License-Identifier: Apache-2.0
"""The errors of requests to the key server, grouped by what the caller should do next.

An unreachable or throttling server is never reported as bad evidence, because the caller would then
never try again.
"""

from __future__ import annotations

from collections.abc import Sequence

from snpcerts.errors import RefusedError, RetryLaterError


class KdsUnavailableError(RetryLaterError):
    """There is no usable answer from the key server. This says nothing about the certificate.

    ``retry_after`` is the number of seconds to wait, or None if no time to wait is known.
    """

    code = "kds-unavailable"

    def __init__(
        self, message: str, *, retry_after: float | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class KdsNotFoundError(RefusedError):
    """The key server answered 404.

    This does not prove that the request was wrong: AMD's server has answered 404 for valid chips,
    and for its own chains, for a day or longer.
    """

    code = "kds-not-found"


class KdsUntrustedError(RefusedError):
    """The answer does not verify: it is not the requested certificate or revocation list from a
    trusted root.

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
    """A file of the cache cannot be read or written. Certificates can still be fetched without the
    cache.
    """

    code = "kds-cache"
