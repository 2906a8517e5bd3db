# SPDX-License-Identifier: Apache-2.0
"""Each requirement passes what it should, refuses the rest, and is listed if a policy omits it."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import pytest

from snpcerts.abi.product import Product
from snpcerts.abi.report import SigningKey
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.reason import ReasonCode
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import UsageError
from snpcerts.verify.evidence import Evidence, RuntimeData
from snpcerts.verify.judging import verify
from snpcerts.verify.policy import (
    GuestPolicyBits,
    PlatformInfoBits,
    Policy,
    Revocation,
    TcbFloor,
)
from snpcerts.verify.verdict import Verdict
from snpcerts.verify.verdict_check import CheckState
from tests.endorsement.small_ca import NOON, PINNED, TCBS, CrlRecipe, SmallCa
from tests.verify.test_verify import anchors, codes, collateral

CA = SmallCa()
TURIN = SmallCa(Product.TURIN)
VLEK = SmallCa(kind=VekKind.VLEK)
MILAN_TCB = TCBS[Product.MILAN]


def judge(
    policy: Policy | None, /, ca: SmallCa = CA, version: int = 3, **report: object
) -> Verdict:
    return verify(
        ca.report(version, **report), collateral(ca), policy, anchors=anchors(ca), at=NOON
    )


def bits(**values: bool | None) -> Policy:
    return Policy(guest_policy=GuestPolicyBits(**values))


def platform(**values: bool | None) -> Policy:
    return Policy(platform_info=PlatformInfoBits(**values))


SMT = 0x30000
ABI = SMT | 0x0133  # 1.51
FIRMWARE: dict[str, object] = {
    "current_major": 1,
    "current_minor": 55,
    "current_build": 29,
    "committed_major": 1,
    "committed_minor": 55,
    "committed_build": 20,
}

# code, a policy that passes, one that does not, the report's fields
DEMANDS: list[tuple[str, Policy, Policy, dict[str, object]]] = [
    (
        "policy-signing-key",
        Policy(signing_key=SigningKey.VCEK),
        Policy(signing_key=SigningKey.VLEK),
        {},
    ),
    (
        "policy-chip-id",
        Policy(chip_ids=(b"\1" * 64, CA.report_chip_id)),
        Policy(chip_ids=(b"\1" * 64,)),
        {},
    ),
    (
        "policy-report-data",
        Policy(report_data=b"nonce"),
        Policy(report_data=b"nonc"),
        {"report_data": b"nonce".ljust(64, b"\0")},
    ),
    (
        "policy-measurement",
        Policy(measurements=(bytes(48), b"m" * 48)),
        Policy(measurements=(bytes(48),)),
        {"measurement": b"m" * 48},
    ),
    (
        "policy-host-data",
        Policy(host_data=b"h" * 32),
        Policy(host_data=bytes(32)),
        {"host_data": b"h" * 32},
    ),
    (
        "policy-id-key",
        Policy(id_key_digests=(b"i" * 48,)),
        Policy(id_key_digests=(b"j" * 48,)),
        {"id_key_digest": b"i" * 48},
    ),
    (
        "policy-author-key",
        Policy(author_key_digests=(b"a" * 48,)),
        Policy(author_key_digests=(b"b" * 48,)),
        {"author_key_digest": b"a" * 48, "flags": 1},
    ),
    (
        "policy-family-id",
        Policy(family_id=b"f" * 16),
        Policy(family_id=bytes(16)),
        {"family_id": b"f" * 16},
    ),
    (
        "policy-image-id",
        Policy(image_id=b"f" * 16),
        Policy(image_id=bytes(16)),
        {"image_id": b"f" * 16},
    ),
    (
        "policy-guest-svn",
        Policy(minimum_guest_svn=7),
        Policy(minimum_guest_svn=8),
        {"guest_svn": 7},
    ),
    ("policy-vmpl", Policy(vmpls=(0, 2)), Policy(vmpls=(0, 1, 3)), {"vmpl": 2}),
    ("policy-debug", bits(debug=None), Policy(), {"policy": SMT | 1 << 19}),
    ("policy-debug", Policy(), bits(debug=True), {}),
    ("policy-migration-agent", bits(migrate_ma=None), Policy(), {"policy": SMT | 1 << 18}),
    ("policy-guest-policy", bits(smt=True), bits(smt=False), {}),
    ("policy-guest-policy", bits(cxl_allow=False), bits(single_socket=True), {}),
    (
        "policy-abi",
        Policy(minimum_policy_abi=(1, 51)),
        Policy(minimum_policy_abi=(1, 52)),
        {"policy": ABI},
    ),
    (
        "policy-abi",
        Policy(minimum_policy_abi=(0, 52)),
        Policy(minimum_policy_abi=(2, 0)),
        {"policy": ABI},
    ),
    (
        "policy-platform-info",
        platform(alias_check_complete=True, smt_en=False),
        platform(alias_check_complete=True, smt_en=True),
        {"platform_info": 1 << 5},
    ),
    (
        "policy-firmware",
        Policy(minimum_firmware=(1, 55, 29)),
        Policy(minimum_firmware=(1, 55, 30)),
        FIRMWARE,
    ),
    (
        "policy-committed-firmware",
        Policy(minimum_committed_firmware=(1, 55, 20)),
        Policy(minimum_committed_firmware=(1, 55, 21)),
        FIRMWARE,
    ),
    (
        "policy-provisional-firmware",
        Policy(),
        Policy(refuse_provisional_firmware=True),
        FIRMWARE,
    ),
    (
        "policy-provisional-firmware",
        Policy(),
        Policy(refuse_provisional_firmware=True),
        {"committed_tcb": bytes(8)},
    ),
]


@pytest.mark.parametrize(("code", "met", "unmet", "report"), DEMANDS)
def test_a_demand_accepts_the_right_values_and_refuses_others(
    code: str, met: Policy, unmet: Policy, report: dict[str, Any]
) -> None:
    assert codes(judge(met, **report)) == []
    verdict = judge(unmet, **report)
    assert codes(verdict) == [code]
    check = verdict.check(code)
    assert check.state is CheckState.FAILED
    assert check.expected
    assert check.found


def test_every_demand_is_in_the_list_above_or_has_a_test_of_its_own() -> None:
    own = {
        "policy-floor",
        "policy-product",
        "policy-csp-id",
        "policy-user-data",
        "policy-mitigations",
        "policy-reported-tcb",
        "policy-tcb-above-current",
        "policy-current-tcb",
        "policy-committed-tcb",
        "policy-launch-tcb",
    }
    all_codes = {code.value for code in ReasonCode if code.value.startswith("policy-")}
    assert {code for code, *_ in DEMANDS} | own == all_codes


def test_demands_not_made_are_listed_as_not_asked() -> None:
    """A missing check must not look like a pass."""
    verdict = judge(None)
    asked = {"policy-debug", "policy-migration-agent", "policy-tcb-above-current"}
    for check in verdict.checks:
        if check.name.startswith("policy-"):
            expected = CheckState.PASSED if check.name in asked else CheckState.NOT_ASKED
            assert check.state is expected, check.name
    names = [check.name for check in verdict.checks]
    assert len(names) == len(set(names)) == 13 + 29
    nothing = judge(Policy.authenticity_only())
    assert nothing.check("policy-debug").state is CheckState.NOT_ASKED


def test_a_policy_is_held_against_a_report_that_is_not_genuine_too() -> None:
    verdict = verify(CA.report(vmpl=1), collateral(), Policy(vmpls=(0,)), at=NOON)
    assert codes(verdict) == ["ark-untrusted", "policy-vmpl"]


def test_with_no_report_to_read_nothing_passes() -> None:
    verdict = verify(b"", collateral(), Policy(vmpls=(0,)), at=NOON)
    assert codes(verdict) == ["report-size"]
    states = {check.state for check in verdict.checks}
    assert states == {CheckState.FAILED, CheckState.NOT_JUDGED, CheckState.NOT_ASKED}
    assert verdict.check("policy-vmpl").state is CheckState.NOT_JUDGED
    assert verdict.check("policy-measurement").state is CheckState.NOT_ASKED


@pytest.mark.parametrize("which", ["reported", "current", "committed", "launch"])
@pytest.mark.parametrize("component", ["bootloader", "tee", "snp", "microcode", "fmc"])
def test_every_component_of_a_floor_is_compared(which: str, component: str) -> None:
    """A component below the floor counts even if all the others are above it."""
    tcb = TCBS[Product.TURIN]
    name = "minimum_tcb" if which == "reported" else f"minimum_{which}_tcb"

    def policy(floor: TcbVersion) -> Policy:
        values: dict[str, Any] = {name: TcbFloor(turin=floor)}
        return Policy(**values)

    assert codes(judge(policy(tcb), TURIN)) == []
    lower = {part: max(value - 1, 0) for part, value in tcb.components().items()}
    assert codes(judge(policy(TcbVersion(**lower)), TURIN)) == []
    above = TcbVersion(**(lower | {component: getattr(tcb, component) + 1}))
    assert codes(judge(policy(above), TURIN)) == [f"policy-{which}-tcb"]


def test_a_product_without_a_floor_is_below_it() -> None:
    policy = Policy(minimum_tcb=TcbFloor(milan=MILAN_TCB))
    assert codes(judge(policy)) == []
    assert codes(judge(policy, TURIN)) == ["policy-reported-tcb"]
    assert "Turin" in (judge(policy, TURIN).check("policy-reported-tcb").found or "")


def test_a_floor_is_compared_in_a_version_2_report_by_the_product_of_its_leaf() -> None:
    high = replace(MILAN_TCB, microcode=255)
    assert codes(judge(Policy(minimum_tcb=TcbFloor(milan=MILAN_TCB)), version=2)) == []
    found = codes(judge(Policy(minimum_tcb=TcbFloor(milan=high)), version=2))
    assert found == ["policy-reported-tcb"]


def test_a_launch_tcb_that_cannot_be_read_is_below_the_floor() -> None:
    policy = Policy(minimum_launch_tcb=TcbFloor(milan=TcbVersion(0, 0, 0, 0)))
    found = codes(judge(policy, launch_tcb=b"\0\0\1\0\0\0\0\0"))
    assert found == ["report-tcb", "policy-launch-tcb"]


def test_mitigations_are_bits_that_must_all_be_there() -> None:
    report: dict[str, Any] = {"launch_mit_vector": 0b0111, "current_mit_vector": 0b1111}
    for launch, current, met in ((7, 15, True), (8, None, False), (None, 16, False), (0, 0, True)):
        policy = Policy(launch_mitigations=launch, current_mitigations=current)
        expected = [] if met else ["policy-mitigations"]
        assert codes(judge(policy, version=5, **report)) == expected
    assert codes(judge(Policy(launch_mitigations=1), version=3)) == ["policy-mitigations"]


def test_a_provider_is_that_of_the_vlek() -> None:
    assert codes(judge(Policy(csp_ids=("x", "CN=cloud")), VLEK)) == []
    assert codes(judge(Policy(csp_ids=("CN=other",)), VLEK)) == ["policy-csp-id"]
    assert codes(judge(Policy(csp_ids=("CN=cloud",)))) == ["policy-csp-id"]


def test_an_author_key_counts_only_where_the_report_says_there_is_one() -> None:
    """Without an author key the digest is zero, which must not satisfy a policy of zeros."""
    policy = Policy(author_key_digests=(bytes(48),))
    assert codes(judge(policy)) == ["policy-author-key"]
    assert codes(judge(policy, flags=1)) == []


def test_user_data_must_be_in_runtime_data_that_is_bound() -> None:
    runtime = RuntimeData(b'{"user-data": "00ff"}', "sha256")
    report = CA.report(report_data=runtime.report_data())
    policy = Policy(user_data=b"\0\xff")

    def found(data: RuntimeData | None, wanted: Policy = policy) -> list[str]:
        evidence = Evidence(report, collateral(), data)
        return codes(verify(evidence, policy=wanted, anchors=anchors(), at=NOON))

    assert found(runtime) == []
    assert found(runtime, Policy(user_data=b"\0")) == ["policy-user-data"]
    assert found(None) == ["policy-user-data"]
    assert found(RuntimeData(b'{"user-data": "00ff"} ', "sha256")) == ["runtime-data-mismatch"]
    assert found(RuntimeData(b"{}", "sha256")) == ["runtime-data-mismatch", "policy-user-data"]


@pytest.mark.parametrize(
    ("revocation", "crl", "expected"),
    [
        (Revocation.IF_GIVEN, None, []),
        (Revocation.REQUIRE, None, ["crl-missing"]),
        (Revocation.IGNORE, b"garbage", []),
        (Revocation.IF_GIVEN, b"garbage", []),
        (Revocation.REQUIRE, b"garbage", ["crl-missing"]),
        (Revocation.REQUIRE, CrlRecipe(CA).make(), ["crl-missing"]),
        (Revocation.IF_GIVEN, CrlRecipe(CA, revoked=(1,)).make(), ["ask-revoked", "ark-revoked"]),
        (
            Revocation.IF_GIVEN,
            CrlRecipe(CA, next_update=NOON.replace(hour=11)).make(),
            [],
        ),
        (Revocation.IGNORE, CrlRecipe(CA, revoked=(1,)).make(), []),
    ],
    ids=range(9),
)
def test_a_list_that_came_with_the_report_may_only_add_revocations(
    revocation: Revocation, crl: bytes | None, expected: list[str]
) -> None:
    parts = replace(collateral(), crl=crl)
    policy = Policy(revocation=revocation)
    verdict = verify(CA.report(), parts, policy, anchors=anchors(), at=NOON)
    assert codes(verdict) == expected
    state = verdict.check("revocation").state.value
    assert state == ("failed" if expected else "not-asked")


@pytest.mark.parametrize("product", PINNED)
def test_a_reported_tcb_above_the_current_one_in_a_component_is_refused(product: Product) -> None:
    """SNP_SET_CONFIG may compare the reported and the committed TCB as one number, the boot loader
    first, so a lower boot loader allows a higher SNP level.
    """
    ca, tcb = SmallCa(product), TCBS[product]
    running = replace(tcb, snp=tcb.snp - 1, microcode=255).pack()
    floor = {product.name.lower(): tcb}
    # The reported SNP level meets the floor, although it never ran.
    policy = Policy(minimum_tcb=TcbFloor(**floor))
    verdict = judge(policy, ca, current_tcb=running)
    assert codes(verdict) == ["policy-tcb-above-current"]
    assert f"snp {tcb.snp} above {tcb.snp - 1}" in verdict.reasons[0].message
    assert codes(judge(None, ca, current_tcb=running)) == ["policy-tcb-above-current"]
    assert codes(judge(Policy(allow_tcb_above_current=True), ca, current_tcb=running)) == []
    assert codes(judge(Policy.authenticity_only(), ca, current_tcb=running)) == []
    assert codes(judge(policy, ca, current_tcb=tcb.pack())) == []
    below = replace(policy, minimum_current_tcb=TcbFloor(**floor), allow_tcb_above_current=True)
    assert codes(judge(below, ca, current_tcb=running)) == ["policy-current-tcb"]


def test_the_leafs_tcb_is_held_against_the_current_one_too() -> None:
    """If the leaf's TCB is above the current TCB, that is a reason besides tcb-mismatch."""
    low = MILAN_TCB.pack()[:6] + bytes((MILAN_TCB.snp - 1, MILAN_TCB.pack()[7]))
    verdict = judge(None, reported_tcb=low, current_tcb=low)
    assert codes(verdict) == ["tcb-mismatch", "policy-tcb-above-current"]
    assert "in the leaf" in verdict.reasons[1].message


