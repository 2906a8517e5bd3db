# SPDX-License-Identifier: Apache-2.0
"""``snpcerts verify``: verify attestation reports with their certificates."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from snpcerts.cli.bulletin_age import warn_if_old
from snpcerts.cli.evidence_files import places
from snpcerts.cli.source_options import SourceOptions, source_options, trusted_roots
from snpcerts.cli.verify_ear import EarFile
from snpcerts.cli.verify_policy import PolicyOptions
from snpcerts.cli.verify_run import VerifyRun
from snpcerts.cli.verify_sources import ORDER, sources_in_order
from snpcerts.errors import UsageError

if TYPE_CHECKING:
    from snpcerts.kds.source import CertificateSource


@click.command()
@click.argument("evidence", nargs=-1, required=True)
@click.option("--table", metavar="FILE", help="Certificate table that came with the report.")
@click.option(
    "--certs",
    metavar="DIR",
    help=(
        "Directory with the certificates (vcek or vlek, ask or asvk, ark, "
        "cert_chain) and the CRL (crl), as .der or .pem files."
    ),
)
@click.option("--fetch", is_flag=True, help="Ask AMD's key server for what is missing.")
@source_options
@click.option(
    "--order",
    metavar="NAMES",
    default=ORDER,
    show_default=True,
    help="The order in which sources are tried.",
)
@click.option(
    "--at",
    metavar="TIME",
    help="Time at which the certificates must be valid (RFC 3339). [default: now]",
)
@click.option(
    "--crl",
    multiple=True,
    metavar="KIND=FILE",
    help=(
        "Revocation list for vcek or vlek leaves. With KIND=, a list for that "
        "kind is also required. Without KIND=, the list adds revocations, but "
        "does not satisfy that requirement."
    ),
)
@click.option(
    "--require-crl",
    is_flag=True,
    help="Refuse reports unless a source other than the host supplies a current revocation list.",
)
@click.option(
    "--max-crl-age",
    metavar="AGE",
    help=(
        "Refuse a list that was fetched from the key server longer ago than "
        "this: 90m, 12h, 7d. [default: 1d with --fetch or --kds, otherwise any "
        "age]"
    ),
)
@click.option("--ignore-crl", is_flag=True, help="Ignore all revocation lists.")
@click.option("--policy", metavar="FILE", help="TOML file with requirements on reports.")
@click.option("--report-data", metavar="HEX", help="Required REPORT_DATA, padded with zeros.")
@click.option("--user-data", metavar="HEX", help="Required user data in an HCL report.")
@click.option(
    "--measurement",
    multiple=True,
    metavar="HEX",
    help="Accepted launch measurement. May be given several times.",
)
@click.option("--host-data", metavar="HEX", help="Required HOST_DATA.")
@click.option(
    "--vmpl",
    multiple=True,
    type=click.IntRange(0, 3),
    help="Accepted VMPL. May be given several times.",
)
@click.option(
    "--min-tcb",
    multiple=True,
    metavar="PRODUCT:bl=N,...",
    help="Lowest reported TCB, with every component: milan:bl=4,tee=0,snp=24,ucode=219.",
)
@click.option("--allow-debug", is_flag=True, help="Accept guests that can be debugged.")
@click.option(
    "--jobs",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of processes that share the work of a thousand or more reports.",
)
@click.option(
    "--explain", is_flag=True, help="Name the attacks and bulletins behind each failed check."
)
@click.option(
    "--ear",
    metavar="FILE",
    help="Write the verdict on a single report to FILE as an EAR, a signed JWT; - is standard "
    "output.",
)
@click.option(
    "--ear-key", metavar="FILE", help="Private key for --ear: EC P-256, in PEM, without a password."
)
@click.option("-v", "--verbose", is_flag=True, help="Also list what was not checked.")
@click.option("--json", "as_json", is_flag=True, help="Print each verdict as one JSON object.")
def command(
    evidence: tuple[str, ...],
    table: str | None,
    certs: str | None,
    fetch: bool,
    server: SourceOptions,
    order: str,
    at: str | None,
    crl: tuple[str, ...],
    require_crl: bool,
    jobs: int,
    explain: bool,
    ear: str | None,
    ear_key: str | None,
    verbose: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Verify attestation reports with their certificates.

    EVIDENCE is a report of 1184 bytes, a report with its certificate table right
    behind it (or beside it: x.bin and x.table, outblob and auxblob), a protocol
    buffer of go-sev-guest, the HCL report of an Azure VM, or a directory of these.

    Verified means that a key that the root endorses for the report's chip, product and TCB signed
    the report, and that the report meets the policy. By default the policy only refuses guests that
    can be debugged or moved by a migration agent, and a reported TCB above the current one. So give
    at least --report-data. The output lists what was not checked.

    Exit codes: 0 all verified, 1 one was refused, 2 wrong usage or unreadable input, 3
    certificates were not available.
    """
    if (ear is None) != (ear_key is None):
        raise UsageError("--ear and --ear-key must be given together")
    if server.offline and fetch:
        raise UsageError("--offline cannot be combined with --fetch or --kds")
    when = datetime.now(UTC) if at is None else _time(at)
    from snpcerts.endorsement.anchors import AMD_ANCHORS

    roots = trusted_roots(server.anchors)
    anchors = tuple(anchor for anchor, _ in roots) or AMD_ANCHORS
    asks_server = fetch or server.url is not None
    policy = PolicyOptions(
        require_crl=require_crl or bool(crl), asks_server=asks_server, **asked
    ).read()
    given = [place for path in evidence for place in places(path)]
    result = None
    if ear is not None and ear_key is not None:
        if len(given) != 1:
            raise UsageError("--ear works for one report only")
        result = EarFile.to(ear, ear_key, policy, asked["policy"])
    if table is not None:
        if len(given) != 1:
            raise UsageError("--table works for one report only")
        given = [dataclasses.replace(given[0], table=table)]
    with ExitStack() as stack:
        source: CertificateSource | None = None
        if asks_server or server.offline:
            source = stack.enter_context(server.open(anchors))
        sources = sources_in_order(order, certs, crl, roots, source, when)
        has_more = certs is not None or source is not None
        run = VerifyRun(
            given, sources, policy, anchors, when, jobs, verbose, explain, has_more, result
        )
        code = run.print(as_json)
    if explain:
        warn_if_old()
    click.get_current_context().exit(code)


def _time(text: str) -> datetime:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"--at {text!r}: not an RFC 3339 time", hint="write it as 2026-01-31T12:00:00Z"
        ) from None
    if when.tzinfo is None:
        raise UsageError(f"--at {text!r}: the time zone is missing", hint="add Z for UTC")
    return when
