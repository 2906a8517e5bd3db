# SPDX-License-Identifier: Apache-2.0
"""The fuzz targets: each reads bytes and keeps its promises, or raises a SnpCertsError.

A target returns its outcome in a word or two. Inputs with a new outcome are
kept and mutated further.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from snpcerts.abi.cert_table import CertTable
from snpcerts.abi.report import REPORT_SIZE, SIGNED_SIZE, Report, ReportLayout, malformations
from snpcerts.cli.verify_text import for_people
from snpcerts.endorsement.anchors import anchor_from_certificate
from snpcerts.endorsement.bundle import MAX_CERTIFICATES, read_bundle
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.endorsement.crl import bears_signature, check_crl, crl_problem_at, load_crl
from snpcerts.endorsement.encoding import describe
from snpcerts.endorsement.file_kind import kind_of
from snpcerts.endorsement.reason import REVOKED
from snpcerts.endorsement.vek import EndorsementCert, VekKind
from snpcerts.errors import SnpCertsError
from snpcerts.verify import attestation_proto
from snpcerts.verify.collateral import Collateral, SuppliedCrl, Supplier
from snpcerts.verify.evidence import Evidence
from snpcerts.verify.explain import explain, explained_json
from snpcerts.verify.judging import verify
from snpcerts.verify.policy import Policy, Revocation
from snpcerts.verify.policy_file import read_policy
from snpcerts.verify.verdict import Status

CORPUS = Path(__file__).parent / "corpus"
AT = datetime(2025, 6, 1, 12, tzinfo=UTC)

_DIGITS = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|0x[0-9a-f]+|[0-9a-f]{6,}|[0-9]+|'[^']*'"
)


class BrokenPromiseError(AssertionError):
    """A promise, which must hold for every input, did not hold."""


@dataclass(frozen=True, slots=True)
class Target:
    """A fuzz target: its name, the function that reads the bytes, and its share of executions."""

    name: str
    read: Callable[[bytes], str]
    share: int

    def outcome(self, data: bytes) -> str:
        """Return the outcome. Any exception that leaves this method is a finding."""
        try:
            return self.read(data)
        except SnpCertsError as error:
            said = _DIGITS.sub("#", f"{type(error).__name__} {error.message}")
            # Cut off the part of the message that quotes the input.
            return re.split(r"['\"]|: unknown key", said, maxsplit=1)[0][:80]

    def seeds(self) -> list[bytes]:
        """Return the inputs in the target's corpus."""
        return [path.read_bytes() for path in sorted((CORPUS / self.name).glob("*"))]


def _promise(holds: bool, what: str) -> None:
    if not holds:
        raise BrokenPromiseError(what)


def _report(data: bytes) -> str:
    report = Report.unpack(data[:REPORT_SIZE].ljust(REPORT_SIZE, b"\0"))
    again = ReportLayout.unpack(report.fields.pack())
    _promise(again == report.fields, "packed fields unpack to the same fields")
    found = malformations(report)
    if len(data) % 8 == 0:  # not for each input, because explaining is slower
        _promise(len(list(explain(report))) > 20, "the explanation has more than 20 lines")
        explained_json(report)
    return " ".join(sorted({each.field for each in found}))


def _table(data: bytes) -> str:
    table, problems = CertTable.decode_lenient(data)
    size = sum(len(entry.data) for entry in table)
    _promise(size <= len(data), "the entries hold no more bytes than the input")
    if problems:
        return " ".join(sorted({_DIGITS.sub("#", each.message) for each in problems}))
    _promise(
        CertTable.decode(table.encode()).entries == table.entries,
        "an encoded table decodes to the same entries",
    )
    return f"{min(len(table), 4)} entries, {len(table.warnings)} warnings"


