# SPDX-License-Identifier: Apache-2.0
"""Gets the certificates for a report from several sources, in the order that the caller gives.

Each source is asked for the parts that are still missing, and returns those that it has. A
certificate for another chip or TCB, or without a trusted issuer, counts as missing, so the next
source is asked for that part too. What earlier sources returned is kept. All revocation lists are
checked, and none takes precedence. If a source cannot be reached, a report is *undecided*, not
refused, because an outage says nothing about the evidence.

Only the sources may do I/O.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Generator, Iterable, Iterator, Sequence
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
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import FormatError, RefusedError, RetryLaterError
from snpcerts.printable import printable
from snpcerts.verify.choosing import Choice, Part, choose, wrong_parts
from snpcerts.verify.collateral import Collateral, SuppliedCrl, Supplier
from snpcerts.verify.evidence import Evidence
from snpcerts.verify.judging import DEFAULT_POLICY, KINDS, MEMORY, judge
from snpcerts.verify.policy import Policy, Revocation
from snpcerts.verify.verdict import SourceFault, Verdict


@dataclass(frozen=True, slots=True)
class CollateralRequest:
    """The parts of a chain that a source is asked for, and the report that needs them.

    ``products`` are the products that the report may come from, most likely first. For a report of
    version 3 or later, there is only one. ``chip_id`` is the report's field of 64 bytes (zero if
    masked). ``reported_tcb`` is the report's field of 8 bytes, whose layout depends on the product.
    ``own`` holds the certificates that came with the report. ``maximum_crl_age`` is the maximum
    time since the key server returned a list. If no list is missing, a source should still return
    the lists that it already has, without asking a key server. ``report`` is the report itself, for
    a source that checks whether a certificate's key signed it.
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
        """Return the chip ID in the form that a VCEK of ``product`` has; None if the report hides
        the chip ID.
        """
        return hwid_of_chip_id(self.chip_id, product) if any(self.chip_id) else None

    def tcb(self, product: Product) -> TcbVersion | None:
        """Return the reported TCB in the layout of ``product``; None if the bytes do not fit that
        layout.
        """
        try:
            return TcbVersion.unpack(self.reported_tcb, product.tcb_layout)
        except FormatError:
            return None


class CollateralSource(Protocol):
    """A source of certificates and revocation lists.

    Certificates that the source does not have are None in its answer. Instead, the source may raise
    :class:`~snpcerts.errors.RefusedError`, whose message then appears in the verdict. It raises
    :class:`~snpcerts.errors.RetryLaterError` if it cannot be reached now.
    """

    def collateral(self, request: CollateralRequest) -> Collateral:
        """Return the missing parts that the source has. The answer may contain more."""
        ...


class AsyncCollateralSource(Protocol):
    """A source like :class:`CollateralSource` whose answers are awaited."""

    def collateral(self, request: CollateralRequest) -> Awaitable[Collateral]:
        """Return the missing parts that the source has. The answer may contain more."""
        ...


class _Own:
    """A source that returns the certificates that came with the report."""

    name = "the certificates that came with the report"

    def collateral(self, request: CollateralRequest) -> Collateral:
        return request.own


OWN: Final[CollateralSource] = _Own()


@dataclass(frozen=True, slots=True)
class Given:
    """A source that supplies the same certificates, given by the caller, for every report.

    For a report signed by a VLEK, ``asvk`` takes the place of ``ask`` if it is given. ``name`` is
    the source's name in verdicts. ``problems`` describes the parts that could not be read.
    """

    certificates: Collateral
    asvk: bytes | None = None
    name: str = "the certificates given"
    problems: tuple[str, ...] = ()

    def collateral(self, request: CollateralRequest) -> Collateral:
        """Return all certificates of the source."""
        return self.for_kind(request.kind)

    def for_kind(self, kind: VekKind | None) -> Collateral:
        """Return the certificates for reports signed by a key of this kind."""
        found = self.certificates
        if kind is VekKind.VLEK and self.asvk is not None:
            found = replace(found, ask=self.asvk)
        if found.crl is not None:
            # The caller gave this CRL, but nothing says whether it is the VCEK's or the VLEK's.
            own = SuppliedCrl(found.crl, None, Supplier.CALLER, self.name)
            found = replace(found, crl=None, lists=(own, *found.lists))
        return found


