# SPDX-License-Identifier: Apache-2.0
"""Parses the target of a request to the mirror: a URL of AMD's form, below any prefix.

Clients spell the same URL differently, as their source code shows. go-sev-guest writes numbers
without a leading zero, and hwIDs of 64 bytes even for Turin. snpguest writes two digits and, on
Turin, ``fmcSPL`` first. dstack's base URL ends in ``/vcek/v1`` and trustee's does not, but the
target of the request is the same. The case of a product's name does not matter here.
"""

from __future__ import annotations

from typing import Final

from snpcerts.abi.product import CHIP_ID_SIZE, Product, product_of_keyword
from snpcerts.errors import FormatError, RefusedError
from snpcerts.kds.url import WHAT, Resource, parse_target

MAX_TARGET: Final = 2048
# AMD serves these only to cloud providers, on another port that requires a client certificate.
_PRIVATE: Final = frozenset({"cert", "hash_stick", "hashstick", "hash_sticks", "hashsticks"})


class PrivateResourceError(RefusedError):
    """The request is for a VLEK certificate or a hashstick. AMD gives these only to the cloud
    provider that they belong to.
    """

    code = "mirror-private"


def is_key_servers(path: bytes) -> bool:
    """Return whether a path is of AMD's form, rather than one of the mirror's own."""
    return b"/vcek/v1" in path or b"/vlek/v1" in path


def read_target(path: bytes, query: bytes) -> Resource:
    """Return the resource that a request's raw path and query name.

    Raises :class:`PrivateResourceError` for a VLEK certificate or a hashstick, and
    :class:`FormatError` for anything else.
    """
    if len(path) + len(query) >= MAX_TARGET:
        raise FormatError(
            WHAT, f"expected fewer than {MAX_TARGET} bytes, found {len(path) + len(query)}"
        )
    try:
        words = path.decode("ascii").split("/")
        parameters = query.decode("ascii")
    except UnicodeDecodeError:
        raise FormatError(WHAT, "expected ASCII characters, found other bytes") from None
    prefix, last = words[:-4], words[-4:]
    if len(last) < 4 or ".." in prefix or not all(word.isprintable() for word in words):
        raise FormatError(
            WHAT,
            "expected the path PREFIX/vcek/v1/PRODUCT/... or PREFIX/vlek/v1/..., found "
            "another path",
        )
    kind, version, product, name = last
    if kind == "vlek" and version == "v1" and name in _PRIVATE:
        raise PrivateResourceError(
            "the mirror serves no VLEK certificates and no hashsticks, because AMD gives them only "
            "to the cloud provider that they belong to",
            hint="ask AMD's server directly, with the provider's client certificate",
        )
    known = product_of_keyword(product)
    if known is not None:
        product = known.kds_name
        name = _significant(name, known)
    target = "/".join((kind, version, product, name))
    return parse_target(f"{target}?{parameters}" if parameters else target)


def _significant(hwid: str, product: Product) -> str:
    """Return the significant part of a chip ID, which may be given as the 64 bytes of a report's
    field.
    """
    size = 2 * product.hwid_size
    if len(hwid) == 2 * CHIP_ID_SIZE and not hwid[size:].strip("0"):
        return hwid[:size]
    return hwid
