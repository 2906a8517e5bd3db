# SPDX-License-Identifier: Apache-2.0
"""The proxy that the environment names for a URL, as curl reads it.

HTTP libraries differ in what they make of ``NO_PROXY``, up to refusing to work
at all over an address of IPv6 in it. Here nothing in these variables is an
error: an entry that cannot be read matches nothing. What differs from curl:
``HTTP_PROXY`` in capitals counts too, but where ``REQUEST_METHOD`` is set (there
a remote client could have chosen it).

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
        """Without user name and password."""
        return f"the proxy {self.place}, which {self.variable} names,"

    @property
    def place(self) -> str:
        """Its scheme, host and port."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def proxy_for(url: str, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy to use for a URL, or None.

    Raises :class:`InputError`, naming the variable, where what it says is no
    proxy, or one of a kind that cannot be used.
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
        raise InputError(f"{variable} in the environment is not a proxy's URL", hint=_HINT)
    if found.scheme not in ("http", "https"):
        raise InputError(
            f"{variable} in the environment names a proxy of kind {found.scheme!r}, "
            "which cannot be used here",
            hint=_HINT,
        )
    return Proxy(text, variable)


_HINT = "as in HTTPS_PROXY=http://proxy:3128; NO_PROXY names the hosts that need none"


def _variable(scheme: str, environment: Mapping[str, str]) -> str | None:
    """The first variable that is set. Set to nothing, it says: no proxy."""
    names = [f"{scheme}_proxy", f"{scheme}_proxy".upper(), "all_proxy", "ALL_PROXY"]
    remote = "REQUEST_METHOD" in environment
    usable = (name for name in names if not (remote and name == "HTTP_PROXY"))
    name = next((name for name in usable if name in environment), None)
    return name if name is not None and environment[name].strip() else None


def _excepted(host: str, environment: Mapping[str, str]) -> bool:
    """Whether ``no_proxy`` has this host."""
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
    """A name stands for itself and for what is below it."""
    name = entry.lower().rstrip(".").removeprefix(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _has(entry: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """An address stands for itself, and with a slash for a network."""
    try:
        if "/" in entry:
            return address in ipaddress.ip_network(entry, strict=False)
        return address == ipaddress.ip_address(entry)
    except ValueError:
        return False
