# SPDX-License-Identifier: Apache-2.0
"""``snpcerts verify``: judge attestation reports with their certificates."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snpcerts.abi.product import Product, hwid_of_chip_id
from snpcerts.abi.report import Report
from snpcerts.abi.tcb import TcbVersion
from snpcerts.cli.evidence import Place, certificates, places
from snpcerts.cli.files import read_input
from snpcerts.errors import InputError, SnpCertsError, UsageError

if TYPE_CHECKING:
    from snpcerts.endorsement.anchors import Anchor
    from snpcerts.kds.source import CertificateSource
    from snpcerts.verify.collateral import Collateral
    from snpcerts.verify.evidence import Evidence
    from snpcerts.verify.policy import Policy
    from snpcerts.verify.sources import CollateralSource
    from snpcerts.verify.verdict import Verdict

_ORDER = "table,certs,kds"
_SPLS = {"fmc": "fmc", "bl": "bootloader", "tee": "tee", "snp": "snp", "ucode": "microcode"}


@dataclass(frozen=True, slots=True)
class _Asked:
    """The command's options about policy."""

    policy: str | None
    report_data: str | None
    user_data: str | None
    measurement: tuple[str, ...]
    host_data: str | None
    vmpl: tuple[int, ...]
    min_tcb: tuple[str, ...]
    allow_debug: bool
    require_crl: bool
    ignore_crl: bool

    def read(self) -> Policy:
        """The policy file, if any, with the options on top."""
        from snpcerts.verify.policy import Policy, Revocation
        from snpcerts.verify.policy_file import read_policy

        policy = Policy()
        if self.policy is not None:
            data = read_input(self.policy)
            try:
                policy = read_policy(data)
            except InputError as error:
                raise InputError(f"{self.policy}: {error.message}", hint=error.hint) from None
        changes: dict[str, Any] = {}
        for name in ("report_data", "user_data", "host_data"):
            text = getattr(self, name)
            if text is not None:
                changes[name] = _hex(name, text)
        if self.measurement:
            changes["measurements"] = tuple(_hex("measurement", each) for each in self.measurement)
        if self.vmpl:
            changes["vmpls"] = self.vmpl
        if self.min_tcb:
            changes["minimum_tcb"] = _floor(policy, self.min_tcb)
        if self.allow_debug:
            changes["guest_policy"] = dataclasses.replace(policy.guest_policy, debug=None)
        if self.require_crl and self.ignore_crl:
            raise UsageError("--require-crl (or --crl) and --ignore-crl exclude each other")
        if self.require_crl:
            changes["revocation"] = Revocation.REQUIRE
        if self.ignore_crl:
            changes["revocation"] = Revocation.IGNORE
        return dataclasses.replace(policy, **changes)


