# SPDX-License-Identifier: Apache-2.0
"""A host cannot hide a revocation: all lists are judged, and the host's satisfy no requirement."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from snpcerts.abi.cert_table import ARK_GUID, ASK_GUID, CRL_GUID, VCEK_GUID, CertTable, TableEntry
from snpcerts.abi.product import Product
from snpcerts.cli.main import main
from snpcerts.endorsement import crl as crl_module
from snpcerts.endorsement import judge as judge_module
from snpcerts.endorsement.crl import load_crl
from snpcerts.endorsement.vek import VekKind
from snpcerts.verify.collateral import Collateral, SuppliedCrl, Supplier
from snpcerts.verify.evidence import Evidence
from snpcerts.verify.judging import verify
from snpcerts.verify.policy import Policy, Revocation
from snpcerts.verify.verdict import Status, Verdict
from tests.endorsement.small_ca import NOON, CrlRecipe, SmallCa
from tests.keys import rsa_key
from tests.verify.test_verify import anchors, collateral

CA = SmallCa()
REQUIRED = Policy(revocation=Revocation.REQUIRE)
DAY = timedelta(days=1)

# A list from before the revocation, a newer one with it, and an expired one.
BEFORE = CrlRecipe(CA)
REVOKED = CrlRecipe(CA, revoked=(1,), this_update=NOON - DAY)
EXPIRED = CrlRecipe(CA, next_update=NOON - DAY)
NAMED = ["ask-revoked", "ark-revoked"]


def supplied(
    recipe: CrlRecipe | bytes,
    kind: VekKind | None = VekKind.VCEK,
    supplier: Supplier = Supplier.CALLER,
    **known: Any,
) -> SuppliedCrl:
    data = recipe if isinstance(recipe, bytes) else recipe.make()
    return SuppliedCrl(data, kind, supplier, "somewhere", **known)


def judge(
    *lists: SuppliedCrl,
    host: CrlRecipe | bytes | None = None,
    policy: Policy | None = REQUIRED,
    ca: SmallCa = CA,
) -> Verdict:
    own = host.make() if isinstance(host, CrlRecipe) else host
    parts = replace(collateral(ca), crl=own, lists=lists)
    return verify(ca.report(), parts, policy, anchors=anchors(ca), at=NOON)


def codes(verdict: Verdict) -> list[str]:
    return [reason.code.value for reason in verdict.reasons]


def test_an_old_list_from_the_host_does_not_hide_a_newer_revocation() -> None:
    assert codes(judge(supplied(REVOKED), host=BEFORE)) == NAMED
    assert codes(judge(supplied(REVOKED), host=BEFORE, policy=None)) == NAMED


@pytest.mark.parametrize("order", [1, -1])
def test_several_lists_count_for_a_report_that_does_not_name_its_product(order: int) -> None:
    """A version 2 report does not name its product. Only the leaf shows which list applies."""
    genoa = SmallCa(product=Product.GENOA)
    old, new = CrlRecipe(genoa), CrlRecipe(genoa, revoked=(1,), this_update=NOON - DAY)
    milan = CrlRecipe(CA, this_update=NOON - DAY)
    report = genoa.report(version=2)

    def found(*recipes: CrlRecipe) -> list[str]:
        lists = tuple(supplied(recipe) for recipe in recipes[::order])
        parts = replace(collateral(genoa), lists=lists)
        return codes(verify(report, parts, REQUIRED, anchors=anchors(genoa), at=NOON))

    assert found(old) == []
    assert found(old, new) == NAMED
    assert found(old, old) == []
    assert set(NAMED) <= set(found(milan, new))


def test_a_list_of_the_host_satisfies_no_demand() -> None:
    verdict = judge(host=BEFORE)
    assert codes(verdict) == ["crl-missing"]
    assert "came with the evidence" in verdict.reasons[0].message
    assert verdict.check("revocation").state.value == "failed"
    # The verdict is the same if the list comes with its kind (VCEK).
    verdict = judge(supplied(BEFORE, supplier=Supplier.EVIDENCE))
    assert codes(verdict) == ["crl-missing"]
    assert not verdict.revocation_lists[0].counts


def test_a_list_of_the_host_may_add_a_revocation() -> None:
    assert codes(judge(supplied(BEFORE), host=REVOKED)) == NAMED
    assert codes(judge(host=REVOKED, policy=None)) == NAMED
    # A revocation stands, however old the list is.
    assert codes(judge(host=REVOKED.but(next_update=NOON - DAY), policy=None)) == NAMED


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        (EXPIRED, "crl-expired"),
        (BEFORE.but(this_update=NOON + DAY), "crl-not-yet-valid"),
        (CrlRecipe(SmallCa(Product.GENOA), revoked=(1,)), "crl-issuer"),
        (REVOKED.but(signer=rsa_key("another")), "crl-signature"),
        (b"garbage", "crl-unreadable"),
    ],
)
def test_a_useless_list_from_the_host_is_shown_and_decides_nothing(
    host: CrlRecipe | bytes, problem: str
) -> None:
    for verdict in (judge(supplied(BEFORE), host=host), judge(host=host, policy=None)):
        assert verdict.status is Status.VERIFIED
        shown = verdict.revocation_lists[0]
        assert shown.supplier is Supplier.EVIDENCE
        assert [each.code.value for each in shown.problems] == [problem]
        assert json.loads(json.dumps(verdict.to_json()))["revocation_lists"][0]["problems"]


def test_several_lists_of_the_callers_own_all_count() -> None:
    for lists in ((BEFORE, REVOKED), (REVOKED, BEFORE), (EXPIRED, REVOKED)):
        assert codes(judge(*map(supplied, lists))) == NAMED
    assert judge(supplied(EXPIRED), supplied(BEFORE)).status is Status.VERIFIED


def test_the_list_of_the_other_kind_satisfies_nothing_and_its_revocations_count() -> None:
    assert codes(judge(supplied(BEFORE, VekKind.VLEK))) == ["crl-missing"]
    assert codes(judge(supplied(REVOKED, VekKind.VLEK), supplied(BEFORE))) == NAMED
    vlek = SmallCa(kind=VekKind.VLEK)
    of_vleks = supplied(BEFORE, VekKind.VLEK)
    assert judge(of_vleks, ca=vlek).status is Status.VERIFIED
    assert codes(judge(supplied(BEFORE), ca=vlek)) == ["crl-missing"]


def test_a_list_of_unknown_kind_satisfies_nothing_and_its_revocations_count() -> None:
    verdict = judge(supplied(BEFORE, None))
    assert codes(verdict) == ["crl-missing"]
    assert "--crl vcek=FILE" in verdict.reasons[0].message
    assert codes(judge(supplied(REVOKED, None), supplied(BEFORE))) == NAMED
    assert judge(supplied(EXPIRED, None), policy=None).status is Status.VERIFIED


@pytest.mark.parametrize("policy", [None, REQUIRED])
def test_a_useless_list_of_the_callers_own_refuses(policy: Policy | None) -> None:
    """A caller that gives a list relies on it, so it must be a good one."""
    assert codes(judge(supplied(EXPIRED), policy=policy)) == ["crl-expired"]
    forged = supplied(BEFORE.but(signer=rsa_key("another")))
    assert codes(judge(forged, policy=policy)) == ["crl-signature"]
    assert judge(supplied(EXPIRED), policy=Policy(revocation=Revocation.IGNORE)).reasons == ()


def test_a_list_older_than_is_allowed_satisfies_nothing_and_its_revocations_count() -> None:
    policy = replace(REQUIRED, maximum_crl_age=DAY)

    def aged(recipe: CrlRecipe, age: timedelta | None) -> SuppliedCrl:
        return supplied(recipe, obtained=None if age is None else NOON - age)

    for age in (timedelta(0), DAY, -DAY):
        assert judge(aged(BEFORE, age), policy=policy).status is Status.VERIFIED
    verdict = judge(aged(BEFORE, 3 * DAY), policy=policy)
    assert codes(verdict) == ["crl-too-old"]
    assert "is 3 days old" in verdict.reasons[0].message
    assert verdict.to_json()["revocation_lists"][0]["age_seconds"] == 3 * 86400
    assert codes(judge(aged(BEFORE, None), policy=policy)) == ["crl-too-old"]
    assert codes(judge(aged(REVOKED, 3 * DAY), aged(BEFORE, DAY), policy=policy)) == NAMED
    # If the policy does not limit the age, a list of any age will do.
    assert judge(aged(BEFORE, 300 * DAY)).status is Status.VERIFIED


def test_an_unsigned_long_list_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading 30,000 entries takes a hundred times as long as finding that the list is forged."""
    long = REVOKED.but(revoked=tuple(range(30_000)), signer=rsa_key("another")).make()
    read: list[int] = []

    def counting(data: bytes) -> object:
        read.append(len(data))
        return load_crl(data)

    monkeypatch.setattr(judge_module, "load_crl", counting)
    verdict = judge(supplied(BEFORE), host=long)
    assert verdict.status is Status.VERIFIED
    assert len(long) not in read
    assert [each.code.value for each in verdict.revocation_lists[0].problems] == ["crl-signature"]
    signed = REVOKED.but(revoked=tuple(range(30_000))).make()
    assert codes(judge(supplied(BEFORE), host=signed)) == NAMED


