# SPDX-License-Identifier: Apache-2.0
"""Names the attacks to which a guest may be open if its report fails a policy's check."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from snpcerts.endorsement.reason import ReasonCode
from snpcerts.verify.bits import GUEST_POLICY_BITS, PLATFORM_INFO_BITS
from snpcerts.verify.bulletins import Bulletin, bulletin_data
from snpcerts.verify.verdict import Verdict

_FLOORS: Final = frozenset(
    {
        ReasonCode.POLICY_FLOOR,
        ReasonCode.POLICY_REPORTED_TCB,
        ReasonCode.POLICY_CURRENT_TCB,
        ReasonCode.POLICY_COMMITTED_TCB,
        ReasonCode.POLICY_LAUNCH_TCB,
    }
)
# For each reason: the policy file's table, its bits, and the report's field.
_BITS: Final = {
    ReasonCode.POLICY_GUEST_POLICY: ("guest_policy", GUEST_POLICY_BITS, "policy"),
    ReasonCode.POLICY_PLATFORM_INFO: ("platform_info", PLATFORM_INFO_BITS, "platform_info"),
}


def explained_reasons(verdict: Verdict) -> Iterator[str]:
    """Yield a line for each requirement of a bulletin that the report does not meet. Each line
    begins with the bulletin's id and attacks.

    TCBs, products and bits are compared only if a policy check of them failed.
    """
    codes = {reason.code for reason in verdict.reasons}
    for bulletin in bulletin_data().bulletins:
        for why in _why(bulletin, verdict, codes):
            yield f"{bulletin.name}: {why}"


def _why(bulletin: Bulletin, verdict: Verdict, codes: set[ReasonCode]) -> Iterator[str]:
    if codes & _FLOORS and verdict.report is not None:
        yield from bulletin.below(verdict.report, verdict.tcbs)
    if ReasonCode.POLICY_PRODUCT in codes and verdict.product in bulletin.refused:
        yield (
            f"no field of the report shows whether a {verdict.product.value} processor is protected"
        )
    for code, (table, bits, field) in _BITS.items():
        if code not in codes or verdict.report is None:
            continue
        word = getattr(verdict.report.fields, field)
        for required in bulletin.required:
            where, _, key = required.key.partition(".")
            if where == table and bits[key].of(word) is not required.value:
                yield f"{required.key} must be {str(required.value).lower()}"
