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
@click.option(
    "--table", metavar="FILE", help="File with the certificate table that came with the report."
)
@click.option(
    "--certs",
    metavar="DIR",
    help=(
        "Directory with certificates and revocation lists (CRLs), in DER or PEM, or one such file."
    ),
)
@click.option(
    "--fetch",
    is_flag=True,
    help="Request missing certificates and revocation lists from AMD's key server.",
)
@source_options
@click.option(
    "--order",
    metavar="NAMES",
    default=ORDER,
    show_default=True,
    help=(
        "Sources of certificates, in the order in which to try them: table (the report's table), "
        "certs (--certs) and kds (the key server). A source that is not listed is not used."
    ),
)
@click.option(
    "--at",
    metavar="TIME",
    help=(
        "Time at which the certificates must be valid, as in 2026-01-31T12:00:00Z (RFC "
        "3339). [default: now]"
    ),
)
@click.option(
    "--crl",
    multiple=True,
    metavar="KIND=FILE",
    help=(
        "File with a revocation list (CRL) for leaves of KIND, vcek or vlek. Implies "
        "--require-crl. A list without KIND= adds revocations, but does not satisfy "
        "--require-crl."
    ),
)
@click.option(
    "--require-crl",
    is_flag=True,
    help=(
        "Refuse reports unless a source other than the host supplies a current revocation "
        "list (CRL)."
    ),
)
@click.option(
    "--max-crl-age",
    metavar="AGE",
    help=(
        "Refuse a revocation list (CRL) that was fetched from the key server longer ago than "
        "AGE: 90m, 12h, 7d. [default: 1d with --fetch or --kds, otherwise any age]"
    ),
)
@click.option("--ignore-crl", is_flag=True, help="Ignore all revocation lists (CRLs).")
@click.option("--policy", metavar="FILE", help="TOML file with the policy that reports must meet.")
@click.option(
    "--report-data",
    metavar="HEX",
    help=(
        "Report data that the report must carry: up to 64 bytes in hexadecimal, padded with zeros."
    ),
)
@click.option(
    "--user-data",
    metavar="HEX",
    help="User data that the runtime data of an HCL report must carry, in hexadecimal.",
)
@click.option(
    "--measurement",
    multiple=True,
    metavar="HEX",
    help="Launch measurement to accept, in hexadecimal. May be given several times.",
)
@click.option(
    "--host-data",
    metavar="HEX",
    help="HOST_DATA that the report must carry: 32 bytes in hexadecimal.",
)
@click.option(
    "--vmpl",
    multiple=True,
    type=click.IntRange(0, 3),
    help="VMPL to accept. May be given several times.",
)
@click.option(
    "--min-tcb",
    multiple=True,
    metavar="PRODUCT:bl=N,...",
    help=(
        "Lowest reported TCB to accept for a product, with every component, as in "
        "milan:bl=4,tee=0,snp=24,ucode=219. May be given once for each product."
    ),
)
@click.option("--allow-debug", is_flag=True, help="Accept guests that can be debugged.")
@click.option(
    "--jobs",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    metavar="N",
    help=(
        "Number of processes that share the work. Takes effect only for a thousand or more reports."
    ),
)
@click.option(
    "--explain",
    is_flag=True,
    help=(
        "If a policy check fails, also list the related requirements of AMD's security bulletins "
        "that the report does not meet, with the bulletins' attacks."
    ),
)
@click.option(
    "--ear",
    metavar="FILE",
    help=(
        "Also write the verdict to FILE as an EAR, which is a signed JWT. If FILE is -, print "
        "the EAR instead of the verdict."
    ),
)
@click.option(
    "--ear-key",
    metavar="FILE",
    help=("File with the private key that signs the EAR: EC P-256, in PEM, without a password."),
)
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Also list the checks that were skipped because no option or policy asked for them.",
)
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

    EVIDENCE is a file or a directory of files. A file holds one of these: a report of 1184 bytes,
    with or without its certificate table after it; a protocol buffer of go-sev-guest; the HCL
    report of an Azure VM. The table may also be in a second file beside the report's: x.bin and
    x.table, or outblob and auxblob.

    A report is verified if its signing key is endorsed by a trusted root for the report's chip,
    product and TCB, and if the report meets the policy. The default policy refuses only reports
    of guests that can be debugged or moved by a migration agent, and reports whose reported TCB is
    above the current TCB. Therefore give at least --report-data. The output shows what was not
    checked.

    Exit codes: 0 all reports were verified, 1 a report was refused, 2 wrong usage or unreadable
    input, 3 certificates were not available.
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
            raise UsageError("--ear accepts only one report")
        result = EarFile.to(ear, ear_key, policy, asked["policy"])
    if table is not None:
        if len(given) != 1:
            raise UsageError("--table accepts only one report")
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
            f"--at {text!r}: expected an RFC 3339 time",
            hint="write the time as 2026-01-31T12:00:00Z",
        ) from None
    if when.tzinfo is None:
        raise UsageError(
            f"--at {text!r}: expected a time with a time zone",
            hint="append Z to a time in UTC",
        )
    return when
