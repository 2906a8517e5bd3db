# SPDX-License-Identifier: Apache-2.0
"""Certificates from several places, in an order the caller sets.

A source is asked for what is still missing and gives what it has. The first that
has a certificate wins: whether it is the right one is the verdict's business. Of
revocation lists none wins: all that there are get judged. A source that cannot be
reached leaves a report *undecided*, never refused: an outage says nothing about
the evidence.

Sources may do I/O; nothing else here does.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import inspect
from collections.abc import Awaitable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Protocol

from snpcerts.abi.product import Product, hwid_of_chip_id
from snpcerts.abi.report import Report
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.anchors import AMD_ANCHORS, Anchor
from snpcerts.endorsement.ca_name import parse_ca_name
from snpcerts.endorsement.crl import RevocationList, load_crl
from snpcerts.endorsement.reason import Reason, ReasonCode
from snpcerts.endorsement.vek import EndorsementCert, VekKind
from snpcerts.errors import FormatError, RefusedError, RetryLaterError
from snpcerts.verify.collateral import Collateral, SuppliedCrl, Supplier
from snpcerts.verify.evidence import Evidence
from snpcerts.verify.judging import DEFAULT_POLICY, KINDS, judge
from snpcerts.verify.policy import Policy, Revocation
from snpcerts.verify.verdict import Verdict


class Part(enum.Enum):
    """What may be missing."""

    LEAF = "leaf"
    INTERMEDIATE = "intermediate"
    ROOT = "root"
    CRL = "crl"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a source is asked for.

    ``products`` are those the report may be of, most likely first: exactly one
    from version 3 on. ``chip_id`` is the report's 64 bytes (zero when masked),
    ``reported_tcb`` its eight raw bytes, whose layout depends on the product.
    ``own`` is what came with the report. ``maximum_crl_age`` is how long ago the key
    server may have given a list; where none is missing, lists are still looked at if
    they are there already: no key server should be asked for them. ``report`` is the
    report itself, for a source that wants to know whether what it found signed it.
    """

    missing: frozenset[Part]
    kind: VekKind
    products: tuple[Product, ...]
    chip_id: bytes
    reported_tcb: bytes
    own: Collateral
    maximum_crl_age: timedelta | None = None
    report: Report | None = None

    def hwid(self, product: Product) -> bytes | None:
        """The chip as a VCEK of that product names it; None when it is masked."""
        return hwid_of_chip_id(self.chip_id, product) if any(self.chip_id) else None

    def tcb(self, product: Product) -> TcbVersion | None:
        """The reported TCB on that product; None when the bytes are not one of it."""
        try:
            return TcbVersion.unpack(self.reported_tcb, product.tcb_layout)
        except FormatError:
            return None


class CollateralSource(Protocol):
    """Where certificates come from.

    Raises :class:`~snpcerts.errors.RetryLaterError` when it cannot be reached now.
    What it does not have stays None; :class:`~snpcerts.errors.RefusedError` means
    the same, and its message is passed on.
    """

    def collateral(self, wanted: Wanted) -> Collateral:
        """What there is of what is missing; more does no harm."""
        ...


class AsyncCollateralSource(Protocol):
    """As :class:`CollateralSource`, to be awaited."""

    def collateral(self, wanted: Wanted) -> Awaitable[Collateral]:
        """What there is of what is missing; more does no harm."""
        ...


class _Own:
    """The certificates that came with the report itself."""

    def collateral(self, wanted: Wanted) -> Collateral:
        return wanted.own


OWN: Final[CollateralSource] = _Own()


@dataclass(frozen=True, slots=True)
class Given:
    """Certificates at hand, the same for every report.

    ``asvk`` serves reports signed by a VLEK; where it is None ``ask`` does.
    """

    certificates: Collateral
    asvk: bytes | None = None

    def collateral(self, wanted: Wanted) -> Collateral:
        """All of them."""
        return self.for_kind(wanted.kind)

    def for_kind(self, kind: VekKind | None) -> Collateral:
        """The certificates for reports signed by a key of that kind."""
        found = self.certificates
        if kind is VekKind.VLEK and self.asvk is not None:
            found = replace(found, ask=self.asvk)
        if found.crl is not None:
            # Among certificates at hand it is the caller's, and still of unknown kind.
            own = SuppliedCrl(found.crl, None, Supplier.CALLER, "with the certificates given")
            found = replace(found, crl=None, lists=(own, *found.lists))
        return found


