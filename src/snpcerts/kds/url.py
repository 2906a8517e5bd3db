# SPDX-License-Identifier: Apache-2.0
"""The key server's resources and their URLs.

The URL of a resource has many spellings: hexadecimal in either case, numbers with or without a
leading zero, parameters in any order. This module writes one spelling: lower case, at least two
digits, ``fmcSPL`` first. It reads all spellings, so that a cache or a server never treats two of
them as two resources.

Source: KDS (57230) chapter 3; Turin's parameters as in virtee/snphost and genuine requests;
Venice's parameters are the components of its TCB (virtee/snpguest pull request 159).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urljoin, urlsplit

from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import FormatError, UsageError

AMD_URL: Final = "https://kdsintf.amd.com"

WHAT: Final = "key server URL"
_MAX_TARGET: Final = 2048
_PARAMETERS: Final = {
    "fmcSPL": "fmc",
    "blSPL": "bootloader",
    "teeSPL": "tee",
    "snpSPL": "snp",
    "ucodeSPL": "microcode",
}
_NUMBER = re.compile(r"[0-9]{1,3}")
_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})+")


@dataclass(frozen=True, slots=True)
class VcekResource:
    """The VCEK certificate of one chip at one TCB.

    ``hwid`` is the significant bytes of the chip ID: 64, or 8 on Turin and Venice. Raises
    :class:`UsageError` if ``hwid`` or the TCB's layout does not fit the product.
    """

    product: Product
    hwid: bytes
    tcb: TcbVersion

    def __post_init__(self) -> None:
        size = self.product.hwid_size
        if len(self.hwid) != size:
            raise UsageError(
                f"expected a hwID of {size} bytes on {self.product.value}, found {len(self.hwid)}",
                hint=f"use the first {size} bytes of the report's chip ID",
            )
        if not any(self.hwid):
            raise UsageError(
                "expected a hwID that is not zero, found only zero bytes",
                hint=(
                    "take the chip ID from another source: in a report, the chip ID may be zero if "
                    "the host masks it or if a VLEK signed the report"
                ),
            )
        problem = self.product.tcb_problem(self.tcb)
        if problem is not None:
            raise UsageError(problem)

    @property
    def path(self) -> str:
        """The path and query of this resource below the server's URL, without a leading slash."""
        named = self.tcb.components()
        query = "&".join(
            f"{parameter}={named[component]:02}"
            for parameter, component in _PARAMETERS.items()
            if component in named
        )
        return f"vcek/v1/{self.product.kds_name}/{self.hwid.hex()}?{query}"

    def __str__(self) -> str:
        return f"{self.product.value} VCEK of chip {self.hwid.hex()[:16]}… at {self.tcb}"


@dataclass(frozen=True, slots=True)
class ChainResource:
    """The certificates above a product's leaves: the ASK (or, for VLEKs, the ASVK) and the ARK."""

    product: Product
    kind: VekKind

    @property
    def path(self) -> str:
        """The path of this resource below the server's URL, without a leading slash."""
        return f"{self.kind.value}/v1/{self.product.kds_name}/cert_chain"

    def __str__(self) -> str:
        return f"{self.product.value} {self.kind.name} certificate chain"


@dataclass(frozen=True, slots=True)
class CrlResource:
    """The revocation list of a product's ARK for its ASKs (or ASVKs)."""

    product: Product
    kind: VekKind

    @property
    def path(self) -> str:
        """The path of this resource below the server's URL, without a leading slash."""
        return f"{self.kind.value}/v1/{self.product.kds_name}/crl"

    def __str__(self) -> str:
        return f"{self.product.value} {self.kind.name} revocation list"


Resource = VcekResource | ChainResource | CrlResource


