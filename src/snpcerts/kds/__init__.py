# SPDX-License-Identifier: Apache-2.0
"""AMD's key server (KDS): its URLs, a client, and a cache of verified certificates.

Callers use ``source``, which returns only certificates that verify. ``verifier_sources`` makes them
available to the verifier. ``cached_fetch`` gets a resource from the cache or the server. ``store``
is the cache on disk, and ``inventory`` lists its files. ``body`` reads certificates from an answer.

``client`` requests the resources named by ``url``, through ``proxy``, and trusts the roots of
``trust``. ``request_deadline`` ends its requests at their deadline. ``retry`` says how long to
wait, and ``clock`` measures that time. Three modules keep files that all processes of a host share:
``request_queue`` lets one process at a time ask the server, ``server_state`` remembers when the
server may be asked again, and ``failed_requests`` limits the requests that strangers' reports
cause. ``errors`` groups failures by what the caller should do next. Imports ``verify``,
``endorsement`` and ``abi``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snpcerts.kds.client import KdsClient as KdsClient
    from snpcerts.kds.errors import CacheError as CacheError
    from snpcerts.kds.errors import KdsNotFoundError as KdsNotFoundError
    from snpcerts.kds.errors import KdsUnavailableError as KdsUnavailableError
    from snpcerts.kds.errors import KdsUntrustedError as KdsUntrustedError
    from snpcerts.kds.retry import RetryPolicy as RetryPolicy
    from snpcerts.kds.source import CertificateSource as CertificateSource
    from snpcerts.kds.source import Endorsement as Endorsement
    from snpcerts.kds.source import open_certificate_source as open_certificate_source
    from snpcerts.kds.url import AMD_URL as AMD_URL
    from snpcerts.kds.verifier_sources import KdsCertificates as KdsCertificates
    from snpcerts.kds.verifier_sources import KdsRevocationLists as KdsRevocationLists
else:
    from snpcerts.exports import lazy_exports

    __all__, __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "client": ("KdsClient",),
            "verifier_sources": ("KdsCertificates", "KdsRevocationLists"),
            "errors": (
                "CacheError",
                "KdsNotFoundError",
                "KdsUnavailableError",
                "KdsUntrustedError",
            ),
            "retry": ("RetryPolicy",),
            "source": ("CertificateSource", "Endorsement", "open_certificate_source"),
            "url": ("AMD_URL",),
        },
    )