class GivenCrls:
    """Revocation lists of the relying party's own, each for the product whose ARK issued it.

    Give their kind: a list as bytes alone is of unknown kind, adds revocations, and
    satisfies no demand.
    """

    def __init__(self, lists: Iterable[bytes | SuppliedCrl]) -> None:
        """Raises :class:`FormatError` for one that cannot be read, or is of no ARK."""
        self._lists: list[tuple[Product, SuppliedCrl]] = []
        for each in lists:
            if not isinstance(each, SuppliedCrl):
                each = SuppliedCrl(bytes(each), None, Supplier.CALLER, "given")
            name = load_crl(each.data).issuer_common_name
            authority = parse_ca_name(name)
            if authority is None:
                raise FormatError(
                    "CRL", f"is of {name!r}, which is not an ARK of AMD", field="issuer"
                )
            self._lists.append((authority.product, each))

    def collateral(self, wanted: Wanted) -> Collateral:
        """All lists of the products that the report may be of."""
        return Collateral(
            lists=tuple(each for product, each in self._lists if product in wanted.products)
        )


class InThread:
    """A source that blocks, for those who await: each question has a thread of its own."""

    def __init__(self, source: CollateralSource) -> None:
        self._source = source

    def collateral(self, wanted: Wanted) -> Awaitable[Collateral]:
        """As the source's."""
        return asyncio.to_thread(self._source.collateral, wanted)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Evidence with the certificates found for it, ready to be judged.

    ``unavailable`` says why something may be missing.
    """

    evidence: Evidence
    collateral: Collateral
    unavailable: tuple[Reason, ...] = ()

    def judge(
        self, policy: Policy, *, anchors: Sequence[Anchor] = AMD_ANCHORS, at: datetime
    ) -> Verdict:
        """The verdict; pure."""
        return judge(self.evidence, self.collateral, policy, anchors, at, self.unavailable)


AnySource = CollateralSource | AsyncCollateralSource


def verify_with(
    evidence: Evidence,
    sources: Sequence[CollateralSource],
    policy: Policy | None = None,
    *,
    anchors: Sequence[Anchor] = AMD_ANCHORS,
    at: datetime,
) -> Verdict:
    """Judge a report with certificates from ``sources``, asked in that order.

    The certificates that came with the report are used where :data:`OWN` stands,
    and not at all where it does not. Sources are asked only while something is
    missing. A report for which a certificate is still missing, and a source
    could not be reached, is undecided unless something else refuses it.
    """
    policy = policy or DEFAULT_POLICY
    return prepare(evidence, sources, policy, at).judge(policy, anchors=anchors, at=at)


def prepare(
    evidence: Evidence, sources: Sequence[CollateralSource], policy: Policy, at: datetime
) -> Prepared:
    """Ask the sources, and judge nothing yet: the part of :func:`verify_with` that does I/O."""
    if len(sources) == 1 and sources[0] is OWN:
        return Prepared(evidence, evidence.collateral)
    steps = _gather(evidence, sources, policy, at)
    answer: _Answer | None = None
    while True:
        try:
            source, wanted = steps.send(answer)  # type: ignore[arg-type]  # None starts it
        except StopIteration as done:
            prepared: Prepared = done.value
            return prepared
        try:
            answer = source.collateral(wanted)  # type: ignore[assignment]  # all are sync here
        except (RetryLaterError, RefusedError) as error:
            answer = error


async def averify_with(
    evidence: Evidence,
    sources: Sequence[AnySource],
    policy: Policy | None = None,
    *,
    anchors: Sequence[Anchor] = AMD_ANCHORS,
    at: datetime,
) -> Verdict:
    """As :func:`verify_with`, awaiting those sources that are to be awaited."""
    policy = policy or DEFAULT_POLICY
    steps = _gather(evidence, sources, policy, at)
    answer: _Answer | None = None
    while True:
        try:
            source, wanted = steps.send(answer)  # type: ignore[arg-type]  # None starts it
        except StopIteration as done:
            prepared: Prepared = done.value
            return prepared.judge(policy, anchors=anchors, at=at)
        try:
            given = source.collateral(wanted)
            answer = await given if inspect.isawaitable(given) else given
        except (RetryLaterError, RefusedError) as error:
            answer = error


_Answer = Collateral | RetryLaterError | RefusedError


def _gather(
    evidence: Evidence, sources: Sequence[AnySource], policy: Policy, at: datetime
) -> Generator[tuple[AnySource, Wanted], _Answer, Prepared]:
    """Which source to ask for what, one after the other."""
    collateral = Collateral()
    unreached: list[Reason] = []
    without: list[Reason] = []
    try:
        report = Report.unpack(evidence.report)
    except FormatError:
        return Prepared(evidence, collateral)
    kind = None if report.signing_key is None else KINDS.get(report.signing_key)
    if kind is None:
        return Prepared(evidence, collateral)
    for source in sources:
        products = _products(report, collateral.leaf(kind))
        missing = _missing(kind, collateral, products, policy, at)
        if not missing and policy.revocation is Revocation.IGNORE:
            break
        wanted = Wanted(
            missing,
            kind,
            products,
            report.fields.chip_id,
            report.fields.reported_tcb,
            evidence.collateral,
            policy.maximum_crl_age,
            report,
        )
        answer = yield source, wanted
        if isinstance(answer, RetryLaterError):
            unreached.append(Reason(ReasonCode.COLLATERAL_UNAVAILABLE, str(answer)))
        elif isinstance(answer, RefusedError):
            without.append(Reason(ReasonCode.COLLATERAL_NOT_FOUND, str(answer)))
        else:
            collateral = collateral.completed_by(answer)
    # While one source is out of reach, that another has nothing settles nothing.
    return Prepared(evidence, collateral, tuple(unreached or without))


def _missing(
    kind: VekKind,
    collateral: Collateral,
    products: tuple[Product, ...],
    policy: Policy,
    at: datetime,
) -> frozenset[Part]:
    missing = {
        part
        for part, data in (
            (Part.LEAF, collateral.leaf(kind)),
            (Part.INTERMEDIATE, collateral.ask),
            (Part.ROOT, collateral.ark),
        )
        if data is None
    }
    # A list is asked for where a report needs one, and looked at where it comes by itself.
    if policy.revocation is Revocation.REQUIRE and not any(
        _may_serve(each, kind, products, policy, at) for each in collateral.lists
    ):
        missing.add(Part.CRL)
    return frozenset(missing)


def _may_serve(
    supplied: SuppliedCrl,
    kind: VekKind,
    products: tuple[Product, ...],
    policy: Policy,
    at: datetime,
) -> bool:
    """Whether a list may satisfy the policy's demand; who signed it is not looked at here."""
    if supplied.supplier is Supplier.EVIDENCE or supplied.kind is not kind:
        return False
    most, obtained = policy.maximum_crl_age, supplied.obtained
    if most is not None and (obtained is None or at - obtained > most):
        return False
    read = _read_list(supplied.data)
    if read is None:
        return False
    authority = parse_ca_name(read.issuer_common_name)
    timely = read.this_update <= at <= read.next_update
    return timely and authority is not None and authority.product in products


@functools.lru_cache(maxsize=64)
def _read_list(data: bytes) -> RevocationList | None:
    try:
        return load_crl(data)
    except FormatError:
        return None


def _products(report: Report, leaf: bytes | None) -> tuple[Product, ...]:
    """A leaf that came with it says more than a report of version 2."""
    if leaf is not None and report.fields.version < 3:
        with contextlib.suppress(FormatError):
            return (EndorsementCert.from_bytes(leaf).product,)
    return report.products