def parse_target(target: str) -> Resource:
    """Return the resource that ``target``, a URL or a path with its query, names in any spelling.

    Raises :class:`FormatError` for anything else: another path, an unknown product (case matters),
    a hwID of the wrong length, or a parameter that is missing, repeated, unknown or not from 0 to
    255.
    """
    if len(target) > _MAX_TARGET:
        raise FormatError(WHAT, f"expected at most {_MAX_TARGET} characters, found {len(target)}")
    try:
        parts = urlsplit(target)
        pairs = parse_qsl(parts.query, keep_blank_values=True, max_num_fields=16)
    except ValueError as error:
        raise FormatError(WHAT, f"the URL cannot be read: {error}") from None
    words = parts.path.removeprefix("/").split("/")
    if len(words) != 4 or words[1] != "v1" or words[0] not in {kind.value for kind in VekKind}:
        raise FormatError(
            WHAT, f"expected the path vcek/v1/... or vlek/v1/..., found {parts.path[:80]!r}"
        )
    kind, last = VekKind(words[0]), words[3]
    product = next((each for each in Product if each.kds_name == words[2]), None)
    if product is None:
        raise FormatError(WHAT, f"expected a product's name, found {words[2][:40]!r}")
    if last in ("cert_chain", "crl"):
        if pairs:
            raise FormatError(WHAT, f"expected no parameters after {last}")
        return (ChainResource if last == "cert_chain" else CrlResource)(product, kind)
    if kind is not VekKind.VCEK or _HEX.fullmatch(last) is None:
        raise FormatError(WHAT, f"expected cert_chain, crl or a hwID, found {last[:80]!r}")
    try:
        return VcekResource(product, bytes.fromhex(last), _tcb(pairs, product))
    except UsageError as error:
        raise FormatError(WHAT, error.message) from None


def _tcb(pairs: list[tuple[str, str]], product: Product) -> TcbVersion:
    values: dict[str, int] = {}
    for name, text in pairs:
        component = _PARAMETERS.get(name)
        if component is None:
            raise FormatError(
                WHAT, f"expected a TCB component as the parameter, found {name[:40]!r}"
            )
        if component in values:
            raise FormatError(WHAT, "the parameter appears twice", field=name)
        if _NUMBER.fullmatch(text) is None or int(text) > 255:
            raise FormatError(
                WHAT, f"expected a number from 0 to 255, found {text[:40]!r}", field=name
            )
        values[component] = int(text)
    for name, component in _PARAMETERS.items():
        needed = component != "fmc" and component in product.tcb_layout.components
        if needed and component not in values:
            raise FormatError(WHAT, "the parameter is missing", field=name)
    problem = product.tcb_layout.problem(values)
    if problem is not None:
        raise FormatError(WHAT, f"a TCB of {product.value} {problem}")
    return TcbVersion.of(values)


def checked_base(url: str) -> str:
    """Return a key server's or mirror's base URL, without a trailing slash.

    Raises :class:`UsageError` unless it is http or https with a host, and without user name, query
    and fragment.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"key server URL {url!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise UsageError(f"key server URL {url!r}: expected http:// or https:// and a host")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            f"key server URL {url!r}: expected no user name, query or fragment",
        )
    return url.rstrip("/")


def checked_target(url: str, location: str) -> str:
    """Return the URL to which a redirect from ``url`` leads.

    Raises :class:`ValueError` if the redirect must not be followed, because it leads from https to
    http, from elsewhere to this machine or its cloud's metadata service, or to a URL that is not
    HTTP or has a user name.
    """
    target = urljoin(url, location)
    here, there = urlsplit(url), urlsplit(target)
    if there.scheme not in ("http", "https") or not there.hostname or there.port == 0:
        raise ValueError("the target is not an http or https URL with a host")
    if "@" in there.netloc:
        raise ValueError("the target URL has a user name")
    if here.scheme == "https" and there.scheme == "http":
        raise ValueError("the target URL does not use TLS, but the redirecting server does")
    if _rank(there.hostname) > _rank(here.hostname or ""):
        raise ValueError("the target URL leads to this machine or its cloud's metadata service")
    return target


def _rank(host: str) -> int:
    """Return a host's rank: 2 for the metadata service of this machine's cloud, 1 for this machine,
    otherwise 0.

    A server may redirect to a host of its own rank or a lower one.
    """
    if host == "localhost" or host.endswith(".localhost"):
        return 1
    try:
        # Read it as the resolver does: 127.1 and 0x7f000001 also mean this machine.
        address: ipaddress.IPv4Address | ipaddress.IPv6Address
        address = ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeError):
        try:
            six = ipaddress.IPv6Address(host.partition("%")[0])
        except ValueError:
            return 0
        address = six if six.ipv4_mapped is None else six.ipv4_mapped
    if address.is_link_local:
        return 2
    return int(address.is_loopback or address.is_unspecified)
