# SPDX-License-Identifier: Apache-2.0
"""Floors per processor: every stepping, every bulletin, every report version.

The values are entered here from the sources that ``bulletins.toml`` names, not read
from it: Linux and Xen for EntrySign, Linux's ccp driver and public policies for
AMD-SB-3023.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from snpcerts.abi.processor_names import PROCESSORS, processor_names
from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.cli.main import main
from snpcerts.endorsement.reason import ReasonCode
from snpcerts.errors import UsageError
from snpcerts.verify.attacks import explained_reasons
from snpcerts.verify.bulletins import bulletin_data, policy_text
from snpcerts.verify.judging import verify
from snpcerts.verify.policy import Policy
from snpcerts.verify.policy_file import read_policy
from snpcerts.verify.verdict import Verdict
from tests.documented_json import documented
from tests.endorsement.small_ca import NOON, PINNED, SmallCa
from tests.verify.test_verify import anchors, codes, collateral

# (family, model, stepping): processor, (microcode, snp) of AMD-SB-3019 and of AMD-SB-3023.
STEPPINGS = {
    (0x19, 0x01, 1): ("milan", (0xDB, 0), (0xDE, 0x1B)),
    (0x19, 0x01, 2): ("milan-x", (0x44, 0), (0, 0x1B)),
    (0x19, 0x11, 1): ("genoa", (0x54, 0), (0x56, 0x1B)),
    (0x19, 0x11, 2): ("genoa-x", (0x4F, 0), (0x51, 0x1B)),
    (0x19, 0xA0, 2): ("bergamo", (0x19, 0), (0, 0x1B)),
    (0x1A, 0x02, 1): ("turin", (0x47, 0), (0x51, 0x04)),
    (0x1A, 0x11, 0): ("turin-dense", (0x47, 0), (0, 0x04)),
}
BULLETINS = ("AMD-SB-3019", "AMD-SB-3023")
PRODUCTS = {0x01: Product.MILAN, 0x11: Product.GENOA, 0xA0: Product.GENOA}


def product_of(cpuid: tuple[int, int, int]) -> Product:
    return Product.TURIN if cpuid[0] == 0x1A else PRODUCTS[cpuid[1]]


def tcb(product: Product, microcode: int, snp: int) -> TcbVersion:
    fmc = 1 if "fmc" in product.tcb_layout.components else None
    return TcbVersion(9, 0, snp, microcode, fmc)


def judged(
    policy: Policy, cpuid: tuple[int, int, int], microcode: int, snp: int, version: int = 3
) -> Verdict:
    product = product_of(cpuid)
    ca = SmallCa(product, tcb=tcb(product, microcode, snp))
    family, model, stepping = cpuid if version > 2 else (0, 0, 0)
    report = ca.report(version, cpuid_family=family, cpuid_model=model, cpuid_stepping=stepping)
    return verify(report, collateral(ca), policy, anchors=anchors(ca), at=NOON)


def policy_for(*names: str, unconfirmed: bool = False) -> Policy:
    chosen = [bulletin_data().find(name) for name in names]
    return read_policy(policy_text(chosen, list(PINNED), unconfirmed=unconfirmed))


def cases() -> Iterator[tuple[str, tuple[int, int, int], int, int]]:
    for number, bulletin in enumerate(BULLETINS):
        for cpuid, (_, *floors) in STEPPINGS.items():
            yield bulletin, cpuid, *floors[number]


@pytest.mark.parametrize("version", [3, 5])
@pytest.mark.parametrize(("bulletin", "cpuid", "microcode", "snp"), list(cases()))
def test_each_stepping_is_held_against_its_own_floor(
    bulletin: str, cpuid: tuple[int, int, int], microcode: int, snp: int, version: int
) -> None:
    policy = policy_for(bulletin)
    assert judged(policy, cpuid, microcode, snp, version).check("policy-floor").state.value == (
        "passed"
    )
    for lower in ((microcode - 1, snp), (microcode, snp - 1)):
        if min(lower) >= 0:
            verdict = judged(policy, cpuid, *lower, version)
            assert ReasonCode.POLICY_FLOOR in {each.code for each in verdict.reasons}
            assert any(bulletin in line for line in explained_reasons(verdict))


def test_a_vulnerable_genoa_is_refused_and_a_fixed_bergamo_accepted_by_one_policy() -> None:
    """Both have microcode level 0x1B, which means something different on each."""
    policy = policy_for("AMD-SB-3023", unconfirmed=True)
    assert codes(judged(policy, (0x19, 0xA0, 2), 0x1B, 0x1B)) == []
    assert codes(judged(policy, (0x19, 0xA0, 2), 0x1A, 0x1B)) == ["policy-floor"]
    assert codes(judged(policy, (0x19, 0x11, 1), 0x1B, 0x1B)) == ["policy-floor"]


@pytest.mark.parametrize("product", [Product.MILAN, Product.GENOA])
def test_a_version_2_report_is_held_against_the_strictest_floor_of_its_product(
    product: Product,
) -> None:
    policy = policy_for("AMD-SB-3023", unconfirmed=True)
    highest = max(
        floors[1][0] for cpuid, (_, *floors) in STEPPINGS.items() if product_of(cpuid) is product
    )
    cpuid = next(cpuid for cpuid in STEPPINGS if product_of(cpuid) is product)
    assert codes(judged(policy, cpuid, highest, 0x1B, version=2)) == []
    below = judged(policy, cpuid, highest - 1, 0x1B, version=2)
    assert [reason.code for reason in below.reasons] == [ReasonCode.POLICY_FLOOR]
    assert "version 2 report does not name its processor" in str(below.reasons[0])


def test_a_version_2_report_is_refused_where_the_policy_says_so() -> None:
    text = 'floors_without_cpuid = "refuse"\n[[floors]]\nprocessor = "milan"\nsnp = 0\n'
    verdict = judged(read_policy(text), (0x19, 1, 1), 255, 255, version=2)
    assert [reason.code for reason in verdict.reasons] == [ReasonCode.POLICY_FLOOR]
    assert codes(judged(read_policy(text), (0x19, 1, 1), 0, 0)) == []


@pytest.mark.parametrize("cpuid", [(0x19, 0x01, 3), (0x19, 0x11, 15), (0x19, 0xA0, 9)])
def test_a_processor_without_a_floor_is_refused(cpuid: tuple[int, int, int]) -> None:
    assert processor_names(*cpuid) == ()
    verdict = judged(policy_for("AMD-SB-3019"), cpuid, 255, 255)
    assert [reason.code for reason in verdict.reasons] == [ReasonCode.POLICY_FLOOR]
    assert "has no floor" in str(verdict.reasons[0])


def test_the_current_tcb_counts_too() -> None:
    """The running firmware may be older than the reported TCB, which the leaf certifies."""
    ca = SmallCa(Product.GENOA, tcb=tcb(Product.GENOA, 0x56, 0x1B))
    old = tcb(Product.GENOA, 0x56, 0x1A).pack()
    report = ca.report(3, cpuid_model=0x11, cpuid_stepping=1, current_tcb=old)
    verdict = verify(
        report, collateral(ca), policy_for("AMD-SB-3023"), anchors=anchors(ca), at=NOON
    )
    assert ReasonCode.POLICY_FLOOR in {reason.code for reason in verdict.reasons}
    assert "current snp 26" in " ".join(map(str, verdict.reasons))


def test_products_are_refused_that_the_policy_does_not_accept() -> None:
    policy = policy_for("MilanLaunchy")
    verdict = judged(policy, (0x19, 0x01, 1), 255, 255)
    assert [reason.code for reason in verdict.reasons] == [ReasonCode.POLICY_PRODUCT]
    assert any("AMD-SB-3045" in line for line in explained_reasons(verdict))
    assert codes(judged(policy, (0x19, 0x11, 1), 0, 0)) == []


def test_a_missing_mitigation_bit_is_named_after_its_attack() -> None:
    verdict = judged(policy_for("BadRAM"), (0x19, 0x11, 1), 255, 255)
    assert [reason.code for reason in verdict.reasons] == [ReasonCode.POLICY_PLATFORM_INFO]
    assert any("BadRAM" in line for line in explained_reasons(verdict))


def test_every_confirmed_value_has_two_sources_that_are_described() -> None:
    data = bulletin_data()
    named = {bulletin.id for bulletin in data.bulletins}
    assert len(named) == len(data.bulletins)
    for bulletin in data.bulletins:
        for floor in bulletin.floors:
            assert set(floor.processors) <= set(PROCESSORS), bulletin.id
            assert len(set(floor.sources)) >= (2 if floor.confirmed else 1), (bulletin.id, floor)
            assert set(floor.sources) <= set(data.sources), bulletin.id
        for bit in bulletin.required:
            assert len(set(bit.sources)) >= 2, (bulletin.id, bit)
            assert set(bit.sources) <= set(data.sources), bulletin.id
        assert bulletin.floors or bulletin.required or bulletin.refused or bulletin.gaps


def test_old_data_is_warned_about() -> None:
    data = bulletin_data()
    assert data.age_problem(data.date) is None
    assert data.age_problem(data.date + dt.timedelta(days=180)) is None
    assert "update snpcerts" in (data.age_problem(data.date + dt.timedelta(days=181)) or "")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rome", "expected one of the bulletins"),
        ("Battering RAM", "no policy can require protection"),
    ],
)
def test_a_bulletin_that_no_policy_can_ask_for_is_named(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        bulletin_data().find(name)


def test_the_command_writes_a_policy_that_verify_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["policy", "floors", "--bulletin", "StackWarp", "--product", "genoa"]) == 0
    Path("policy.toml").write_text(capsys.readouterr().out, encoding="utf-8")
    ca = SmallCa(Product.GENOA, tcb=tcb(Product.GENOA, 0x55, 0x1B))
    report = ca.report(3, cpuid_model=0x11, cpuid_stepping=1)
    Path("report.bin").write_bytes(report)
    certs = Path("certs")
    certs.mkdir()
    (certs / "vcek.der").write_bytes(ca.leaf.make())
    (certs / "ask.der").write_bytes(ca.ask.make())
    (certs / "ark.der").write_bytes(ca.ark.make())
    options = ["--certs=certs", "--anchor=certs/ark.der", "--policy=policy.toml", "--explain"]
    at = [f"--at={NOON:%Y-%m-%dT%H:%M:%SZ}"]
    assert main(["verify", "report.bin", *options, *at]) == 1
    assert "AMD-SB-3027 (StackWarp)" in capsys.readouterr().out
    assert main(["verify", "report.bin", *options, *at, "--json"]) == 1
    verdict = documented("verify", capsys.readouterr().out)
    assert any("StackWarp" in attack for attack in verdict["attacks"])


def test_the_list_of_bulletins_is_documented_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "bulletins", "--json"]) == 0
    text = capsys.readouterr().out
    assert documented("policy bulletins", text)["bulletins"]
    assert json.loads(text)["date"] == bulletin_data().date.isoformat()
    assert main(["policy", "bulletins"]) == 0
    said = capsys.readouterr().out
    assert all(bulletin.id in said for bulletin in bulletin_data().bulletins)
