# SPDX-License-Identifier: Apache-2.0
"""``snpcerts mirror export`` and ``import``: write a mirror's certificates to a directory, and read
such a directory.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from snpcerts.abi.product import Product
from snpcerts.cli.files import make_directory
from snpcerts.cli.mirror.serve import DATABASE, imported
from snpcerts.cli.product_option import product_option
from snpcerts.cli.say import counted, say, say_line
from snpcerts.cli.source_options import ANCHOR, anchors_of
from snpcerts.errors import InputError

_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")


@click.command(short_help="Write all stored certificates and revocation lists into DIR.")
@DATABASE
@product_option("Export only this product's files. [default: those of all products]")
@_JSON
@click.argument("directory", metavar="DIR")
def export(database: str, product: Product | None, as_json: bool, directory: str) -> None:
    """Write all stored certificates, chains and revocation lists into DIR.

    Both 'snpcerts mirror import' and 'snpcerts kds --cache DIR' can read DIR. The Trustee verifier
    can use DIR/vcek as its offline store.
    """
    imported("snpcerts.mirror.database")
    from snpcerts.mirror import archive
    from snpcerts.mirror.database import MirrorDatabase

    make_directory(directory)
    opened = MirrorDatabase(database)
    try:
        opened.check()
        count = archive.export(opened, Path(directory), product=product)
    finally:
        opened.close()
    if as_json:
        say(json.dumps({"directory": directory, "files": count}, indent=2))
    else:
        say_line(f"{directory}: {counted(count, 'file')}")


@click.command("import", short_help="Verify the files in DIR, and store those that pass.")
@DATABASE
@ANCHOR
@_JSON
@click.argument("directory", metavar="DIR")
def import_(database: str, anchors: tuple[str, ...], as_json: bool, directory: str) -> None:
    """Verify the certificates and revocation lists in DIR, and store those that pass.

    DIR is a directory that 'snpcerts mirror export' wrote, or a cache. Exit codes: 0 everything was
    stored, 1 a file was refused or nothing was found, 2 wrong usage or DIR is not a directory.
    """
    imported("snpcerts.mirror.database")
    from snpcerts.mirror import archive
    from snpcerts.mirror.admission import Admission
    from snpcerts.mirror.database import MirrorDatabase

    if not Path(directory).is_dir():
        raise InputError(
            f"{directory}: expected a directory, found none",
            hint="give the directory that 'snpcerts mirror export' wrote",
        )
    admission = Admission(anchors_of(anchors))
    opened = MirrorDatabase(database)
    try:
        opened.prepare()
        found = list(archive.import_archive(opened, Path(directory), admission))
    finally:
        opened.close()
    refused = [each for each in found if each.problem is not None]
    if as_json:
        files = [
            {"file": each.place, "stored": each.problem is None, "problem": each.problem}
            for each in found
        ]
        say(json.dumps({"directory": directory, "files": files}, indent=2))
    else:
        for each in refused:
            say_line(f"{each.place}: refused: {each.problem}")
        say_line(f"{directory}: {len(found) - len(refused)} stored, {len(refused)} refused")
    if refused or not found:
        click.get_current_context().exit(1)
