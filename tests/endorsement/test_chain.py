# SPDX-License-Identifier: Apache-2.0
"""Every problem of a chain is found, and reported by its own code."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from snpcerts.abi.product import Product
from snpcerts.endorsement.anchors import AMD_ANCHORS, Anchor, anchor_from_certificate
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.endorsement.chain import Chain, Position, check_chain, windows_of
from snpcerts.endorsement.vek import VekKind
from tests.endorsement.small_ca import (
    AMD_ALGORITHM,
    BASIC_CONSTRAINTS,
    CERT_SIGN,
    END,
    KEY_USAGE,
    PINNED,
    START,
    Recipe,
    SmallCa,
    authority_extensions,
    der,
    ec_key,
    flipped,
    oid,
    pss_algorithm,
)
from tests.keys import rsa_key

CA = SmallCa()
SHA256_WITH_RSA = der(0x30, oid("1.2.840.113549.1.1.11"), b"\x05\x00")


def trusted(ca: SmallCa = CA) -> tuple[Anchor, ...]:
    return (anchor_from_certificate(load_certificate(ca.ark.make(), "ARK")),)


def chain(
    leaf: Recipe | None = None,
    ask: Recipe | None = None,
    ark: Recipe | None = None,
    ca: SmallCa = CA,
) -> Chain:
    made = ((leaf or ca.leaf).make(), (ask or ca.ask).make(), (ark or ca.ark).make())
    one, two, three = (load_certificate(data, "x") for data in made)
    return Chain(ca.kind, one, two, three, ca.product)


def faults(chain: Chain, anchors: tuple[Anchor, ...] | None = None) -> list[str]:
    found = check_chain(chain, trusted() if anchors is None else anchors)
    return [problem.code.value for problem in found]


@pytest.mark.parametrize("product", PINNED)
@pytest.mark.parametrize("kind", list(VekKind))
@pytest.mark.parametrize("suffix", ["", " OTHER", " EMULATED"])
def test_sound_chains_have_no_fault(product: Product, kind: VekKind, suffix: str) -> None:
    ca = SmallCa(product, kind, suffix)
    assert faults(chain(ca=ca), trusted(ca)) == []


@pytest.mark.parametrize(
    ("folder", "names", "kind"),
    [
        ("milan", ("vcek", "ask", "ark"), VekKind.VCEK),
        ("turin-v5", ("vcek", "ask", "ark"), VekKind.VCEK),
        ("vlek-milan-v3", ("vlek", "asvk", "ark"), VekKind.VLEK),
    ],
)
def test_genuine_chains_have_no_fault(
    vectors: Path, folder: str, names: tuple[str, ...], kind: VekKind
) -> None:
    files = ((vectors / folder / f"{name}.der").read_bytes() for name in names)
    leaf, ask, ark = (load_certificate(data, "x") for data in files)
    genuine = Chain(kind, leaf, ask, ark)
    assert faults(genuine, AMD_ANCHORS) == []
    for anchor in AMD_ANCHORS:
        others = tuple(each for each in AMD_ANCHORS if each is not anchor)
        lost = anchor.product.value in folder.title()
        assert faults(genuine, others) == (["ark-untrusted"] if lost else [])
    assert faults(genuine, ()) == ["ark-untrusted"]


def test_amd_names_on_other_keys_are_not_trusted() -> None:
    impostor = SmallCa(suffix="")
    assert faults(chain(ca=impostor), AMD_ANCHORS) == ["ark-untrusted"]


@pytest.mark.parametrize("suffix", ["", " OTHER", " EMULATED"])
def test_only_an_emulators_root_is_said_to_need_an_anchor(suffix: str) -> None:
    (found,) = check_chain(chain(ca=SmallCa(suffix=suffix)), AMD_ANCHORS)
    assert ("--anchor FILE" in found.message) == (suffix == " EMULATED")


def test_a_root_with_another_name_is_still_untrusted() -> None:
    nameless = chain(ark=CA.ark.but(subject="root", issuer="root"))
    assert faults(nameless, ()) == ["ask-issuer", "ark-name", "ark-untrusted"]


def test_an_anchor_counts_for_its_product_only() -> None:
    other = replace(trusted()[0], product=Product.GENOA)
    assert faults(chain(), (other,)) == ["ark-untrusted"]


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        # The leaf.
        (lambda: {"leaf": CA.leaf.but(subject="SEV-VLEK")}, ["leaf-kind"]),
        (lambda: {"leaf": CA.leaf.but(issuer="SEV-Genoa TEST")}, ["leaf-issuer"]),
        (lambda: {"leaf": CA.leaf.but(signer=rsa_key("ark"))}, ["leaf-signature"]),
        (lambda: {"leaf": CA.leaf.but(signer=ec_key("vek"))}, ["leaf-signature"]),
        (lambda: {"leaf": CA.leaf.but(salt=32)}, ["leaf-signature"]),
        (
            lambda: {"leaf": CA.leaf.with_extension("1.2.3", b"", critical=True)},
            ["leaf-extensions"],
        ),
        (
            lambda: {"leaf": CA.leaf.but(outer=pss_algorithm(salt=32))},
            ["leaf-signature-algorithm"],
        ),
        (
            lambda: {"leaf": CA.leaf.but(inner=SHA256_WITH_RSA, outer=SHA256_WITH_RSA)},
            ["leaf-signature-algorithm"],
        ),
        (
            lambda: {"leaf": CA.leaf.but(inner=SHA256_WITH_RSA)},
            ["leaf-signature-algorithm"],
        ),
        # The intermediate.
        (lambda: {"ask": CA.ask.but(subject="SEV-VCEK")}, ["leaf-issuer", "ask-name"]),
        (
            lambda: {
                "ask": CA.ask.but(subject="SEV-VLEK-Milan TEST"),
                "leaf": CA.leaf.but(issuer="SEV-VLEK-Milan TEST"),
            },
            ["ask-name"],
        ),
        (
            lambda: {"ask": CA.ask.but(extensions=authority_extensions(None)[:1])},
            ["ask-ca"],
        ),
        (
            lambda: {"ask": CA.ask.but(extensions=authority_extensions(None)[1:])},
            ["ask-ca"],
        ),
        (
            lambda: {"ask": CA.ask.with_extension(BASIC_CONSTRAINTS, der(0x30), True)},
            ["ask-ca"],
        ),
        (
            lambda: {"ask": CA.ask.with_extension(KEY_USAGE, der(0x03, b"\x07\x80"), True)},
            ["ask-ca"],
        ),
        (lambda: {"ask": CA.ask.but(extensions=())}, ["ask-ca", "ask-ca"]),
        (lambda: {"ask": CA.ask.with_extension("1.2.3", b"", True)}, ["ask-extensions"]),
        (lambda: {"ask": CA.ask.but(issuer="ARK-Genoa TEST")}, ["ask-issuer"]),
        (lambda: {"ask": CA.ask.but(signer=rsa_key("ask"))}, ["ask-signature"]),
        (
            lambda: {
                "ask": CA.ask.but(key=rsa_key("small", 2048)),
                "leaf": CA.leaf.but(signer=rsa_key("small", 2048)),
            },
            ["ask-key"],
        ),
        (
            lambda: {
                "ask": CA.ask.but(key=ec_key("vek")),
                "leaf": CA.leaf.but(signer=ec_key("vek")),
            },
            ["ask-key"],
        ),
        (
            lambda: {"ask": CA.ask.but(outer=pss_algorithm(digest="2.16.840.1.101.3.4.2.1"))},
            ["ask-signature-algorithm"],
        ),
        # The root.
        (
            lambda: {"ark": CA.ark.but(subject="ARK-Milano", issuer="ARK-Milano")},
            ["ask-issuer", "ark-name"],
        ),
        (lambda: {"ark": CA.ark.but(issuer="ARK-Turin")}, ["ark-issuer"]),
        (lambda: {"ark": CA.ark.but(signer=rsa_key("ask"))}, ["ark-signature"]),
        (lambda: {"ark": CA.ark.but(extensions=authority_extensions(0))}, ["ark-ca"]),
        (lambda: {"ark": CA.ark.with_extension("1.2.3", b"", True)}, ["ark-extensions"]),
        (
            lambda: {"ark": CA.ark.but(inner=SHA256_WITH_RSA, outer=SHA256_WITH_RSA)},
            ["ark-signature-algorithm"],
        ),
        (
            lambda: {"ark": CA.ark.but(key=rsa_key("ask"), signer=rsa_key("ask"))},
            ["ask-signature", "ark-untrusted"],
        ),
        (
            lambda: {
                "ark": CA.ark.but(key=rsa_key("small", 2048), signer=rsa_key("small", 2048)),
                "ask": CA.ask.but(signer=rsa_key("small", 2048)),
            },
            ["ark-key", "ark-untrusted"],
        ),
    ],
)
def test_each_break_has_its_own_code(broken: object, expected: list[str]) -> None:
    assert faults(chain(**broken())) == expected  # type: ignore[operator]


def test_everything_wrong_is_listed_leaf_first() -> None:
    broken = chain(
        leaf=CA.leaf.but(subject="SEV-VLEK", signer=rsa_key("ark")),
        ask=CA.ask.but(signer=rsa_key("ask"), extensions=()),
        ark=CA.ark.but(signer=rsa_key("ask")),
    )
    assert faults(broken, ()) == [
        "leaf-kind",
        "leaf-signature",
        "ask-ca",
        "ask-ca",
        "ask-signature",
        "ark-signature",
        "ark-untrusted",
    ]


def test_the_default_trailer_may_be_left_out_of_the_algorithm() -> None:
    short = pss_algorithm(trailer=False)
    assert short != AMD_ALGORITHM
    assert faults(chain(leaf=CA.leaf.but(inner=short, outer=short))) == []


def test_a_signature_with_unused_bits_is_refused() -> None:
    """Otherwise a certificate could be changed without invalidating its signature."""
    leaf = CA.leaf.make()
    while leaf[-1] & 1:  # the padding has random salt: a few tries find an even end
        leaf = CA.leaf.make()
    assert leaf[-513] == 0
    changed = load_certificate(flipped(leaf, len(leaf) - 513), "VCEK")
    assert changed.signature == leaf[-512:]
    assert faults(replace(chain(), leaf=changed)) == ["leaf-signature"]


def test_products_must_agree() -> None:
    milan = chain()
    assert faults(replace(milan, leaf_product=Product.GENOA)) == ["chain-product"]
    crossed = chain(ask=CA.ask.but(subject="SEV-Genoa"), leaf=CA.leaf.but(issuer="SEV-Genoa"))
    assert faults(crossed) == ["chain-product"]


def test_missing_certificates_are_skipped_and_the_rest_is_judged() -> None:
    whole = chain(leaf=CA.leaf.but(signer=rsa_key("ark")))
    assert faults(whole) == ["leaf-signature"]
    assert faults(replace(whole, intermediate=None)) == []
    assert faults(replace(whole, root=None)) == ["leaf-signature"]
    assert faults(replace(whole, leaf=None)) == []


def test_a_key_usage_with_more_rights_is_accepted() -> None:
    both = der(0x03, b"\x01\x06")  # keyCertSign and cRLSign, as on AMD's roots
    assert both != CERT_SIGN
    assert faults(chain(ark=CA.ark.with_extension(KEY_USAGE, both, True))) == []


@pytest.mark.parametrize("place", list(Position))
def test_validity_is_inclusive_and_judged_per_certificate(place: Position) -> None:
    window = windows_of(chain())[list(Position).index(place)]
    second = timedelta(seconds=1)
    assert window.place is place
    assert window.problem_at(START) is None
    assert window.problem_at(END) is None
    early, late = window.problem_at(START - second), window.problem_at(END + second)
    assert early is not None
    assert late is not None
    assert early.code.value == f"{place.value}-not-yet-valid"
    assert late.code.value == f"{place.value}-expired"


def test_an_intermediate_on_another_curve_is_not_an_authority() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    assert faults(chain(ask=CA.ask.but(key=key))) == ["ask-key"]
