# SPDX-License-Identifier: Apache-2.0
"""``snpcerts host status``: show whether files and firmware are in step."""

from __future__ import annotations

import json

import click

from snpcerts.cli.host.options import Host, with_host
from snpcerts.cli.host.output import event_printer
from snpcerts.cli.say import present, say


@click.command(short_help="Show whether firmware and certificate files are in step.")
@with_host
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(host: Host, as_json: bool) -> None:
    """Show the firmware, what each certificate file holds, and whether they are in step.

    Exit codes: 0 in step, 1 not in step.
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
