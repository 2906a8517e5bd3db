# SPDX-License-Identifier: Apache-2.0
"""``snpcerts mirror forget``."""

from __future__ import annotations

import json

import click

from snpcerts.cli.mirror.operator_access import MIRROR, TOKEN_FILE, operators_client, unreadable
from snpcerts.cli.say import present, say


@click.command(short_help="Remove hosts from the mirror's page.")
@click.argument("hosts", nargs=-1, required=True, metavar="HOST...")
@MIRROR
@TOKEN_FILE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def forget(hosts: tuple[str, ...], url: str, token_file: str | None, as_json: bool) -> None:
    """Remove hosts from the mirror's page, each named by its name or chip ID.

    A host with a certificate or token of its own keeps the first chip that it announced, and no
    other host can announce this chip. After 'forget', both are free again: use it when a processor
    moves to another host, when a host gets a new one, and when a host is gone for good. The
    certificates stay. A host that still runs comes back with its next announcement.
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
