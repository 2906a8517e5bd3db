# SPDX-License-Identifier: Apache-2.0
"""``snpcerts host status``: show whether the certificate files match the signing key."""

from __future__ import annotations

import json

import click

from snpcerts.cli.host.options import Host, with_host
from snpcerts.cli.host.output import event_printer
from snpcerts.cli.say import present, say


@click.command(short_help="Show whether the certificate files match the signing key.")
@with_host
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def status(host: Host, as_json: bool) -> None:
    """Show the firmware's state, what each certificate file holds, and whether the file matches the
    signing key.

    Exit codes: 0 all files match, 1 a file does not match.
    """
    from snpcerts.host.status import status_of

    agent = host.agent(event_printer("text"))
    found = status_of(agent.firmware, agent.read_files(), agent.table_cache.revocation_lists())
    if as_json:
        say(json.dumps(found.to_json()))
    else:
        present("\n".join(found.lines()))
    if not found.in_step:
        click.get_current_context().exit(1)
