# SPDX-License-Identifier: Apache-2.0
"""The key server as a source: it is asked only for what is missing, by the right name."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any, cast

import pytest

from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import SnpCertsError
from snpcerts.kds.errors import KdsNotFoundError, KdsUnavailableError
from snpcerts.kds.failed_requests import LIMIT
from snpcerts.kds.source import CertificateSource, Endorsement
from snpcerts.kds.store import Store
from snpcerts.kds.url import CrlResource, VcekResource
from snpcerts.kds.verifier_sources import KdsCertificates, KdsRevocationLists
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.evidence import Evidence
from snpcerts.verify.policy import Policy, Revocation
from snpcerts.verify.sources import OWN, verify_with
from snpcerts.verify.verdict import Status, Verdict
from tests.endorsement.small_ca import NOON, PINNED, TCBS, CrlRecipe, SmallCa, flipped
from tests.verify.test_verify import anchors

REQUIRED = Policy(revocation=Revocation.REQUIRE)


class Server:
    """Stands in for CertificateSource: it knows one authority, and remembers the questions."""

    client = SimpleNamespace(url="https://kds.example")
    parent: Path

    def __init__(self, ca: SmallCa, failure: SnpCertsError | None = None) -> None:
        self.ca = ca
        self.failure = failure
        self.folder = Path(mkdtemp(dir=self.parent))
        self.store = Store(self.folder)
        self.known: bytes | None = None
        self.asked: list[tuple[Any, ...]] = []

    def _ask(self, *question: Any) -> None:
        self.asked.append(question)
        if self.failure is not None:
            raise self.failure

    def vcek(self, product: Product, hwid: bytes, tcb: object, *, at: datetime) -> Endorsement:
        self._ask("vcek", product, hwid, tcb, at)
        if product is not self.ca.product:
            raise KdsNotFoundError("404")
        leaf, ask, ark = (recipe.make() for recipe in (self.ca.leaf, self.ca.ask, self.ca.ark))
        return Endorsement(leaf, ask, ark, datetime(2030, 1, 1, tzinfo=UTC))

    def chain(self, product: Product, kind: VekKind, *, at: datetime) -> tuple[bytes, bytes]:
        self._ask("chain", product, kind, at)
        return self.ca.ask.make(), self.ca.ark.make()

    def crl(
        self, product: Product, kind: VekKind, *, at: datetime, max_age: timedelta | None
    ) -> bytes:
        self._ask("crl", product, kind, at, max_age)
        return self.known or CrlRecipe(self.ca).make()

    def known_crl(self, product: Product, kind: VekKind) -> bytes | None:
        assert product is self.ca.product
        assert kind is self.ca.kind
        return self.known


@pytest.fixture(autouse=True)
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory of the servers' caches."""
    monkeypatch.setattr(Server, "parent", tmp_path, raising=False)


def judge(
    server: Server,
    evidence: Evidence,
    policy: Policy | None = None,
) -> Verdict:
    source = cast("CertificateSource", server)
    sources = [OWN, KdsCertificates(source, at=NOON), KdsRevocationLists(source, at=NOON)]
    return verify_with(evidence, sources, policy, anchors=anchors(server.ca), at=NOON)


@pytest.mark.parametrize("product", PINNED)
@pytest.mark.parametrize("version", [2, 3])
def test_a_vcek_is_asked_for_by_the_chip_and_tcb_of_the_report(
    product: Product, version: int
) -> None:
    ca = SmallCa(product)
    server = Server(ca)
    assert judge(server, Evidence(ca.report(version))).status is Status.VERIFIED
    tcb, hwid = TCBS[product], ca.chip_id[: product.hwid_size]
    # Version 2 does not tell Genoa from Milan, so the VCEK of a Milan is asked for first.
    tries = [Product.MILAN, product] if version == 2 and product is Product.GENOA else [product]
    assert server.asked == [("vcek", each, hwid, tcb, NOON) for each in tries]


