# SPDX-License-Identifier: Apache-2.0
"""``snpcerts policy``: policies for ``snpcerts verify --policy``, and reference values for other
verifiers.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from snpcerts.abi.product import Product, product_of_keyword
from snpcerts.cli.bulletin_age import warn_if_old
from snpcerts.cli.files import read_input, write_output
from snpcerts.cli.product_option import ProductName
from snpcerts.cli.say import present, say

if TYPE_CHECKING:
    from snpcerts.verify.bulletins import Bulletin, BulletinData
    from snpcerts.verify.policy import Policy
    from snpcerts.verify.reference_values import ReferenceValues


@click.group()
def command() -> None:
    """Write policies from AMD's security bulletins, and reference values from policies."""


@command.command()
@click.option(
    "--bulletin",
    "names",
    multiple=True,
    metavar="NAME",
    help=(
        "Require the fixes for this bulletin (such as AMD-SB-3023) or attack (such as "
        "EntrySign). May be given several times. [default: all bulletins]"
    ),
)
@click.option(
    "--product",
    "products",
    multiple=True,
    type=ProductName(),
    help="Product to accept. May be given several times. [default: all products]",
)
@click.option(
    "--unconfirmed", is_flag=True, help="Also require values that only one public source confirms."
)
def floors(names: tuple[str, ...], products: tuple[str, ...], unconfirmed: bool) -> None:
    """Print a policy that requires the fixes of security bulletins.

    The policy lists the accepted products, a floor for each processor, and the report bits that
    show a mitigation. It refuses processors without a floor. Redirect the policy to a file, add
    report_data and measurements, and pass the file to 'snpcerts verify --policy'.

    Without --bulletin, the policy requires the fixes of all bulletins, except those that require a
    report bit that not every accepted product has. AMD-SB-3045, which rules out Milan, applies only
    if --bulletin names it.
    """
    from snpcerts.verify.bulletins import bulletin_data, policy_text

    data = bulletin_data()
    warn_if_old()
    accepted = [product_of_keyword(name) for name in products] or Product
    found = [product for product in accepted if product is not None and product.is_pinned]
    chosen = [data.find(name) for name in names] or [
        bulletin
        for bulletin in data.bulletins
        if (bulletin.floors or bulletin.required)
        and (not bulletin.required or set(found) <= bulletin.products)
    ]
    say(policy_text(chosen, found, unconfirmed=unconfirmed).rstrip("\n"))


@command.command(short_help="List the bulletins, their values and their sources.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def bulletins(as_json: bool) -> None:
    """List AMD's security bulletins, the values that they require, and the public sources of each
    value.
    """
    from snpcerts.verify.bulletins import bulletin_data

    data = bulletin_data()
    warn_if_old()
    if as_json:
        say(json.dumps(_as_json(data), indent=2))
        return
    present(f"as of {data.date}")
    for bulletin in data.bulletins:
        present(f"\n{bulletin.name}  {', '.join(bulletin.cves)}".rstrip())
        for floor in bulletin.floors:
            note = "" if floor.confirmed else "  (one source only)"
            present(
                f"  {', '.join(floor.processors)}: {floor.component} at least "
                f"{floor.value} ({floor.value:#04x})  [{', '.join(floor.sources)}]{note}"
            )
        for bit in bulletin.required:
            asked = f"{bit.key} = {str(bit.value).lower()}"
            present(f"  {asked}  [{', '.join(bit.sources)}]")
        for product in sorted(bulletin.refused, key=lambda each: each.value):
            present(f"  products must not contain {product.keyword}")
        if bulletin.gaps:
            present(f"  {bulletin.gaps}")
    present("\nAttacks that no field of a report shows:")
    for each in data.inexpressible:
        present(f"  {', '.join(each.attacks)}: {each.why}")
    present("\nSources")
    for name, text in data.sources.items():
        present(f"  {name}: {text}")


def _as_json(data: BulletinData) -> dict[str, Any]:
    return {
        "date": data.date.isoformat(),
        "bulletins": [_bulletin_json(bulletin) for bulletin in data.bulletins],
        "inexpressible": [
            {"attacks": list(each.attacks), "why": each.why} for each in data.inexpressible
        ],
        "sources": dict(data.sources),
    }


def _bulletin_json(bulletin: Bulletin) -> dict[str, Any]:
    return {
        "id": bulletin.id,
        "attacks": list(bulletin.attacks),
        "cves": list(bulletin.cves),
        "floors": [
            {
                "processors": list(floor.processors),
                "component": floor.component,
                "value": floor.value,
                "sources": list(floor.sources),
                "confirmed": floor.confirmed,
            }
            for floor in bulletin.floors
        ],
        "required": [
            {"key": bit.key, "value": bit.value, "sources": list(bit.sources)}
            for bit in bulletin.required
        ],
        "refused": sorted(product.keyword for product in bulletin.refused),
        "gaps": bulletin.gaps,
    }


def _reference_options(function: Any) -> Any:
    for option in (
        click.option(
            "--product",
            "keyword",
            type=click.Choice([product.keyword for product in Product], case_sensitive=False),
            help=(
                "Write the floor for this product. Needed only if the policy has floors for "
                "several products."
            ),
        ),
        click.option(
            "-o",
            "--output",
            metavar="FILE",
            required=True,
            help="File to write the reference values to; - is standard output.",
        ),
        click.argument("policy"),
    ):
        function = option(function)
    return function


@command.command()
@_reference_options
def rvps(policy: str, output: str, keyword: str | None) -> None:
    """Write a policy's reference values for Trustee's RVPS.

    The file is a message of type 'sample' for 'rvps-tool register', with the names that Trustee's
    default policy uses. Standard error lists the policy's demands that the file cannot express.
    """
    from snpcerts.verify.reference_values import rvps_message

    _write_values(rvps_message(_policy(policy), _product(keyword)), output)


@command.command(short_help="Write a policy's reference values as a CoRIM.")
@_reference_options
def corim(policy: str, output: str, keyword: str | None) -> None:
    """Write a policy's reference values as a CoRIM with AMD's SEV-SNP profile.

    The file is an unsigned CoRIM for Veraison. The policy must list measurements. Standard error
    lists the policy's demands that a CoRIM cannot express.
    """
    from snpcerts.verify.reference_values import corim as corim_of

    _write_values(corim_of(_policy(policy), _product(keyword)), output)


def _policy(path: str) -> Policy:
    from snpcerts.verify.policy_file import read_policy

    return read_policy(read_input(path))


def _product(keyword: str | None) -> Product | None:
    return None if keyword is None else product_of_keyword(keyword.lower())


def _write_values(values: ReferenceValues, output: str) -> None:
    if values.left_out:
        say(f"snpcerts: the file cannot express: {', '.join(values.left_out)}", err=True)
    if output == "-":
        sys.stdout.buffer.write(values.data)
    else:
        write_output(output, values.data)