def test_entries_of_a_list_are_parsed_after_its_signature_and_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[object] = []
    entries = crl_module.RevocationList.entries

    def counting(crl: Any) -> Any:
        seen.append(crl)
        return entries(crl)

    monkeypatch.setattr(crl_module.RevocationList, "entries", counting)
    parts, other = collateral(), SmallCa(chip_id=bytes(range(3, 67)))

    def look_at(data: bytes) -> int:
        """How often the entries of ``data`` are read in four verdicts: for two leaves, each with
        and without a second list.
        """
        before = len(seen)
        for leaf in (parts.vcek, other.leaf.make()):
            for lists in ((), (supplied(b"x"),)):
                given = replace(parts, vcek=leaf, crl=data, lists=lists)
                verify(CA.report(), given, anchors=anchors(), at=NOON)
        return len(seen) - before

    assert look_at(REVOKED.but(signer=rsa_key("another")).make()) == 0
    for count in (10, 3000):
        assert look_at(REVOKED.but(revoked=tuple(range(7, 7 + count))).make()) == 1


Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``snpcerts verify --json`` in a directory with a report whose table has an old list."""
    monkeypatch.chdir(tmp_path)
    entries = [(VCEK_GUID, CA.leaf.make()), (ASK_GUID, CA.ask.make()), (ARK_GUID, CA.ark.make())]
    table = CertTable(tuple(TableEntry(*each) for each in (*entries, (CRL_GUID, BEFORE.make()))))
    Path("report").write_bytes(CA.report() + table.encode())
    Path("root.der").write_bytes(CA.ark.make())
    Path("before.crl").write_bytes(BEFORE.make())
    Path("revoked.crl").write_bytes(REVOKED.make())

    def command(*arguments: str) -> tuple[int, dict[str, Any]]:
        trust = ("--anchor", "root.der", "--at", f"{NOON.isoformat()}")
        code = main(["verify", "report", *arguments, *trust, "--json"])
        said = capsys.readouterr()
        return code, json.loads(said.out) if said.out else {"error": said.err}

    return command


def test_a_host_that_sends_last_years_list_hides_nothing(run: Run) -> None:
    code, said = run("--require-crl")
    assert (code, said["reasons"][0]["code"]) == (1, "crl-missing")
    code, said = run("--crl", "vcek=revoked.crl")
    assert [each["code"] for each in said["reasons"]] == NAMED
    code, said = run("--crl", "vcek=revoked.crl", "--crl", "vcek=before.crl")
    assert [each["code"] for each in said["reasons"]] == NAMED
    code, said = run("--crl", "vcek=before.crl")
    assert (code, said["verdict"]) == (0, "verified")
    assert [each["supplier"] for each in said["revocation_lists"]] == ["caller", "evidence"]
    assert [each["satisfies_demand"] for each in said["revocation_lists"]] == [True, False]


def test_a_file_is_as_old_as_its_modification_time(run: Run) -> None:
    old = NOON - 30 * DAY
    os.utime("before.crl", (old.timestamp(),) * 2)
    assert run("--crl", "vcek=before.crl")[0] == 0
    code, said = run("--crl", "vcek=before.crl", "--max-crl-age", "7d")
    assert (code, said["reasons"][0]["code"]) == (1, "crl-too-old")
    assert said["revocation_lists"][0]["age_seconds"] == 30 * 86400
    assert run("--crl", "vcek=before.crl", "--max-crl-age", "31d")[0] == 0
    os.utime("before.crl", (time.time() + 86400,) * 2)
    code, said = run("--crl", "vcek=before.crl", "--max-crl-age", "31d")
    assert (code, said["reasons"][0]["code"]) == (1, "crl-too-old")
    assert said["revocation_lists"][0]["age_seconds"] is None, "a future file time must give no age"
    for wrong in ("1", "1w", "-1d", "0d", "", "1d 2h"):
        code, said = run("--crl", "vcek=before.crl", "--max-crl-age", wrong)
        assert (code, "expected an age" in said["error"]) == (2, True)


def test_the_verdict_names_the_root_and_an_emulated_one_never_looks_like_amds(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    _, said = run()
    assert (said["verdict"], said["root"]["name"]) == ("verified", "ARK-Milan TEST")
    assert said["root"]["amd"] is False
    # A root that only has the name of AMD's root must not pass for it.
    namesake = SmallCa(suffix="")
    Path("root.der").write_bytes(namesake.ark.make())
    entries = ((VCEK_GUID, namesake.leaf), (ASK_GUID, namesake.ask), (ARK_GUID, namesake.ark))
    table = CertTable(tuple(TableEntry(guid, recipe.make()) for guid, recipe in entries))
    Path("report").write_bytes(namesake.report() + table.encode())
    _, said = run()
    assert (said["verdict"], said["root"]["name"]) == ("verified", "ARK-Milan")
    assert said["root"]["amd"] is False
    for paths in (("report",), ("report", "report")):
        assert main(["verify", *paths, "--anchor", "root.der", "--at", NOON.isoformat()]) == 0
        lines = capsys.readouterr().out.splitlines()
        verified = [line for line in lines if line.startswith("verified")]
        assert verified
        assert all(line.endswith("a root that is not AMD's: 'ARK-Milan'") for line in verified)
    assert run("--anchor", "root.der")[1]["root"]["product"] == "Milan"


def test_a_genuine_root_is_amds(vectors: Path) -> None:
    from tests.verify.test_genuine_reports import NAMES, load

    for name in NAMES:
        verdict = load(vectors, name).verdict()
        assert verdict.root_is_amds
        assert verdict.to_json()["root"]["amd"] is True


def test_a_refusal_for_want_of_a_trusted_root_names_none() -> None:
    verdict = verify(CA.report(), collateral(), at=NOON)
    assert codes(verdict) == ["ark-untrusted"]
    assert verdict.root is None


def test_collateral_keeps_every_list_that_any_source_gave() -> None:
    one, other = supplied(BEFORE), supplied(REVOKED, None)
    both = Collateral(crl=b"x", lists=(one,)).completed_by(Collateral(crl=b"y", lists=(other, one)))
    assert [each.data for each in both.all_lists] == [b"x", one.data, b"y", other.data]
    assert both.completed_by(both).all_lists == both.all_lists
    assert Collateral().empty
    assert not both.empty
    assert Evidence(CA.report()).collateral.empty