def test_the_chain_of_a_vlek_alone_is_asked_for_and_no_leaf() -> None:
    ca = SmallCa(kind=VekKind.VLEK)
    server = Server(ca)
    own = Collateral(vlek=ca.leaf.make())
    for version in (2, 3):
        assert judge(server, Evidence(ca.report(version), own)).status is Status.VERIFIED
    assert server.asked == [("chain", Product.MILAN, VekKind.VLEK, NOON)] * 2
    verdict = judge(server, Evidence(ca.report()))
    assert [reason.code.value for reason in verdict.reasons] == ["vlek-missing"]


def test_a_list_is_asked_for_only_where_one_is_required() -> None:
    server = Server(SmallCa())
    evidence = Evidence(server.ca.report())
    judge(server, evidence)
    assert [question[0] for question in server.asked] == ["vcek"]
    assert judge(server, evidence, REQUIRED).status is Status.VERIFIED
    assert server.asked[-1] == ("crl", Product.MILAN, VekKind.VCEK, NOON, None)


def test_nothing_is_asked_where_nothing_is_missing_or_could_be_named() -> None:
    ca = SmallCa()
    whole = Collateral(vcek=ca.leaf.make(), ask=ca.ask.make(), ark=ca.ark.make())
    server = Server(ca)
    assert judge(server, Evidence(ca.report(), whole)).status is Status.VERIFIED
    judge(server, Evidence(ca.report(chip_id=bytes(64))))
    judge(server, Evidence(ca.report(cpuid_model=0x50)))
    judge(server, Evidence(ca.report(reported_tcb=b"\0\0\1\0\0\0\0\0")))
    assert server.asked == []


def test_an_outage_does_not_refuse_and_a_404_is_reported() -> None:
    ca = SmallCa()
    down = Server(ca, KdsUnavailableError("throttled", retry_after=10))
    verdict = judge(down, Evidence(ca.report()))
    assert verdict.status is Status.UNDECIDED
    missing = Server(ca, KdsNotFoundError("404"))
    for version in (2, 3):
        verdict = judge(missing, Evidence(ca.report(version)))
        assert [reason.code.value for reason in verdict.reasons] == ["collateral-not-found"]


def test_a_required_list_is_requested_even_if_the_host_sends_one() -> None:
    server = Server(SmallCa())
    ca = server.ca
    own = Collateral(ca.leaf.make(), None, ca.ask.make(), ca.ark.make(), CrlRecipe(ca).make())
    server.known = CrlRecipe(ca, revoked=(1,)).make()
    verdict = judge(server, Evidence(ca.report(), own), REQUIRED)
    assert [question[0] for question in server.asked] == ["crl"]
    assert [reason.code.value for reason in verdict.reasons] == ["ask-revoked", "ark-revoked"]
    assert [judged.supplier.value for judged in verdict.revocation_lists] == [
        "evidence",
        "key-server",
    ]
    assert verdict.revocation_lists[1].origin == "https://kds.example/vcek/v1/Milan/crl"


def test_cached_revocations_count_even_if_no_list_is_required() -> None:
    server = Server(SmallCa())
    server.known = CrlRecipe(server.ca, revoked=(1,)).make()
    verdict = judge(server, Evidence(server.ca.report()))
    assert [question[0] for question in server.asked] == ["vcek"]
    assert [reason.code.value for reason in verdict.reasons] == ["ask-revoked", "ark-revoked"]
    # An expired list that revokes nothing does not matter if no list is required.
    server.known = CrlRecipe(server.ca, next_update=NOON - timedelta(days=1)).make()
    assert judge(server, Evidence(server.ca.report())).status is Status.VERIFIED