@click.command()
@click.argument("evidence", nargs=-1, required=True)
@click.option("--table", metavar="FILE", help="Certificate table that came with the report.")
@click.option(
    "--certs",
    metavar="DIR",
    help="Directory with vcek or vlek, ask or asvk, ark, cert_chain, crl, as .der or .pem.",
)
@click.option("--fetch", is_flag=True, help="Ask AMD's key server for what is missing.")
@click.option("--kds", "url", metavar="URL", help="Ask this mirror for what is missing.")
@click.option("--offline", is_flag=True, help="Take what is missing from the key server's cache.")
@click.option("--cache", metavar="DIR", help="Where that cache is. [default: as snpcerts kds]")
@click.option(
    "--order",
    metavar="NAMES",
    default=_ORDER,
    show_default=True,
    help="Which source is asked first.",
)
@click.option("--anchor", metavar="FILE", help="Trust this root (ARK) instead of AMD's.")
@click.option(
    "--at", metavar="TIME", help="When the certificates must be valid (RFC 3339). [default: now]"
)
@click.option("--crl", multiple=True, metavar="FILE", help="Revocation list; one is then required.")
@click.option("--require-crl", is_flag=True, help="Refuse without a current revocation list.")
@click.option("--ignore-crl", is_flag=True, help="Do not look at a revocation list that came.")
@click.option("--policy", metavar="FILE", help="What to ask of reports, as TOML.")
@click.option("--report-data", metavar="HEX", help="REPORT_DATA wanted; zeros are added.")
@click.option("--user-data", metavar="HEX", help="User data wanted in an HCL report.")
@click.option("--measurement", multiple=True, metavar="HEX", help="Measurement wanted, any of.")
@click.option("--host-data", metavar="HEX", help="HOST_DATA wanted.")
@click.option("--vmpl", multiple=True, type=click.IntRange(0, 3), help="VMPL wanted, any of.")
@click.option(
    "--min-tcb",
    multiple=True,
    metavar="PRODUCT:bl=N,...",
    help="Least reported TCB, every component: milan:bl=4,tee=0,snp=24,ucode=219.",
)
@click.option("--allow-debug", is_flag=True, help="Take reports of guests that can be debugged.")
@click.option("--jobs", type=click.IntRange(1, 256), default=1, show_default=True, metavar="N")
@click.option("--json", "as_json", is_flag=True, help="Print each verdict as one JSON object.")
def command(
    evidence: tuple[str, ...],
    table: str | None,
    certs: str | None,
    fetch: bool,
    url: str | None,
    offline: bool,
    cache: str | None,
    order: str,
    anchor: str | None,
    at: str | None,
    crl: tuple[str, ...],
    require_crl: bool,
    jobs: int,
    as_json: bool,
    **asked: Any,
) -> None:
    """Verify attestation reports with their certificates.

    EVIDENCE is a report of 1184 bytes, a report with its certificate table right
    behind it (or beside it: x.bin and x.table, outblob and auxblob), the HCL
    report of an Azure VM, or a directory of these.

    Verified means: the report was signed by a key that the root endorses, for
    the report's chip, product and TCB, and it is as the policy asks. Unless told
    otherwise the policy only refuses guests that can be debugged or moved by a
    migration agent: give --report-data at least. What was not asked is listed.

    Exit codes: 0 all verified, 1 one was refused, 2 wrong usage or unreadable
    input, 3 certificates could not be had just now.
    """
    if offline and (fetch or url is not None):
        raise UsageError("--offline excludes --fetch and --kds")
    when = datetime.now(UTC) if at is None else _time(at)
    from snpcerts.endorsement.anchors import AMD_ANCHORS

    anchors, root = (AMD_ANCHORS, None) if anchor is None else _trust(anchor)
    policy = _Asked(require_crl=require_crl or bool(crl), **asked).read()
    given = [place for path in evidence for place in places(path)]
    if table is not None:
        if len(given) != 1:
            raise UsageError("--table is for one report")
        given = [dataclasses.replace(given[0], table=table)]
    with ExitStack() as stack:
        server: CertificateSource | None = None
        if fetch or offline or url is not None:
            server = _server(stack, url, offline, cache, anchors)
        sources = _sources(order, certs, crl, root, server, when)
        has_more = certs is not None or server is not None
        run = _Run(given, sources, policy, anchors, when, jobs, has_more)
        code = run.print(as_json)
    click.get_current_context().exit(code)


def _time(text: str) -> datetime:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"--at {text!r}: is not an RFC 3339 time", hint="as in 2026-01-31T12:00:00Z"
        ) from None
    if when.tzinfo is None:
        raise UsageError(f"--at {text!r}: has no time zone", hint="add Z for UTC")
    return when


def _hex(name: str, text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise UsageError(f"--{name.replace('_', '-')} {text}: is not hexadecimal") from None


def _floor(policy: Policy, texts: Iterable[str]) -> Any:
    """The policy's floor with these on top."""
    from snpcerts.verify.policy import TcbFloor

    floor = policy.minimum_tcb or TcbFloor()
    for text in texts:
        name, _, levels = text.partition(":")
        product = next((each for each in Product if each.name.lower() == name.lower()), None)
        if product is None:
            known = ", ".join(each.name.lower() for each in Product)
            raise UsageError(f"--min-tcb {text}: the product must be one of {known}")
        floor = dataclasses.replace(floor, **{product.name.lower(): _tcb(text, levels)})
    return floor


def _tcb(text: str, levels: str) -> TcbVersion:
    components: dict[str, int] = {}
    for each in levels.split(","):
        name, _, number = each.partition("=")
        if name not in _SPLS or _SPLS[name] in components or not number.isdecimal():
            raise UsageError(
                f"--min-tcb {text}: {each!r} is not one of {', '.join(_SPLS)} once, with a number"
            )
        components[_SPLS[name]] = int(number)
    missing = [name for name in ("bl", "tee", "snp", "ucode") if _SPLS[name] not in components]
    if missing:
        raise UsageError(f"--min-tcb {text}: {missing[0]} is missing; name every component")
    try:
        return TcbVersion(**components)
    except InputError as error:
        raise UsageError(f"--min-tcb {text}: {error.message}") from None


def _trust(path: str) -> tuple[tuple[Anchor, ...], bytes]:
    """The root at ``path`` as the one anchor, and the root itself."""
    from snpcerts.endorsement.anchors import anchor_from_certificate
    from snpcerts.endorsement.certificate import load_certificate

    data = read_input(path)
    try:
        return (anchor_from_certificate(load_certificate(data, "root")),), data
    except InputError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint) from None