def _certificate(data: bytes) -> str:
    whole = load_certificate(data, "certificate")
    again = load_certificate(whole.public_bytes(Encoding.PEM), "certificate")
    _promise(again == whole and again.issuer == whole.issuer, "PEM holds the same certificate")
    signed = whole.tbs_certificate_bytes
    parts = (signed, whole.inner_algorithm, whole.outer_algorithm, whole.signature)
    _promise(all(part in whole.der for part in parts), "every part is in the certificate")
    _promise(sum(map(len, (signed, *parts[2:]))) < len(whole.der), "the parts do not overlap")
    _promise(
        len({each.oid for each in whole.extensions}) == len(whole.extensions),
        "no extension occurs twice",
    )
    read = EndorsementCert.from_certificate(load_certificate(data, "leaf"))
    _promise(
        (read.hwid is None) != (read.csp_id is None), "a leaf names either a chip or a provider"
    )
    _promise(read.tcb.layout is read.product.tcb_layout, "a TCB has its product's layout")
    return f"{read.kind.name} {read.product.name}"


_root = load_certificate((CORPUS / "root.der").read_bytes(), "ARK")


def _crl(data: bytes) -> str:
    revocation = load_crl(data)
    _promise(load_crl(revocation.pem()) == revocation, "PEM holds the same list")
    _promise(revocation.signed in revocation.der, "the signed part is in the list")
    problems = check_crl(revocation, _root, _root, "ASK")
    believed = {each.code for each in problems} <= REVOKED
    _promise(not believed or bears_signature(data, _root), "only a signed list is believed")
    describe(data, crl=True)
    stale = crl_problem_at(revocation, AT)
    return " ".join((*(each.code.value for each in problems), "" if stale is None else "stale"))


def _policy(data: bytes) -> str:
    policy = read_policy(data)
    return " ".join(
        name for name in Policy.__slots__ if getattr(policy, name) != getattr(_DEFAULT, name)
    )


_DEFAULT = Policy()


def _evidence(data: bytes) -> str:
    evidence = Evidence.from_bytes(data)
    _promise(len(evidence.report.raw) == REPORT_SIZE, "evidence has a complete report")
    said = evidence.shape.value
    if evidence.runtime_data is not None:
        said += f" {evidence.runtime_data.digest}"
        evidence.runtime_data.report_data()
        said += " user data" if evidence.runtime_data.user_data() is not None else ""
    return said


def _bundle(data: bytes) -> str:
    """Read a file of certificates, and name its kind."""
    found = read_bundle(data)
    _promise(
        len(found.certificates) + len(found.lists) <= MAX_CERTIFICATES,
        "no more than MAX_CERTIFICATES are read",
    )
    for each in found.certificates:
        load_certificate(each, "certificate")
    kind = kind_of(data).name
    _promise("\n" not in kind, "the kind's name is one line")
    counts = f"{min(len(found.certificates), 4)} certificates, {min(len(found.lists), 2)} lists"
    return f"{counts}, {len(found.others) > 0}"


def _any(value: int | bytes) -> bool:
    return any(value) if isinstance(value, bytes) else value != 0


def _message(data: bytes) -> str:
    """Read a message of go-sev-guest: a Report or an Attestation."""
    if attestation_proto.is_report(data):
        report, table = attestation_proto.read_report(data), CertTable()
    else:
        report, table = attestation_proto.read_attestation(data)
    size = sum(len(entry.data) for entry in table.entries)
    _promise(size <= len(data), "the entries hold no more bytes than the input")
    _promise(len(report) == REPORT_SIZE, "a report is complete")
    _promise(
        not any(report[0x4C:0x50]) and not any(report[0x208:0x2A0]),
        "bytes outside all fields are zero",
    )
    fields = ReportLayout.unpack(report)
    zero = [name for name in ReportLayout.__slots__ if not _any(getattr(fields, name))]
    return f"{min(len(table), 4)} entries, {len(zero)} fields zero"


_anchors = (anchor_from_certificate(_root),)
_signed = {
    data[:SIGNED_SIZE]
    for path in (CORPUS / "verdict").glob("seed*")
    for data in (path.read_bytes(),)
}


