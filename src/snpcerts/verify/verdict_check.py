# SPDX-License-Identifier: Apache-2.0
"""The checks of a verdict and their outcomes. A check that was not made never counts as passed.

A verdict lists every check. This module names the checks of authenticity. The checks of a policy
are named after their reason codes.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from snpcerts.endorsement.judge import ChainFacts
from snpcerts.endorsement.reason import Authenticity, Reason


class CheckState(enum.StrEnum):
    """The outcome of a check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_ASKED = "not-asked"  # the policy does not require it, or it does not apply
    NOT_JUDGED = "not-judged"  # something it needs is missing or cannot be read


@dataclass(frozen=True, slots=True)
class Check:
    """One check. ``expected`` and ``found`` are phrases for people, or None."""

    name: str
    state: CheckState
    expected: str | None = None
    found: str | None = None

    def to_json(self) -> dict[str, str | None]:
        """Return the check as JSON values."""
        return {
            "name": self.name,
            "state": self.state.value,
            "expected": self.expected,
            "found": self.found,
        }


_EXPECTED = {
    Authenticity.REPORT_LAYOUT: "the report has a version from 2 to 5, and that version's layout",
    Authenticity.LEAF: "the leaf is a VCEK or VLEK certificate in AMD's form, signed by the issuer",
    Authenticity.INTERMEDIATE: "the issuer is an ASK or ASVK, signed by the root",
    Authenticity.ROOT: "the root is an ARK, signed by itself",
    Authenticity.ANCHOR: "the root's key is trusted",
    Authenticity.CHAIN_PRODUCT: "all certificates are for one product",
    Authenticity.VALIDITY: "all certificates are valid at the time of verification",
    Authenticity.REVOCATION: (
        "a current revocation list from a source other than the host does not revoke the ASK or "
        "ASVK"
    ),
    Authenticity.PRODUCT: "the report's processor belongs to the leaf's product",
    Authenticity.CHIP_ID: "the report's chip ID is the VCEK's hwID",
    Authenticity.REPORTED_TCB: "REPORTED_TCB equals the leaf's TCB in every component",
    Authenticity.REPORT_SIGNATURE: "the leaf's key signed the report",
    Authenticity.RUNTIME_DATA: (
        "REPORT_DATA is the digest of the runtime data, and the report was requested at VMPL 0"
    ),
}


class ReportFacts(NamedTuple):
    """Facts that decide which checks apply to a report and its policy.

    ``masked`` says that the chip ID is zero and the policy accepts that; ``revocation``, that the
    relying party gave or requires a revocation list; ``list_met``, that a list meets that demand;
    and ``other_lists``, that at least one list was checked.
    """

    read: bool = False
    names_product: bool = False
    masked: bool = False
    runtime_data: bool = False
    revocation: bool = False
    list_met: bool = False
    other_lists: bool = False


def authenticity_checks(
    chain: ChainFacts, report: ReportFacts, reasons: Sequence[Reason]
) -> tuple[Check, ...]:
    """Return every check of authenticity, in a fixed order."""
    made = _made(chain, report)
    if not reasons:
        return made
    failed: dict[Authenticity, list[str]] = {}
    for reason in reasons:
        check = reason.code.check
        if check is not None:
            failed.setdefault(check, []).append(reason.message)
    return tuple(
        replace(check, state=CheckState.FAILED, found="; ".join(failed[name]))
        if name in failed
        else check
        for name, check in zip(Authenticity, made, strict=True)
    )


@dataclass(slots=True)
class _Last:
    """The last results of :func:`all_checks` and :func:`any_failed`, for reuse.

    ``joined`` holds the two arguments of the latest call of :func:`all_checks`, then their
    concatenation. ``unfailed`` holds the latest checks for which :func:`any_failed` returned
    False. Most verdicts have equal checks and so can share these objects.
    """

    joined: tuple[tuple[Check, ...], tuple[Check, ...], tuple[Check, ...]] = ((), (), ())
    unfailed: tuple[Check, ...] = ()


_last = _Last()


def all_checks(authenticity: tuple[Check, ...], asked: tuple[Check, ...]) -> tuple[Check, ...]:
    """Return the checks of authenticity followed by those of the policy."""
    first, second, both = _last.joined
    if first is not authenticity or second is not asked:
        both = (*authenticity, *asked)
        _last.joined = (authenticity, asked, both)
    return both


def any_failed(checks: tuple[Check, ...]) -> bool:
    """Return whether one of the checks failed."""
    if checks is _last.unfailed:
        return False
    failed = CheckState.FAILED
    for check in checks:
        if check.state is failed:
            return True
    _last.unfailed = checks
    return False


@functools.lru_cache(maxsize=256)
def _made(chain: ChainFacts, report: ReportFacts) -> tuple[Check, ...]:
    """Return the checks of authenticity as they are if the verdict has no reasons."""
    authorities = chain.intermediate and chain.root
    judged: dict[Authenticity, bool] = {
        Authenticity.REPORT_LAYOUT: report.read,
        Authenticity.LEAF: chain.leaf and chain.leaf_read and chain.intermediate,
        Authenticity.INTERMEDIATE: authorities,
        Authenticity.ROOT: chain.root,
        Authenticity.ANCHOR: chain.root,
        Authenticity.CHAIN_PRODUCT: chain.leaf_read and authorities,
        Authenticity.VALIDITY: chain.leaf and authorities,
        Authenticity.REVOCATION: authorities and report.list_met,
        Authenticity.PRODUCT: chain.leaf_read,
        Authenticity.CHIP_ID: chain.leaf_read,
        Authenticity.REPORTED_TCB: chain.leaf_read,
        Authenticity.REPORT_SIGNATURE: chain.key_read,
        Authenticity.RUNTIME_DATA: report.read,
    }
    nothing_to_ask: dict[Authenticity, str] = {}
    if not report.revocation:
        nothing_to_ask[Authenticity.REVOCATION] = (
            "no revocation list is required, but the available lists were checked"
            if report.other_lists
            else "no revocation list was given or required"
        )
    if report.read and not report.names_product:
        nothing_to_ask[Authenticity.PRODUCT] = "a version 2 report names no processor"
    if chain.of_no_chip:
        nothing_to_ask[Authenticity.CHIP_ID] = "a VLEK belongs to no chip"
    elif report.masked:
        nothing_to_ask[Authenticity.CHIP_ID] = (
            "the report hides its chip ID, which the policy accepts"
        )
    if not report.runtime_data:
        nothing_to_ask[Authenticity.RUNTIME_DATA] = "no runtime data came with the report"
    made: list[Check] = []
    for name in Authenticity:
        expected = _EXPECTED[name]
        if name in nothing_to_ask:
            check = Check(name.value, CheckState.NOT_ASKED, expected, nothing_to_ask[name])
        else:
            state = CheckState.PASSED if judged[name] else CheckState.NOT_JUDGED
            check = Check(name.value, state, expected)
        made.append(check)
    return tuple(made)