def _server(
    stack: ExitStack,
    url: str | None,
    offline: bool,
    cache: str | None,
    anchors: tuple[Anchor, ...],
) -> CertificateSource:
    """The key server behind its cache, or the cache alone."""
    # The cache of one command is that of the other.
    from snpcerts.cli.kds import cache_directory
    from snpcerts.kds.client import KdsClient
    from snpcerts.kds.source import CertificateSource
    from snpcerts.kds.store import Store
    from snpcerts.kds.url import AMD_URL

    def say(text: str) -> None:
        click.echo(f"snpcerts: {text}", err=True)

    client = None
    if not offline:
        client = KdsClient(AMD_URL if url is None else url, notice=say)
        stack.callback(client.close)
    store = Store(Path(cache_directory(cache)))
    return CertificateSource(
        store, client, anchors=anchors, warn=lambda text: say(f"warning: {text}")
    )


def _sources(
    order: str,
    certs: str | None,
    crls: Iterable[str],
    root: bytes | None,
    server: CertificateSource | None,
    at: datetime,
) -> list[CollateralSource]:
    from snpcerts.verify.collateral import Collateral
    from snpcerts.verify.sources import OWN, Given, GivenCrls

    names = order.split(",")
    if sorted(set(names)) != sorted(names) or not set(names) <= set(_ORDER.split(",")):
        raise UsageError(f"--order {order}: must be some of {_ORDER}, each once")
    by_name: dict[str, list[CollateralSource]] = {"table": [OWN]}
    if certs is not None:
        by_name["certs"] = [certificates(certs)]
    if server is not None:
        from snpcerts.kds.collateral import KdsCertificates, KdsRevocationLists

        by_name["kds"] = [KdsCertificates(server, at=at), KdsRevocationLists(server, at=at)]
    sources: list[CollateralSource] = []
    lists = list(crls)
    if lists:
        sources.append(GivenCrls(map(read_input, lists)))
    for name in names:
        sources += by_name.get(name, [])
    # The trusted root stands in for one that nobody supplied.
    if root is not None:
        after = [source for source in by_name.get("kds", []) if source in sources]
        place = sources.index(after[0]) if after else len(sources)
        sources.insert(place, Given(Collateral(ark=root)))
    return sources


@dataclass(frozen=True, slots=True)
class _Run:
    """All there is to verify, and how."""

    places: list[Place]
    sources: list[CollateralSource]
    policy: Policy
    anchors: tuple[Anchor, ...]
    at: datetime
    jobs: int
    has_more: bool  # there are certificates beside those that come with reports

    def print(self, as_json: bool) -> int:
        """Print the verdicts as they come; the exit code."""
        if len(self.places) == 1:
            verdict = next(self._verdicts(iter([self._read(self.places[0])])))
            path = self.places[0].report
            click.echo(_json_line(path, verdict) if as_json else _for_people(verdict))
            return _EXIT[verdict.status.value]
        counts: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        with ExitStack() as stack:
            step = _progress(stack, len(self.places))
            for path, result in self._results():
                step()
                if isinstance(result, SnpCertsError):
                    counts["unreadable"] += 1
                    click.echo(
                        _unreadable_json(path, result) if as_json else f"unreadable  {result}"
                    )
                    continue
                counts[result.status.value] += 1
                reasons.update({reason.code.value for reason in result.reasons})
                click.echo(_json_line(path, result) if as_json else _one_line(path, result))
        if not as_json:
            click.echo(_summary(counts, reasons))
        return next((_EXIT[name] for name in _WORST_FIRST if counts[name]), 0)

    def _read(self, place: Place) -> Evidence:
        evidence = place.read()
        for warning in evidence.warnings:
            click.echo(f"snpcerts: {place.report}: warning: {warning}", err=True)
        own = evidence.collateral
        if place.certificates is not None:
            from snpcerts.verify.verify import KINDS

            key = Report.unpack(evidence.report).signing_key
            kind = None if key is None else KINDS.get(key)
            own = own.completed_by(certificates(place.certificates).for_kind(kind))
        alone = len(self.places) == 1
        if alone and not self.has_more and not _any(own) and evidence.table is None:
            raise UsageError(
                "no certificates to verify with",
                hint="give --table FILE, --certs DIR or --fetch",
            )
        return dataclasses.replace(evidence, collateral=own)

    def _verdicts(self, evidence: Iterator[Evidence]) -> Iterator[Verdict]:
        from snpcerts.verify.bulk import verify_many

        return verify_many(
            evidence,
            self.sources,
            self.policy,
            anchors=self.anchors,
            at=self.at,
            jobs=self.jobs,
        )

    def _results(self) -> Iterator[tuple[str, Verdict | SnpCertsError]]:
        """Verdicts and what could not be read, in the order of the places."""
        waiting: deque[tuple[str, SnpCertsError | None]] = deque()

        def readable() -> Iterator[Evidence]:
            for place in self.places:
                try:
                    evidence = self._read(place)
                except InputError as error:
                    waiting.append((place.report, error))
                    continue
                waiting.append((place.report, None))
                yield evidence

        for verdict in self._verdicts(readable()):
            yield from _unread(waiting)
            path, _ = waiting.popleft()
            yield path, verdict
        yield from _unread(waiting)


