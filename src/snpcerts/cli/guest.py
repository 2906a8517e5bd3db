# SPDX-License-Identifier: Apache-2.0
"""``snpcerts guest``: attestation from inside an SNP guest."""

from __future__ import annotations

import json
import os
import sys

import click

from snpcerts.cli.files import write_output
from snpcerts.cli.hex_option import hex_bytes
from snpcerts.cli.say import say, say_line
from snpcerts.errors import UsageError

_SIZE = 64
_AUTO = "auto"


@click.group()
def command() -> None:
    """Request attestation reports from inside an SNP guest."""


@command.command(short_help="Request an attestation report.")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    help=(
        "File to write the report to, or - for standard output, as when 'snpcerts host prove-key' "
        "runs this command."
    ),
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["report", "tsm-json", "tsm-cbor"]),
    default="report",
    show_default=True,
    help=(
        "Format of the output: the report alone, or the report and its certificates as a "
        "tsm-report (application/vnd.veraison.tsm-report+json or +cbor)."
    ),
)
@click.option("--table-out", metavar="FILE", help="File to write the host's certificate table to.")
@click.option(
    "--report-data",
    metavar="HEX",
    help=(
        "Report data: up to 64 bytes in hexadecimal, padded with zeros. [default: 64 random bytes]"
    ),
)
@click.option(
    "--vmpl",
    type=click.IntRange(0, 3),
    help=(
        "VMPL for which to request the report. [default: the VMPL that the guest's kernel runs at]"
    ),
)
@click.option(
    "--key-sel",
    type=click.Choice(["default", "vcek", "vlek"]),
    default="default",
    show_default=True,
    help="Key that signs the report. 'default' is the VLEK if one is loaded, otherwise the VCEK.",
)
@click.option(
    "--via",
    type=click.Choice([_AUTO, "sev-guest", "configfs-tsm"]),
    default=_AUTO,
    show_default=True,
    help="Kernel interface to use. 'auto' prefers sev-guest.",
)
@click.option("--device", default="/dev/sev-guest", show_default=True, metavar="PATH")
@click.option(
    "--tsm",
    default="/sys/kernel/config/tsm/report",
    show_default=True,
    metavar="DIR",
    help="Directory of configfs-tsm in which reports are requested.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def report(
    output: str,
    form: str,
    table_out: str | None,
    report_data: str | None,
    vmpl: int | None,
    key_sel: str,
    via: str,
    device: str,
    tsm: str,
    as_json: bool,
) -> None:
    """Request an attestation report and, with --table-out, its certificates.

    The kernel has two interfaces for reports: the device /dev/sev-guest, and configfs-tsm, which
    serves all kinds of confidential guests. If both exist, the command uses the device, because the
    device's errors are more precise.
    """
    data = os.urandom(_SIZE) if report_data is None else _report_data(report_data)
    if output == "-" and (as_json or table_out is not None):
        raise UsageError(
            "'-o -' cannot be combined with --json or --table-out",
            hint="write the report to a file, with -o FILE",
        )
    from snpcerts.abi.guest_message import KeySelect
    from snpcerts.guest.attestation import Interface, Paths, attest

    got = attest(
        data,
        certificates=table_out is not None or form != "report",
        vmpl=vmpl,
        key=KeySelect[key_sel.upper()],
        via=None if via == _AUTO else Interface(via),
        paths=Paths(device, tsm),
    )
    certificates = got.certificates
    table = None if certificates is None else certificates.encode()
    entries = 0 if certificates is None else len(certificates)
    written = got.report
    if form != "report":
        from snpcerts.verify.tsm_report import TsmForm, tsm_report

        pair_table = table if entries and table is not None else b""
        written = tsm_report(got.report, pair_table, TsmForm(form))
    if output == "-":
        sys.stdout.buffer.write(written)
        return
    write_output(output, written)
    if table_out is not None and table is not None:
        write_output(table_out, table)
    if as_json:
        size = None if table is None else len(table)
        say(
            json.dumps(
                {
                    "report": output,
                    "report_data": data.hex(),
                    "via": got.via.value,
                    "table": table_out,
                    "table_entries": entries,
                    "table_size": size,
                }
            )
        )
        return
    say_line(f"{output}: report with report data {data.hex()}")
    if table_out is not None:
        what = (
            f"the certificate table has {entries} {'entry' if entries == 1 else 'entries'}"
            if entries
            else "the table is empty: the host supplied no certificates"
        )
        say_line(f"{table_out}: {what}")


def _report_data(text: str) -> bytes:
    data = hex_bytes("--report-data", text)
    if len(data) > _SIZE:
        raise UsageError(f"--report-data: expected at most {_SIZE} bytes, found {len(data)}")
    return data.ljust(_SIZE, b"\0")
