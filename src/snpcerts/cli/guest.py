# SPDX-License-Identifier: Apache-2.0
"""``snpcerts guest``: attestation from inside an SNP guest."""

from __future__ import annotations

import json
import os
import sys

import click

from snpcerts.cli.files import write_output
from snpcerts.cli.say import say
from snpcerts.errors import UsageError

_SIZE = 64
_AUTO = "auto"


@click.group()
def command() -> None:
    """Attest from inside an SNP guest."""


@command.command()
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    help="Where the report goes; - is standard output, for 'host prove-key'.",
)
@click.option("--table-out", metavar="FILE", help="Where the host's certificate table goes.")
@click.option(
    "--report-data",
    metavar="HEX",
    help="Up to 64 bytes the report is to carry, zeros added. [default: 64 random bytes]",
)
@click.option("--vmpl", type=click.IntRange(0, 3), help="The report's VMPL. [default: 0]")
@click.option(
    "--key-sel",
    type=click.Choice(["default", "vcek", "vlek"]),
    default="default",
    show_default=True,
    help="Which key is to sign; the default is the VLEK where one is loaded.",
)
@click.option(
    "--via",
    type=click.Choice([_AUTO, "sev-guest", "configfs-tsm"]),
    default=_AUTO,
    show_default=True,
    help="Which interface of the kernel is asked; auto takes the one there is.",
)
@click.option("--device", default="/dev/sev-guest", show_default=True, metavar="PATH")
@click.option(
    "--tsm",
    default="/sys/kernel/config/tsm/report",
    show_default=True,
    metavar="DIR",
    help="Where configfs-tsm is.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def report(
    output: str,
    table_out: str | None,
    report_data: str | None,
    vmpl: int | None,
    key_sel: str,
    via: str,
    device: str,
    tsm: str,
    as_json: bool,
) -> None:
    """Ask for an attestation report, and with --table-out for its certificates.

    The kernel offers reports in two places, the device /dev/sev-guest and the
    directory of configfs-tsm, which is for all kinds of confidential guests. The
    device is asked first where there are both: its errors say more.
    """
    data = os.urandom(_SIZE) if report_data is None else _report_data(report_data)
    if output == "-" and (as_json or table_out is not None):
        raise UsageError("-o -: leaves no room for --json, and --table-out needs a file for both")
    from snpcerts.abi.guest_message import KeySelect
    from snpcerts.guest.attestation import Interface, Paths, attest

    got = attest(
        data,
        certificates=table_out is not None,
        vmpl=vmpl,
        key=KeySelect[key_sel.upper()],
        via=None if via == _AUTO else Interface(via),
        paths=Paths(device, tsm),
    )
    if output == "-":
        sys.stdout.buffer.write(got.report)
        return
    certificates = got.certificates
    table = None if certificates is None else certificates.encode()
    entries = 0 if certificates is None else len(certificates)
    write_output(output, got.report)
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
    say(f"{output}: report over {data.hex()}")
    if table_out is not None:
        what = f"{entries} certificates" if entries else "an empty table: the host has none to give"
        say(f"{table_out}: {what}")


def _report_data(text: str) -> bytes:
    try:
        data = bytes.fromhex(text)
    except ValueError:
        raise UsageError(f"--report-data {text}: is not hexadecimal") from None
    if len(data) > _SIZE:
        raise UsageError(f"--report-data has {len(data)} bytes, at most {_SIZE}")
    return data.ljust(_SIZE, b"\0")