_EXIT = {"verified": 0, "refused": 1, "unreadable": 2, "undecided": 3}
_WORST_FIRST = ("refused", "unreadable", "undecided")


def _unread(
    waiting: deque[tuple[str, SnpCertsError | None]],
) -> Iterator[tuple[str, SnpCertsError]]:
    while waiting:
        path, error = waiting[0]
        if error is None:
            return
        waiting.popleft()
        yield path, error


def _any(collateral: Collateral) -> bool:
    return any(
        getattr(collateral, field.name) is not None for field in dataclasses.fields(collateral)
    )


def _progress(stack: ExitStack, total: int) -> Callable[[], object]:
    """Something to call once for each report; a bar where a person watches."""
    if not sys.stderr.isatty():
        return lambda: None
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    bar = stack.enter_context(
        Progress(
            BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)
        )
    )
    task = bar.add_task("", total=total)
    return lambda: bar.advance(task)


def _json_line(path: str, verdict: Verdict) -> str:
    return json.dumps({"evidence": path} | verdict.to_json())


def _unreadable_json(path: str, error: SnpCertsError) -> str:
    return json.dumps({"evidence": path, "verdict": "unreadable", "error": str(error)})


def _one_line(path: str, verdict: Verdict) -> str:
    said = ", ".join(dict.fromkeys(reason.code.value for reason in verdict.reasons))
    product = "" if verdict.product is None else verdict.product.value
    return f"{verdict.status.value:<10}  {path}: {said or f'{product}, {verdict.tcbs.reported}'}"


def _summary(counts: Counter[str], reasons: Counter[str]) -> str:
    total = sum(counts.values())
    parts = [f"{counts[name]} {name}" for name in _EXIT if counts[name] or name == "verified"]
    lines = [f"{total} in all: {', '.join(parts)}"]
    lines += (f"  {count:>8}  {code}" for code, count in reasons.most_common())
    return "\n".join(lines)


_NEXT = {
    "refuse": "",
    "retry-later": "try again later",
    "fix-usage": "supply what is missing: --certs DIR, --crl FILE or --fetch",
}


def _for_people(verdict: Verdict) -> str:
    key = "?" if verdict.signing_key is None else verdict.signing_key.name
    product = "unknown product" if verdict.product is None else verdict.product.value
    lines: list[str] = []
    if verdict.reasons:
        count = len(verdict.reasons)
        lines.append(f"{verdict.status.value}: {count} reason{'s' if count > 1 else ''}")
        lines += (f"  {reason}" for reason in verdict.reasons)
        if verdict.next_step is not None and _NEXT[verdict.next_step.value]:
            lines.append(f"next: {_NEXT[verdict.next_step.value]}")
        lines.append("the report claims (nothing backs it):")
    else:
        lines.append("verified")
    lines.append(f"  {product}, signed by {key}")
    if verdict.leaf is not None and verdict.leaf.csp_id is not None:
        lines.append(f"  provider     {verdict.leaf.csp_id!r}")
    if verdict.report is not None:
        fields = verdict.report.fields
        lines.append(f"  chip ID      {_chip_id(fields.chip_id, verdict.product)}")
        lines.append(f"  reported TCB {verdict.tcbs.reported or 'cannot be read'}")
        lines.append(f"  VMPL         {fields.vmpl}")
        lines.append(f"  measurement  {fields.measurement.hex()}")
        lines.append(f"  report data  {fields.report_data.hex()}")
    return "\n".join([*lines, *_checks(verdict)])


def _checks(verdict: Verdict) -> Iterator[str]:
    by_state: dict[str, list[str]] = {}
    for check in verdict.checks:
        by_state.setdefault(check.state.value, []).append(check.name)
    for state, label in (
        ("passed", "passed"),
        ("failed", "failed"),
        ("not-judged", "not judged"),
        ("not-asked", "not asked"),
    ):
        if state in by_state:
            yield f"  {label:<12} {', '.join(by_state[state])}"


def _chip_id(chip_id: bytes, product: Product | None) -> str:
    if not any(chip_id):
        return "all zero"
    return (chip_id if product is None else hwid_of_chip_id(chip_id, product)).hex()