def _verdict(data: bytes) -> str:
    """Verify a report with its table, and with the corpus's root as the anchor."""
    evidence = Evidence.from_bytes(data)
    verdict = verify(evidence, policy=_POLICY, anchors=_anchors, at=AT)
    # Compare only the report: in the table, padding and entries that the verifier ignores may
    # change.
    if verdict.status is Status.VERIFIED:
        _promise(evidence.report.signed_bytes in _signed, "only a signed report is verified")
        _promise(
            verdict.root in _anchors and not verdict.root_is_amds,
            "the verdict names the anchor, and says that it is not AMD's",
        )
    # If a revocation list is required, a list in the table does not count.
    required = verify(evidence, policy=_REQUIRED, anchors=_anchors, at=AT)
    _promise(required.status is not Status.VERIFIED, "a list in the table does not count")
    # The relying party's own list revokes the ASK; nothing in the table may hide that.
    own = replace(evidence.collateral, lists=(_REVOKED,))
    knowing = verify(evidence, own, policy=_REQUIRED, anchors=_anchors, at=AT)
    _promise(knowing.status is not Status.VERIFIED, "the table cannot hide a revocation")
    _promise(len(knowing.revocation_lists) <= 2, "each list is judged once")
    knowing.to_json()
    for_people(knowing, verbose=True)
    _promise(
        len({check.name for check in verdict.checks}) == len(verdict.checks),
        "no check is listed twice",
    )
    verdict.to_json()
    return " ".join(sorted({reason.code.value for reason in verdict.reasons}))


_REQUIRED = Policy(revocation=Revocation.REQUIRE)
_REVOKED = SuppliedCrl(
    (CORPUS / "revoked.crl").read_bytes(), VekKind.VCEK, Supplier.CALLER, "revoked.crl"
)
_POLICY = Policy(vmpls=(0,), minimum_guest_svn=0, report_data=b"\1")


def _collateral(data: bytes) -> str:
    """Verify with one part of the chain replaced; the input's first byte says which part."""
    slots = ("vcek", "ask", "ark", "crl")
    slot = slots[data[0] % len(slots)] if data else "vcek"
    collateral = Collateral(**(_CHAIN | {slot: data[1:]}))
    verdict = verify(_REPORT, collateral, anchors=_anchors, at=AT)
    line = for_people(verdict, verbose=True)
    _promise(all(part.isprintable() for part in line.split("\n")), "foreign names are escaped")
    if verdict.status is Status.VERIFIED:
        _promise(
            slot == "crl" or _signed_part(data[1:]) in _PARTS[slot],
            f"a {slot} verifies only if its signed part is unchanged",
        )
    return " ".join(sorted({reason.code.value for reason in verdict.reasons}))


def _chain() -> tuple[bytes, dict[str, Any]]:
    evidence = Evidence.from_bytes((CORPUS / "verdict" / "seed-0").read_bytes())
    own = evidence.collateral
    if own.vcek is None or own.ask is None or own.ark is None:
        raise BrokenPromiseError("the first seed has a complete chain")
    return evidence.report.raw, {"vcek": own.vcek, "ask": own.ask, "ark": own.ark}


def _signed_part(data: bytes) -> bytes:
    return load_certificate(data, "certificate").tbs_certificate_bytes


_REPORT, _CHAIN = _chain()
# Signatures are randomised, so compare only what is signed.
_PARTS = {slot: {_signed_part(data)} for slot, data in _CHAIN.items()}

TARGETS: tuple[Target, ...] = (
    Target("report", _report, 20),
    Target("table", _table, 26),
    Target("certificate", _certificate, 14),
    Target("crl", _crl, 10),
    Target("policy", _policy, 10),
    Target("evidence", _evidence, 18),
    Target("bundle", _bundle, 2),
    Target("message", _message, 12),
    Target("verdict", _verdict, 1),
    Target("collateral", _collateral, 1),
)