class GivenCrls:
    """A source of revocation lists that the relying party gave, each for the product whose ARK
    issued it.

    Give each list with its kind, as a :class:`SuppliedCrl`. A list given as bytes has an unknown
    kind: it adds revocations, but cannot meet a demand for a list.
    """

    def __init__(self, lists: Iterable[bytes | SuppliedCrl]) -> None:
        """Parse the revocation lists.

        Raises :class:`FormatError` if a list cannot be read or its issuer is not an ARK.
        """
        self._lists: list[tuple[Product, SuppliedCrl]] = []
        for each in lists:
            if not isinstance(each, SuppliedCrl):
                each = SuppliedCrl(bytes(each), None, Supplier.CALLER, "given")
            name = load_crl(each.data).issuer_common_name
            authority = parse_ca_name(name)
            if authority is None:
                raise FormatError(
                    "CRL",
                    f"expected one of AMD's ARKs as the issuer, found {name!r}",
                    field="issuer",
                )
            self._lists.append((authority.product, each))

    def collateral(self, request: CollateralRequest) -> Collateral:
        """Return the lists for all products that the report may come from."""
        return Collateral(
            lists=tuple(each for product, each in self._lists if product in request.products)
        )


class InThread:
    """Makes a blocking source awaitable, by running each request in a thread of its own."""

    def __init__(self, source: CollateralSource) -> None:
        self._source = source

    def collateral(self, request: CollateralRequest) -> Awaitable[Collateral]:
        """Call the source's method of the same name in a thread, and return its answer."""
        import asyncio  # not above: it takes a fifth of the start time of `snpcerts verify`

        return asyncio.to_thread(self._source.collateral, request)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Evidence with the certificates found for it, ready to be verified.

    ``unavailable`` says why parts may be missing. ``faults`` lists the problems with the sources'
    answers.
    """

    evidence: Evidence
    collateral: Collateral
    unavailable: tuple[Reason, ...] = ()
    faults: tuple[SourceFault, ...] = ()

    def judge(
        self, policy: Policy, *, anchors: Sequence[Anchor] = AMD_ANCHORS, at: datetime
    ) -> Verdict:
        """Return the verdict on the evidence, without I/O."""
        return judge(
            self.evidence, self.collateral, policy, anchors, at, self.unavailable, self.faults
        )


AnySource = CollateralSource | AsyncCollateralSource


def verify_with(
    evidence: Evidence,
    sources: Sequence[CollateralSource],
    policy: Policy | None = None,
    *,
    anchors: Sequence[Anchor] = AMD_ANCHORS,
    at: datetime,
) -> Verdict:
    """Judge a report with certificates from ``sources``, which are asked in order.

    :data:`OWN` stands for the certificates that came with the report, which are used only if it is
    among ``sources``. Sources are asked only while something is missing. If a certificate is still
    missing and a source could not be reached, the report is undecided, unless another reason
    refuses it.
    """
    policy = policy or DEFAULT_POLICY
    prepared = prepare(evidence, sources, policy, at, anchors)
    return prepared.judge(policy, anchors=anchors, at=at)


def prepare(
    evidence: Evidence,
    sources: Sequence[CollateralSource],
    policy: Policy,
    at: datetime,
    anchors: Sequence[Anchor] = AMD_ANCHORS,
) -> Prepared:
    """Get the certificates for ``evidence``, without judging it. This is the part of
    :func:`verify_with` that does I/O.
    """
    if len(sources) == 1 and sources[0] is OWN:
        return Prepared(evidence, evidence.collateral)
    steps = _gather(evidence, sources, policy, at, anchors)
    answer: _Answer | None = None
    while True:
        try:
            source, request = steps.send(answer)  # type: ignore[arg-type]  # None starts it
        except StopIteration as done:
            prepared: Prepared = done.value
            return prepared
        try:
            answer = source.collateral(request)  # type: ignore[assignment]  # no source is awaitable here
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
    """Verify evidence as :func:`verify_with` does, and await the answers of awaitable sources."""
    policy = policy or DEFAULT_POLICY
    steps = _gather(evidence, sources, policy, at, anchors)
    answer: _Answer | None = None
    while True:
        try:
            source, request = steps.send(answer)  # type: ignore[arg-type]  # None starts it
        except StopIteration as done:
            prepared: Prepared = done.value
            return prepared.judge(policy, anchors=anchors, at=at)
        try:
            given = source.collateral(request)
            answer = await given if inspect.isawaitable(given) else given
        except (RetryLaterError, RefusedError) as error:
            answer = error


_Answer = Collateral | RetryLaterError | RefusedError


def _gather(
    evidence: Evidence,
    sources: Sequence[AnySource],
    policy: Policy,
    at: datetime,
    anchors: Sequence[Anchor],
) -> Generator[tuple[AnySource, CollateralRequest], _Answer, Prepared]:
    """Yield each source to ask, with the request for it. The caller sends the source's answer
    back.
    """
    collateral = Collateral()
    unreached: list[Reason] = []
    without: list[Reason] = []
    answers: list[tuple[AnySource, _Answer]] = []
    report = evidence.report
    kind = None if report.signing_key is None else KINDS.get(report.signing_key)
    if kind is None or not (report.product is None or report.product.is_pinned):
        return Prepared(evidence, collateral)
    asking = _Asking(report, kind, policy, tuple(anchors), at)
    for source in sources:
        choice = asking.choice(collateral)
        products = _products(report, choice)
        missing = asking.missing(choice, collateral, products)
        if not missing and policy.revocation is Revocation.IGNORE:
            break
        request = CollateralRequest(
            missing,
            kind,
            products,
            report.fields.chip_id,
            report.fields.reported_tcb,
            evidence.collateral,
            policy.maximum_crl_age,
            report,
        )
        answer = yield source, request
        answers.append((source, answer))
        if isinstance(answer, RetryLaterError):
            unreached.append(Reason(ReasonCode.COLLATERAL_UNAVAILABLE, str(answer)))
        elif isinstance(answer, RefusedError):
            without.append(Reason(ReasonCode.COLLATERAL_NOT_FOUND, str(answer)))
        else:
            collateral = collateral.completed_by(answer)
    faults: tuple[SourceFault, ...] = ()
    if wrong_parts(asking.choice(collateral).reasons(at)):
        faults = tuple(asking.faults(answers))
    # If a source could not be reached, it may have what the others lack: leave their reasons out.
    return Prepared(evidence, collateral, tuple(unreached or without), faults)


@dataclass(frozen=True, slots=True)
class _Asking:
    """A report that needs certificates, and what the certificates are checked against."""

    report: Report
    kind: VekKind
    policy: Policy
    anchors: tuple[Anchor, ...]
    at: datetime

    def choice(self, collateral: Collateral) -> Choice:
        """Return the best chain that these certificates form, in view of the revocation lists."""
        if self.policy.revocation is Revocation.IGNORE:
            collateral = collateral.without_crl()
        return choose(
            self.report,
            self.kind,
            collateral,
            self.anchors,
            self.at,
            MEMORY,
            allow_masked=self.policy.allow_masked_chip_id,
        )

    def missing(
        self, choice: Choice, collateral: Collateral, products: tuple[Product, ...]
    ) -> frozenset[Part]:
        """Return which parts to request from the next source: certificates that are missing or
        wrong, and a revocation list if one is still required.
        """
        missing = wrong_parts(choice.reasons(self.at))
        # A CRL is requested only if the policy requires one. One that a source returns unasked is
        # checked too.
        if self.policy.revocation is Revocation.REQUIRE and not any(
            _may_serve(each, self.kind, products, self.policy, self.at) for each in collateral.lists
        ):
            missing |= {Part.CRL}
        return missing

    def faults(self, answers: Iterable[tuple[AnySource, _Answer]]) -> Iterator[SourceFault]:
        """Judge each source's answer by itself, and yield its problems."""
        for source, answer in answers:
            name = getattr(source, "name", None)
            if not name:
                continue
            problems = list(getattr(source, "problems", ()))
            if not isinstance(answer, Collateral):
                problems.append(answer.message)
            elif answer.without_certificates:
                problems.append("the source has no certificates")
            else:
                reasons = self.choice(answer).reasons(self.at)
                problems += [each.message for each in reasons if wrong_parts([each])]
            if problems:
                yield SourceFault(printable(name), printable("; ".join(problems)))


def _may_serve(
    supplied: SuppliedCrl,
    kind: VekKind,
    products: tuple[Product, ...],
    policy: Policy,
    at: datetime,
) -> bool:
    """Return whether the supplied revocation list meets the policy's demand for a list, provided
    that its signature is valid. The signature is not checked here.
    """
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


def _products(report: Report, choice: Choice) -> tuple[Product, ...]:
    """Return the products that the report may come from. For a version 2 report with a matching
    leaf, that is only the leaf's product.
    """
    leaf = choice.findings.leaf
    if leaf is not None and report.fields.version < 3 and not wrong_parts(choice.of_leaf):
        return (leaf.product,)
    return report.products
