# SPDX-License-Identifier: Apache-2.0
"""``snpcerts mirror forget``: make a mirror forget hosts."""

from __future__ import annotations

import json

import click

from snpcerts.cli.mirror.operator_access import MIRROR, TOKEN_FILE, operators_client, unreadable
from snpcerts.cli.say import present, say


@click.command(short_help="Remove hosts from the mirror's page.")
@click.argument("hosts", nargs=-1, required=True, metavar="HOST...")
@MIRROR
@TOKEN_FILE
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def forget(hosts: tuple[str, ...], url: str, token_file: str | None, as_json: bool) -> None:
    """Make the mirror forget HOSTS, each given by its name or chip ID.

    A host with its own client certificate or token is bound to the first chip that it announces,
    and no other host can announce that chip. This command removes the binding, and the host from
    the mirror's page. Use it when a processor moves to another host, when a host gets a new
    processor, and when a host is gone for good. The mirror keeps the certificates. A host that
    still runs comes back with its next announcement.
    """
    answer = operators_client(url, token_file).call("POST", "forget", {"hosts": list(hosts)})
    found = _read(answer)
    if as_json:
        say(json.dumps({"forgotten": found}))
        return
    for each in found:
        present(f"forgotten: {each['host']}, {each['product']} {each['hwid']}")


def _read(answer: bytes) -> list[dict[str, str]]:
    try:
        rows = json.loads(answer)["forgotten"]
        found = [{name: row[name] for name in ("product", "hwid", "host")} for row in rows]
        right = all(isinstance(value, str) for each in found for value in each.values())
    except (ValueError, KeyError, TypeError, RecursionError):
        right = False
    if not right:
        raise unreadable()
    return found
