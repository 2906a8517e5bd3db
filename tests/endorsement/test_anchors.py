# SPDX-License-Identifier: Apache-2.0
"""Which roots are trusted, and for what."""

from __future__ import annotations

from pathlib import Path

import pytest

from snpcerts.abi.product import Product
from snpcerts.endorsement.anchors import AMD_ANCHORS, anchor_from_certificate
from snpcerts.endorsement.ca_name import CaName, CaRole, parse_ca_name
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.errors import InputError
from tests.endorsement.small_ca import PINNED, SmallCa


@pytest.mark.parametrize(
    ("folder", "product"),
    [
        ("milan", Product.MILAN),
        ("turin-v5", Product.TURIN),
        ("vlek-milan-v3", Product.MILAN),
    ],
)
def test_amd_roots_are_the_pinned_ones(vectors: Path, folder: str, product: Product) -> None:
    root = load_certificate((vectors / folder / "ark.der").read_bytes(), "ARK")
    anchor = anchor_from_certificate(root)
    assert anchor in AMD_ANCHORS
    assert anchor.product is product


def test_every_product_has_one_anchor_of_its_own() -> None:
    assert [anchor.product for anchor in AMD_ANCHORS] == list(PINNED)
    assert len({anchor.spki_sha384 for anchor in AMD_ANCHORS}) == len(PINNED)
    assert {len(anchor.spki_sha384) for anchor in AMD_ANCHORS} == {48}


def test_a_root_trusted_by_path_says_its_product() -> None:
    ca = SmallCa(Product.GENOA, suffix=" EMULATED")
    anchor = anchor_from_certificate(load_certificate(ca.ark.make(), "ARK"))
    assert (anchor.product, anchor.name) == (Product.GENOA, "ARK-Genoa EMULATED")
    assert anchor not in AMD_ANCHORS


def test_only_a_root_becomes_an_anchor() -> None:
    ca = SmallCa()
    for recipe in (ca.ask, ca.leaf, ca.ark.but(subject="ARK-Naples")):
        with pytest.raises(InputError, match="common name"):
            anchor_from_certificate(load_certificate(recipe.make(), "ARK"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ARK-Milan", CaName(CaRole.ARK, Product.MILAN)),
        ("SEV-Turin", CaName(CaRole.ASK, Product.TURIN)),
        ("SEV-VLEK-Genoa", CaName(CaRole.ASVK, Product.GENOA)),
        ("SEV-Milan EMULATED", CaName(CaRole.ASK, Product.MILAN)),
        ("SEV-VLEK-Milan EMULATED", CaName(CaRole.ASVK, Product.MILAN)),
        ("SEV-VCEK", None),
        ("SEV-VLEK", None),
        ("ARK-Milano", None),
        ("ARK-Milan-B0", None),
        ("ARK-milan", None),
        (" ARK-Milan", None),
        ("ARK-Milan\nx", None),
        ("ARK-Milan ", None),
        ("", None),
        (None, None),
    ],
)
def test_names_of_authorities(text: str | None, expected: CaName | None) -> None:
    assert parse_ca_name(text) == expected
