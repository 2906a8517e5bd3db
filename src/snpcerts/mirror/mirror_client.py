# SPDX-License-Identifier: Apache-2.0
"""Calls the mirror's API, within limits of time and size, with a token or a client certificate."""

from __future__ import annotations

import json
import os
import re
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from snpcerts import __version__
from snpcerts.errors import InputError, RefusedError, RetryLaterError
from snpcerts.kds.proxy import proxy_for
from snpcerts.kds.request_deadline import cut_off_at
from snpcerts.kds.trust import trusted
from snpcerts.printable import printable

if TYPE_CHECKING:
    import httpx2

REQUEST_LIMIT: Final = 10.0  # seconds of one call, including its answer
_MAX_ANSWER: Final = 64 << 10
_MAX_TOKEN: Final = 4096


@dataclass(frozen=True, slots=True)
class MirrorAccess:
    """How to reach a mirror: its URL, and the caller's token file or client certificate.

    The URL has no trailing slash. The token is the first line of the token file. The client
    certificate and the key are PEM files.
    """

    url: str
    token_file: str | None = None
    certificate: str | None = None
    key: str | None = None


class MirrorClient:
    """A client for the API of one mirror. ``access_hint`` says how to configure the token, for
    errors about it.
    """

    def __init__(
        self, access: MirrorAccess, *, access_hint: str, limit: float = REQUEST_LIMIT
    ) -> None:
        self._access = access
        self._access_hint = access_hint
        self._limit = limit

    def call(self, method: str, path: str, document: object) -> bytes:
        """Send a JSON document to the mirror, and return the body of the answer.

        The call takes at most ``limit`` seconds. Raises :class:`RetryLaterError` if the mirror
        cannot be reached or has an internal error, :class:`RefusedError` if it refuses, and
        :class:`InputError` if the token or the client certificate cannot be read.
        """
        import httpx2

        mirror = self._access.url
        body = json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")
        try:
            status, answer = self._exchange(method, f"{mirror}/api/v1/{path}", body)
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError) as error:
            said = str(error) or type(error).__name__
            raise RetryLaterError(
                f"no usable answer from the mirror {mirror}: {said}",
                hint=(
                    "check the URL, and check that 'snpcerts mirror serve' is running on the "
                    "machine in the URL"
                ),
                code="mirror-unavailable",
            ) from None
        if status in (200, 201):
            return answer
        code, why = _error_of(answer)
        if status >= 500 or status in (408, 429):
            raise RetryLaterError(
                f"the mirror {mirror} answered {status}{why}", code="mirror-unavailable"
            )
        hint = None
        if code == "wrong-certificate":
            hint = (
                "in the [mirror] section of the configuration, set 'name' to a DNS name or the "
                "common name in the client certificate"
            )
        elif status in (401, 403):
            hint = f"check whether the token is right: {self._access_hint}"
        elif not why:
            hint = "check that the URL is that of a mirror"
        raise RefusedError(
            f"the mirror {mirror} refused the request: {status}{why}",
            hint=hint,
            code="mirror-refused",
        )

    def _exchange(self, method: str, url: str, body: bytes) -> tuple[int, bytes]:
        import httpx2

        deadline = time.monotonic() + self._limit
        with self._client(url) as client, cut_off_at(deadline) as trace:
            with client.stream(
                method,
                url,
                content=body,
                headers=self._headers(),
                timeout=self._limit,
                extensions={"trace": trace.event},
            ) as response:
                answer = bytearray()
                for part in response.iter_raw():
                    answer += part
                    if len(answer) > _MAX_ANSWER:
                        raise httpx2.ReadError(
                            f"expected an answer of at most {_MAX_ANSWER} bytes, received more"
                        )
            if time.monotonic() >= deadline:
                raise httpx2.ReadTimeout(f"the request took longer than {self._limit:g} s")
            return response.status_code, bytes(answer)

    def _headers(self) -> dict[str, str]:
        headers = {
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "User-Agent": f"snpcerts/{__version__}",
        }
        if self._access.token_file is not None:
            headers["Authorization"] = f"Bearer {read_token(self._access.token_file)}"
        return headers

    def _client(self, url: str) -> httpx2.Client:
        """Return an HTTP client that follows no redirects, because only the mirror may get the
        token.
        """
        import httpx2

        proxy = proxy_for(url, os.environ)
        tls = url.startswith("https:")
        context = trusted(os.environ) if tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        certificate, key = self._access.certificate, self._access.key
        if tls and certificate is not None:
            try:
                context.load_cert_chain(certificate, key, password="")  # never prompts
            except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
                raise InputError(
                    f"cannot use the client certificate {certificate} with the key {key}: {error}",
                    hint="give the certificate and its private key as PEM files; the key must not "
                    "have a passphrase",
                ) from None
        return httpx2.Client(
            follow_redirects=False,
            trust_env=False,
            proxy=None if proxy is None else proxy.url,
            verify=context,
        )


def read_token(path: str) -> str:
    """Return the token in the first line of a file. Raises :class:`InputError` if it cannot be
    read.
    """
    try:
        # Open without blocking, so that a FIFO cannot hold the agent up.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(fd, "rb") as file:
            data = file.read(_MAX_TOKEN + 1)
    except OSError as error:
        raise InputError(f"cannot read the mirror's token from {path}: {error.strerror}") from None
    data = data or b""
    token = data.partition(b"\n")[0].strip()
    if len(data) > _MAX_TOKEN or not re.fullmatch(rb"[\x21-\x7e]+", token):
        raise InputError(
            f"{path}: expected a token in the first line, found none",
            hint=(
                "write the token into the first line: letters, digits and punctuation, "
                "without spaces"
            ),
        )
    return token.decode("ascii")


def _error_of(answer: bytes) -> tuple[object, str]:
    """Return the error code and the error message in an answer. The message is empty if the answer
    has none.
    """
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return None, ""
    if not isinstance(found, dict):
        return None, ""
    said = found.get("error")
    return found.get("code"), f", {printable(said, 200)}" if isinstance(said, str) else ""


def sent_in_clear(url: str) -> bool:
    """Return whether others on the network can read what is sent to ``url``."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1")