def test_claims_bound_below_vmpl_0_are_the_guests_own_choice() -> None:
    runtime = RuntimeData(b'{"user-data": "00ff"}', "sha256")
    wanted = Policy(user_data=b"\0\xff")

    def found(vmpl: int, policy: Policy, data: RuntimeData | None = runtime) -> list[str]:
        report = CA.report(report_data=runtime.report_data(), vmpl=vmpl)
        evidence = Evidence(report, collateral(), data)
        return codes(verify(evidence, policy=policy, anchors=anchors(), at=NOON))

    assert found(0, wanted) == []
    for vmpl in (1, 3, 0xFFFFFFFF):
        assert found(vmpl, wanted) == ["runtime-data-vmpl"]
        assert found(vmpl, Policy.authenticity_only()) == ["runtime-data-vmpl"]
    # If the policy lists VMPLs, only these decide; a report without claims may be from any VMPL.
    assert found(2, replace(wanted, vmpls=(0, 2))) == []
    assert found(3, replace(wanted, vmpls=(0, 2))) == ["policy-vmpl"]
    assert found(3, Policy(), None) == []


def test_a_vlek_signs_while_the_chips_key_is_masked() -> None:
    """AMD's published firmware masks only the VCEK, so a report that a VLEK signed must verify."""
    for version in (2, 3, 5):
        assert codes(judge(None, VLEK, version, flags=SigningKey.VLEK << 2 | 2)) == []
    verdict = judge(None, flags=SigningKey.NONE << 2 | 2)
    assert codes(verdict) == ["report-unsigned"]
    assert "no VLEK signed in its place" in verdict.reasons[0].message
    assert "MASK_CHIP_KEY is zero" in judge(None, flags=SigningKey.NONE << 2).reasons[0].message


