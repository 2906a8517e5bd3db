# SPDX-License-Identifier: Apache-2.0
"""Finds the proxy for a URL in the environment, by curl's rules.

HTTP libraries interpret ``NO_PROXY`` differently, and some even fail on an IPv6 address in it. Here
an entry of ``NO_PROXY`` that cannot be read matches nothing. Unlike curl, this module also uses
``HTTP_PROXY`` in capitals, unless ``REQUEST_METHOD`` is set, because a remote client could then
have chosen its value.

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
    """A proxy's URL, and the variable that names it."""

    url: str
    variable: str

    def __str__(self) -> str:
        """Return the proxy's URL without user name and password."""
        return f"the proxy {self.place}, set by {self.variable},"

    @property
    def place(self) -> str:
        """Scheme, host and port."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def proxy_for(url: str, environment: Mapping[str, str]) -> Proxy | None:
    """Return the proxy to use for a URL, or None.

    Raises :class:`InputError`, which names the variable, if its value is not a proxy's URL or the
    kind of proxy is unsupported.
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
            f"the environment variable {variable} does not hold a proxy URL", hint=_HINT
        )
    if found.scheme not in ("http", "https"):
        raise InputError(
            (
                f"the environment variable {variable} names a proxy with the unsupported "
                f"scheme {found.scheme!r}"
            ),
            hint=_HINT,
        )
    return Proxy(text, variable)


_HINT = "as in HTTPS_PROXY=http://proxy:3128; NO_PROXY lists the hosts to reach directly"


def _variable(scheme: str, environment: Mapping[str, str]) -> str | None:
    """Return the first variable for this scheme that is set. An empty value means no proxy."""
    names = [f"{scheme}_proxy", f"{scheme}_proxy".upper(), "all_proxy", "ALL_PROXY"]
    remote = "REQUEST_METHOD" in environment
    usable = (name for name in names if not (remote and name == "HTTP_PROXY"))
    name = next((name for name in usable if name in environment), None)
    return name if name is not None and environment[name].strip() else None


def _excepted(host: str, environment: Mapping[str, str]) -> bool:
    """Whether ``no_proxy`` covers this host."""
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
    """Whether the name matches this entry or is one of its subdomains."""
    name = entry.lower().rstrip(".").removeprefix(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _has(entry: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether the address equals this entry or, if the entry has a slash, is in that network."""
    try:
        if "/" in entry:
            return address in ipaddress.ip_network(entry, strict=False)
        return address == ipaddress.ip_address(entry)
    except ValueError:
        return False
