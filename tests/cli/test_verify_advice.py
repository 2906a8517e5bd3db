# SPDX-License-Identifier: Apache-2.0
"""``verify`` gives each piece of advice for its own cause, and for no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from snpcerts.abi.product import Product
from snpcerts.cli import verify_advice
from snpcerts.cli.verify_advice import advice
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import RetryLaterError
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.evidence import Evidence, RuntimeData
from snpcerts.verify.judging import verify
from snpcerts.verify.policy import Policy, Revocation
from snpcerts.verify.sources import CollateralRequest, verify_with
from snpcerts.verify.verdict import Verdict
from tests.endorsement.small_ca import END, NOON, START, SmallCa
from tests.verify.test_verify import anchors, collateral

CA = SmallCa()
VLEK = SmallCa(kind=VekKind.VLEK)
TURIN = SmallCa(Product.TURIN)
CLAIMS = RuntimeData(b"{}", "sha256")


def judged(
    report: bytes | Evidence | None = None,
    certificates: Collateral | None = None,
    policy: Policy | None = None,
    days: int = 0,
) -> Verdict:
    evidence = report if isinstance(report, Evidence) else Evidence(report or CA.report())
    found = collateral(CA) if certificates is None else certificates
    at = NOON + timedelta(days=days)
    return verify(evidence, found, policy, anchors=anchors(CA), at=at)


def unreachable() -> Verdict:
    class Down:
        def collateral(self, request: CollateralRequest) -> Collateral:
            raise RetryLaterError(f"no answer for {request.kind.name}")

    return verify_with(Evidence(CA.report()), [Down()], anchors=anchors(CA), at=NOON)


def claims(data: bytes) -> Evidence:
    report = CA.report(report_data=CLAIMS.report_data())
    return Evidence(report, runtime_data=RuntimeData(data, "sha256"))


NONCE = Policy(report_data=bytes(63) + b"\1")
# For each cause: a function whose verdict has that cause, and the names of the expected advice.
ROWS: dict[str, tuple[Callable[[], Verdict], list[str]]] = {
    "nothing is wrong": (judged, []),
    "no VCEK": (lambda: judged(None, replace(collateral(CA), vcek=None)), ["_SUPPLY"]),
    "no ASK": (lambda: judged(None, replace(collateral(CA), ask=None)), ["_SUPPLY"]),
    "no certificates": (lambda: judged(None, Collateral()), ["_SUPPLY"]),
    "no list, and one is required": (
        lambda: judged(policy=Policy(revocation=Revocation.REQUIRE)),
        ["_SUPPLY"],
    ),
    "no VLEK": (
        lambda: judged(VLEK.report(), replace(collateral(VLEK), vlek=None)),
        ["_SUPPLY_VLEK"],
    ),
    "another TCB": (
        lambda: judged(CA.report(reported_tcb=bytes([4, 0, 0, 0, 0, 0, 23, 219]))),
        ["_ANOTHER_KEY"],
    ),
    "another chip": (lambda: judged(CA.report(chip_id=b"\x55" * 64)), ["_ANOTHER_KEY"]),
    "the leaf of another product": (
        lambda: judged(TURIN.report(), collateral(CA)),
        ["_ANOTHER_KEY"],
    ),
    "another product's authorities": (
        lambda: judged(None, replace(collateral(TURIN), vcek=CA.leaf.make())),
        ["_ANOTHER_CHAIN"],
    ),
    "a certificate that was not yet issued": (
        lambda: judged(days=(START - NOON).days - 1),
        ["_ARCHIVED"],
    ),
    "an expired certificate": (lambda: judged(days=(END - NOON).days + 1), ["_PAST"]),
    "a nonce, and runtime data": (lambda: judged(claims(b"{}"), policy=NONCE), ["_NONCE"]),
    "a nonce alone": (lambda: judged(policy=NONCE), []),
    "a masked chip ID": (lambda: judged(CA.report(chip_id=bytes(64))), ["_MASKED"]),
    "a source that does not answer": (unreachable, ["_LATER"]),
    "a changed report": (lambda: judged(CA.report(measurement=b"\1" * 48)[:-1] + b"\1"), []),
    "a guest that can be debugged": (lambda: judged(CA.report(policy=0xB0000)), []),
}


@pytest.mark.parametrize("cause", ROWS)
def test_the_advice_is_for_the_cause(cause: str) -> None:
    verdict, names = ROWS[cause]
    found = verdict()
    wanted = [getattr(verify_advice, name) for name in names]
    assert list(advice(found)) == wanted, [str(each) for each in found.reasons]


def test_every_advice_has_a_row() -> None:
    texts = {name for name, value in vars(verify_advice).items() if isinstance(value, str)}
    texts = {name for name in texts if name.isupper()}
    assert texts == {name for _, names in ROWS.values() for name in names}


def test_a_vlek_is_never_looked_for_at_the_key_server() -> None:
    (text,) = advice(ROWS["no VLEK"][0]())
    assert "never from the key server" in text
    assert "--fetch" not in text