@pytest.mark.parametrize(
    "values",
    [
        {"maximum_crl_age": timedelta(0)},
        {"signing_key": SigningKey.NONE},
        {"report_data": b""},
        {"report_data": bytes(65)},
        {"user_data": b""},
        {"measurements": ()},
        {"measurements": (b"short",)},
        {"host_data": b"x"},
        {"family_id": bytes(17)},
        {"chip_ids": (bytes(8),)},
        {"csp_ids": ()},
        {"vmpls": ()},
        {"vmpls": (4,)},
        {"vmpls": (-1,)},
        {"minimum_guest_svn": -1},
        {"launch_mitigations": 1 << 64},
        {"minimum_firmware": (1, 2)},
        {"minimum_policy_abi": (1, 256)},
        {"minimum_tcb": TcbFloor()},
        {"minimum_launch_tcb": TcbFloor()},
    ],
    ids=lambda value: next(iter(value)),
)
def test_a_policy_that_no_report_can_meet_is_an_error(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        Policy(**values)


def test_a_floor_has_its_products_layout() -> None:
    with pytest.raises(UsageError, match="fmc"):
        TcbFloor(milan=TCBS[Product.TURIN])
    with pytest.raises(UsageError, match="fmc"):
        TcbFloor(turin=MILAN_TCB)
    assert {field.name for field in fields(TcbFloor)} == {each.name.lower() for each in Product}
