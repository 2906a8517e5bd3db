# SPDX-License-Identifier: Apache-2.0
"""``snpcerts verify``: judge an attestation report with its certificates."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from snpcerts.abi.cert_table import MAX_SIZE, CertTable
from snpcerts.abi.product import Product, hwid_of_chip_id
from snpcerts.abi.report import REPORT_SIZE, Report, SigningKey
from snpcerts.cli.files import read_input
from snpcerts.errors import InputError, UsageError

if TYPE_CHECKING:
    from snpcerts.endorsement.anchors import Anchor
    from snpcerts.verify.collateral import Collateral
    from snpcerts.verify.verdict import Verdict


@click.command()
@click.argument("report")
@click.option("--table", metavar="FILE", help="Certificate table that came with the report.")
@click.option(
    "--certs",
    metavar="DIR",
    help="Directory with vcek or vlek, ask or asvk, and ark, as .der or .pem.",
)
@click.option("--anchor", metavar="FILE", help="Trust this root (ARK) instead of AMD's.")
@click.option(
    "--at", metavar="TIME", help="When the certificates must be valid (RFC 3339). [default: now]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as one JSON object.")
def command(
    report: str,
    table: str | None,
    certs: str | None,
    anchor: str | None,
    at: str | None,
    as_json: bool,
) -> None:
    """Verify an attestation report with its certificates.

    REPORT is a file of 1184 bytes, or of a report with its certificate table
    right behind it.

    Verified means: the report was signed by a key that the root endorses, for
    the report's chip, product and TCB. What the guest runs, its policy, and
    whether REPORT_DATA is what you sent remain yours to check; certificates are
    not looked up in revocation lists.

    Exit codes: 0 verified, 1 refused, 2 wrong usage or unreadable input.
    """
    if table is not None and certs is not None:
        raise UsageError("--table and --certs exclude each other")
    when = datetime.now(UTC) if at is None else _time(at)
    parsed, behind = _split(report, read_input(report, limit=REPORT_SIZE + MAX_SIZE))
    if certs is not None or table is not None:
        if behind:
            raise InputError(
                f"{report}: must be {REPORT_SIZE} bytes, found {REPORT_SIZE + len(behind)}",
                hint="leave --table and --certs out to use the table behind the report",
            )
    elif not behind:
        raise UsageError("no certificates to verify with", hint="give --table FILE or --certs DIR")

    from snpcerts.endorsement.anchors import AMD_ANCHORS
    from snpcerts.verify.verify import verify

    if certs is not None:
        collateral = _from_directory(certs, parsed.signing_key)
    elif table is not None:
        collateral = _from_table(table, read_input(table, limit=MAX_SIZE))
    else:
        collateral = _from_table(f"{report}, behind the report", behind)
    anchors = AMD_ANCHORS
    if anchor is not None:
        anchors, collateral = _trust(anchor, collateral)
    verdict = verify(parsed, collateral, anchors=anchors, at=when)
    click.echo(json.dumps(verdict.to_json(), indent=2) if as_json else _for_people(verdict))
    if verdict.reasons:
        click.get_current_context().exit(1)


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


def _split(path: str, data: bytes) -> tuple[Report, bytes]:
    """The report, and the bytes behind it."""
    if len(data) < REPORT_SIZE:
        raise InputError(f"{path}: a report has {REPORT_SIZE} bytes, found {len(data)}")
    return Report.unpack(data[:REPORT_SIZE]), data[REPORT_SIZE:]


def _from_table(name: str, data: bytes) -> Collateral:
    from snpcerts.verify.collateral import Collateral

    try:
        table = CertTable.decode(data)
    except InputError as error:
        raise InputError(f"{name}: {error.message}", hint=error.hint) from None
    for warning in table.warnings:
        click.echo(f"snpcerts: {name}: warning: {warning}", err=True)
    return Collateral.from_table(table)


def _from_directory(folder: str, signing_key: SigningKey | None) -> Collateral:
    from snpcerts.verify.collateral import Collateral

    if not os.path.isdir(folder):
        problem = "is not a directory" if os.path.lexists(folder) else "No such file or directory"
        raise InputError(f"{folder}: {problem}")
    ask, asvk = _certificate(folder, "ask"), _certificate(folder, "asvk")
    if signing_key is SigningKey.VLEK:
        ask, asvk = asvk, ask
    return Collateral(
        vcek=_certificate(folder, "vcek"),
        vlek=_certificate(folder, "vlek"),
        ask=asvk if ask is None else ask,
        ark=_certificate(folder, "ark"),
        crl=_certificate(folder, "crl"),
    )


def _certificate(folder: str, name: str) -> bytes | None:
    paths = [os.path.join(folder, f"{name}.{form}") for form in ("der", "pem")]
    there = [path for path in paths if os.path.lexists(path)]
    if len(there) > 1:
        raise UsageError(f"{there[0]} and {there[1]}: keep one of them")
    return read_input(there[0]) if there else None


def _trust(path: str, collateral: Collateral) -> tuple[tuple[Anchor, ...], Collateral]:
    """The root at ``path`` as the one anchor; it also stands in for an ARK not supplied."""
    import dataclasses

    from snpcerts.endorsement.anchors import anchor_from_certificate
    from snpcerts.endorsement.certificate import load_certificate

    data = read_input(path)
    try:
        anchor = anchor_from_certificate(load_certificate(data, "root"))
    except InputError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint) from None
    if collateral.ark is None:
        collateral = dataclasses.replace(collateral, ark=data)
    return (anchor,), collateral


def _for_people(verdict: Verdict) -> str:
    key = "?" if verdict.signing_key is None else verdict.signing_key.name
    product = "unknown product" if verdict.product is None else verdict.product.value
    lines: list[str] = []
    if verdict.reasons:
        count = len(verdict.reasons)
        lines.append(f"refused: {count} reason{'s' if count > 1 else ''}")
        lines += (f"  {reason}" for reason in verdict.reasons)
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
    return "\n".join(lines)


def _chip_id(chip_id: bytes, product: Product | None) -> str:
    if not any(chip_id):
        return "all zero"
    return (chip_id if product is None else hwid_of_chip_id(chip_id, product)).hex()
