# SPDX-License-Identifier: Apache-2.0
"""Genuine evidence verifies, on every machine that reaches the registries.

The module go-sev-guest and the crate sev ship it. Its chains end at roots that snpcerts pins.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from snpcerts.abi.product import Product
from snpcerts.abi.report import Report
from snpcerts.endorsement.anchors import AMD_ANCHORS, anchor_from_certificate
from snpcerts.endorsement.bundle import read_bundle
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.endorsement.judge import judge_authorities
from snpcerts.endorsement.vek import EndorsementCert, VekKind
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.evidence import Evidence
from snpcerts.verify.judging import verify
from snpcerts.verify.policy import Policy
from tests.endorsement.small_ca import flipped
from tests.verify.shapes import ALONE, bundles, whole

from .conftest import run
from .published import Published, crate, go_module

GENUINE = Policy.authenticity_only()
PINNED = [product for product in Product if product.is_pinned]


def codes(evidence: Evidence, piece: Published, collateral: Collateral | None = None) -> list[str]:
    found = verify(evidence, collateral, GENUINE, at=piece.at)
    return [each.code.value for each in found.reasons]


def raw(piece: Published) -> bytes:
    return Evidence.from_bytes(piece.report).report.raw


def test_it_is_genuine_as_its_authors_ship_it(published: tuple[Published, ...]) -> None:
    assert len(published) == 2
    for piece in published:
        evidence = Evidence.from_bytes(piece.report)
        assert codes(evidence, piece, Collateral(others=piece.certificates)) == [], piece.name


def test_by_the_command(published: tuple[Published, ...], tmp_path: Path) -> None:
    """Without --anchor, the command trusts the pinned root."""
    for piece, demands in zip(published, (["policy-debug"], []), strict=True):
        (tmp_path / "report").write_bytes(piece.report)
        (tmp_path / "certs").write_bytes(bundles(piece.certificates)["PEM"])
        argv = [sys.executable, "-m", "snpcerts", "verify", "report", "--certs", "certs"]
        ran = run([*argv, "--at", piece.at.isoformat()], tmp_path, check=False)
        assert ran.returncode == bool(demands), ran.stderr
        assert "AMD's, for Milan" in ran.stdout
        for demand in demands:
            assert demand in ran.stdout


def test_it_is_genuine_in_every_shape(published: tuple[Published, ...]) -> None:
    for piece in published:
        report = raw(piece)
        for name, make in whole(piece.certificates).items():
            assert codes(Evidence.from_bytes(make(report)), piece) == [], (piece.name, name)
        for name, make in ALONE.items():
            given = Collateral(others=piece.certificates)
            assert codes(Evidence.from_bytes(make(report)), piece, given) == [], (piece.name, name)
        for name, data in bundles(piece.certificates).items():
            given = Collateral(others=read_bundle(data).certificates)
            assert codes(Evidence(report), piece, given) == [], (piece.name, name)


def test_one_bit_of_it_is_enough_to_refuse(published: tuple[Published, ...]) -> None:
    for piece in published:
        report = raw(piece)
        fields = [offset for offset, _ in Report.unpack(report).fields.layout().values()]
        for at in fields:
            changed = Evidence(flipped(report, at), Collateral(others=piece.certificates))
            assert codes(changed, piece), (piece.name, at)


def test_certificates_of_one_are_not_those_of_the_other(published: tuple[Published, ...]) -> None:
    one, other = published
    assert codes(Evidence(raw(one)), one, Collateral(others=other.certificates)) != []


@pytest.mark.parametrize("kind", list(VekKind))
@pytest.mark.parametrize("product", PINNED)
def test_their_roots_are_the_pinned_ones(
    published: tuple[Published, ...], product: Product, kind: VekKind
) -> None:
    del published  # this fixture skips the test if nothing can be fetched
    vcek = "_vcek" if product is Product.TURIN else ""
    end = vcek if kind is VekKind.VCEK else "_vlek"
    file = go_module() / "verify" / "trust" / f"ask_ark_{product.keyword}{end}.pem"
    authority, root = (
        load_certificate(each, "CA") for each in read_bundle(file.read_bytes()).certificates
    )
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert not judge_authorities(kind, product, authority, root, AMD_ANCHORS, at)
    assert judge_authorities(kind, product, root, authority, AMD_ANCHORS, at)
    assert anchor_from_certificate(root).certificate_sha384 == product.ark_certificate_sha384


def test_the_turin_vcek_of_the_crate_is_read(published: tuple[Published, ...]) -> None:
    del published
    place = crate() / "tests" / "certs_data"
    leaf = EndorsementCert.from_bytes((place / "vcek_turin.der").read_bytes())
    assert leaf.product is Product.TURIN
    assert leaf.tcb.fmc is not None
    chain = read_bundle((place / "cert_chain_turin").read_bytes()).certificates
    assert len(chain) == 2
