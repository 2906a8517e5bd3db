# SPDX-License-Identifier: Apache-2.0
"""A verdict: verified, refused, or undecided for now, with reasons."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from snpcerts.abi.product import Product
from snpcerts.abi.report import Report, SigningKey
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.anchors import Anchor, is_amds
from snpcerts.endorsement.reason import NextStep, Reason
from snpcerts.endorsement.vek import EndorsementCert
from snpcerts.printable import printable
from snpcerts.verify.revocation import JudgedList
from snpcerts.verify.verdict_check import Check, any_failed


class Status(enum.Enum):
    """The possible answers of a verdict."""

    VERIFIED = "verified"
    REFUSED = "refused"
    UNDECIDED = "undecided"  # no problem found, but something needed was not available


def status_of(reasons: Sequence[Reason]) -> Status:
    """Return verified if there are no reasons, undecided if a later try may remove all reasons,
    and otherwise refused.
    """
    if not reasons:
        return Status.VERIFIED
    if all(reason.next_step is NextStep.RETRY_LATER for reason in reasons):
        return Status.UNDECIDED
    return Status.REFUSED


@dataclass(frozen=True, slots=True)
class ReportTcbs:
    """The four TCBs of a report. A TCB that cannot be read is None."""

    current: TcbVersion | None = None
    reported: TcbVersion | None = None
    committed: TcbVersion | None = None
    launch: TcbVersion | None = None

    def named(self) -> dict[str, TcbVersion | None]:
        """Return the TCBs by name, in the order of the fields above."""
        return {
            "current": self.current,
            "reported": self.reported,
            "committed": self.committed,
            "launch": self.launch,
        }


@dataclass(frozen=True, slots=True)
class SourceFault:
    """What was wrong with a source's answer, or why the source gave none. Both fields are for
    people.
    """

    source: str
    problem: str

    def to_json(self) -> dict[str, str]:
        """Return the source and the problem as JSON values."""
        return {"source": self.source, "problem": self.problem}


@dataclass(frozen=True, slots=True, repr=False)
class Verdict:
    """Whether a report is genuine and meets the policy, the reasons if not, and what the report
    contains.

    ``status`` is the answer; ``str`` of a verdict is one line for a log. The other fields hold what
    was read from the evidence. Unless the status is verified, these values are unproven claims.
    ``chip_id`` is the report's field of 64 bytes (zero if masked). ``report`` and ``leaf`` are None
    if they could not be read. ``checks`` lists all checks, including those that nothing asked for.
    ``root`` is the anchor that matches the ARK, or None. AMD endorsed the signing key only if
    ``root_is_amds`` is true. ``revocation_lists`` has every list that was checked, from any
    source. If certificates are missing or wrong, ``sources`` lists the problems with each source's
    answer.
    """

    status: Status
    reasons: tuple[Reason, ...]
    product: Product | None = None
    chip_id: bytes | None = None
    signing_key: SigningKey | None = None
    tcbs: ReportTcbs = ReportTcbs()
    report: Report | None = None
    leaf: EndorsementCert | None = None
    checks: tuple[Check, ...] = ()
    root: Anchor | None = None
    revocation_lists: tuple[JudgedList, ...] = ()
    sources: tuple[SourceFault, ...] = ()

    def __post_init__(self) -> None:
        if self.status is not Status.VERIFIED:
            if not self.reasons:
                raise ValueError("a verdict other than verified needs a reason")
            if self.status is not status_of(self.reasons):
                raise ValueError(f"a verdict with these reasons cannot be {self.status.value}")
            return
        if self.reasons or self.report is None or self.leaf is None or self.root is None:
            raise ValueError(
                "a verdict of verified must have no reasons, and must have a report, a leaf and "
                "a root"
            )
        if any_failed(self.checks):
            raise ValueError("a verdict of verified must have no failed check")

    @property
    def root_is_amds(self) -> bool:
        """Whether the root is one of AMD's, rather than another root that the caller trusts."""
        return self.root is not None and is_amds(self.root)

    @property
    def next_step(self) -> NextStep | None:
        """What the caller should do next; None if the report is verified.

        Refusing bad evidence comes before supplying missing certificates, which comes before trying
        again later.
        """
        steps = {reason.next_step for reason in self.reasons}
        order = (NextStep.REFUSE, NextStep.FIX_USAGE, NextStep.RETRY_LATER)
        return next((step for step in order if step in steps), None)

    def check(self, name: str) -> Check:
        """Return the check with that name. Raises :class:`KeyError` if no check has it."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    def __str__(self) -> str:
        """Return the verdict in one line: the status, and the reasons or, if verified, what was
        verified.
        """
        if self.reasons:
            codes = dict.fromkeys(reason.code.value for reason in self.reasons)
            return f"{self.status.value}: {', '.join(codes)}"
        product = "unknown product" if self.product is None else self.product.value
        key = "" if self.signing_key is None else f", signed by {self.signing_key.name}"
        root = ""
        if self.root is not None and not self.root_is_amds:
            root = f", with a root that is not AMD's: {self.root.name!r}"
        return printable(f"{self.status.value}: {product}{key}, TCB {self.tcbs.reported}{root}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def __bool__(self) -> NoReturn:
        raise TypeError("a verdict is not a truth value: compare its .status with Status.VERIFIED")

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON values. Bytes are in lower-case hexadecimal, and unknown
        values are null.
        """
        fields = None if self.report is None else self.report.fields
        return {
            "verdict": self.status.value,
            "reasons": [
                {
                    "code": reason.code.value,
                    "message": reason.message,
                    "next_step": reason.next_step.value,
                }
                for reason in self.reasons
            ],
            "next_step": None if self.next_step is None else self.next_step.value,
            "product": None if self.product is None else self.product.value,
            "chip_id": None if self.chip_id is None else self.chip_id.hex(),
            "signing_key": None if self.signing_key is None else self.signing_key.name.lower(),
            "tcb": {
                name: None if tcb is None else tcb.components()
                for name, tcb in self.tcbs.named().items()
            },
            "report_version": None if fields is None else fields.version,
            "vmpl": None if fields is None else fields.vmpl,
            "measurement": None if fields is None else fields.measurement.hex(),
            "report_data": None if fields is None else fields.report_data.hex(),
            "root": None
            if self.root is None
            else {
                "name": self.root.name,
                "product": self.root.product.value,
                "spki_sha384": self.root.spki_sha384.hex(),
                "amd": self.root_is_amds,
            },
            "sources": [each.to_json() for each in self.sources],
            "revocation_lists": [each.to_json() for each in self.revocation_lists],
            "checks": [check.to_json() for check in self.checks],
        }