def test_a_list_that_could_not_be_renewed_leaves_a_report_undecided() -> None:
    ca = SmallCa()
    own = Collateral(vcek=ca.leaf.make(), ask=ca.ask.make(), ark=ca.ark.make())
    old = CrlRecipe(ca, next_update=NOON - timedelta(days=1)).make()
    down = Server(ca, KdsUnavailableError("throttled"))
    down.known = old
    verdict = judge(down, Evidence(ca.report(), own), REQUIRED)
    assert verdict.status is Status.UNDECIDED
    assert verdict.reasons[0].message == "throttled"
    # During an outage, a revocation in an expired list still counts.
    down.known = CrlRecipe(ca, revoked=(1,), next_update=NOON - timedelta(days=1)).make()
    verdict = judge(down, Evidence(ca.report(), own), REQUIRED)
    assert verdict.status is Status.REFUSED
    # If the server gives no newer list, one from two days ago is too old for a limit of one day.
    aged = Server(ca)
    aged.known = CrlRecipe(ca).make()
    resource = CrlResource(Product.MILAN, VekKind.VCEK)
    aged.store.write(resource, aged.known)
    written = datetime.now(UTC) - timedelta(days=2)
    os.utime(aged.store.path_of(resource), (written.timestamp(),) * 2)
    policy = Policy(revocation=Revocation.REQUIRE, maximum_crl_age=timedelta(days=1))
    now = datetime.now(UTC)
    source = cast("CertificateSource", aged)
    verdict = verify_with(
        Evidence(ca.report(), own),
        [OWN, KdsRevocationLists(source)],
        policy,
        anchors=anchors(ca),
        at=now,
    )
    assert [reason.code.value for reason in verdict.reasons] == ["collateral-unavailable"]
    assert aged.asked[-1][-1] == timedelta(days=1)
    assert verdict.revocation_lists[0].age is not None
    assert verdict.revocation_lists[0].age.days == 2


def _bogus(ca: SmallCa, number: int) -> bytes:
    """Return a report that no firmware signed, for a made-up chip."""
    return ca.report(chip_id=number.to_bytes(64, "little"))


def test_reports_of_unknown_chips_cost_few_requests_and_no_file() -> None:
    ca = SmallCa()
    server = Server(ca, KdsNotFoundError("404"))
    for number in range(1, 3 * LIMIT):
        verdict = judge(server, Evidence(_bogus(ca, number)))
    assert len(server.asked) == LIMIT
    assert verdict.status is Status.UNDECIDED
    assert "too many recent requests for VCEKs" in verdict.reasons[0].message
    assert [path.name for path in server.folder.iterdir()] == ["fruitless"]


def test_vceks_of_a_chip_that_exists_at_levels_that_never_ran_are_bounded_and_not_kept() -> None:
    """The key server makes a VCEK for whatever TCB it is asked for."""
    ca = SmallCa()
    server = Server(ca)
    kept: list[VcekResource] = []
    ask = server.vcek

    def keeping(product: Product, hwid: bytes, tcb: TcbVersion, *, at: datetime) -> Endorsement:
        found = ask(product, hwid, tcb, at=at)
        kept.append(VcekResource(product, hwid, tcb))
        server.store.write(kept[-1], found.leaf)
        return found

    server.vcek = keeping  # type: ignore[assignment, method-assign]  # as the source keeps it
    for number in range(3 * LIMIT):
        report = flipped(ca.report(reported_tcb=bytes((number, 0, 0, 0, 0, 0, 24, 219))), 0x90)
        judge(server, Evidence(report))
    assert len(kept) == LIMIT
    assert list(server.store.places()) == []
    # A forged report does not remove a VCEK that was in the cache before.
    server.store.write(kept[0], ca.leaf.make())
    judge(server, Evidence(flipped(ca.report(reported_tcb=bytes((0,) * 6 + (24, 219))), 0x90)))
    assert server.store.read(kept[0]) is not None


def test_chips_whose_vcek_signed_the_report_are_not_counted() -> None:
    ca = SmallCa(Product.GENOA)
    server = Server(ca)
    for _ in range(2 * LIMIT):
        assert judge(server, Evidence(ca.report(2))).status is Status.VERIFIED
    assert len(server.asked) == 4 * LIMIT
    down = Server(ca, KdsUnavailableError("throttled"))
    for _ in range(2 * LIMIT):
        assert "throttled" in judge(down, Evidence(ca.report())).reasons[0].message
