# SPDX-License-Identifier: Apache-2.0
"""``snpcerts guest``: attestation from inside an SNP guest."""

from __future__ import annotations

import json
import os

import click

from snpcerts.cli.files import write_output
from snpcerts.errors import UsageError

_SIZE = 64


@click.group()
def command() -> None:
    """Attest from inside an SNP guest."""


@command.command()
@click.option("-o", "--output", required=True, metavar="FILE", help="Where the report goes.")
@click.option("--table-out", metavar="FILE", help="Where the host's certificate table goes.")
@click.option(
    "--report-data",
    metavar="HEX",
    help="Up to 64 bytes the report is to carry, zeros added. [default: 64 random bytes]",
)
@click.option("--vmpl", type=click.IntRange(0, 3), default=0, show_default=True)
@click.option("--device", default="/dev/sev-guest", show_default=True, metavar="PATH")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def report(
    output: str,
    table_out: str | None,
    report_data: str | None,
    vmpl: int,
    device: str,
    as_json: bool,
) -> None:
    """Ask for an attestation report, and with --table-out for its certificates."""
    data = os.urandom(_SIZE) if report_data is None else _report_data(report_data)
    from snpcerts.guest.sev_guest import SevGuest

    table: bytes | None = None
    entries = 0
    with SevGuest(device) as guest:
        if table_out is None:
            got = guest.report(data, vmpl=vmpl)
        else:
            extended = guest.extended_report(data, vmpl=vmpl)
            certificates = extended.certificates()
            got, table, entries = extended.report, certificates.encode(), len(certificates)
    write_output(output, got)
    if table_out is not None and table is not None:
        write_output(table_out, table)
    if as_json:
        size = None if table is None else len(table)
        click.echo(
            json.dumps(
                {
                    "report": output,
                    "report_data": data.hex(),
                    "table": table_out,
                    "table_entries": entries,
                    "table_size": size,
                }
            )
        )
        return
    click.echo(f"{output}: report over {data.hex()}")
    if table_out is not None:
        what = f"{entries} certificates" if entries else "an empty table: the host has none to give"
        click.echo(f"{table_out}: {what}")


def _report_data(text: str) -> bytes:
    try:
        data = bytes.fromhex(text)
    except ValueError:
        raise UsageError(f"--report-data {text}: is not hexadecimal") from None
    if len(data) > _SIZE:
        raise UsageError(f"--report-data has {len(data)} bytes, at most {_SIZE}")
    return data.ljust(_SIZE, b"\0")
