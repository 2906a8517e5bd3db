# SPDX-License-Identifier: Apache-2.0
"""``snpcerts mirror roll``: announce new firmware to a mirror."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import click

from snpcerts.cli.files import read_input
from snpcerts.cli.mirror.operator_access import MIRROR, TOKEN_FILE, operators_client, unreadable
from snpcerts.cli.product_option import product_option
from snpcerts.cli.say import present, say
from snpcerts.cli.tcb_components import METAVAR
from snpcerts.errors import InputError, UsageError


@click.command(short_help="Announce firmware before it is installed.")
@click.option(
    "--tcb",
    metavar=METAVAR,
    required=True,
    help="TCB that the hosts will report.",
)
@product_option(
    "Product of the hosts. [default: the only product whose TCB has the components in --tcb]"
)
@click.option(
    "--hosts",
    metavar="FILE",
    help=(
        "File that lists the hosts, one name or chip ID per line; - is standard input. [default: "
        "all hosts with this product]"
    ),
)
@MIRROR
@TOKEN_FILE
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def roll(
    tcb: str,
    product: object,
    hosts: str | None,
    url: str,
    token_file: str | None,
    as_json: bool,
) -> None:
    """Announce new firmware before hosts install it, so that the mirror fetches the certificates in
    time.

    The command prints how many certificates the mirror already stores, how many are queued, and
    when the last one will arrive. The mirror's page shows the progress. The command changes nothing
    on the hosts: commit the firmware on each of them afterwards, for example with 'snpcerts host
    commit --wait-for-mirror'.
    """
    from snpcerts.abi.product import Product
    from snpcerts.abi.tcb import TcbVersion

    target = TcbVersion.parse(tcb, product.tcb_layout if isinstance(product, Product) else None)
    if not isinstance(product, Product):
        fitting = [each for each in Product if each.tcb_layout is target.layout]
        if len(fitting) != 1:
            names = " or ".join(each.keyword for each in fitting)
            raise UsageError(
                f"--tcb {tcb}: more than one product has a TCB with these components: {names}",
                hint="choose the product with --product",
            )
        product = fitting[0]
    answer = operators_client(url, token_file).call(
        "POST",
        "rolls",
        {
            "product": product.value,
            "tcb": target.components(),
            "hosts": None if hosts is None else _named(hosts),
        },
    )
    found = _read(answer)
    if as_json:
        say(json.dumps(found))
        return
    present(f"roll {found['roll']}: {product.value} to {target}, {_count(found['hosts'], 'host')}")
    present(f"  stored already  {_count(found['stored'], 'certificate')}")
    present(f"  to fetch        {_count(found['queued'], 'certificate')}")
    if found["queued"]:
        from snpcerts.mirror.fleet_view import span

        done = datetime.fromisoformat(found["done_at"])
        wait = span(timedelta(seconds=found["wait_seconds"]))
        present(f"  the last one    in {wait}, at {done:%Y-%m-%d %H:%M} UTC")
    else:
        present("  all certificates are stored, so every host can commit now")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _named(path: str) -> list[str]:
    """Return the host names and chip IDs in a file, which may have empty lines and comments."""
    from snpcerts.mirror.announcement import MAX_HOSTS

    try:
        text = read_input(path).decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected UTF-8 text, found other bytes") from None
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    names = [line for line in lines if line]
    if not names:
        raise InputError(
            f"{path}: expected a list of hosts, found no host",
            hint="write one name or chip ID on each line",
        )
    if len(names) > MAX_HOSTS:
        raise InputError(f"{path}: expected at most {MAX_HOSTS} hosts, found {len(names)}")
    return names


def _read(answer: bytes) -> dict[str, Any]:
    try:
        found = json.loads(answer)
        counts = ("roll", "hosts", "stored", "queued")
        right = all(isinstance(found[name], int) for name in counts)
        right = right and 0 <= float(found["wait_seconds"]) < 1e9
        right = right and datetime.fromisoformat(found["done_at"]) is not None
    except (ValueError, KeyError, TypeError, RecursionError):
        right = False
    if not right:
        raise unreadable()
    return dict(found)
