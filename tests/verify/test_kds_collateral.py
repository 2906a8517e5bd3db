# SPDX-License-Identifier: Apache-2.0
"""The key server as a source: asked for what is missing, by the right name, and for no more."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

import pytest

from snpcerts.abi.product import Product
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import SnpCertsError
from snpcerts.kds.collateral import KdsCertificates, KdsRevocationLists
from snpcerts.kds.errors import KdsNotFoundError, KdsUnavailableError
from snpcerts.kds.source import CertificateSource, Endorsement
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.evidence import Evidence
from snpcerts.verify.policy import Policy, Revocation
from snpcerts.verify.sources import OWN, verify_with
from snpcerts.verify.verdict import Status, Verdict
from tests.endorsement.small_ca import NOON, TCBS, CrlRecipe, SmallCa
from tests.verify.test_verify import anchors

REQUIRED = Policy(revocation=Revocation.REQUIRE)


class Server:
    """Answers for one authority, as CertificateSource does, and remembers the questions."""

    def __init__(self, ca: SmallCa, failure: SnpCertsError | None = None) -> None:
        self.ca = ca
        self.failure = failure
        self.asked: list[tuple[Any, ...]] = []

    def _ask(self, *question: Any) -> None:
        self.asked.append(question)
        if self.failure is not None:
            raise self.failure

    def vcek(self, product: Product, hwid: bytes, tcb: object, *, at: datetime) -> Endorsement:
        self._ask("vcek", product, hwid, tcb, at)
        if product is not self.ca.product:
            raise KdsNotFoundError("404")
        made = (recipe.make() for recipe in (self.ca.leaf, self.ca.ask, self.ca.ark))
        return Endorsement(*made, datetime(2030, 1, 1, tzinfo=UTC))

    def chain(self, product: Product, vlek: bool, *, at: datetime) -> tuple[bytes, bytes]:
        self._ask("chain", product, vlek, at)
        return self.ca.ask.make(), self.ca.ark.make()

    def crl(self, product: Product, vlek: bool, *, at: datetime) -> bytes:
        self._ask("crl", product, vlek, at)
        return CrlRecipe(self.ca).make()


def judge(
    server: Server,
    evidence: Evidence,
    policy: Policy | None = None,
) -> Verdict:
    source = cast("CertificateSource", server)
    sources = [OWN, KdsCertificates(source, at=NOON), KdsRevocationLists(source, at=NOON)]
    return verify_with(evidence, sources, policy, anchors=anchors(server.ca), at=NOON)


@pytest.mark.parametrize("product", list(Product))
@pytest.mark.parametrize("version", [2, 3])
def test_a_vcek_is_asked_for_by_the_chip_and_tcb_of_the_report(
    product: Product, version: int
) -> None:
    ca = SmallCa(product)
    server = Server(ca)
    assert judge(server, Evidence(ca.report(version))).status is Status.VERIFIED
    tcb, hwid = TCBS[product], ca.chip_id[: product.hwid_size]
    # Version 2 does not tell Genoa from Milan: it is the second that is asked for.
    tries = [Product.MILAN, product] if version == 2 and product is Product.GENOA else [product]
    assert server.asked == [("vcek", each, hwid, tcb, NOON) for each in tries]


def test_the_chain_of_a_vlek_alone_is_asked_for_and_no_leaf() -> None:
    ca = SmallCa(kind=VekKind.VLEK)
    server = Server(ca)
    own = Collateral(vlek=ca.leaf.make())
    for version in (2, 3):
        assert judge(server, Evidence(ca.report(version), own)).status is Status.VERIFIED
    assert server.asked == [("chain", Product.MILAN, True, NOON)] * 2
    verdict = judge(server, Evidence(ca.report()))
    assert [reason.code.value for reason in verdict.reasons] == ["vlek-missing"]


def test_a_list_is_asked_for_only_where_one_is_required() -> None:
    server = Server(SmallCa())
    evidence = Evidence(server.ca.report())
    judge(server, evidence)
    assert [question[0] for question in server.asked] == ["vcek"]
    assert judge(server, evidence, REQUIRED).status is Status.VERIFIED
    assert server.asked[-1] == ("crl", Product.MILAN, False, NOON)


def test_nothing_is_asked_where_nothing_is_missing_or_could_be_named() -> None:
    ca = SmallCa()
    whole = Collateral(vcek=ca.leaf.make(), ask=ca.ask.make(), ark=ca.ark.make())
    server = Server(ca)
    assert judge(server, Evidence(ca.report(), whole)).status is Status.VERIFIED
    judge(server, Evidence(ca.report(chip_id=bytes(64))))
    judge(server, Evidence(ca.report(cpuid_model=0x50)))
    judge(server, Evidence(ca.report(reported_tcb=b"\0\0\1\0\0\0\0\0")))
    assert server.asked == []


def test_an_outage_is_no_refusal_and_a_404_says_so() -> None:
    ca = SmallCa()
    down = Server(ca, KdsUnavailableError("throttled", retry_after=10))
    verdict = judge(down, Evidence(ca.report()))
    assert verdict.status is Status.UNDECIDED
    missing = Server(ca, KdsNotFoundError("404"))
    for version in (2, 3):
        verdict = judge(missing, Evidence(ca.report(version)))
        assert [reason.code.value for reason in verdict.reasons] == ["collateral-not-found"]
