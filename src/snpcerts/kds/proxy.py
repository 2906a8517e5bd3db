# SPDX-License-Identifier: Apache-2.0
"""Finds the proxy for a URL in environment variables, by curl's rules.

HTTP libraries interpret ``NO_PROXY`` differently, and some even fail on an IPv6 address in it.
Here, an entry of ``NO_PROXY`` that cannot be read matches nothing. Unlike curl, this module also
uses ``HTTP_PROXY`` in capitals. It ignores that variable if ``REQUEST_METHOD`` is set, because a
remote client could then have chosen the value.

Source: curl's manual page, ENVIRONMENT and --noproxy.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from snpcerts.errors import InputError


@dataclass(frozen=True, slots=True)
class Proxy:
    """The URL of a proxy, and the environment variable that holds the URL."""

    url: str
    variable: str

    def __str__(self) -> str:
        """Describe the proxy for a message, without user name and password."""
        return f"the proxy {self.place}, set by {self.variable},"

    @property
    def place(self) -> str:
        """The proxy's scheme, host and port."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def proxy_for(url: str, environment: Mapping[str, str]) -> Proxy | None:
    """Return the proxy to use for a URL; None if the URL should be requested directly.

    Raises :class:`InputError`, which names the variable, if the variable's value is not a URL or
    the kind of proxy is not supported.
    """
    parts = urlsplit(url)
    variable = _variable(parts.scheme, environment)
    if variable is None or _excepted(parts.hostname or "", environment):
        return None
    value = environment[variable].strip()
    text = value if "://" in value else f"http://{value}"
    try:
        found = urlsplit(text)
        host, _ = found.hostname, found.port
    except ValueError:
        host = None
    if not host or not text.isprintable() or " " in text:
        raise InputError(
            f"the environment variable {variable}: expected the URL of a proxy, found something "
            "else",
            hint=_HINT,
        )
    if found.scheme not in ("http", "https"):
        raise InputError(
            (
                f"the environment variable {variable}: expected an http or https proxy, found the "
                f"scheme {found.scheme!r}"
            ),
            hint=_HINT,
        )
    return Proxy(text, variable)


_HINT = (
    "set the variable as in HTTPS_PROXY=http://proxy:3128, and list in NO_PROXY the hosts "
    "that need no proxy"
)


def _variable(scheme: str, environment: Mapping[str, str]) -> str | None:
    """Return the name of the first variable that is set for this scheme; None if no variable is set
    or the first one is empty.
    """
    names = [f"{scheme}_proxy", f"{scheme}_proxy".upper(), "all_proxy", "ALL_PROXY"]
    remote = "REQUEST_METHOD" in environment
    usable = (name for name in names if not (remote and name == "HTTP_PROXY"))
    name = next((name for name in usable if name in environment), None)
    return name if name is not None and environment[name].strip() else None


def _excepted(host: str, environment: Mapping[str, str]) -> bool:
    """Return whether ``no_proxy`` covers ``host``."""
    said = environment.get("no_proxy", environment.get("NO_PROXY", ""))
    if said == "*":
        return True
    host = host.rstrip(".").lower()
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return any(_names(entry, host) for entry in said.replace(",", " ").split())
    return any(_has(entry, address) for entry in said.replace(",", " ").split())


def _names(entry: str, host: str) -> bool:
    """Return whether ``host`` is the name in this entry of ``no_proxy`` or one of its
    subdomains.
    """
    name = entry.lower().rstrip(".").removeprefix(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _has(entry: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Return whether this entry of ``no_proxy`` is the address or, if the entry has a slash, a
    network that contains the address.
    """
    try:
        if "/" in entry:
            return address in ipaddress.ip_network(entry, strict=False)
        return address == ipaddress.ip_address(entry)
    except ValueError:
        return False
