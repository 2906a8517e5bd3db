# SPDX-License-Identifier: Apache-2.0
"""Reads the common name of an AMD certificate authority.

``ARK-Milan`` is Milan's root, ``SEV-Milan`` issues Milan's VCEK certificates (it is the ASK), and
``SEV-VLEK-Milan`` issues the VLEK certificates (the ASVK). After the product, the names of test
authorities have more words, which identify them as such.

Source: the certificates that the key server (57230) returns.
"""

from __future__ import annotations

import enum
import functools
import re
from dataclasses import dataclass

from snpcerts.abi.product import Product


class CaRole(enum.Enum):
    """The role of a certificate authority. The value is the prefix of the authority's common
    name.
    """

    ARK = "ARK"
    ASK = "SEV"
    ASVK = "SEV-VLEK"


@dataclass(frozen=True, slots=True)
class CaName:
    """The role and the product of a certificate authority."""

    role: CaRole
    product: Product


_PATTERN = re.compile(
    f"({'|'.join(role.value for role in CaRole)})-({'|'.join(p.value for p in Product)})(?: .+)?"
)
_SHORT_NAME = 256  # characters; shorter names are cached


def parse_ca_name(name: str | None) -> CaName | None:
    """Parse an authority's common name; None if the name does not have the form of AMD's names."""
    if name is None or len(name) > _SHORT_NAME:
        return _parsed(name or "")
    return _remembered(name)


def _parsed(name: str) -> CaName | None:
    match = _PATTERN.fullmatch(name)
    return match and CaName(CaRole(match[1]), Product(match[2]))


_remembered = functools.lru_cache(maxsize=64)(_parsed)
