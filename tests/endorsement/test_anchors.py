# SPDX-License-Identifier: Apache-2.0
"""Which roots are trusted, and for what."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from hashlib import sha384
from pathlib import Path

import pytest

from snpcerts.abi.product import Product
from snpcerts.endorsement.anchors import AMD_ANCHORS, Anchor, anchor_from_certificate
from snpcerts.endorsement.ca_name import CaName, CaRole, parse_ca_name
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.endorsement.judge import ChainBytes, JudgeMemory
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import InputError
from tests.endorsement.small_ca import PINNED, SmallCa, authority_extensions
from tests.keys import rsa_key


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
    # The digest is set only if the certificate's own signature is valid.
    assert anchor.certificate_sha384 == product.ark_certificate_sha384


def test_every_product_has_one_anchor_of_its_own() -> None:
    assert [anchor.product for anchor in AMD_ANCHORS] == list(PINNED)
    assert len({anchor.spki_sha384 for anchor in AMD_ANCHORS}) == len(PINNED)
    assert {len(anchor.spki_sha384) for anchor in AMD_ANCHORS} == {48}
    assert {len(anchor.certificate_sha384 or b"") for anchor in AMD_ANCHORS} == {48}


def test_a_root_trusted_by_path_says_its_product() -> None:
    ca = SmallCa(Product.GENOA, suffix=" EMULATED")
    anchor = anchor_from_certificate(load_certificate(ca.ark.make(), "ARK"))
    assert (anchor.product, anchor.name) == (Product.GENOA, "ARK-Genoa EMULATED")
    assert anchor not in AMD_ANCHORS


CA = SmallCa()
ROOT = CA.ark.make()
UNSIGNED = ROOT[:-1] + bytes([ROOT[-1] ^ 1])
# Certificates of the same key, with contents that differ from those of ROOT.
REISSUED = {
    "later end": CA.ark.but(not_after=CA.ark.not_after + timedelta(days=3650)),
    "earlier start": CA.ark.but(not_before=CA.ark.not_before - timedelta(days=3650)),
    "other flags": CA.ark.but(extensions=authority_extensions(7)),
    "other serial number": CA.ark.but(serial=7),
}


def found(root: bytes, anchors: tuple[Anchor, ...]) -> list[str]:
    chain = ChainBytes(CA.leaf.make(), CA.ask.make(), root)
    return [
        each.code.value for each in JudgeMemory().findings(VekKind.VCEK, chain, anchors).reasons
    ]


@pytest.mark.parametrize("name", REISSUED)
def test_a_root_of_the_anchors_key_must_still_bear_its_signature(name: str) -> None:
    """A root's self-signature is checked, except that of the certificate that became the anchor."""
    anchors = (anchor_from_certificate(load_certificate(ROOT, "ARK")),)
    assert found(ROOT, anchors) == []
    stranger = REISSUED[name].but(signer=rsa_key("ask")).make()
    assert found(stranger, anchors) == ["ark-signature"]
    assert found(REISSUED[name].make(), anchors) == []  # AMD has issued it again


def test_a_root_that_does_not_bear_its_signature_gains_nothing_as_an_anchor() -> None:
    anchor = anchor_from_certificate(load_certificate(UNSIGNED, "ARK"))
    assert anchor.certificate_sha384 is None
    assert found(UNSIGNED, (anchor,)) == ["ark-signature"]
    assert found(ROOT, (anchor,)) == []


def test_the_digest_of_a_certificate_makes_no_key_trusted() -> None:
    """Trust depends on the key, and holds only for the anchor's product."""
    digest = sha384(ROOT).digest()
    other_key = Anchor(Product.MILAN, bytes(48), "x", digest)
    assert found(ROOT, (other_key,)) == ["ark-untrusted"]
    trusted = anchor_from_certificate(load_certificate(ROOT, "ARK"))
    other_product = replace(trusted, product=Product.TURIN)
    assert found(ROOT, (other_product,)) == ["ark-untrusted"]


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
