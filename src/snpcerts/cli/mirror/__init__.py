# SPDX-License-Identifier: Apache-2.0
"""``snpcerts mirror``: one key server for a fleet.

``serve``, ``roll`` and ``forget`` have the commands with these names; ``archives`` has ``export``
and ``import``; ``operator_access`` has the options of the commands that call a mirror. Imports
``cli``, ``mirror``, ``kds`` and ``abi``.
"""

from __future__ import annotations

import click

from snpcerts.cli.mirror.archives import export, import_
from snpcerts.cli.mirror.forget import forget
from snpcerts.cli.mirror.roll import roll
from snpcerts.cli.mirror.serve import serve


@click.group()
def command() -> None:
    """Mirror AMD's key server for a fleet of hosts, and request each certificate only once.

    AMD's server gives each client address about one VCEK certificate every ten seconds. The mirror
    keeps to this pace on behalf of all its hosts, stores the certificates that verify, and serves
    them at the paths that AMD's server uses.
    """


for _each in (serve, roll, forget, export, import_):
    command.add_command(_each)
