# SPDX-License-Identifier: Apache-2.0
"""What a VCEK or VLEK certificate says is read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.vek import AMD_ARC, EndorsementCert, VekKind
from snpcerts.errors import FormatError
from tests.endorsement.small_ca import PINNED, TCBS, SmallCa, der, ia5, integer
from tests.keys import rsa_key

PRODUCTS = PINNED


@pytest.mark.parametrize(
    ("folder", "name", "kind", "product", "product_name", "tcb", "hwid", "csp"),
    [
        (
            "milan",
            "vcek",
            VekKind.VCEK,
            Product.MILAN,
            "Milan-B0",
            TcbVersion(3, 0, 8, 115),
            "d49554ec717f4e5b",
            None,
        ),
        (
            "turin-v5",
            "vcek",
            VekKind.VCEK,
            Product.TURIN,
            "Turin",
            TcbVersion(1, 1, 4, 81, fmc=1),
            "59790fb1c39f35c1",
            None,
        ),
        (
            "vlek-milan-v3",
            "vlek",
            VekKind.VLEK,
            Product.MILAN,
            "Milan",
            TcbVersion(4, 0, 24, 217),
            None,
            "CN=cc-us-east-2.amazonaws.com",
        ),
    ],
)
def test_genuine_leaves_are_read(
    vectors: Path,
    folder: str,
    name: str,
    kind: VekKind,
    product: Product,
    product_name: str,
    tcb: TcbVersion,
    hwid: str | None,
    csp: str | None,
) -> None:
    cert = EndorsementCert.from_bytes((vectors / folder / f"{name}.der").read_bytes())
    assert (cert.kind, cert.product, cert.product_name) == (kind, product, product_name)
    assert (cert.tcb, cert.csp_id) == (tcb, csp)
    if hwid is None:
        assert cert.hwid is None
    else:
        assert cert.hwid is not None
        assert cert.hwid[:8].hex() == hwid
        assert len(cert.hwid) == product.hwid_size


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("kind", list(VekKind))
def test_leaves_of_every_product_and_kind_are_read(product: Product, kind: VekKind) -> None:
    cert = EndorsementCert.from_bytes(SmallCa(product, kind).leaf.make())
    assert (cert.kind, cert.product, cert.tcb) == (kind, product, TCBS[product])
    assert (cert.hwid is None) == (kind is VekKind.VLEK)
    assert cert.csp_id == (None if kind is VekKind.VCEK else "CN=cloud")


Levels = tuple[int, int, int, int, int]


@given(st.tuples(*[st.integers(0, 255)] * 5), st.booleans())
def test_every_component_is_read_as_written(values: Levels, turin: bool) -> None:
    bootloader, tee, snp, microcode, fmc = values
    tcb = TcbVersion(bootloader, tee, snp, microcode, fmc=fmc if turin else None)
    ca = SmallCa(Product.TURIN if turin else Product.MILAN, tcb=tcb)
    assert EndorsementCert.from_bytes(ca.leaf.make()).tcb == tcb


@pytest.mark.parametrize("product", [Product.MILAN, Product.TURIN])
@pytest.mark.parametrize("kind", list(VekKind))
def test_each_extension_is_needed(product: Product, kind: VekKind) -> None:
    leaf = SmallCa(product, kind).leaf
    assert len(leaf.extensions) == 11
    for dotted, _, _ in leaf.extensions:
        with pytest.raises(FormatError, match="missing"):
            EndorsementCert.from_bytes(leaf.without_extension(dotted).make())


@pytest.mark.parametrize(
    ("suffix", "value"),
    [
        ("1", integer(1)),  # Turin's structVersion
        ("1", integer(2)),
        ("1", ia5("0")),
        ("2", ia5("Turin")),
        ("2", ia5("Naples")),
        ("2", ia5("milan-B0")),
        ("2", ia5("")),
        ("2", ia5("Milan-" + "B" * 300)),
        ("2", der(0x0C, b"Milan")),
        ("3.1", b"\x02\x02\x01\x00"),
        ("3.1", b"\x02\x02\x00\x04"),
        ("3.1", b"\x02\x01\xff"),
        ("3.8", b"\x02\x01\x73\x00"),
        ("3.4", integer(1)),
        ("3.7", integer(255)),
        ("3.9", integer(0)),  # Turin's alone
        ("3.10", integer(0)),  # unknown: perhaps a component that would go uncompared
        ("9", integer(0)),
        ("4", bytes(63)),
        ("4", bytes(8)),
        ("4", b""),
        ("4", der(0x04, bytes(63))),
        ("4", der(0x04, bytes(64)) + b"\0"),
        ("5", ia5("CN=cloud")),  # both hwID and cspID
    ],
)
def test_an_extension_of_another_type_range_or_place_is_refused(suffix: str, value: bytes) -> None:
    leaf = SmallCa().leaf.with_extension(f"{AMD_ARC}.{suffix}", value)
    with pytest.raises(FormatError):
        EndorsementCert.from_bytes(leaf.make())


def test_a_vlek_has_no_hwid() -> None:
    leaf = SmallCa(kind=VekKind.VLEK).leaf.with_extension(f"{AMD_ARC}.4", bytes(64))
    with pytest.raises(FormatError, match="hwID"):
        EndorsementCert.from_bytes(leaf.make())


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("first", [0x02, 0x04, 0x30])
def test_a_bare_hwid_may_start_like_a_tag(product: Product, first: int) -> None:
    """Even if its second byte looks like the length of what follows."""
    hwid = bytes((first, product.hwid_size - 2)) + bytes(product.hwid_size - 2)
    assert EndorsementCert.from_bytes(SmallCa(product, chip_id=hwid).leaf.make()).hwid == hwid


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_tagged_hwid_is_tolerated(product: Product) -> None:
    hwid = bytes(range(product.hwid_size))
    leaf = SmallCa(product).leaf.with_extension(f"{AMD_ARC}.4", der(0x04, hwid))
    assert EndorsementCert.from_bytes(leaf.make()).hwid == hwid


@pytest.mark.parametrize("subject", ["SEV-Milan", "SEV-VCEK ", "sev-vcek", "SEV-VCEK TEST"])
def test_a_certificate_with_another_common_name_is_not_a_leaf(subject: str) -> None:
    with pytest.raises(FormatError, match="common name"):
        EndorsementCert.from_bytes(SmallCa().leaf.but(subject=subject).make())


def test_a_key_off_p384_is_refused() -> None:
    leaf = SmallCa().leaf
    for key in (ec.generate_private_key(ec.SECP256R1()), rsa_key("ask")):
        with pytest.raises(FormatError, match="P-384"):
            EndorsementCert.from_bytes(leaf.but(key=key).make())
