# SPDX-License-Identifier: Apache-2.0
"""Judges revocation: whether the chain is revoked, and whether the relying party knows enough to
tell.

Every revocation list is checked, from any source. A list is *believed* if the root signed it and
all of its parts are known. A revocation in a believed list refuses the chain, however old the list
is. A list meets a demand only if it is for the chain's kind of leaf, comes from the relying party
itself or the key server, is current, and is not older than the policy allows. So a host that sends
last year's list cannot hide a revocation.

Source: RFC 5280 section 6.3; KDS (57230) chapter 3 for the kinds of list.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from snpcerts.abi.product import Product
from snpcerts.endorsement.judge import CrlFindings
from snpcerts.endorsement.reason import Reason, ReasonCode
from snpcerts.endorsement.vek import VekKind
from snpcerts.file_date import LONG_AGO
from snpcerts.verify.collateral import SuppliedCrl, Supplier
from snpcerts.verify.policy import Policy, Revocation

_NO_TIME: Final = timedelta(0)


@dataclass(frozen=True, slots=True)
class JudgedList:
    """A revocation list, and how it was judged.

    ``age`` is the time since the key server returned the list, None if unknown. ``problems`` say
    why the list is not a current list of the root. ``believed`` says whether its revocations count
    anyway. ``counts`` says whether the list meets a demand for one.
    """

    origin: str
    supplier: Supplier
    kind: VekKind | None
    this_update: datetime | None
    next_update: datetime | None
    age: timedelta | None
    believed: bool
    counts: bool
    problems: tuple[Reason, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the judged list as JSON values, with times in UTC and the age in seconds."""
        return {
            "origin": self.origin,
            "supplier": self.supplier.value,
            "kind": None if self.kind is None else self.kind.value,
            "this_update": _written(self.this_update),
            "next_update": _written(self.next_update),
            "age_seconds": None if self.age is None else int(self.age.total_seconds()),
            "believed": self.believed,
            "satisfies_demand": self.counts,
            "problems": [
                {"code": problem.code.value, "message": problem.message}
                for problem in self.problems
            ],
        }


@dataclass(frozen=True, slots=True)
class RevocationFindings:
    """The judged revocation lists, whether a list was demanded (``asked``), whether a supplied list
    meets the demand (``met``), and the resulting reasons.
    """

    lists: tuple[JudgedList, ...] = ()
    asked: bool = False
    met: bool = False
    reasons: tuple[Reason, ...] = ()


NO_LISTS: Final = RevocationFindings()


def check_revocation(
    kind: VekKind,
    product: Product | None,
    supplied: Sequence[SuppliedCrl],
    findings: Sequence[CrlFindings],
    policy: Policy,
    at: datetime,
) -> RevocationFindings:
    """Find out whether the supplied lists meet the policy's demand for a list. The revocations in
    them are not judged here.

    ``findings`` has one entry for each list in ``supplied``, in the same order. By giving a list
    for a kind of leaf, a caller demands a good list for that kind, whatever the policy says.
    """
    required = policy.revocation is Revocation.REQUIRE
    if not supplied and not required:
        return NO_LISTS
    judged = tuple(
        _judged(kind, each, found, policy, at)
        for each, found in zip(supplied, findings, strict=True)
    )
    fit = [
        (each, one)
        for each, found, one in zip(supplied, findings, judged, strict=True)
        if each.supplier is not Supplier.EVIDENCE
        and each.kind is kind
        # A caller may give the lists of all products at once. Those of other products do not
        # matter.
        and (found.product is product or found.product is None or product is None)
    ]
    asked = required or any(each.supplier is Supplier.CALLER for each, _ in fit)
    if not asked:
        return RevocationFindings(judged)
    if any(one.counts for _, one in fit):
        return RevocationFindings(judged, asked=True, met=True)
    reasons = tuple(_unmet(kind, fit, judged))
    return RevocationFindings(judged, asked=True, reasons=reasons)


def _judged(
    kind: VekKind, supplied: SuppliedCrl, found: CrlFindings, policy: Policy, at: datetime
) -> JudgedList:
    age = None
    if supplied.obtained is not None and supplied.obtained != LONG_AGO:
        age = max(at - supplied.obtained, _NO_TIME)
    problems = [*found.problems_at(at), *_too_old(age, policy.maximum_crl_age)]
    counts = (
        found.believed
        and not problems
        and supplied.kind is kind
        and supplied.supplier is not Supplier.EVIDENCE
    )
    return JudgedList(
        supplied.origin,
        supplied.supplier,
        supplied.kind,
        found.this_update,
        found.next_update,
        age,
        found.believed,
        counts,
        tuple(problems),
    )


def _too_old(age: timedelta | None, most: timedelta | None) -> Iterator[Reason]:
    if most is None or (age is not None and age <= most):
        return
    found = "its age is not known" if age is None else f"it is {in_words(age)} old"
    yield Reason(
        ReasonCode.CRL_TOO_OLD,
        f"the CRL must have been fetched from the key server in the last {in_words(most)}, but "
        f"{found}",
    )


def _unmet(
    kind: VekKind,
    fit: Sequence[tuple[SuppliedCrl, JudgedList]],
    judged: Sequence[JudgedList],
) -> Iterator[Reason]:
    if not fit:
        message = f"a revocation list for {kind.name}s is required, but none was supplied"
        if judged:
            message += f": {_why_not(kind, judged)}"
        yield Reason(ReasonCode.CRL_MISSING, message)
    for each, one in fit:
        if each.outage is not None:
            # A newer list from the key server could solve every problem of this one.
            yield Reason(ReasonCode.COLLATERAL_UNAVAILABLE, each.outage)
        else:
            yield from one.problems


def _why_not(kind: VekKind, judged: Sequence[JudgedList]) -> str:
    if any(one.supplier is Supplier.CALLER and one.kind is None for one in judged):
        word = kind.value
        return f"the supplied list does not show its kind: give the list as --crl {word}=FILE"
    if any(one.supplier is Supplier.EVIDENCE for one in judged):
        return "a list that came with the evidence does not meet this demand"
    return "the supplied lists are for another kind of leaf or another product"


def in_words(span: timedelta) -> str:
    """Return a time span in words, in the largest unit that fits, as in "3 days"."""
    seconds = int(span.total_seconds())
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        if seconds >= size:
            count = seconds // size
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "0 seconds"


def _written(when: datetime | None) -> str | None:
    return None if when is None else f"{when:%Y-%m-%dT%H:%M:%SZ}"
